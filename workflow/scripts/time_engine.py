"""Time a source model and a re-engineered one in an engine of the main environment."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.cost.engines import ENGINES
    from seam.cost.latency import time_models
    from seam.cost.runners.registry import find_engine
    from seam.files import check_onnx_seal, write_json
    from seam.log import job_log

    with job_log(snakemake.log[0]):
        name = snakemake.wildcards.engine
        models = {model: snakemake.input[model] for model in ("source", "reengineered")}
        for path in models.values():
            check_onnx_seal(path)
        facts = {"gains_from_zeros": ENGINES[name].gains_from_zeros, "exact": not ENGINES[name].int8}
        timing = snakemake.params.timing
        latency = time_models(name, find_engine(name), models, snakemake.threads, **timing, **facts)
        write_json(snakemake.output.latency, latency)
