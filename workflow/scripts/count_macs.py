"""Count the multiply-accumulates of a source model and of what was re-engineered from it."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.macs import write_macs
    from seam.files import read_json
    from seam.log import job_log
    from seam.models.weights import open_source
    from seam.reuse.load import load_reengineered

    with job_log(snakemake.log[0]):
        source, architecture = Path(snakemake.input.weights).parent, snakemake.params.architecture
        recovered = bool(snakemake.input.recovered)
        write_macs(
            snakemake.output.macs,
            open_source(source, architecture=architecture).module,
            load_reengineered(Path(snakemake.input.masks).parent, source, architecture, recovered),
            (3, *read_json(snakemake.input.manifest)["size"]),
            snakemake.input.masks,
        )
