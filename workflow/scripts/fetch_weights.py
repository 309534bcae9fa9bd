"""Fetch a source model's published weights, or read a local file, into the workflow's own format."""

if "snakemake" in globals():
    from seam import data
    from seam.models import fetch_weights
    from seam.progress import job

    with job(snakemake.log[0]):
        settings = snakemake.params.settings
        entry = settings["dataset_entry"]
        complete = {key: value for key, value in entry.items() if key != "classes"}
        fetch_weights(
            settings["architecture"],
            settings["weights"],
            entry["kind"],
            # Weights from elsewhere were usually trained on all classes, also where the config asks for a subset.
            [data.classes(complete), data.classes(entry)],
            snakemake.output.weights,
            settings["normalization"],
        )
