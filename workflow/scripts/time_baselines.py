"""Time a source model, the result of a search of channels and its baselines in ONNX Runtime, in turn."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.latency import time_models
    from seam.cost.runners.onnx_runtime import open_engine
    from seam.files import check_onnx_seal, write_json
    from seam.log import job_log

    with job_log(snakemake.log[0]):
        baselines = {Path(path).parent.name: path for path in snakemake.input.baselines}
        models = {"source": snakemake.input.source, "search": snakemake.input.search, **baselines}
        for path in models.values():
            check_onnx_seal(path)
        latency = time_models("onnxruntime", open_engine, models, snakemake.threads, **snakemake.params.timing)
        write_json(snakemake.output.latency, latency)
