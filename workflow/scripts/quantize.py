"""Quantize an ONNX model to int8: a source model, or a re-engineered one if the metrics of its search are an input."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.calibration import quantize_reengineered, quantize_source
    from seam.log import job_log
    from seam.memory import use_threads

    with job_log(snakemake.log[0]):
        use_threads(1)
        files = snakemake.input.model, snakemake.output.model, Path(snakemake.input.manifest).parent
        if "metrics" in snakemake.input.keys():  # noqa: SIM118 (not a dictionary)
            quantize_reengineered(*files, snakemake.input.metrics)
        else:
            quantize_source(*files, snakemake.params.seed)
