"""Judge a source model on the test images of its own data set."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.reuse.source_evaluation import evaluate_source

    with job_log(snakemake.log[0]):
        use_threads(2)
        evaluate_source(
            snakemake.output.metrics,
            snakemake.wildcards.model,
            snakemake.input.weights,
            Path(snakemake.input.manifest).parent,
            snakemake.params.settings,
            snakemake.params.device,
        )
