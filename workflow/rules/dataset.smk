# Data sets: images become arrays that every later job maps into its memory.


rule prepare_dataset:
    input:
        modules=kind_modules,
        class_lists=class_lists,
    output:
        manifest=update("results/datasets/{dataset}/dataset.json"),
        arrays=update(directory("results/datasets/{dataset}/arrays")),
    log:
        "results/logs/prepare_dataset/{dataset}.log",
    benchmark:
        "results/benchmarks/prepare_dataset/{dataset}.tsv"
    priority: 2  # all other jobs wait for it
    conda:
        "../../envs/seam.yaml"
    threads: 4
    resources:
        mem_mb=memory(4000, large=12000),
        runtime=minutes(240),
    params:
        entry=dataset_entry,
        content=class_list_content,
    message:
        "Preparing the images of {wildcards.dataset}"
    script:
        "../scripts/prepare_dataset.py"
