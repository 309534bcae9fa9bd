"""Search the masks and the head of a target problem, or of several that one job searches in a stack."""

if "snakemake" in globals():
    from seam.log import job_log
    from seam.memory import use_threads
    from seam.reuse.direct import reengineer_all

    with job_log(snakemake.log[0]):
        use_threads(1)
        reengineer_all(snakemake.params.searches, snakemake.params.device)
