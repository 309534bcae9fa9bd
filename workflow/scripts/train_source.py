"""Train a source model on its data set."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.source_training import train_source

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(2)
        train_source(
            staging(snakemake.output.weights),
            staging(snakemake.output.history),
            snakemake.wildcards.model,
            Path(snakemake.input.manifest).parent,
            snakemake.params.settings,
            snakemake.params.device,
            snakemake.params.checkpoint,
        )
