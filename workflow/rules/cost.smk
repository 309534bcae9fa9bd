# The cost of a model: multiply-accumulates, its int8 copy, and latency in the engines of the config.

# DeepSparse has an environment of its own, because its packages conflict with the main ones. The rule make_env creates
# it, unless conda creates all environments.
DEEPSPARSE = [] if CONDA else ["envs/.built/deepsparse"]
DEEPSPARSE_PYTHON = "python" if CONDA else "envs/.built/deepsparse/bin/python"
PYTHON = find_python("deepsparse")
DEEPSPARSE_VERSION = pinned(WORKFLOW.parent / "envs/deepsparse.txt", "deepsparse")


localrules:
    make_env,
    collect_budgets,


rule count_macs:
    input:
        manifest=manifest_of,
        weights="results/models/{model}/source.safetensors",
        masks="results/direct/{model}/{problem}/{target}/masks.safetensors",
        recovered=recovered_of,
        modules=modules("count_macs.py"),
    output:
        macs=update("results/direct/{model}/{problem}/{target}/macs.json"),
    log:
        "results/logs/count_macs/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/count_macs/{model}/{problem}/{target}.tsv"
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(3000, large=6000),
        runtime=minutes(15),
    params:
        architecture=architecture,
    message:
        "Counting the MACs of {wildcards.model}, {wildcards.problem} {wildcards.target}"
    script:
        "../scripts/count_macs.py"


rule export_onnx:
    input:
        manifest=manifest_of,
        weights="results/models/{model}/source.safetensors",
        masks="results/direct/{model}/{problem}/{target}/masks.safetensors",
        recovered=recovered_of,
        modules=modules("export_onnx.py"),
    output:
        model=update("results/direct/{model}/{problem}/{target}/model.onnx"),
    log:
        "results/logs/export_onnx/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/export_onnx/{model}/{problem}/{target}.tsv"
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(3000, large=6000),
        runtime=minutes(15),
    params:
        versions=versions("torch", "onnx"),
        architecture=architecture,
    message:
        "Exporting {wildcards.model}, {wildcards.problem} {wildcards.target} to ONNX"
    script:
        "../scripts/export_onnx.py"


use rule export_onnx as export_baseline with:
    input:
        manifest=manifest_of,
        weights="results/models/{model}/source.safetensors",
        masks="results/direct/{model}/{problem}/{target}/baselines/{baseline}/masks.safetensors",
        recovered=[],
        modules=modules("export_onnx.py"),
    output:
        model=update("results/direct/{model}/{problem}/{target}/baselines/{baseline}/model.onnx"),
    log:
        "results/logs/export_baseline/{model}/{problem}/{target}/{baseline}.log",
    benchmark:
        "results/benchmarks/export_baseline/{model}/{problem}/{target}/{baseline}.tsv"
    wildcard_constraints:
        baseline=one_of(CHANNEL_BASELINES),
    message:
        "Exporting baseline {wildcards.baseline} of {wildcards.model}, {wildcards.target} to ONNX"


rule export_source:
    input:
        manifest=manifest_of,
        weights="results/models/{model}/source.safetensors",
        modules=modules("export_source.py"),
    output:
        model=update("results/models/{model}/model.onnx"),
    log:
        "results/logs/export_source/{model}.log",
    benchmark:
        "results/benchmarks/export_source/{model}.tsv"
    priority: 2  # before the searches, which are worth little if the export fails
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(3000, large=6000),
        runtime=minutes(15),
    params:
        versions=versions("torch", "onnx"),
        architecture=architecture,
    message:
        "Exporting the source model {wildcards.model} to ONNX"
    script:
        "../scripts/export_source.py"


# It takes a core for itself like the other timing rules: a latency budget is only as good as this table.
rule measure_layer_costs:
    input:
        manifest=manifest_of,
        weights="results/models/{model}/source.safetensors",
        kernels=engine_kernels(SimpleNamespace(engine="seam")),
        modules=modules("measure_layer_costs.py"),
    output:
        costs=update("results/models/{model}/layer_costs_{batch}.json"),
    log:
        "results/logs/measure_layer_costs/{model}_{batch}.log",
    benchmark:
        "results/benchmarks/measure_layer_costs/{model}_{batch}.tsv"
    wildcard_constraints:
        batch="[0-9]+",
    conda:
        "../../envs/seam.yaml"
    threads: all_cores
    resources:
        timing=1,
        mem_mb=memory(3000, large=6000),
        runtime=minutes(15),
    params:
        versions=versions("torch", "onnx"),
        architecture=architecture,
    message:
        "Measuring what a weight of {wildcards.model} costs in the engine for zeros"
    script:
        "../scripts/measure_layer_costs.py"


