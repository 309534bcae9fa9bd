# Source models: train or fetch them, and evaluate them on their own data.


rule train_source:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        files=model_files,
        modules=modules("train_source.py"),
    output:
        weights="results/models/{model}/source.safetensors",
        history="results/models/{model}/training.csv",
    log:
        "results/logs/train_source/{model}.log",
    benchmark:
        "results/benchmarks/train_source/{model}.tsv"
    wildcard_constraints:
        model=one_of(TRAINED),
    priority: 1  # searches and students wait for it
    conda:
        "../../envs/seam.yaml"
    threads: decoding(2)
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        settings=model_settings,
        checkpoint="results/checkpoints/train_source/{model}.pt",
        device=device,
    message:
        "Training the source model {wildcards.model}"
    script:
        "../scripts/train_source.py"


rule fetch_weights:
    input:
        files=model_files,
        modules=modules("fetch_weights.py"),
    output:
        weights="results/models/{model}/source.safetensors",
    log:
        "results/logs/fetch_weights/{model}.log",
    benchmark:
        "results/benchmarks/fetch_weights/{model}.tsv"
    wildcard_constraints:
        model=one_of(FETCHED),
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(3000),
        runtime=minutes(60),
    params:
        source=source_weights,
    message:
        "Fetching the weights of {wildcards.model}"
    script:
        "../scripts/fetch_weights.py"


rule evaluate_source:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        weights="results/models/{model}/source.safetensors",
        modules=modules("evaluate_source.py"),
    output:
        metrics="results/models/{model}/metrics.json",
    log:
        "results/logs/evaluate_source/{model}.log",
    benchmark:
        "results/benchmarks/evaluate_source/{model}.tsv"
    conda:
        "../../envs/seam.yaml"
    threads: decoding(2)
    resources:
        mem_mb=memory(4000, large=12000),
        runtime=minutes(60),
        gpu=gpu,
    params:
        settings=model_settings,
        device=device,
    message:
        "Evaluating the source model {wildcards.model}"
    script:
        "../scripts/evaluate_source.py"
