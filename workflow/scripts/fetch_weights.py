"""Fetch a source model's published weights, or read a local file, into the workflow's own format."""

if "snakemake" in globals():
    from seam import data
    from seam.models import fetch_weights
    from seam.progress import job

    with job(snakemake.log[0]):
        settings, entry = snakemake.params.settings, snakemake.params.entry
        normalization = settings["normalization"]
        fetch_weights(
            settings["architecture"],
            settings["weights"],
            entry["kind"],
            # Weights from elsewhere know all classes as a rule, also where the config asks for a subset.
            [data.classes({**entry, "classes": None}), data.classes(entry)],
            snakemake.output.weights,
            normalization and (normalization["mean"], normalization["std"]),
        )
