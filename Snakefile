# SeaM: re-engineer trained networks to the weights that a target problem needs.
# The stages are under workflow/rules, in the order of the pipeline; README.md says how to run them.

from snakemake.utils import min_version

min_version("9.12")


configfile: f"{workflow.basedir}/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


wildcard_constraints:
    dataset=NAME,
    model=NAME,
    target=NAME,
    problem="binary|multiclass",


include: "workflow/rules/dataset.smk"
include: "workflow/rules/source.smk"
include: "workflow/rules/direct.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/results.smk"


# What a person asks for: `snakemake --cores 8` for everything, or one of these by name.


localrules:
    all,
    direct,
    summary,


rule direct:
    input:
        rules.collect_direct.output,
        rules.plot_direct.output,
        # Named here, too, so that what was deleted of a problem's folder is made again.
        [problem_files(name) for name in PROBLEM_FILES],
        latency_files(),
        [f"results/models/{model}/{name}" for model in MODELS for name in MODEL_FILES],


rule summary:
    input:
        rules.summarise.output,


rule all:
    default_target: True
    input:
        rules.direct.input,
        rules.summary.input,
    message:
        "All of it is there"
