# Images become arrays that every later job maps into its memory.


# The published class names, which the kinds of data sets read.
CLASS_LISTS = [own(path) for path in sorted(WORKFLOW.glob("scripts/seam/resources/*.txt"))]


rule prepare_dataset:
    input:
        modules=modules("prepare_dataset.py"),
        class_lists=CLASS_LISTS,
    output:
        manifest="results/datasets/{dataset}/dataset.json",
        arrays=directory("results/datasets/{dataset}/arrays"),
    log:
        "results/logs/prepare_dataset/{dataset}.log",
    benchmark:
        "results/benchmarks/prepare_dataset/{dataset}.tsv"
    priority: 2  # everything else waits for it
    conda:
        "../../envs/seam.yaml"
    threads: 4
    resources:
        mem_mb=memory(4000, large=12000),
        runtime=minutes(240),
    params:
        entry=dataset_entry,
    message:
        "Preparing the images of {wildcards.dataset}"
    script:
        "../scripts/prepare_dataset.py"
