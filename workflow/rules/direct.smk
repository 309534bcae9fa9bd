# Direct reuse: one search per target problem.


onstart:
    if config["together"] > 1:
        write_planned_searches()


rule reengineer:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        weights="results/models/{model}/source.safetensors",
        modules=modules("reengineer.py"),
    output:
        masks="results/direct/{model}/{problem}/{target}/masks.safetensors",
        history="results/direct/{model}/{problem}/{target}/history.csv",
        metrics="results/direct/{model}/{problem}/{target}/metrics.json",
    log:
        "results/logs/reengineer/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/reengineer/{model}/{problem}/{target}.tsv"
    priority: 1  # the longest jobs first, others fill the gaps
    conda:
        "../../envs/seam.yaml"
    threads: decoding(1)
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        job=search_settings,
        checkpoint="results/checkpoints/reengineer/{model}/{problem}/{target}.pt",
        device=device,
        together=together,
    message:
        "Re-engineering {wildcards.model} for the {wildcards.problem} problem {wildcards.target}"
    script:
        "../scripts/reengineer.py"
