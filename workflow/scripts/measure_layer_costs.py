"""Measure what each weight of a source model costs in the engine for zeros, for searches with a latency budget."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.layer_costs import write_layer_costs
    from seam.files import read_json
    from seam.log import job_log
    from seam.memory import use_threads
    from seam.models.weights import open_source

    with job_log(snakemake.log[0]):
        use_threads(1)
        source = open_source(Path(snakemake.input.weights).parent, architecture=snakemake.params.architecture)
        shape = (3, *read_json(snakemake.input.manifest)["size"])
        write_layer_costs(snakemake.output.costs, source.module, shape, int(snakemake.wildcards.batch))
