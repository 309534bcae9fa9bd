# Results: tables of all target problems and students, a summary beside the published values, and figures.


localrules:
    collect_direct,
    collect_indirect,
    summarise,
    plot_direct,
    plot_indirect,


rule collect_direct:
    input:
        metrics=problem_files("metrics.json"),
        macs=problem_files("macs.json"),
        latency=latency_files(),
        int8=int8_files(),
        models=expand("results/models/{model}/metrics.json", model=MODELS),
        recovery=recovery_files(),
        modules=modules("collect_direct.py"),
    output:
        binary=update(
            report(
                "results/tables/direct_binary.csv",
                caption="../report/direct_binary.rst",
                category="Tables",
                labels={"table": "Binary problems"},
            )
        ),
        multiclass=update(
            report(
                "results/tables/direct_multiclass.csv",
                caption="../report/direct_multiclass.rst",
                category="Tables",
                labels={"table": "Multi-class problems"},
            )
        ),
        latency=update(
            report(
                "results/tables/latency.csv",
                caption="../report/latency.rst",
                category="Tables",
                labels={"table": "Latency"},
            )
        ),
    log:
        "results/logs/collect_direct.log",
    benchmark:
        "results/benchmarks/collect_direct.tsv"
    conda:
        "../../envs/seam.yaml"
    params:
        engines=ENGINES,
        rows=problem_files("metrics.json"),  # in the order of the tables, which Snakemake does not compare in inputs
    message:
        "Collecting the results of all target problems"
    script:
        "../scripts/collect_direct.py"


rule collect_indirect:
    input:
        training=student_files("training.json"),
        metrics=student_files("metrics.json"),
        published=workflow_file("workflow/scripts/seam/resources/published.csv"),
        modules=modules("collect_indirect.py"),
    output:
        indirect=update(
            report(
                "results/tables/indirect.csv",
                caption="../report/indirect.rst",
                category="Tables",
                labels={"table": "Students"},
            )
        ),
        thresholds=update(
            report(
                "results/tables/thresholds.csv",
                caption="../report/thresholds_table.rst",
                category="Tables",
                labels={"table": "Threshold study"},
            )
        ),
    log:
        "results/logs/collect_indirect.log",
    benchmark:
        "results/benchmarks/collect_indirect.tsv"
    conda:
        "../../envs/seam.yaml"
    params:
        rows=student_files("training.json"),
    message:
        "Collecting the results of all students"
    script:
        "../scripts/collect_indirect.py"


rule summarise:
    input:
        binary="results/tables/direct_binary.csv",
        multiclass="results/tables/direct_multiclass.csv",
        indirect="results/tables/indirect.csv",
        baselines="results/tables/baselines.csv" if BASELINES else [],
        published=workflow_file("workflow/scripts/seam/resources/published.csv"),
        modules=modules("summarise.py"),
    output:
        summary=update(
            report(
                "results/tables/summary.csv",
                caption="../report/summary.rst",
                category="Tables",
                labels={"table": "Summary"},
            )
        ),
    log:
        "results/logs/summarise.log",
    benchmark:
        "results/benchmarks/summarise.tsv"
    conda:
        "../../envs/seam.yaml"
    message:
        "Summarising the results beside the published values"
    script:
        "../scripts/summarise.py"


rule plot_direct:
    input:
        binary="results/tables/direct_binary.csv",
        multiclass="results/tables/direct_multiclass.csv",
        histories=problem_files("history.csv"),
        published=workflow_file("workflow/scripts/seam/resources/published.csv"),
        modules=modules("plot_direct.py"),
    output:
        accuracy_binary=update(
            report(
                "results/figures/accuracy_binary.png",
                caption="../report/accuracy_binary.rst",
                category="Figures",
                labels={"figure": "Accuracy, binary problems"},
            )
        ),
        accuracy_binary_pdf=update("results/figures/accuracy_binary.pdf"),
        accuracy_multiclass=update(
            report(
                "results/figures/accuracy_multiclass.png",
                caption="../report/accuracy_multiclass.rst",
                category="Figures",
                labels={"figure": "Accuracy, multi-class problems"},
            )
        ),
        accuracy_multiclass_pdf=update("results/figures/accuracy_multiclass.pdf"),
        retention_accuracy=update(
            report(
                "results/figures/retention_accuracy.png",
                caption="../report/retention_accuracy.rst",
                category="Figures",
                labels={"figure": "Weights kept and accuracy"},
            )
        ),
        retention_accuracy_pdf=update("results/figures/retention_accuracy.pdf"),
        cost=update(
            report(
                "results/figures/cost.png",
                caption="../report/cost.rst",
                category="Figures",
                labels={"figure": "Weights, MACs and time saved"},
            )
        ),
        cost_pdf=update("results/figures/cost.pdf"),
        engines=update(
            report(
                "results/figures/engines.png",
                caption="../report/engines.rst",
                category="Figures",
                labels={"figure": "Speed of the engines"},
            )
        ),
        engines_pdf=update("results/figures/engines.pdf"),
        history=update(
            report(
                "results/figures/history.png",
                caption="../report/history.rst",
                category="Figures",
                labels={"figure": "Course of the search"},
            )
        ),
        history_pdf=update("results/figures/history.pdf"),
    log:
        "results/logs/plot_direct.log",
    benchmark:
        "results/benchmarks/plot_direct.tsv"
    conda:
        "../../envs/seam.yaml"
    message:
        "Drawing the figures of the target problems"
    script:
        "../scripts/plot_direct.py"


rule plot_indirect:
    input:
        indirect="results/tables/indirect.csv",
        thresholds="results/tables/thresholds.csv",
        published=workflow_file("workflow/scripts/seam/resources/published.csv"),
        modules=modules("plot_indirect.py"),
    output:
        thresholds=update(
            report(
                "results/figures/thresholds.png",
                caption="../report/thresholds.rst",
                category="Figures",
                labels={"figure": "Accuracy and inherited defects by threshold"},
            )
        ),
        thresholds_pdf=update("results/figures/thresholds.pdf"),
        defects=update(
            report(
                "results/figures/defects.png",
                caption="../report/defects.rst",
                category="Figures",
                labels={"figure": "Inherited defects of each student"},
            )
        ),
        defects_pdf=update("results/figures/defects.pdf"),
    log:
        "results/logs/plot_indirect.log",
    benchmark:
        "results/benchmarks/plot_indirect.tsv"
    conda:
        "../../envs/seam.yaml"
    message:
        "Drawing the figures of the students"
    script:
        "../scripts/plot_indirect.py"
