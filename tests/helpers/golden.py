"""Digests of what a small whole run of the workflow makes, to see whether a change of the code shifts a bit of it.

`make golden` runs the workflow and records the digests for this version of torch and this kind of processor in
golden.json. Do that only for a change that is meant to change results, and say so in CHANGELOG.md.
"""

import csv
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("golden.json")
# Columns and keys that hold clock times, versions and machines, which differ between two runs of the same code, or
# the digest of their own file, which follows from the rest.
IGNORED = (
    "seconds",
    "latency_",
    "_ms",
    "_difference",
    "speedup",
    "version",
    "cpu",
    "instruction_set",
    "torch",
    "loading",
    "digest",
)
IGNORED_QUANTITIES = ("latency", "time", "speedup")


def platform():
    """Return the key of this platform's digests: torch's version, the processor's vendor and vector instructions.

    A process that is bound to one processor has a key of its own, because it trains source models in one thread.
    """
    import torch

    vendor = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        vendor = next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), vendor)
    alone = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
    bound = ", one processor" if alone else ""
    return f"torch {torch.__version__.split('+')[0]}, {vendor}, {torch.backends.cpu.get_cpu_capability()}{bound}"


def config(images):
    """Return a config of direct and indirect reuse that uses every kind of search, student and selection."""
    return {
        "engines": ["onnxruntime"],
        "datasets": {
            "colours": {"kind": "imagefolder", "root": str(images), "size": 16},
            "two": {"kind": "imagefolder", "root": str(images), "size": 16, "classes": ["green", "blue"]},
        },
        "models": {
            "own": {
                "architecture": "small.py:build",
                "dataset": "colours",
                "weights": "train",
                "training": {"epochs": 3, "batch_size": 16, "lr": 0.05},
            },
            "resnet": {
                "architecture": "resnet20",
                "dataset": "colours",
                "weights": "train",
                "training": {"epochs": 2, "batch_size": 16, "lr": 0.05},
            },
        },
        # few_images: 0, because 40 images of a class are few.
        "search": {"epochs": 8, "batch_size": 16, "lr_mask": 0.1, "patience": 100, "few_images": 0},
        "timing": {"batch_size": 2, "warmup": 1, "iterations": 1, "runs": 1, "threads": 1},
        "direct_reuse": [
            {"model": "own", "problem": "binary", "targets": ["red", "blue"], "overrides": {"blue": {"alpha": 2.0}}},
            {"model": "own", "problem": "multiclass", "targets": {"warm": ["red", "yellow"]}},
            {
                "model": "resnet",
                "problem": "binary",
                "targets": ["green"],
                "search": {"schedule": "fast", "epochs": 4, "evaluate_every": 2, "alpha": 4.0},
            },
            {
                "model": "resnet",
                "problem": "multiclass",
                "targets": {"cold": ["green", "blue", "red"]},
                "search": {"selection": "test", "accuracy_worth": None, "epochs": 3, "head_every": 2},
            },
        ],
        "transfer": {
            "batch_size": 16,
            "head": {"epochs": 3},
            "search": {"epochs": 60, "lr_mask": 0.02, "alpha": 0.03},
            "finetune": {"epochs": 2},
            "standard": {"epochs": 2},
            "retrain": {"epochs": 2},
        },
        "attack": {"steps": 3},
        "indirect_reuse": [
            {
                "model": "own",
                "datasets": ["two"],
                "students": ["standard", "retrain", "seam", "magnitude", "random"],
                "thresholds": [0.3, 0.5],
                "compare_at": [0.3],
                "transfer": {"finetune": {"keep_zeros": True}},
            }
        ],
    }


def run(folder):
    """Run the workflow in `folder` on small images; return the digests of its results."""
    from colours import paint
    from workflows import snakemake

    settings = config(paint(folder / "images"))
    shutil.copy(ROOT / "tests/helpers/small.py", folder)  # results name the architecture's file, wherever the clone is
    snakemake(folder, "--quiet", "all", config=settings)
    return digests(folder / "results")


def digests(results):
    """Return {path below `results`: SHA-256 of what it holds} of the arrays, tensors, histories and tables there."""
    found = {}
    for path in sorted(results.rglob("*")):
        reader = READERS.get(path.suffix)
        if path.is_file() and reader and path.relative_to(results).parts[0] not in ("logs", "benchmarks"):
            found[path.relative_to(results).as_posix()] = hashlib.sha256(reader(path)).hexdigest()
    return found


def _tensors(path):
    from safetensors.numpy import load_file

    return b"".join(
        f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes()
        for name, value in sorted(load_file(path).items())
    )


def _array(path):
    value = np.load(path)
    return f"{value.dtype} {value.shape} ".encode() + value.tobytes()


def _onnx(path):
    import onnx

    return onnx.load(path).graph.SerializeToString(deterministic=True)


def _table(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if not any(word in row.get("quantity", "") for word in IGNORED_QUANTITIES)]
    return json.dumps([_without_clock(row) for row in rows], sort_keys=True).encode()


def _json(path):
    data = json.loads(path.read_text())
    return b"latency" if path.name.startswith("latency_") else json.dumps(_without_clock(data), sort_keys=True).encode()


def _without_clock(value):
    if isinstance(value, dict):
        return {k: _without_clock(v) for k, v in value.items() if not any(word in k for word in IGNORED)}
    return [_without_clock(one) for one in value] if isinstance(value, list) else value


READERS = {".safetensors": _tensors, ".npy": _array, ".onnx": _onnx, ".csv": _table, ".json": _json}


def record():
    """Run the workflow and write its digests into golden.json; print what changed."""
    folder = Path(tempfile.mkdtemp())
    try:
        found = run(folder)
    finally:
        shutil.rmtree(folder)
    known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    before = known.get(platform(), {})
    changed = sorted(path for path in found.keys() | before.keys() if found.get(path) != before.get(path))
    print(f"{platform()}: {len(found)} digests, {len(changed)} of them changed", *changed, sep="\n  ")
    RECORDED.write_text(json.dumps(dict(sorted({**known, platform(): found}.items())), indent=1) + "\n")


if __name__ == "__main__":
    record()
