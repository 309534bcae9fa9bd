"""Train a re-engineered model after its search."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.recovery import recover

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        folder = staging(snakemake.output.weights).parent
        recover(folder=folder, device=snakemake.params.device, **snakemake.params.recovery)
