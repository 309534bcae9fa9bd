# SeaM: re-engineer trained networks to the weights that a target problem needs.
# The stages are in workflow/rules, in the order of the pipeline. README.md says how to run them.

from snakemake.utils import min_version

min_version("9.12")


configfile: f"{workflow.current_basedir}/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/keeping.smk"


wildcard_constraints:
    dataset=NAME,
    model=NAME,
    target=NAME,
    problem="binary|group|multiclass|multiclass_rest",
    student="seam|magnitude|random",
    threshold=r"0\.\d+",
    method=r"standard|retrain|remos|(seam|magnitude|random)-0\.\d+",


include: "workflow/rules/dataset.smk"
include: "workflow/rules/source.smk"
include: "workflow/rules/direct.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/indirect.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/partial.smk"
include: "workflow/rules/terminal.smk"
include: "workflow/rules/planned.smk"
include: "workflow/rules/estimate.smk"
include: "workflow/rules/targets.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        rules.direct.input,
        rules.indirect.input,
        rules.summary.input,
        rules.baselines.input if BASELINES else [],
        rules.report.output,
    message:
        "All results are complete"