# The same for a dense engine, and channels.
rule measure_channel_costs:
    input:
        manifest=manifest_of,
        weights="results/models/{model}/source.safetensors",
        kernels=engine_kernels,
        modules=engine_modules("measure_channel_costs.py"),
    output:
        costs=update("results/models/{model}/channel_costs_{engine}_{batch}_{multiple}.json"),
    log:
        "results/logs/measure_channel_costs/{model}_{engine}_{batch}_{multiple}.log",
    benchmark:
        "results/benchmarks/measure_channel_costs/{model}_{engine}_{batch}_{multiple}.tsv"
    wildcard_constraints:
        engine=one_of(MAIN_ENGINES),
        batch="[0-9]+",
        multiple="[0-9]+",
    conda:
        engine_environment
    threads: all_cores
    resources:
        timing=1,
        mem_mb=memory(3000, large=6000),
        runtime=minutes(30),
    params:
        versions=versions("torch", "onnx"),
        version=engine_version,
        architecture=architecture,
    message:
        "Measuring what the layers of {wildcards.model} take in {wildcards.engine} with fewer channels"
    script:
        "../scripts/measure_channel_costs.py"


rule make_env:
    input:
        requirements=workflow_file("envs/deepsparse.txt"),
    output:
        env=directory("envs/.built/{environment}"),
    log:
        "results/logs/make_env/{environment}.log",
    benchmark:
        "results/benchmarks/make_env/{environment}.tsv"
    wildcard_constraints:
        environment="deepsparse",  # a wildcard, so that `--until make_env` does not make what no other job needs
    retries: 2
    conda:
        "../../envs/deepsparse.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        python=PYTHON,
    message:
        "Creating DeepSparse's environment in {output.env}"
    shell:
        "({params.python:q} -m venv {output.env} &&"
        " {output.env}/bin/python -m pip install --quiet --disable-pip-version-check --no-compile"
        " -r {input.requirements:q}) > {log} 2>&1 ||"
        " (echo 'Error: DeepSparse cannot be installed (the reason is in {log}). To run without it,"
        " set engines: [seam, onnxruntime] in the config.' >&2; exit 1)"


# The quantized models of the engines with int8. Test images never calibrate them.


rule quantize:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        metrics="results/direct/{model}/{problem}/{target}/metrics.json",
        model="results/direct/{model}/{problem}/{target}/model.onnx",
        modules=modules("quantize.py"),
    output:
        model=update("results/direct/{model}/{problem}/{target}/model-int8.onnx"),
    log:
        "results/logs/quantize/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/quantize/{model}/{problem}/{target}.tsv"
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(4000, large=12000),
        runtime=minutes(30),
    params:
        versions=versions("onnx", "onnxruntime"),
    message:
        "Quantizing {wildcards.model}, {wildcards.problem} {wildcards.target} to int8"
    script:
        "../scripts/quantize.py"


rule quantize_source:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        model="results/models/{model}/model.onnx",
        modules=modules("quantize.py"),
    output:
        model=update("results/models/{model}/model-int8.onnx"),
    log:
        "results/logs/quantize_source/{model}.log",
    benchmark:
        "results/benchmarks/quantize_source/{model}.tsv"
    conda:
        "../../envs/seam.yaml"
    resources:
        mem_mb=memory(4000, large=12000),
        runtime=minutes(30),
    params:
        seed=config["seed"],
        versions=versions("onnx", "onnxruntime"),
    message:
        "Quantizing the source model {wildcards.model} to int8"
    script:
        "../scripts/quantize.py"


rule evaluate_int8:
    input:
        manifest=manifest_of,
        arrays=ancient(arrays_of),
        metrics="results/direct/{model}/{problem}/{target}/metrics.json",
        source="results/models/{model}/model-int8.onnx",
        reengineered="results/direct/{model}/{problem}/{target}/model-int8.onnx",
        modules=engine_modules("evaluate_int8.py"),
    output:
        accuracy=update("results/direct/{model}/{problem}/{target}/accuracy_{engine}.json"),
    log:
        "results/logs/evaluate_int8/{engine}/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/evaluate_int8/{engine}/{model}/{problem}/{target}.tsv"
    wildcard_constraints:
        engine=one_of(INT8_ENGINES),
    conda:
        engine_environment
    resources:
        mem_mb=memory(4000, large=12000),
        runtime=minutes(30),
    params:
        version=engine_version,
    message:
        "Evaluating {wildcards.model}, {wildcards.problem} {wildcards.target} in {wildcards.engine}"
    script:
        "../scripts/evaluate_int8.py"


