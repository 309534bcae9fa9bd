"""Train a baseline of a search of single weights as the search's result is trained in its recovery."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.recovered_baselines import recover_baseline

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        folder = staging(snakemake.output.metrics).parent
        recover_baseline(folder=folder, device=snakemake.params.device, **snakemake.params.recovery)
