# Baselines of direct reuse: what is reached without a search, at the search's retention and in as many epochs.


localrules:
    collect_baselines,
    plot_baselines,
    plot_channel_baselines,


# The baselines of single weights that masks and a head describe, without a recovery.
WITH_MASKS = r"head|biases|(magnitude|random|activation|snip)(-overall)?"


rule train_baseline:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        weights="results/models/{model}/source.safetensors",
        masks="results/direct/{model}/{problem}/{target}/masks.safetensors",
        metrics="results/direct/{model}/{problem}/{target}/metrics.json",
        modules=modules("train_baseline.py"),
    output:
        masks=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}/masks.safetensors"
        ),
        history=update("results/direct/{model}/{problem}/{target}/baselines/{baseline}/history.csv"),
        metrics=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}/metrics.json"
        ),
    log:
        "results/logs/train_baseline/{model}/{problem}/{target}/{baseline}.log",
    benchmark:
        "results/benchmarks/train_baseline/{model}/{problem}/{target}/{baseline}.tsv"
    wildcard_constraints:
        baseline=WITH_MASKS,
    conda:
        "../../envs/seam.yaml"
    threads: decoding(1)
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        search=baseline_arguments,
        training={},
        baseline="{baseline}",
        checkpoint="results/checkpoints/train_baseline/{model}/{problem}/{target}/{baseline}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "Baseline {wildcards.baseline} of {wildcards.model} for the {wildcards.problem} problem {wildcards.target}"
    script:
        "../scripts/train_baseline.py"


# The baseline without the suffix comes first, as the search comes before its recovery.
rule recover_baseline:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        weights="results/models/{model}/source.safetensors",
        masks="results/direct/{model}/{problem}/{target}/baselines/{baseline}/masks.safetensors",
        metrics="results/direct/{model}/{problem}/{target}/baselines/{baseline}/metrics.json",
        modules=modules("recover_baseline.py"),
    output:
        masks=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}-recovered/masks.safetensors"
        ),
        weights=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}-recovered/recovered.safetensors"
        ),
        history=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}-recovered/history.csv"
        ),
        metrics=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}-recovered/metrics.json"
        ),
    log:
        "results/logs/recover_baseline/{model}/{problem}/{target}/{baseline}.log",
    benchmark:
        "results/benchmarks/recover_baseline/{model}/{problem}/{target}/{baseline}.tsv"
    wildcard_constraints:
        baseline=WITH_MASKS,
    conda:
        "../../envs/seam.yaml"
    threads: decoding(1)
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        recovery=baseline_recovery_arguments,
        torch=versions("torch"),
        device=device,
    message:
        "Recovering baseline {wildcards.baseline} of {wildcards.model}, {wildcards.problem} {wildcards.target}"
    script:
        "../scripts/recover_baseline.py"


# Its weights are not the source model's, so that masks alone would not describe it.
use rule train_baseline as train_scratch with:
    output:
        history=update("results/direct/{model}/{problem}/{target}/baselines/scratch/history.csv"),
        metrics=update("results/direct/{model}/{problem}/{target}/baselines/scratch/metrics.json"),
    log:
        "results/logs/train_scratch/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/train_scratch/{model}/{problem}/{target}.tsv"
    params:
        search=baseline_arguments,
        training=scratch_training,
        baseline="scratch",
        checkpoint="results/checkpoints/train_scratch/{model}/{problem}/{target}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "{wildcards.model}'s architecture from random weights for the {wildcards.problem} problem {wildcards.target}"


# Baselines of searches of channels: at equal MACs and in equal training time.


