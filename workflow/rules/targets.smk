# Targets that a person asks for by name, as in `snakemake --cores 8 direct`. Without a name, all of them are made.


localrules:
    direct,
    baselines,
    indirect,
    thresholds,
    summary,


rule direct:
    input:
        rules.collect_direct.output,
        rules.plot_direct.output if PROBLEMS else [],
        # Without these lines a deleted file of a problem's folder would stay missing once the tables are made.
        [problem_files(name) for name in PROBLEM_FILES],
        [recovery_files(name) for name in RECOVERY_FILES],
        latency_files(),
        budget_files(),
        rules.collect_budgets.output if budget_files() else [],
        int8_files(),
        [f"results/models/{model}/{name}" for model in MODELS for name in MODEL_FILES],


rule baselines:
    input:
        rules.collect_baselines.output,
        rules.plot_baselines.output,
        rules.plot_channel_baselines.output if problems_with_channel_baselines() else [],
        [baseline_files(name) for name in ("history.csv", "metrics.json")],
        latency_of_baselines(),


rule indirect:
    input:
        rules.collect_indirect.output,
        rules.plot_indirect.output if STUDENTS else [],
        [student_files(name) for name in STUDENT_FILES],


rule thresholds:
    input:
        rules.collect_indirect.output.thresholds,
        rules.plot_indirect.output.thresholds,


rule summary:
    input:
        rules.summarise.output,
