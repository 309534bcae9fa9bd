"""Search one target problem's masks and head, and keep the selected epoch's."""

from pathlib import Path


def arguments(job):
    """Those of `seam.reengineer.reengineer`, but for the device: of a planned job of the rule, or of this one."""
    return {
        "folder": str(Path(job.output.metrics).parent),
        "model_folder": str(Path(job.input.weights).parent),
        "dataset_folder": str(Path(job.input.manifest).parent),
        "checkpoint": job.params.checkpoint,
        **dict(job.wildcards.items()),
        **job.params.job,
    }


if "snakemake" in globals():
    from seam.progress import job

    together = snakemake.params.together
    with job(snakemake.log[0], torch_threads=None if together["most"] > 1 else 1):
        if together["most"] > 1:
            from seam.together import Targets

            targets = Targets(together["planned"], snakemake.params.device, snakemake.input.modules)
            targets.search(arguments(snakemake), together["most"])
        else:
            from seam.reengineer import reengineer

            reengineer(**arguments(snakemake), device=snakemake.params.device)
