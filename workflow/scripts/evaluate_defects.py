"""Measure the accuracy of a student, and how many of the source model's defects it inherits."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.reuse.defects import evaluate_defects

    with job_log(snakemake.log[0]):
        use_threads(1)
        evaluate_defects(
            folder=Path(snakemake.output.metrics).parent,
            attack_folder=Path(snakemake.input.attack).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            architecture=snakemake.params.architecture,
            adaptive=snakemake.params.adaptive > 0,
        )
