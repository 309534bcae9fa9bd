"""Export a source model to ONNX, to be timed beside what is re-engineered from it."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.export import export, onnx_metadata
    from seam.files import read_json
    from seam.log import job_log
    from seam.memory import use_threads
    from seam.models.weights import open_source

    with job_log(snakemake.log[0]):
        use_threads(1)
        source = open_source(Path(snakemake.input.weights).parent, architecture=snakemake.params.architecture)
        export(
            source.module,
            snakemake.output.model,
            (3, *read_json(snakemake.input.manifest)["size"]),
            metadata=onnx_metadata(source.classes, source.normalization),
        )
