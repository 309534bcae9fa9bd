"""Accuracy of a student, and how many of the source model's defects it has inherited."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.progress import job
    from seam.transfer import evaluate_defects

    with job(snakemake.log[0], torch_threads=1):
        evaluate_defects(
            folder=Path(snakemake.output.metrics).parent,
            attack_folder=Path(snakemake.input.attack).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
        )
