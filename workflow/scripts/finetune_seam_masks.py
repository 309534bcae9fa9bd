"""SeaM, step 2: search which weights to remove, at each threshold of the study."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.reuse.threshold_search import search_masks

    with job_log(snakemake.log[0]):
        use_threads(1)
        search_masks(
            folder=Path(snakemake.output.masks).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.wildcards,
            **snakemake.params.settings,
        )
