"""Time a source model and a re-engineered one in ONNX Runtime."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.cost.latency import time_models
    from seam.files import check_onnx_seal, write_json
    from seam.log import job_log

    with job_log(snakemake.log[0]):
        models = {"source": snakemake.input.source, "reengineered": snakemake.input.reengineered}
        for path in models.values():
            check_onnx_seal(path)
        latency = time_models("onnxruntime", models, snakemake.threads, **snakemake.params.timing)
        write_json(snakemake.output.latency, latency)
