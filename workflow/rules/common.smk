# Shared by all stages: the checked config, where files are, and the functions that rules call.
# Helper functions are in this file, except those of partial.smk and planned.smk, which serve no rule.

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod
from snakemake_interface_executor_plugins.settings import ExecMode

# Not workflow.basedir: that is another workflow's folder where this one is used as a module.
WORKFLOW = Path(workflow.current_basedir).parent
CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
sys.path.insert(0, str(WORKFLOW / "scripts"))

from seam.config import plan
from seam.config.content import Digests, pinned, version
from seam.config.sources import check_content, check_empty_mappings
from seam.config.startup import check_places
from seam.config.wording import hint
from seam.cost.engines import ENGINES as KNOWN_ENGINES
from seam.cost.engines import choose_engines, find_python
from seam.errors import UserError
from seam.gpus import count_gpus
from seam.imports import dependencies
from seam.models.weights import weights_origin
from seam.process import name_run
from seam.reuse.cards import RECOVERY_FILES
from seam.settings import (
    CHANNEL_BASELINES,
    OPTIONAL_OF_THRESHOLDS,
    RECOVERED,
    TIMES,
    without_defaults,
)

name_run()

IS_MODULE = not workflow.modifier.is_main_snakefile()  # of another workflow

try:
    if IS_MODULE and workflow.modifier.path_modifier.prefix:
        raise UserError(
            "SeaM's workflow works as a module only without prefix, because its results are in results/ of the working "
            "directory: leave the prefix out."
        )
    # The files of another workflow are its own: they may have what this one refuses.
    for file in [] if IS_MODULE else workflow.configfiles:
        check_content(file)
        check_empty_mappings(file, config)
    config = plan.validate(config, WORKFLOW / "schemas" / "config.schema.yaml")
    PROBLEMS = plan.target_problems(config)
    STUDENTS = plan.students(config)
    ENGINES, WITHOUT_ENGINES = choose_engines(config["engines"], CONDA) if PROBLEMS else ([], [])
    if workflow.exec_mode == ExecMode.DEFAULT:  # once, not in every job
        check_places(sys.executable, WORKFLOW.parent, Path.cwd())
        if WITHOUT_ENGINES and config["engines"] != "auto":
            raise UserError(" ".join(WITHOUT_ENGINES))
        if missing := choose_engines(plan.budget_engines(PROBLEMS), CONDA)[1]:
            raise UserError(
                f"A budget of time is for an engine that is not here. {' '.join(missing)}"
            )
        for line in [*WITHOUT_ENGINES, *plan.left_out(config)]:
            logger.warning(line)
except UserError as error:
    raise WorkflowError(str(error)) from None

# A GPU of this machine has one job at a time, unless --resources gpu=N says otherwise. --jobs means a cluster.
on_this_machine = (
    workflow.exec_mode == ExecMode.DEFAULT and workflow.resource_settings.nodes is None
)
if on_this_machine and "gpu" not in workflow.resource_settings.resources and count_gpus():
    workflow.global_resources["gpu"] = count_gpus()

# One job at a time measures latency, on this machine or in one queue entry of a cluster; in an entry, one job has the GPU.
workflow.resource_scopes.setdefault("timing", "local")
for limited in ("timing", "gpu") if workflow.exec_mode == ExecMode.REMOTE else ("timing",):
    if limited not in workflow.resource_settings.resources:
        workflow.register_resource(limited, 1)

MAIN_ENGINES = [name for name in KNOWN_ENGINES if name != "deepsparse"]  # of the main environment
INT8_ENGINES = [name for name, engine in KNOWN_ENGINES.items() if engine.int8]
DIGESTS = Digests(".snakemake/seam_digests.json")
NAME = r"[^/]+"
TRAINED = [name for name, model in config["models"].items() if model["weights"] == "train"]
FETCHED = [name for name in config["models"] if name not in TRAINED]
MODELS = sorted({p.model for p in PROBLEMS})
MODEL_FILES = ["source.safetensors", "metrics.json", "model.onnx"]
SEARCH_FILES = ["masks.safetensors", "history.csv", "metrics.json"]
PROBLEM_FILES = [*SEARCH_FILES, "macs.json", "model.onnx"]
STUDENT_FILES = ["student.safetensors", "history.csv", "training.json", "metrics.json"]
BASELINES = sorted({baseline for p in PROBLEMS for baseline in p.baselines})
PROBLEM_BY_NAME = {(p.model, p.problem, p.target): p for p in PROBLEMS}
# All students of a model and a data set share their settings, so that any of them stands for them.
STUDENT_BY_NAME = {(s.model, s.dataset): s for s in STUDENTS}


