"""Fetch a source model's published weights, or read a local file, into the workflow's own format."""

if "snakemake" in globals():
    from seam.log import job_log
    from seam.models.published import fetch_weights

    with job_log(snakemake.log[0]):
        fetch_weights(path=snakemake.output.weights, **snakemake.params.source)
