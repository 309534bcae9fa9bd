"""Time a re-engineered model with a budget of time, beside its source model, and say if it meets the budget."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from seam.cost.budget import time_budget
    from seam.cost.runners.registry import find_engine
    from seam.files import check_onnx_seal, read_json, write_json
    from seam.log import job_log

    with job_log(snakemake.log[0]):
        models = {model: snakemake.input[model] for model in ("source", "reengineered")}
        for path in models.values():
            check_onnx_seal(path)
        budget, metrics = snakemake.params.budget, read_json(snakemake.input.metrics)
        write_json(snakemake.output.latency, time_budget(budget, metrics, models, find_engine(budget["engine"])))
