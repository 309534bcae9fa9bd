"""Turn a data set's images into arrays that every later job maps into its memory."""

if "snakemake" in globals():
    from pathlib import Path

    from seam import data
    from seam.progress import job

    with job(snakemake.log[0]):
        data.prepare(snakemake.params.entry, Path(snakemake.output.manifest).parent, workers=snakemake.threads)
