# What the stages share: the checked config, and where things are.

import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod
from snakemake_interface_executor_plugins.settings import ExecMode

WORKFLOW = Path(workflow.basedir) / "workflow"
CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
sys.path.insert(0, str(WORKFLOW / "scripts"))

from seam.config import plan, schema
from seam.config.wording import hint
from seam.cost.engines import find_python, why_no_engine
from seam.errors import UserError
from seam.gpus import count_gpus
from seam.imports import dependencies
from seam.models.weights import weights_origin

try:
    for file in workflow.configfiles:
        schema.require_unique_keys(file)
    config = plan.validate(config, WORKFLOW / "schemas" / "config.schema.yaml")
    PROBLEMS = plan.target_problems(config)
    STUDENTS = plan.students(config)
    LEFT_OUT = plan.left_out(config)
    ENGINES = config["engines"] if PROBLEMS else []
    MISSING = [why_no_engine(engine, CONDA) for engine in ENGINES]
except UserError as error:
    raise WorkflowError(str(error)) from None

if workflow.exec_mode == ExecMode.DEFAULT:  # once, not in every job
    if " " in sys.executable:
        raise WorkflowError(
            f"Snakemake cannot start jobs with {sys.executable}, which has a space in its path: "
            "put the environment (or the clone that it lies in) elsewhere."
        )
    for folder in (Path.cwd(), WORKFLOW):
        if set("{}") & set(str(folder)):
            raise WorkflowError(
                f"{folder} has a brace in its path, a wildcard to Snakemake: rename it."
            )
    for folder in (Path.cwd(), Path.cwd() / "results"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise WorkflowError(f"{folder} is no folder, or a link to none: remove it.")
        if folder.exists() and not os.access(folder, os.W_OK):
            raise WorkflowError(
                f"Cannot write in {folder}: fix its permissions, or name another folder with --directory."
            )
    if any(MISSING):
        raise WorkflowError(" ".join(filter(None, MISSING)))
    for line in LEFT_OUT:
        logger.warning(line)
    # On this machine (--jobs is a cluster's) a GPU has one job at a time, unless --resources gpu=N says otherwise.
    here = workflow.resource_settings.nodes is None
    if here and "gpu" not in workflow.resource_settings.resources and count_gpus():
        workflow.global_resources["gpu"] = count_gpus()

# One job at a time measures latency, on this machine or in one queue entry of a cluster; there, one has the GPU.
workflow.resource_scopes.setdefault("timing", "local")
for limited in ("timing", "gpu") if workflow.exec_mode == ExecMode.REMOTE else ("timing",):
    if limited not in workflow.resource_settings.resources:
        workflow.register_resource(limited, 1)

NAME = r"[^/]+"
TRAINED = [name for name, model in config["models"].items() if model["weights"] == "train"]
FETCHED = [name for name in config["models"] if name not in TRAINED]
MODELS = sorted({p.model for p in PROBLEMS})
MODEL_FILES = ["source.safetensors", "metrics.json", "model.onnx"]
PROBLEM_FILES = ["masks.safetensors", "history.csv", "metrics.json", "macs.json", "model.onnx"]
BY_NAME = {(p.model, p.problem, p.target): p for p in PROBLEMS}
STUDENT_FILES = ["student.safetensors", "history.csv", "training.json", "metrics.json"]
TRANSFERS = {(s.model, s.dataset): s for s in STUDENTS}  # any of them: they share their settings


def one_of(names):
    """A wildcard's regular expression for just these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


def own(path):
    """A file of the workflow, relative where it can be: a clone that moves must not look like a change."""
    path, here = WORKFLOW.parent / path, Path.cwd()
    return str(path.relative_to(here) if here in path.parents else path)


def modules(script):
    """The library files that a script imports, directly or not.

    They are inputs of its rule, so that a change in one reruns what it can affect and nothing else.
    """
    return list(map(own, dependencies(WORKFLOW / "scripts" / script)))


def dataset_of(wildcards):
    if "target" in wildcards.keys():
        return problem_of(wildcards).dataset
    if wildcards.model not in config["models"]:
        known = list(config["models"])
        raise WorkflowError(
            f"{wildcards.model} is no model of the config{hint(wildcards.model, known)}"
        )
    return config["models"][wildcards.model]["dataset"]


def manifest_of(wildcards):
    return f"results/datasets/{dataset_of(wildcards)}/dataset.json"


def arrays_of(wildcards):
    return f"results/datasets/{dataset_of(wildcards)}/arrays"


def dataset_entry(wildcards):
    if wildcards.dataset not in config["datasets"]:
        known = list(config["datasets"])
        raise WorkflowError(
            f"{wildcards.dataset} is no data set of the config{hint(wildcards.dataset, known)}"
        )
    return plan.dataset_entry(config, wildcards.dataset)


def model_settings(wildcards):
    return plan.model_settings(config, wildcards.model)


def model_files(wildcards):
    return plan.model_files(config, wildcards.model)


def source_weights(wildcards):
    return plan.source_weights(config, wildcards.model)


def problem_of(wildcards):
    name = wildcards.model, wildcards.problem, wildcards.target
    if name not in BY_NAME:
        wanted, *known = ["{}/{}/{}".format(*names) for names in (name, *BY_NAME)]
        raise WorkflowError(f"{wanted} is no target problem of the config{hint(wanted, known)}")
    return BY_NAME[name]


def search_arguments(problem):
    """The arguments of a problem's search, in one sorted dictionary: Snakemake compares it whole."""
    return dict(
        sorted(
            {
                "folder": f"results/direct/{problem.model}/{problem.problem}/{problem.target}",
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
            }.items()
        )
    )


def searches(wildcards):
    return [search_arguments(problem_of(wildcards))]


def timing_settings(wildcards):
    return problem_of(wildcards).timing


def all_cores(wildcards):
    """Those given with --cores; without (for a graph of the rules, say), this machine's.

    A cluster's profile says how many with set-threads instead: neither is what a node gives.
    """
    return workflow.resource_settings.cores or os.cpu_count()


def device(wildcards, threads):
    """Where torch runs and how precisely. It takes `threads` so that Snakemake does not rerun what ran elsewhere."""
    return f"{config['device']}/{config['precision']}"


def problem_files(name):
    return [f"results/direct/{p.model}/{p.problem}/{p.target}/{name}" for p in PROBLEMS]


def latency_files():
    return [file for engine in ENGINES for file in problem_files(f"latency_{engine}.json")]


def transfer_of(wildcards):
    """One of the students of this model and data set: what they share is the same in each."""
    if (wildcards.model, wildcards.dataset) not in TRANSFERS:
        wanted, *known = [
            "{}/{}".format(*names) for names in ((wildcards.model, wildcards.dataset), *TRANSFERS)
        ]
        raise WorkflowError(
            f"{wanted} is no model and data set of indirect_reuse{hint(wanted, known)}"
        )
    return TRANSFERS[wildcards.model, wildcards.dataset]


def transfer_settings(wildcards, transfer, **more):
    """All that a step of indirect reuse depends on, in one sorted dictionary."""
    common = {name: transfer[name] for name in ("batch_size", "holdout", "selection")}
    common["last_layer"] = config["models"][wildcards.model].get("last_layer")
    return dict(sorted({"common": common, "seed": config["seed"], **more}.items()))


def head_settings(wildcards):
    transfer = transfer_of(wildcards).transfer
    return transfer_settings(wildcards, transfer, head=transfer["head"])


def masks_settings(wildcards):
    student = transfer_of(wildcards)
    return transfer_settings(
        wildcards,
        student.transfer,
        search=student.transfer["search"],
        thresholds=list(student.thresholds),
    )


def whole_student(name):
    """The function that names a student without masks, for `train_student`."""

    def student(wildcards):
        return {"student": name, "threshold": None}

    return student


def masked_student(wildcards):
    """Which student with masks it is, for `train_student`."""
    return {"student": wildcards.student, "threshold": float(wildcards.threshold)}


def student_settings(block):
    """The function that gives the settings of a student which is trained as `block` of transfer says."""

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
        "last_layer": config["models"][wildcards.model].get("last_layer"),
        "seed": config["seed"],
        "settings": transfer_of(wildcards).attack,
    }


