# Direct reuse: one search per target problem, or per stack of target problems that a GPU searches in one pass.

if config["stack"] == 1:

    rule reengineer:
        input:
            manifest=manifest_of,
            arrays=ancient(arrays_of),
            weights="results/models/{model}/source.safetensors",
            layer_costs=layer_costs_of,
            modules=modules("reengineer.py"),
        output:
            masks=update("results/direct/{model}/{problem}/{target}/masks.safetensors"),
            history=update("results/direct/{model}/{problem}/{target}/history.csv"),
            metrics=update("results/direct/{model}/{problem}/{target}/metrics.json"),
        log:
            "results/logs/reengineer/{model}/{problem}/{target}.log",
        benchmark:
            "results/benchmarks/reengineer/{model}/{problem}/{target}.tsv"
        priority: 1  # the longest jobs start first; short ones fill the gaps
        conda:
            "../../envs/seam.yaml"
        threads: decoding(1)
        resources:
            mem_mb=memory(6000, large=24000),
            runtime=minutes(720),
            gpu=gpu,
        params:
            searches=searches,
            torch=versions("torch"),
            device=device,
        message:
            "Re-engineering {wildcards.model} for the {wildcards.problem} problem {wildcards.target}"
        script:
            "../scripts/reengineer.py"

else:
    for NUMBER, STACK in enumerate(plan.stacks(PROBLEMS, config["stack"])):

        rule:
            name:
                f"reengineer_stack_{NUMBER}"
            input:
                manifest=f"results/datasets/{STACK[0].dataset}/dataset.json",
                arrays=ancient(f"results/datasets/{STACK[0].dataset}/arrays"),
                weights=f"results/models/{STACK[0].model}/source.safetensors",
                layer_costs=layer_costs(STACK[0]),
                modules=modules("reengineer.py"),
            output:
                [
                    update(f"results/direct/{p.model}/{p.problem}/{p.target}/{name}")
                    for p in STACK
                    for name in SEARCH_FILES
                ],
            log:
                f"results/logs/reengineer/{STACK[0].model}/{STACK[0].problem}/stack_{NUMBER}.log",
            benchmark:
                f"results/benchmarks/reengineer/{STACK[0].model}/{STACK[0].problem}/stack_{NUMBER}.tsv"
            priority: 1
            conda:
                "../../envs/seam.yaml"
            threads: decoding(1, STACK[0].dataset)
            resources:
                mem_mb=memory(6000, large=24000, dataset=STACK[0].dataset),
                runtime=minutes(720),
                gpu=gpu,
            params:
                searches=[search_arguments(problem) for problem in STACK],
                torch=versions("torch"),
                device=device,
            message:
                f"Re-engineering {STACK[0].model} for {len(STACK)} {STACK[0].problem} problems"
            script:
                "../scripts/reengineer.py"


rule recover:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        weights="results/models/{model}/source.safetensors",
        masks="results/direct/{model}/{problem}/{target}/masks.safetensors",
        searched="results/direct/{model}/{problem}/{target}/metrics.json",
        modules=modules("recover.py"),
    output:
        weights=update("results/direct/{model}/{problem}/{target}/recovered.safetensors"),
        history=update("results/direct/{model}/{problem}/{target}/recovery.csv"),
        metrics=update("results/direct/{model}/{problem}/{target}/recovery.json"),
    log:
        "results/logs/recover/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/recover/{model}/{problem}/{target}.tsv"
    priority: 1
    conda:
        "../../envs/seam.yaml"
    threads: decoding(1)
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        recovery=recovery_arguments,
        torch=versions("torch"),
        device=device,
    message:
        "Recovering {wildcards.model}, {wildcards.problem} {wildcards.target}"
    script:
        "../scripts/recover.py"
