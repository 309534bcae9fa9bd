# Baselines of direct reuse: what is reached without a search, at the search's retention and in as many epochs.


localrules:
    collect_baselines,
    plot_baselines,


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
        baseline=r"head|(magnitude|random|activation|snip)(-overall)?",
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


rule collect_baselines:
    input:
        baselines=baseline_files("metrics.json"),
        searches=searches_with_baselines("metrics.json"),
        modules=modules("collect_baselines.py"),
    output:
        baselines=report(
            "results/tables/baselines.csv",
            caption="../report/baselines.rst",
            category="Tables",
            labels={"table": "Baselines"},
        ),
        comparison=report(
            "results/tables/baselines_comparison.csv",
            caption="../report/baselines_comparison.rst",
            category="Tables",
            labels={"table": "Search against baselines"},
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
        baselines=report(
            "results/figures/baselines.png",
            caption="../report/baselines_figure.rst",
            category="Figures",
            labels={"figure": "Accuracy and weights of search and baselines"},
        ),
        baselines_pdf="results/figures/baselines.pdf",
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
