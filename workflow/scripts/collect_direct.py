"""Collect the results of direct reuse into one table per kind of target problem."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.log import job_log
    from seam.report.direct import write_tables

    with job_log(snakemake.log[0]):
        write_tables(
            {kind: snakemake.output[kind] for kind in ("binary", "multiclass", "latency")},
            snakemake.input.metrics,
            snakemake.input.macs,
            snakemake.input.latency,
            snakemake.input.models,
            snakemake.params.engines,
            snakemake.input.recovery,
            snakemake.input.int8,
        )
