"""Draw the figures of direct reuse."""

if "snakemake" in globals():
    from seam.log import job_log
    from seam.report.direct_figures import draw
    from seam.report.style import save_all

    with job_log(snakemake.log[0]):
        found = snakemake.input
        save_all(draw(found.binary, found.multiclass, found.histories, found.published), snakemake.output)