def one_of(names):
    """Return a wildcard's regular expression that matches exactly these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


def find_entry(name, entries, what):
    """Return the entry of this name, or end with a sentence if there is none: a requested file has a wrong name."""
    if name in entries:
        return entries[name]
    wanted, *known = ["/".join([key] if isinstance(key, str) else key) for key in (name, *entries)]
    raise WorkflowError(f"{wanted} is not {what} of the config{hint(wanted, known)}")


# Files of the workflow that are inputs of its rules.


def workflow_file(path):
    """Return the path of a file of the workflow, relative if possible: to move a clone must not look like a change."""
    path, here = WORKFLOW.parent / path, Path.cwd()
    return str(path.relative_to(here) if here in path.parents else path)


def modules(script, ignored=()):
    """Return the files of the package that a script imports, directly or through others.

    They are inputs of its rule. So a change in one of them reruns the jobs that it can affect, and no others.
    """
    files = dependencies(WORKFLOW / "scripts" / script, ignored=ignored)
    return list(map(workflow_file, files))


def kind_modules(wildcards):
    """Return the modules of prepare_dataset without those that only other kinds of data sets need."""
    kinds = WORKFLOW / "scripts/seam/data/kinds"
    kind = kinds / f"{dataset_entry(wildcards)['kind']}.py"
    needed = {kinds / "__init__.py", kinds / "registry.py", kind, *dependencies(kind)}
    return modules("prepare_dataset.py", ignored=set(kinds.glob("*.py")) - needed)


def class_lists(wildcards):
    """Return the published class names that this kind of data set reads."""
    kind = dataset_entry(wildcards)["kind"]
    return [
        workflow_file(path)
        for path in sorted(WORKFLOW.glob(f"scripts/seam/resources/{kind}_*.txt"))
    ]


# Data sets and source models.


def dataset_of(wildcards):
    if "target" in wildcards.keys():
        return problem_of(wildcards).dataset
    return find_entry(wildcards.model, config["models"], "a model")["dataset"]


def manifest_of(wildcards):
    return f"results/datasets/{dataset_of(wildcards)}/dataset.json"


def arrays_of(wildcards):
    return f"results/datasets/{dataset_of(wildcards)}/arrays"


def dataset_entry(wildcards):
    find_entry(wildcards.dataset, config["datasets"], "a data set")
    return plan.dataset_entry(config, wildcards.dataset)


def architecture(wildcards):
    """Return a source model's architecture. If it is a file, its code runs only because a job is given this name."""
    return find_entry(wildcards.model, config["models"], "a model")["architecture"]


def model_settings(wildcards):
    return plan.model_settings(config, wildcards.model)


def model_files(wildcards):
    return plan.model_files(config, wildcards.model)


def source_weights(wildcards):
    return plan.source_weights(config, wildcards.model)


# What dates do not show is a parameter: weights that `cp -p`, `mv` or `rsync -a` replaced, another version of torch.


def model_content(wildcards):
    """Return the digests of the user's files that a source model is made from.

    With them is the version of torchvision or timm, if its architecture is one of theirs.
    """
    package, colon, _ = architecture(wildcards).partition(":")
    of_package = versions(package) if colon and package in ("torchvision", "timm") else {}
    return {"sha256 of the model's files": DIGESTS.of(model_files(wildcards)), **of_package}


def class_list_content(wildcards):
    """Return the digests of the class names that this kind of data set reads, and of the user's list of images."""
    content = {"sha256 of the class lists": DIGESTS.of(class_lists(wildcards))}
    root = dataset_entry(wildcards).get("root")
    if root and Path(root).is_file():
        content["sha256 of the list of images"] = DIGESTS.of([root])
    elif root:  # the problems are planned from its folders: a new one is prepared, too
        content["classes"] = plan.classes_of(config, wildcards.dataset)
    return content


def versions(*packages):
    """Return the versions of installed packages. With conda, Snakemake itself compares the environments."""
    return {} if CONDA else {f"version of {name}": version(name) for name in packages}


# Direct reuse.


def is_of_channels(problem):
    """Return whether a problem's search is one of channels."""
    return problem.settings.get("granularity") == "channel"


