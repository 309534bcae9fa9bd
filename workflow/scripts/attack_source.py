"""Perturb a data set's test images against a source model's features, once for all its students."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job
    from seam.transfer import attack_source

    with job(snakemake.log[0], torch_threads=1):
        attack_source(
            folder=Path(snakemake.output.attack).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            **snakemake.wildcards,
            **snakemake.params.job,
        )
