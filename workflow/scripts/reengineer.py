"""Search one target problem's masks and head, and keep the selected epoch's."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job

    together = snakemake.params.together
    own = {
        "folder": str(Path(snakemake.output.metrics).parent),
        "model_folder": str(Path(snakemake.input.weights).parent),
        "dataset_folder": str(Path(snakemake.input.manifest).parent),
        "checkpoint": snakemake.params.checkpoint,
        **snakemake.wildcards,
        **snakemake.params.job,
    }
    with job(snakemake.log[0], torch_threads=None if together["most"] > 1 else 1):
        if together["most"] > 1:
            from seam.together import Targets

            targets = Targets(together["planned"], snakemake.params.device, snakemake.input.modules)
            targets.search(own, together["most"])
        else:
            from seam.reengineer import reengineer

            reengineer(**own, device=snakemake.params.device)
