"""Print how many CPU hours a run takes, stage by stage, before it is started."""

if "snakemake" in globals():
    from seam.log import job_log, log
    from seam.planning.estimate import estimate, read_plan
    from seam.planning.work import Inventory

    with job_log(snakemake.log[0]):
        text = estimate(
            read_plan(snakemake.params.command, snakemake.params.plan),
            Inventory(snakemake.params.models, snakemake.params.datasets),
            snakemake.params.device,
            snakemake.threads,
        )
        log.info("\n%s", text)
        print(f"\n{text}\n", flush=True)
