"""Train a baseline of a target problem: what is reached without a search, at its retention and in as many epochs."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.baselines import train_baseline

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        train_baseline(
            baseline=snakemake.params.baseline,
            search_folder=Path(snakemake.input.masks).parent,
            device=snakemake.params.device,
            **{
                **snakemake.params.search,
                **snakemake.params.training,
                "folder": staging(snakemake.output.metrics).parent,
                "checkpoint": snakemake.params.checkpoint,
            },
        )
