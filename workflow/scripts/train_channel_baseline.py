"""Train a baseline of a search of channels: at equal MACs and in equal training time."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.channel_baselines import train_channel_baseline

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        train_channel_baseline(
            search_folder=Path(snakemake.input.masks).parent,
            device=snakemake.params.device,
            **{**snakemake.params.search, "folder": staging(snakemake.output.metrics).parent},
        )
