"""Search the masks and the head of a target problem, or of several that one job searches in a stack."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.direct import reengineer_all

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        searches = [
            {**search, "folder": staging(Path(search["folder"], "masks.safetensors")).parent}
            for search in snakemake.params.searches
        ]
        reengineer_all(searches, snakemake.params.device)
