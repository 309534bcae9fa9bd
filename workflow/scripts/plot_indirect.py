"""Draw the figures of indirect reuse."""

if "snakemake" in globals():
    from seam.log import job_log
    from seam.report.indirect_figures import figures
    from seam.report.style import save_all
    from seam.report.tables import read_table

    with job_log(snakemake.log[0]):
        tables = (read_table(snakemake.input[name]) for name in ("indirect", "thresholds", "published"))
        save_all(figures(*tables), snakemake.output)
