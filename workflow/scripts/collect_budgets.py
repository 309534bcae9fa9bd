"""Collect the times of all models with a budget of time."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.log import job_log
    from seam.report.budgets import write_budgets

    with job_log(snakemake.log[0]):
        write_budgets(snakemake.output.budgets, snakemake.input.budgets)
