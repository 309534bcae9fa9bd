"""Measure the accuracy of the quantized models of a target problem in an inference engine."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.accuracy import write_accuracy
    from seam.cost.runners.registry import find_engine
    from seam.log import job_log
    from seam.memory import use_threads

    with job_log(snakemake.log[0]):
        use_threads(1)
        write_accuracy(
            snakemake.output.accuracy,
            snakemake.wildcards.engine,
            find_engine(snakemake.wildcards.engine),
            {name: snakemake.input[name] for name in ("source", "reengineered")},
            Path(snakemake.input.manifest).parent,
            snakemake.input.metrics,
        )
