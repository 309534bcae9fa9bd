# How long a run will take, said before it is started.


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
        limits=limits(),
        device=device,
    message:
        "Estimating how long all of it will take"
    script:
        "../scripts/estimate.py"
