"""Train a source model on its data set."""

if "snakemake" in globals():
    from pathlib import Path

    from seam.log import job_log
    from seam.memory import use_threads
    from seam.reuse.source_training import train_source

    with job_log(snakemake.log[0]):
        use_threads(2)
        train_source(
            snakemake.output.weights,
            snakemake.output.history,
            snakemake.wildcards.model,
            Path(snakemake.input.manifest).parent,
            snakemake.params.settings,
            snakemake.params.device,
            snakemake.params.checkpoint,
        )
