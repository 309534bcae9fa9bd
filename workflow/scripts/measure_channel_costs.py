"""Measure what the layers of a source model take in an engine with fewer channels, for a budget of time."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.channel_costs import write_channel_costs
    from seam.cost.runners.registry import find_engine
    from seam.files import read_json
    from seam.log import job_log
    from seam.memory import use_threads
    from seam.models.weights import open_source

    with job_log(snakemake.log[0]):
        use_threads(1)
        source = open_source(Path(snakemake.input.weights).parent, architecture=snakemake.params.architecture)
        shape = (3, *read_json(snakemake.input.manifest)["size"])
        wildcards = snakemake.wildcards
        write_channel_costs(
            snakemake.output.costs,
            source.module,
            shape,
            int(wildcards.batch),
            int(wildcards.multiple),
            wildcards.engine,
            find_engine(wildcards.engine),
        )