# The timing rules take all cores, so that no other job runs beside them on the machine. On a cluster, the profile asks
# for a whole node.


rule time_deepsparse:
    input:
        source="results/models/{model}/model.onnx",
        reengineered="results/direct/{model}/{problem}/{target}/model.onnx",
        env=DEEPSPARSE,
        script=workflow_file("workflow/scripts/time_deepsparse.py"),
        modules=modules("time_deepsparse.py"),
    output:
        latency=update("results/direct/{model}/{problem}/{target}/latency_deepsparse.json"),
    log:
        "results/logs/time_deepsparse/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/time_deepsparse/{model}/{problem}/{target}.tsv"
    conda:
        "../../envs/deepsparse.yaml"
    threads: all_cores
    resources:
        timing=1,
        mem_mb=memory(3000, large=6000),
        runtime=minutes(15),
    params:
        version=DEEPSPARSE_VERSION,
        timing=timing_options,
        python=DEEPSPARSE_PYTHON,
    message:
        "Timing {wildcards.model}, {wildcards.problem} {wildcards.target} in DeepSparse"
    shell:
        "{params.python} {input.script:q} --source {input.source} --reengineered {input.reengineered}"
        " --output {output.latency} --log {log} --cores {threads} {params.timing} 2>&1 | tee -a {log} >&2 ||"
        " {{ status=$?; if [ $status -gt 128 ]; then"
        " last=$({{ grep -v '^[[:space:]]*$' {log} || true; }} | tail -n 1);"
        ' echo "Error: DeepSparse crashed on {input.reengineered} or {input.source} (signal $((status - 128));'
        ' its last output: ${{last:-none}}). To run without it, set engines: [seam, onnxruntime] in the config."'
        " | tee -a {log} >&2; fi; exit $status; }}"


rule time_engine:
    input:
        source=source_model,
        reengineered=reengineered_model,
        kernels=engine_kernels,
        modules=engine_modules("time_engine.py"),
    output:
        latency=update("results/direct/{model}/{problem}/{target}/latency_{engine}.json"),
    log:
        "results/logs/time_engine/{engine}/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/time_engine/{engine}/{model}/{problem}/{target}.tsv"
    wildcard_constraints:
        engine=one_of(MAIN_ENGINES),
    conda:
        engine_environment
    threads: all_cores
    resources:
        timing=1,
        mem_mb=memory(3000, large=6000),
        runtime=minutes(15),
    params:
        version=engine_version,
        timing=timing_settings,
    message:
        "Timing {wildcards.model}, {wildcards.problem} {wildcards.target} in {wildcards.engine}"
    script:
        "../scripts/time_engine.py"


# What a model with a budget of time takes: the source model beside it, in turn, as the budget says.
rule time_budget:
    input:
        source="results/models/{model}/model.onnx",
        reengineered="results/direct/{model}/{problem}/{target}/model.onnx",
        metrics="results/direct/{model}/{problem}/{target}/metrics.json",
        kernels=budget_engine(engine_kernels),
        modules=budget_engine(engine_modules("time_budget.py")),
    output:
        latency=update("results/direct/{model}/{problem}/{target}/budget_latency.json"),
    log:
        "results/logs/time_budget/{model}/{problem}/{target}.log",
    benchmark:
        "results/benchmarks/time_budget/{model}/{problem}/{target}.tsv"
    conda:
        budget_engine(engine_environment)
    threads: all_cores
    resources:
        timing=1,
        mem_mb=memory(3000, large=6000),
        runtime=minutes(15),
    params:
        budget=latency_budget_of,
        version=budget_engine(engine_version),
    message:
        "Timing {wildcards.model}, {wildcards.problem} {wildcards.target} against its budget"
    script:
        "../scripts/time_budget.py"


rule collect_budgets:
    input:
        budgets=budget_files(),
        modules=modules("collect_budgets.py"),
    output:
        budgets=update(
            report(
                "results/tables/latency_budgets.csv",
                caption="../report/latency_budgets.rst",
                category="Tables",
                labels={"table": "Budgets of time"},
            )
        ),
    log:
        "results/logs/collect_budgets.log",
    benchmark:
        "results/benchmarks/collect_budgets.tsv"
    conda:
        "../../envs/seam.yaml"
    params:
        rows=budget_files(),
    message:
        "Collecting the times of models with budgets of time"
    script:
        "../scripts/collect_budgets.py"