def problem_of(wildcards):
    name = wildcards.model, wildcards.problem, wildcards.target
    problem = find_entry(name, PROBLEM_BY_NAME, "a target problem")
    baseline = wildcards.get("baseline")
    if baseline is not None and is_of_channels(problem) != (baseline in CHANNEL_BASELINES):
        searched = "channels" if is_of_channels(problem) else "single weights"
        raise WorkflowError(
            f"{baseline} is no baseline of {problem.target}, whose search is one of {searched}: ask for another file."
        )
    return problem


def layer_costs(problem):
    """Return the files with the costs of layers that a problem's search needs: one for a latency budget, or none."""
    budget, folder = latency_budget(problem), f"results/models/{problem.model}"
    if is_of_channels(problem):
        names = "channel_costs_{engine}_{batch}_{multiple}.json"
        names = [names.format(**budget, **problem.settings["channels"])] if budget else []
    else:
        needs = budget or problem.settings.get("penalty") == "latency"
        names = [f"layer_costs_{budget.get('batch', 1)}.json"] if needs else []
    return [f"{folder}/{name}" for name in names]


def latency_budget(problem):
    """Return a problem's budget of time, complete; {} without one."""
    budget = problem.settings.get("budget", {})
    limit = {unit: budget[unit] for unit in TIMES if unit in budget}
    if not limit:
        return {}
    engine = budget.get("engine", "onnxruntime" if is_of_channels(problem) else "seam")
    return {"batch": budget.get("batch", 1), "engine": engine, **limit}


def latency_budget_of(wildcards):
    return latency_budget(problem_of(wildcards))


def budget_files():
    """Return the times of all models with a budget of time."""
    return [
        f"results/direct/{p.model}/{p.problem}/{p.target}/budget_latency.json"
        for p in PROBLEMS
        if latency_budget(p)
    ]


def layer_costs_of(wildcards):
    return layer_costs(problem_of(wildcards))


def search_arguments(problem):
    """Return the arguments of a problem's search as one sorted dictionary.

    Snakemake compares parameters as a set of values without names: two separate values could swap unnoticed.
    """
    return dict(
        sorted(
            {
                "folder": f"results/direct/{problem.model}/{problem.problem}/{problem.target}",
                "architecture": config["models"][problem.model]["architecture"],
                "model_folder": f"results/models/{problem.model}",
                "dataset_folder": f"results/datasets/{problem.dataset}",
                "checkpoint": f"results/checkpoints/reengineer/{problem.model}/{problem.problem}/{problem.target}.pt",
                "model": problem.model,
                "dataset": problem.dataset,
                "problem": problem.problem,
                "target": problem.target,
                "members": problem.classes,
                "seed": config["seed"],
                "settings": problem.settings,
                **{"layer_costs": path for path in layer_costs(problem)},
            }.items()
        )
    )


def searches(wildcards):
    return [search_arguments(problem_of(wildcards))]


def recovery_arguments(wildcards):
    """Return the arguments of a problem's recovery as one sorted dictionary."""
    problem = problem_of(wildcards)
    if not problem.recovery:
        raise WorkflowError(
            f"{problem.target} has no recovery in the config (its epochs are 0): ask for another file."
        )
    arguments = search_arguments(problem)
    name = f"{problem.model}/{problem.problem}/{problem.target}"
    arguments |= {
        "checkpoint": f"results/checkpoints/recover/{name}.pt",
        "masks_folder": arguments.pop("folder"),
        "settings": problem.recovery,
    }
    arguments.pop("layer_costs", None)
    return dict(sorted(arguments.items()))


def recovered_of(wildcards):
    """Return the weights after recovery of a problem's model, if it has a recovery."""
    folder = f"results/direct/{wildcards.model}/{wildcards.problem}/{wildcards.target}"
    return [f"{folder}/recovered.safetensors"] if problem_of(wildcards).recovery else []


def recovery_files(name="recovery.json"):
    return [
        f"results/direct/{p.model}/{p.problem}/{p.target}/{name}" for p in PROBLEMS if p.recovery
    ]


def timing_settings(wildcards):
    return problem_of(wildcards).timing


def timing_of_baselines(wildcards):
    """Return the settings of the timing of baselines, which takes one thread in any case."""
    return {**timing_settings(wildcards), "threads": [1]}


def timing_options(wildcards):
    """Return the settings of the timing as options of a command."""
    options = []
    for name, value in timing_settings(wildcards).items():
        options += [
            f"--{name.replace('_', '-')}",
            *map(str, value if isinstance(value, list) else [value]),
        ]
    return " ".join(options)


