# What a person asks for: `snakemake --cores 8` for everything, or one of these by name.


localrules:
    direct,
    indirect,
    thresholds,
    summary,


rule direct:
    input:
        rules.collect_direct.output,
        rules.plot_direct.output,
        # Named here, too, so that what was deleted of a problem's folder is made again.
        [problem_files(name) for name in PROBLEM_FILES],
        latency_files(),
        [f"results/models/{model}/{name}" for model in MODELS for name in MODEL_FILES],


rule indirect:
    input:
        rules.collect_indirect.output,
        rules.plot_indirect.output,
        [student_files(name) for name in STUDENT_FILES],


rule thresholds:
    input:
        rules.collect_indirect.output.thresholds,
        rules.plot_indirect.output.thresholds,


rule summary:
    input:
        rules.summarise.output,
