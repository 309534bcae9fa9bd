"""Fetch a source model's published weights, or read a local file, into the workflow's own format."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.log import job_log
    from seam.models.published import fetch_weights
    from seam.outputs import staged

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        fetch_weights(path=staging(snakemake.output.weights), **snakemake.params.source)
