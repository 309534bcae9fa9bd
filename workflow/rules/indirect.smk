# Indirect reuse: students of a source model on other data sets, and the defects that they inherit from it.


rule attack_source:
    input:
        manifest="results/datasets/{dataset}/dataset.json",
        arrays=ancient("results/datasets/{dataset}/arrays"),
        weights="results/models/{model}/source.safetensors",
        modules=modules("attack_source.py"),
    output:
        perturbations=update("results/indirect/{model}/{dataset}/attack/perturbations.npy"),
        attack=update("results/indirect/{model}/{dataset}/attack/attack.json"),
    log:
        "results/logs/attack_source/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/attack_source/{model}/{dataset}.tsv"
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(240),
        gpu=gpu,
    params:
        settings=attack_settings,
        torch=versions("torch"),
        device=device,
    message:
        "Perturbing the test images of {wildcards.dataset} against {wildcards.model}"
    script:
        "../scripts/attack_source.py"


rule finetune_standard:
    input:
        manifest="results/datasets/{dataset}/dataset.json",
        arrays=ancient("results/datasets/{dataset}/arrays"),
        weights="results/models/{model}/source.safetensors",
        modules=modules("train_student.py"),
    output:
        weights=update("results/indirect/{model}/{dataset}/standard/student.safetensors"),
        history=update("results/indirect/{model}/{dataset}/standard/history.csv"),
        training=update("results/indirect/{model}/{dataset}/standard/training.json"),
    log:
        "results/logs/finetune_standard/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/finetune_standard/{model}/{dataset}.tsv"
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        student=unmasked_student("standard"),
        settings=student_settings("standard"),
        checkpoint="results/checkpoints/finetune_standard/{model}/{dataset}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "Fine-tuning all weights of {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/train_student.py"


use rule finetune_standard as retrain with:
    output:
        weights=update("results/indirect/{model}/{dataset}/retrain/student.safetensors"),
        history=update("results/indirect/{model}/{dataset}/retrain/history.csv"),
        training=update("results/indirect/{model}/{dataset}/retrain/training.json"),
    log:
        "results/logs/retrain/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/retrain/{model}/{dataset}.tsv"
    params:
        student=unmasked_student("retrain"),
        settings=student_settings("retrain"),
        checkpoint="results/checkpoints/retrain/{model}/{dataset}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "Training {wildcards.model}'s architecture on {wildcards.dataset} from random weights"


use rule finetune_standard as finetune_remos with:
    output:
        weights=update("results/indirect/{model}/{dataset}/remos/student.safetensors"),
        history=update("results/indirect/{model}/{dataset}/remos/history.csv"),
        training=update("results/indirect/{model}/{dataset}/remos/training.json"),
    log:
        "results/logs/finetune_remos/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/finetune_remos/{model}/{dataset}.tsv"
    params:
        student=unmasked_student("remos"),
        settings=student_settings("remos"),
        checkpoint="results/checkpoints/finetune_remos/{model}/{dataset}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "ReMoS: fine-tuning the weights of {wildcards.model} that {wildcards.dataset} uses"


# SeaM takes three steps, each with its own files: a last layer, masks, and fine-tuning.


rule finetune_seam_head:
    input:
        manifest="results/datasets/{dataset}/dataset.json",
        arrays=ancient("results/datasets/{dataset}/arrays"),
        weights="results/models/{model}/source.safetensors",
        modules=modules("finetune_seam_head.py"),
    output:
        head=update("results/indirect/{model}/{dataset}/search/head.safetensors"),
        history=update("results/indirect/{model}/{dataset}/search/head.csv"),
    log:
        "results/logs/finetune_seam_head/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/finetune_seam_head/{model}/{dataset}.tsv"
    priority: 1  # students wait for it
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        settings=head_settings,
        checkpoint="results/checkpoints/finetune_seam_head/{model}/{dataset}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "SeaM, step 1: a new last layer for {wildcards.model} on {wildcards.dataset}"
    script:
        "../scripts/finetune_seam_head.py"


rule finetune_seam_masks:
    input:
        manifest="results/datasets/{dataset}/dataset.json",
        arrays=ancient("results/datasets/{dataset}/arrays"),
        weights="results/models/{model}/source.safetensors",
        head="results/indirect/{model}/{dataset}/search/head.safetensors",
        modules=modules("finetune_seam_masks.py"),
    output:
        masks=update("results/indirect/{model}/{dataset}/search/masks.safetensors"),
        history=update("results/indirect/{model}/{dataset}/search/history.csv"),
    log:
        "results/logs/finetune_seam_masks/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/finetune_seam_masks/{model}/{dataset}.tsv"
    priority: 1  # students wait for it
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(6000, large=24000),
        runtime=minutes(720),
        gpu=gpu,
    params:
        settings=masks_settings,
        checkpoint="results/checkpoints/finetune_seam_masks/{model}/{dataset}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "SeaM, step 2: the masks of {wildcards.model} for {wildcards.dataset}"
    script:
        "../scripts/finetune_seam_masks.py"


use rule finetune_standard as finetune_seam with:
    input:
        manifest="results/datasets/{dataset}/dataset.json",
        arrays=ancient("results/datasets/{dataset}/arrays"),
        weights="results/models/{model}/source.safetensors",
        masks=masks_of_student,
        histories=[
            "results/indirect/{model}/{dataset}/search/head.csv",
            "results/indirect/{model}/{dataset}/search/history.csv",
        ],
        modules=modules("train_student.py"),
    output:
        weights=update(
            "results/indirect/{model}/{dataset}/{student}-{threshold}/student.safetensors"
        ),
        history=update("results/indirect/{model}/{dataset}/{student}-{threshold}/history.csv"),
        training=update("results/indirect/{model}/{dataset}/{student}-{threshold}/training.json"),
    log:
        "results/logs/finetune_seam/{model}/{dataset}/{student}-{threshold}.log",
    benchmark:
        "results/benchmarks/finetune_seam/{model}/{dataset}/{student}-{threshold}.tsv"
    params:
        student=masked_student,
        settings=student_settings("finetune"),
        checkpoint="results/checkpoints/finetune_seam/{model}/{dataset}/{student}-{threshold}.pt",
        torch=versions("torch"),
        device=device,
    message:
        "SeaM, step 3: fine-tuning {wildcards.model} on {wildcards.dataset}, {wildcards.threshold} of the weights"
        " removed ({wildcards.student})"


rule evaluate_defects:
    input:
        manifest="results/datasets/{dataset}/dataset.json",
        arrays=ancient("results/datasets/{dataset}/arrays"),
        student="results/indirect/{model}/{dataset}/{method}/student.safetensors",
        training="results/indirect/{model}/{dataset}/{method}/training.json",
        perturbations="results/indirect/{model}/{dataset}/attack/perturbations.npy",
        attack="results/indirect/{model}/{dataset}/attack/attack.json",
        modules=modules("evaluate_defects.py"),
    output:
        metrics=update("results/indirect/{model}/{dataset}/{method}/metrics.json"),
    log:
        "results/logs/evaluate_defects/{model}/{dataset}/{method}.log",
    benchmark:
        "results/benchmarks/evaluate_defects/{model}/{dataset}/{method}.tsv"
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(4000, large=12000),
        runtime=defect_minutes,
        gpu=gpu,
    params:
        torch=versions("torch"),
        architecture=architecture,
        adaptive=adaptive_steps,
        device=device,
    message:
        "Evaluating {wildcards.method} of {wildcards.model} on {wildcards.dataset} and its inherited defects"
    script:
        "../scripts/evaluate_defects.py"