rule train_channel_baseline:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        weights="results/models/{model}/source.safetensors",
        masks="results/direct/{model}/{problem}/{target}/masks.safetensors",
        modules=modules("train_channel_baseline.py"),
    output:
        masks=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}/masks.safetensors"
        ),
        history=update("results/direct/{model}/{problem}/{target}/baselines/{baseline}/history.csv"),
        metrics=update(
            "results/direct/{model}/{problem}/{target}/baselines/{baseline}/metrics.json"
        ),
    log:
        "results/logs/train_channel_baseline/{model}/{problem}/{target}/{baseline}.log",
    benchmark:
        "results/benchmarks/train_channel_baseline/{model}/{problem}/{target}/{baseline}.tsv"
    wildcard_constraints:
        baseline=one_of(CHANNEL_BASELINES),
    conda:
        "../../envs/seam.yaml"
    threads: decoding(1)
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        search=channel_baseline_arguments,
        torch=versions("torch"),
        device=device,
    message:
        "Baseline {wildcards.baseline} of {wildcards.model} for the {wildcards.problem} problem {wildcards.target}"
    script:
        "../scripts/train_channel_baseline.py"


# The source model, the search's result and all baselines in turn, on one thread: points of one figure.
rule time_baselines:
    input:
        source="results/models/{model}/model.onnx",
        search="results/direct/{model}/{problem}/{target}/model.onnx",
        baselines=baseline_models,
        modules=modules("time_baselines.py"),
    output:
        latency=update("results/direct/{model}/{problem}/{target}/baselines_latency.json"),
    log:
        "results/logs/time_baselines/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/time_baselines/{model}/{problem}/{target}.tsv"
    conda:
        "../../envs/seam.yaml"
    threads: all_cores
    resources:
        timing=1,
        mem_mb=memory(3000, large=6000),
        runtime=minutes(30),
    params:
        timing=timing_of_baselines,
        version=versions("onnxruntime"),
    message:
        "Timing the baselines of {wildcards.model}, {wildcards.problem} {wildcards.target} in ONNX Runtime"
    script:
        "../scripts/time_baselines.py"


rule plot_channel_baselines:
    input:
        baselines="results/tables/baselines.csv",
        modules=modules("plot_channel_baselines.py"),
    output:
        pareto=update(
            report(
                "results/figures/baselines_latency.png",
                caption="../report/baselines_latency.rst",
                category="Figures",
                labels={"figure": "Accuracy and latency of channels and baselines"},
            )
        ),
        pareto_pdf=update("results/figures/baselines_latency.pdf"),
    log:
        "results/logs/plot_channel_baselines.log",
    benchmark:
        "results/benchmarks/plot_channel_baselines.tsv"
    conda:
        "../../envs/seam.yaml"
    message:
        "Drawing accuracy against latency of channels and baselines"
    script:
        "../scripts/plot_channel_baselines.py"


rule collect_baselines:
    input:
        baselines=baseline_files("metrics.json"),
        searches=searches_with_baselines("metrics.json"),
        recovery=recoveries_with_baselines(),
        latency=latency_of_baselines(),
        modules=modules("collect_baselines.py"),
    output:
        baselines=update(
            report(
                "results/tables/baselines.csv",
                caption="../report/baselines.rst",
                category="Tables",
                labels={"table": "Baselines"},
            )
        ),
        comparison=update(
            report(
                "results/tables/baselines_comparison.csv",
                caption="../report/baselines_comparison.rst",
                category="Tables",
                labels={"table": "Search against baselines"},
            )
        ),
    log:
        "results/logs/collect_baselines.log",
    benchmark:
        "results/benchmarks/collect_baselines.tsv"
    conda:
        "../../envs/seam.yaml"
    params:
        rows=baseline_files("metrics.json"),
    message:
        "Collecting the results of all baselines"
    script:
        "../scripts/collect_baselines.py"


rule plot_baselines:
    input:
        baselines="results/tables/baselines.csv",
        comparison="results/tables/baselines_comparison.csv",
        modules=modules("plot_baselines.py"),
    output:
        baselines=update(
            report(
                "results/figures/baselines.png",
                caption="../report/baselines_figure.rst",
                category="Figures",
                labels={"figure": "Accuracy and weights of search and baselines"},
            )
        ),
        baselines_pdf=update("results/figures/baselines.pdf"),
    log:
        "results/logs/plot_baselines.log",
    benchmark:
        "results/benchmarks/plot_baselines.tsv"
    conda:
        "../../envs/seam.yaml"
    message:
        "Drawing the figure of the baselines"
    script:
        "../scripts/plot_baselines.py"
