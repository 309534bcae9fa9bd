"""SeaM, step 2: search which weights to remove, at each threshold of the study."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    import shutil
    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.threshold_search import search_masks

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        shutil.copy(snakemake.input.head, staging(snakemake.output.masks).parent)  # it is read from there
        search_masks(
            folder=staging(snakemake.output.masks).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.wildcards,
            **snakemake.params.settings,
        )