def problem_files(name):
    return [f"results/direct/{p.model}/{p.problem}/{p.target}/{name}" for p in PROBLEMS]


def latency_files():
    return [file for engine in ENGINES for file in problem_files(f"latency_{engine}.json")]


def int8_files():
    """Return the accuracies of the quantized models, if an engine of the config runs them."""
    return [
        file
        for engine in ENGINES
        if engine in INT8_ENGINES
        for file in problem_files(f"accuracy_{engine}.json")
    ]


# Inference engines. A job depends on the model that its engine runs, the code of that engine alone, and its version.


def source_model(wildcards):
    return f"results/models/{wildcards.model}/{KNOWN_ENGINES[wildcards.engine].model}"


def reengineered_model(wildcards):
    folder = f"results/direct/{wildcards.model}/{wildcards.problem}/{wildcards.target}"
    return f"{folder}/{KNOWN_ENGINES[wildcards.engine].model}"


def engine_modules(script):
    """Return a function that gives the modules of a script without those of the other engines.

    All are compared with ONNX Runtime, whose module stays.
    """
    runners = WORKFLOW / "scripts/seam/cost/runners"
    others = {engine.runner: runners / f"{engine.runner}.py" for engine in KNOWN_ENGINES.values()}

    def engine_modules_of(wildcards):
        own = KNOWN_ENGINES[wildcards.engine].runner
        return modules(
            script,
            ignored={file for name, file in others.items() if name not in (own, "onnx_runtime")},
        )

    return engine_modules_of


def engine_kernels(wildcards):
    """Return the C sources of the engine for zeros, which no import names."""
    if KNOWN_ENGINES[wildcards.engine].runner != "seam_engine":
        return []
    folder = WORKFLOW / "scripts/seam/engine/kernels"
    return [
        workflow_file(path.relative_to(WORKFLOW.parent)) for path in sorted(folder.glob("*.[ch]"))
    ]


def engine_version(wildcards):
    """Return the version of the engine's package. That of the engine for zeros is in its files.

    The engine for zeros lets ONNX Runtime run models with few zeros.
    """
    engine = KNOWN_ENGINES[wildcards.engine]
    return versions("onnxruntime" if engine.runner == "seam_engine" else engine.package)


def budget_engine(function):
    """Return a function of the wildcards of a problem that calls another with the engine of its budget."""

    def of_budget(wildcards):
        if not (budget := latency_budget_of(wildcards)):
            raise WorkflowError(
                f"{wildcards.target} has no budget of time in the config: ask for another file."
            )
        return function(SimpleNamespace(engine=budget["engine"]))

    return of_budget


def engine_environment(wildcards):
    """Return the conda environment of an engine."""
    runner = KNOWN_ENGINES[wildcards.engine].runner
    return str(
        WORKFLOW.parent / "envs" / ("openvino.yaml" if runner == "open_vino" else "seam.yaml")
    )


# Baselines of direct reuse.


def baseline_arguments(wildcards):
    """Return the arguments of the search that a baseline is compared with, without its own files."""
    arguments = search_arguments(problem_of(wildcards))
    left_out = "folder", "checkpoint", "layer_costs"
    return {name: arguments[name] for name in arguments if name not in left_out}


def baseline_recovery_arguments(wildcards):
    """Return the arguments of the recovery of a baseline: those of its problem's recovery, with its own files."""
    arguments = recovery_arguments(wildcards)
    place = f"{wildcards.model}/{wildcards.problem}/{wildcards.target}"
    arguments |= {
        "baseline": f"{wildcards.baseline}{RECOVERED}",
        "checkpoint": f"results/checkpoints/recover_baseline/{place}/{wildcards.baseline}.pt",
        "masks_folder": f"{arguments['masks_folder']}/baselines/{wildcards.baseline}",
    }
    return dict(sorted(arguments.items()))


def scratch_training(wildcards):
    """Return the settings of a baseline that is trained from random weights; epochs and batches are the search's.

    They are those of the source model's own training, if it has some.
    """
    settings = {**config["training"], **config["models"][wildcards.model].get("training", {})}
    return {
        "training": {
            name: settings[name]
            for name in sorted(settings)
            if name not in ("epochs", "batch_size")
        }
    }


