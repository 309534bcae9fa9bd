"""SeaM, step 2: search which weights to remove, at each threshold of the study."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job
    from seam.transfer import search_masks

    with job(snakemake.log[0], torch_threads=1):
        search_masks(
            folder=Path(snakemake.output.masks).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.wildcards,
            **snakemake.params.job,
        )
