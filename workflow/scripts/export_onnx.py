"""Export a re-engineered model, head included, to ONNX."""

if "snakemake" in globals():
    from pathlib import Path

    from seam import reengineer
    from seam.export import describe, export
    from seam.files import read_json
    from seam.progress import job

    with job(snakemake.log[0], torch_threads=1):
        model = reengineer.load(Path(snakemake.input.masks).parent, Path(snakemake.input.weights).parent)
        export(
            model,
            snakemake.output.model,
            (3, *read_json(snakemake.input.manifest)["size"]),
            about=describe(model.classes, model.normalization),
        )
