# Direct reuse: one search per target problem.

import json

PLANNED = "results/checkpoints/planned.json"


def search_of(job):
    """The arguments of a planned search, for the job that searches it together with its own."""
    return {
        "folder": os.path.dirname(job.output.metrics),
        "model_folder": os.path.dirname(job.input.weights),
        "dataset_folder": os.path.dirname(job.input.manifest),
        "checkpoint": job.params.checkpoint,
        **job.wildcards_dict,
        **job.params.job,
    }


onstart:
    searches = [
        search_of(job) for job in workflow.dag.needrun_jobs() if job.rule.name == "reengineer"
    ]
    if config["together"] > 1 and searches:
        os.makedirs(os.path.dirname(PLANNED), exist_ok=True)
        Path(PLANNED).write_text(json.dumps(searches, indent=1))


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
