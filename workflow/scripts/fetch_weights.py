"""Fetch a source model's published weights, or read a local file, into the workflow's own format."""

if "snakemake" in globals():
    from seam import data
    from seam.models import fetch_weights, is_file
    from seam.progress import job

    with job(snakemake.log[0]):
        settings, entry = snakemake.params.settings, snakemake.params.entry
        normalization = settings["normalization"]
        every, chosen = data.classes({**entry, "classes": None}), data.classes(entry)
        # Published weights know all classes, in the data set's order, also where the config asks for a subset; the
        # outputs of a file of one's own are in the order that the config gives, if it gives one.
        fetch_weights(
            settings["architecture"],
            settings["weights"],
            entry["kind"],
            [chosen, every] if is_file(settings["weights"]) else [every],
            snakemake.output.weights,
            normalization and (normalization["mean"], normalization["std"]),
        )
