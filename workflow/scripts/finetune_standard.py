"""Fine-tune the whole source model on another data set: the student that inherits most."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job
    from seam.transfer import train_student

    with job(snakemake.log[0], torch_threads=1):
        train_student(
            folder=Path(snakemake.output.weights).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            student="standard",
            threshold=None,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.wildcards,
            **snakemake.params.job,
        )
