"""Turn a data set's images into arrays that every later job maps into its memory."""

if "snakemake" in globals():
    from seam.process import start_job

    start_job()  # before the imports that take time

    from pathlib import Path

    from seam.data.kinds.registry import prepare_dataset
    from seam.log import job_log

    with job_log(snakemake.log[0]):
        prepare_dataset(snakemake.params.entry, Path(snakemake.output.manifest).parent, workers=snakemake.threads)
