"""Draw the figures of direct reuse."""

if "snakemake" in globals():
    from seam.log import job_log
    from seam.report.direct_figures import figures_of_files
    from seam.report.style import save_all

    with job_log(snakemake.log[0]):
        files = snakemake.input
        save_all(figures_of_files(files.binary, files.multiclass, files.histories, files.published), snakemake.output)
