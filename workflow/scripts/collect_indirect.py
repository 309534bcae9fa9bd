"""Collect the results of all students into one table, and those of the threshold study into another."""

if "snakemake" in globals():
    from seam.log import job_log
    from seam.report.indirect import write_tables

    with job_log(snakemake.log[0]):
        write_tables(
            snakemake.output.indirect,
            snakemake.output.thresholds,
            snakemake.input.training,
            snakemake.input.metrics,
            snakemake.input.published,
        )
