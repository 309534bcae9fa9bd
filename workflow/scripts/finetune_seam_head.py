"""SeaM, step 1: train a new last layer on the source model as it is."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job
    from seam.transfer import train_head

    with job(snakemake.log[0], torch_threads=1):
        train_head(
            folder=Path(snakemake.output.head).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.wildcards,
            **snakemake.params.job,
        )
