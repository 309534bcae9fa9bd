"""Perturb a data set's test images against a source model's features, once for all its students."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.reuse.defects import attack_source

    with job_log(snakemake.log[0]):
        use_threads(1)
        attack_source(
            folder=Path(snakemake.output.attack).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            device=snakemake.params.device,
            **snakemake.wildcards,
            **snakemake.params.settings,
        )