def channel_baseline_arguments(wildcards):
    """Return the arguments of a baseline of a search of channels as one sorted dictionary."""
    place = f"{wildcards.model}/{wildcards.problem}/{wildcards.target}/{wildcards.baseline}"
    arguments = baseline_arguments(wildcards) | {
        "baseline": wildcards.baseline,
        "checkpoint": f"results/checkpoints/train_channel_baseline/{place}.pt",
        "recovery": problem_of(wildcards).recovery,
        "training": (
            scratch_training(wildcards)["training"] if "scratch" in wildcards.baseline else {}
        ),
    }
    return dict(sorted(arguments.items()))


def baseline_models(wildcards):
    """Return the ONNX files of a problem's baselines that are dense networks."""
    folder = f"results/direct/{wildcards.model}/{wildcards.problem}/{wildcards.target}/baselines"
    return [f"{folder}/{baseline}/model.onnx" for baseline in problem_of(wildcards).baselines]


def problems_with_channel_baselines():
    return [p for p in PROBLEMS if set(p.baselines) & set(CHANNEL_BASELINES)]


def latency_of_baselines():
    """Return the times of the baselines of all searches of channels."""
    return [
        f"results/direct/{p.model}/{p.problem}/{p.target}/baselines_latency.json"
        for p in problems_with_channel_baselines()
    ]


def recoveries_with_baselines():
    """Return the results of the recoveries that baselines are compared with.

    They are those after a search of channels, and those of problems with baselines that are recovered, too.
    """

    def is_compared(problem):
        return any(
            name in CHANNEL_BASELINES or name.endswith(RECOVERED) for name in problem.baselines
        )

    return [
        f"results/direct/{p.model}/{p.problem}/{p.target}/recovery.json"
        for p in PROBLEMS
        if p.recovery and is_compared(p)
    ]


def baseline_files(name):
    return [
        f"results/direct/{p.model}/{p.problem}/{p.target}/baselines/{baseline}/{name}"
        for p in PROBLEMS
        for baseline in p.baselines
    ]


def searches_with_baselines(name):
    return [
        f"results/direct/{p.model}/{p.problem}/{p.target}/{name}" for p in PROBLEMS if p.baselines
    ]


# Indirect reuse.


def transfer_of(wildcards):
    """Return one student of this model and data set, for the settings that all of them share."""
    name = wildcards.model, wildcards.dataset
    return find_entry(name, STUDENT_BY_NAME, "a model and data set of indirect_reuse")


def transfer_settings(wildcards, transfer, **more):
    """Return everything that a step of indirect reuse depends on, as one sorted dictionary."""
    common = {name: transfer[name] for name in ("batch_size", "holdout", "selection")}
    common["last_layer"] = config["models"][wildcards.model].get("last_layer")
    every = {"architecture": architecture(wildcards), "common": common, "seed": config["seed"]}
    return dict(sorted({**every, **more}.items()))


def head_settings(wildcards):
    transfer = transfer_of(wildcards).transfer
    return transfer_settings(wildcards, transfer, head=transfer["head"])


def masks_settings(wildcards):
    student = transfer_of(wildcards)
    return transfer_settings(
        wildcards,
        student.transfer,
        search=without_defaults(student.transfer["search"], OPTIONAL_OF_THRESHOLDS),
        thresholds=list(student.thresholds),
    )


def unmasked_student(name):
    """Return a function that names a student without masks, for `train_student`."""

    def student(wildcards):
        return {"student": name, "threshold": None}

    return student


def masks_of_student(wildcards):
    """Return the file with the masks of a student. The config has to have its threshold: others have no masks there."""
    thresholds = [f"{threshold:g}" for threshold in transfer_of(wildcards).thresholds]
    if wildcards.threshold not in thresholds:
        raise WorkflowError(
            f"{wildcards.threshold} is no threshold of {wildcards.model} and {wildcards.dataset} in the config: it has "
            f"{', '.join(thresholds) or 'none'}."
        )
    return f"results/indirect/{wildcards.model}/{wildcards.dataset}/search/masks.safetensors"


def masked_student(wildcards):
    """Return which student with masks a job trains, for `train_student`."""
    return {"student": wildcards.student, "threshold": float(wildcards.threshold)}


def student_settings(block):
    """Return a function that gives the settings of a student that is trained as `block` of transfer says."""

    def settings(wildcards):
        transfer = transfer_of(wildcards).transfer
        model = config["models"][wildcards.model]
        origin = {
            "architecture": model["architecture"],
            "weights_origin": weights_origin(model["weights"]),
        }
        return transfer_settings(wildcards, transfer, settings=transfer[block], origin=origin)

    return settings


