"""Draw the accuracy of searches of channels and their baselines against their latency."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.log import job_log
    from seam.report.latency_figures import figures_of_file
    from seam.report.style import save_all

    with job_log(snakemake.log[0]):
        save_all(figures_of_file(snakemake.input.baselines), snakemake.output)
