"""Search one target problem's masks and head, and keep the selected epoch's."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job
    from seam.reengineer import reengineer

    with job(snakemake.log[0], torch_threads=1):
        reengineer(
            folder=Path(snakemake.output.metrics).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.wildcards,
            **snakemake.params.job,
        )
