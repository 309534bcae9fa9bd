"""Run the workflow as its users do, on small images."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from colours import ARCHITECTURE

from seam.cost.engines import why_no_engine

ROOT = Path(__file__).parents[2]
# The workflow stops with a sentence if DeepSparse cannot be installed. Tests of other features run without it.
ENGINES = [engine for engine in ("deepsparse", "seam", "onnxruntime") if not why_no_engine(engine)]


def snakemake(folder, *arguments, config=None, check=True, workflow=ROOT):
    """Run the workflow in `folder` with `config` merged over the default; return its exit status and output."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", workflow / "Snakefile", "--directory", folder]
    command += ["--cores", "2"]
    if config is not None:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        command += ["--configfile", path]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    assert not check or result.returncode == 0, said
    return result.returncode, said


def jobs(said):
    """Return {rule: number of jobs} from the table that a dry run prints."""
    table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?)\ntotal", said, re.DOTALL)
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()} if table else {}


def small_config(images):
    return {
        "engines": ["onnxruntime"],
        "datasets": {
            "colours": {"kind": "imagefolder", "root": str(images), "size": 16},
            "two": {"kind": "imagefolder", "root": str(images), "size": 16, "classes": ["green", "blue"]},
        },
        "models": {
            "small": {
                "architecture": ARCHITECTURE,
                "dataset": "colours",
                "weights": "train",
                "training": {"epochs": 4, "batch_size": 16, "lr": 0.05},
            }
        },
        "search": {"epochs": 12, "batch_size": 16, "lr_mask": 0.1, "patience": 100, "few_images": 0},
        "timing": {"batch_size": 4, "warmup": 2, "iterations": 5, "runs": 2},
        "direct_reuse": [
            {"model": "small", "problem": "binary", "targets": ["red", "blue"], "overrides": {"blue": {"alpha": 2.0}}},
            {"model": "small", "problem": "multiclass", "targets": {"warm": ["red", "yellow"]}},
        ],
        "transfer": {
            "batch_size": 16,
            "head": {"epochs": 3},
            "search": {"epochs": 60, "lr_mask": 0.02, "alpha": 0.03},
            "finetune": {"epochs": 3},
            "standard": {"epochs": 3},
        },
        "attack": {"steps": 5},
        "indirect_reuse": [
            {"model": "small", "datasets": ["two"], "students": ["standard", "seam"], "thresholds": [0.3, 0.5]}
        ],
    }


def change(config, path, value):
    """Return a copy of the config with `value` at `path`, which may lie behind the end of a list."""
    config = yaml.safe_load(yaml.safe_dump(config))
    if not path:
        return value
    *parents, last = path
    place = config
    for key in parents:
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
    if isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return config