def attack_settings(wildcards):
    return {
        "architecture": architecture(wildcards),
        "last_layer": config["models"][wildcards.model].get("last_layer"),
        "seed": config["seed"],
        "settings": {
            name: v for name, v in transfer_of(wildcards).attack.items() if name != "adaptive"
        },
    }


def defect_minutes(wildcards, attempt):
    """Return the runtime of a student's evaluation, which is as long as an attack's if the student is attacked, too."""
    return minutes(240 if adaptive_steps(wildcards) else 60)(wildcards, attempt)


def adaptive_steps(wildcards):
    """Return in how many steps each student itself is attacked; 0 if it is not.

    The perturbations against the source model do not depend on it.
    """
    attack = transfer_of(wildcards).attack
    return attack["steps"] if attack["adaptive"] else 0


def student_files(name):
    return [f"results/indirect/{s.model}/{s.dataset}/{s.method}/{name}" for s in STUDENTS]


# The report.


def report_tables():
    names = ["direct_binary", "direct_multiclass", "indirect", "summary"]
    names += ["baselines_comparison"] if BASELINES else []
    names += ["latency_budgets"] if budget_files() else []
    return [f"results/tables/{name}.csv" for name in names]


def report_figures():
    """Return the figures of what the config asks for."""
    kinds = {p.problem for p in PROBLEMS}
    names = ["accuracy_binary"] if kinds & {"binary", "group"} else []
    names += ["accuracy_multiclass"] if kinds & {"multiclass", "multiclass_rest"} else []
    names += ["retention_accuracy", "cost", "history"] if PROBLEMS else []
    names += ["engines"] if PROBLEMS and ENGINES else []
    names += ["baselines"] if BASELINES else []
    names += ["baselines_latency"] if problems_with_channel_baselines() else []
    names += ["thresholds", "defects"] if STUDENTS else []
    return [f"results/figures/{name}.png" for name in names]


# Devices, threads and resources. A cluster is asked for more memory and time in each attempt.


def device(wildcards, threads):
    """Return where torch runs and how precisely.

    Snakemake does not compare parameters that take `threads`, so that another device reruns no finished job.
    """
    return f"{config['device']}/{config['precision']}/{config['cpu_precision']}"


def all_cores(wildcards):
    """Return the number of --cores, or of this machine's cores without it (to draw a graph of the rules, say).

    A cluster's profile sets the number with set-threads instead, because neither is what a node has.
    """
    return workflow.resource_settings.cores or os.cpu_count()


def gpu(wildcards):
    return 0 if config["device"] == "cpu" else 1


def images_of(wildcards, dataset=None):
    """Return the config entry of the data set that the job works on."""
    name = dataset or wildcards.get("dataset") or dataset_of(wildcards)
    return config["datasets"].get(name, {})


def memory(small, large=None, dataset=None):
    """Return a function that gives mem_mb: `large` if a batch of the images takes gigabytes."""

    def mem_mb(wildcards, attempt):
        is_large = large and images_of(wildcards, dataset).get("size", 0) >= plan.LARGE_IMAGE
        return attempt * (large if is_large else small)

    return mem_mb


def minutes(number):
    """Return a function that gives runtime, at most a day: longer jobs wait longer, and most stopped jobs resume."""

    def runtime(wildcards, attempt):
        return min(attempt * number, 24 * 60)

    return runtime


def decoding(number, dataset=None):
    """Return a function that gives threads: more if the images do not fit an array and are decoded at each use."""

    def threads(wildcards):
        return 8 if images_of(wildcards, dataset).get("kind") == "imagenet" else number

    return threads


CLOSING = {"summarise", "report"}  # rules after which a run has new results to show


def short_job_error(self, msg):
    """Return the lines on a failed job: not all its inputs and outputs, which the log file of the run has."""
    where = f"Error in rule {msg['rule_name']}"
    lines = [": ".join(filter(None, [where, msg["rule_msg"]]))]
    if msg["log"]:
        lines.append(f"    log: {', '.join(msg['log'])} (check log file(s) for error details)")
    lines += [f"    {name}: {value}" for name, value in msg["aux"].items()]
    return lines


def show_results():
    """Show the summary, results that lost accuracy, and where everything is, if this run made the summary."""
    if CLOSING.isdisjoint(job.rule.name for job in workflow.dag.finished_jobs):
        return
    from seam.report.closing import closing_lines

    for line in closing_lines("results/tables", "results/report.html", bool(budget_files())):
        logger.info(line)
