"""Export a source model to ONNX, to be timed beside what is re-engineered from it."""

if "snakemake" in globals():
    from pathlib import Path

    from seam import models
    from seam.export import describe, export
    from seam.files import read_json
    from seam.progress import job

    with job(snakemake.log[0], torch_threads=1):
        source = models.open(Path(snakemake.input.weights).parent)
        export(
            source.module,
            snakemake.output.model,
            (3, *read_json(snakemake.input.manifest)["size"]),
            about=describe(source.classes, source.normalization),
        )
