"""Make the report: one page in HTML that needs no other file."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.report.page import write_report

    with job_log(snakemake.log[0]):
        files = snakemake.input
        tables = {Path(path).stem.removeprefix("direct_"): path for path in files.tables}
        figures = {Path(path).stem: path for path in files.figures}
        write_report(snakemake.output.page, tables, figures, snakemake.params.run)
