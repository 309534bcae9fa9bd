"""Collect the results of all baselines beside those of the search, and compare them."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.log import job_log
    from seam.report.baselines import write_tables

    with job_log(snakemake.log[0]):
        write_tables(
            snakemake.output.baselines,
            snakemake.output.comparison,
            snakemake.input.baselines,
            snakemake.input.searches,
            snakemake.input.recovery,
            snakemake.input.latency,
        )
