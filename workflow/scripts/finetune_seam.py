"""SeaM, step 3: fine-tune what the masks leave of the source model; and likewise with masks for comparison."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job
    from seam.transfer import train_student

    with job(snakemake.log[0], torch_threads=1):
        train_student(
            folder=Path(snakemake.output.weights).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            model=snakemake.wildcards.model,
            dataset=snakemake.wildcards.dataset,
            student=snakemake.wildcards.student,
            threshold=float(snakemake.wildcards.threshold),
            masks=snakemake.input.masks,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.params.job,
        )
