# How many CPU hours a run takes, before it is started.


localrules:
    estimate,


rule estimate:
    log:
        "results/logs/estimate.log",
    conda:
        "../../envs/seam.yaml"
    threads: all_cores
    params:
        command=dry_run,
        plan=PLAN,
        models=config["models"],
        datasets=config["datasets"],
        device=device,
    message:
        "Estimating the CPU hours of all jobs"
    script:
        "../scripts/estimate.py"
