"""SeaM, step 1: train a new last layer on the source model's features."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.students import train_head

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        train_head(
            folder=staging(snakemake.output.head).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.wildcards,
            **snakemake.params.settings,
        )