def student_files(name):
    return [f"results/indirect/{s.model}/{s.dataset}/{s.method}/{name}" for s in STUDENTS]


# What jobs ask of a cluster, more in each attempt: the functions for threads and resources.


def gpu(wildcards):
    return 0 if config["device"] == "cpu" else 1


def images_of(wildcards, dataset=None):
    """The entry of the data set that the job works on."""
    name = dataset or wildcards.get("dataset") or dataset_of(wildcards)
    return config["datasets"].get(name, {})


def memory(small, large=None, dataset=None):
    """The function that gives mem_mb: `large` where images are so large that a batch of them takes gigabytes."""

    def mem_mb(wildcards, attempt):
        is_large = large and images_of(wildcards, dataset).get("size", 0) >= plan.LARGE_IMAGE
        return attempt * (large if is_large else small)

    return mem_mb


def minutes(number):
    """The function that gives runtime: never above a day, since longer jobs wait longer, and a stopped job resumes."""

    def runtime(wildcards, attempt):
        return min(attempt * number, 24 * 60)

    return runtime


def decoding(number, dataset=None):
    """The function that gives threads: more where the images, too many for an array, are decoded at each use."""

    def threads(wildcards):
        return 8 if images_of(wildcards, dataset).get("kind") == "imagenet" else number

    return threads
