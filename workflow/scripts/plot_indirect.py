"""Draw the figures of indirect reuse."""

if "snakemake" in globals():
    from seam.log import job_log
    from seam.report.indirect_figures import figures_of_files
    from seam.report.style import save_all

    with job_log(snakemake.log[0]):
        files = snakemake.input
        save_all(figures_of_files(files.indirect, files.thresholds, files.published), snakemake.output)
