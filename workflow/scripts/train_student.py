"""Train a student: fine-tuned from a source model, whole or masked, or retrained from random weights."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.outputs import staged
    from seam.reuse.students import train_student

    with job_log(snakemake.log[0]), staged(snakemake.output) as staging:
        use_threads(1)
        train_student(
            folder=staging(snakemake.output.weights).parent,
            model_folder=Path(snakemake.input.weights).parent,
            dataset_folder=Path(snakemake.input.manifest).parent,
            model=snakemake.wildcards.model,
            dataset=snakemake.wildcards.dataset,
            masks=snakemake.input.get("masks"),
            device=snakemake.params.device,
            checkpoint=snakemake.params.checkpoint,
            **snakemake.params.student,
            **snakemake.params.settings,
        )
