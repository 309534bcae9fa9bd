"""Export a re-engineered model, head included, to ONNX."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.cost.export import export, onnx_metadata
    from seam.files import read_json
    from seam.log import job_log
    from seam.memory import use_threads
    from seam.reuse.load import load_reengineered, remove_recovery

    with job_log(snakemake.log[0]):
        use_threads(1)
        source, architecture = Path(snakemake.input.weights).parent, snakemake.params.architecture
        folder, recovered = Path(snakemake.input.masks).parent, bool(snakemake.input.recovered)
        model = load_reengineered(folder, source, architecture, recovered)
        export(
            model,
            snakemake.output.model,
            (3, *read_json(snakemake.input.manifest)["size"]),
            metadata=onnx_metadata(model.classes, model.normalization),
        )
        if not recovered and snakemake.wildcards.get("baseline") is None:
            remove_recovery(folder)
