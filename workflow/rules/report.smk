# The report: all results as one page that opens without a network, to read and to send to other people.


localrules:
    report,


rule report:
    input:
        tables=report_tables(),
        figures=report_figures(),
        metrics=problem_files("metrics.json"),
        histories=problem_files("history.csv"),
        assets=[
            workflow_file(f"workflow/scripts/seam/resources/report.{kind}")
            for kind in ("css", "js")
        ],
        modules=modules("make_report.py"),
    output:
        page=update("results/report.html"),
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "../../envs/seam.yaml"
    params:
        run={
            "benchmarks": "results/benchmarks",
            # How a job computes changes no result, so that it makes no new report.
            "config": {
                key: value
                for key, value in config.items()
                if key not in ("device", "precision", "cpu_precision", "stack", "array_gb")
            },
            "left_out": plan.left_out(config),
        },
    message:
        "Writing the report"
    script:
        "../scripts/make_report.py"
