"""Make up results of direct reuse in the layout of real ones: as many as in the demo, or in the full config."""

import json
import math
from pathlib import Path

import numpy as np

SETTINGS = {
    "accuracy_worth": 5.0,
    "alpha": 1.0,
    "batch_size": 64,
    "epochs": 300,
    "head_every": 5,
    "evaluate_every": 1,
    "holdout": 0.2,
    "lr_head": 0.1,
    "lr_mask": 0.05,
    "patience": 50,
    "selection": "holdout",
    "tolerance": 0.0,
}
SIZES = {"resnet20": (272_474, 41_200_000), "vgg16_bn": (15_245_130, 314_000_000)}  # weights, MACs
WORDS = [
    *["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron"],
    *["inlet", "juniper", "kelp", "lotus", "maple", "nectar", "olive", "pine"],
]

DEMO = [
    ("resnet20-digits", "resnet20", "digits", "binary", ["3", "5", "8"]),
    ("vgg16-digits", "vgg16_bn", "digits", "binary", ["0"]),
    ("resnet20-digits", "resnet20", "digits", "multiclass", ["round"]),
]
FULL = [
    (f"{short}-{dataset}", architecture, dataset, "binary", targets)
    for short, architecture in (("vgg16", "vgg16_bn"), ("resnet20", "resnet20"))
    for dataset, targets in (
        ("cifar10", ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]),
        ("cifar100", [f"{WORDS[i % 16]}_{WORDS[i // 16 * 2]}" for i in range(100)]),
    )
] + [
    (
        "resnet20-cifar100",
        "resnet20",
        "cifar100",
        "multiclass",
        [f"large_{word}_outdoors_{i}" for i, word in enumerate(WORDS + WORDS[:4])],
    ),
]


def statistics(milliseconds):
    """Return the statistics of the passes of a model that takes so long."""
    return {
        "mean_ms": milliseconds,
        "median_ms": milliseconds - 0.125,
        "quartiles_ms": [milliseconds - 0.25, milliseconds + 0.25],
        "minimum_ms": milliseconds - 0.25,
        "run_means_ms": [milliseconds, milliseconds],
        "difference": 1e-7,
    }


def history(random, epochs, level, floor, start=0.5):
    """Return (rows, selected epoch) of a search: retention falls to about `floor`, accuracy rises to `level`."""
    rows, best, selected = [], math.inf, 0
    retention = 1.0
    for epoch in range(1, epochs + 1):
        phase = "head" if epoch % 5 == 1 else "masks"
        if phase == "masks":
            retention = floor + (retention - floor) * math.exp(-12 / epochs)
        late = 0.02 * max(0, epoch / epochs - 0.75)
        accuracy = float(
            np.clip(level - late - (level - start) * math.exp(-18 * epoch / epochs) + random.normal(0, 0.006), 0, 1)
        )
        better = accuracy >= level - 0.004 and retention < best
        best, selected = (retention, epoch) if better else (best, selected)
        entropy = float(random.uniform(0.05, 0.1))
        loss = entropy + retention
        rows.append([epoch, phase, loss, entropy, retention, accuracy, accuracy, retention, 1.25, int(better)])
    return rows, selected


def details(classes, accuracy, images=1000):
    """Return what metrics.json says of each class, if all have the same accuracy and wrong answers are the next one."""
    right, count = round(accuracy * images), len(classes)
    matrix = [[0] * count for _ in classes]
    for place in range(count):
        matrix[place][place], matrix[place][(place + 1) % count] = right, images - right
    metrics = {name: {"recall": right / images, "precision": right / images} for name in classes}
    return {
        "test_images": dict.fromkeys(classes, images),
        "per_class": {"source": metrics, "reengineered": metrics},
        "confusion": {"source": matrix, "reengineered": matrix},
    }


def make(folder, problems, engines=("deepsparse", "onnxruntime"), origin="train", epochs=40, seed=0):
    """Write the problems' JSON and CSV files under `folder`/results; return {name: paths} in the config's order."""
    root = Path(folder) / "results"
    made = {"metrics.json": [], "macs.json": [], "history.csv": [], "latency": [], "models": []}
    for model, architecture, dataset, problem, targets in problems:
        random = np.random.default_rng([seed, len(model), len(targets), len(problem)])
        weights, dense = SIZES[architecture]
        top = root / "models" / model / "metrics.json"
        top.parent.mkdir(parents=True, exist_ok=True)
        top.write_text(
            json.dumps(
                {
                    "model": model,
                    "dataset": dataset,
                    "architecture": architecture,
                    "accuracy": 0.9,
                    "weights_origin": origin,
                }
            )
        )
        if top not in made["models"]:
            made["models"].append(top)
        for target in targets:
            place = root / "direct" / model / problem / target
            place.mkdir(parents=True, exist_ok=True)
            source = float(random.uniform(0.78, 0.95)) if dataset == "cifar100" else float(random.uniform(0.97, 0.999))
            restricted = source if problem == "binary" else min(1.0, source + float(random.uniform(0.0, 0.06)))
            after = float(np.clip(source + random.normal(0.02, 0.02), 0, 0.999))
            rows, selected = history(random, epochs, after, float(random.uniform(0.05, 0.18)))
            retention = rows[max(selected - 1, 0)][7]
            sparse = int(dense * min(1, retention * random.uniform(0.9, 1.3)))
            metrics = {
                "model": model,
                "dataset": dataset,
                "problem": problem,
                "target": target,
                "classes": [target, "rest"] if problem == "binary" else ["a", "b", "c", "d", "e"],
                "seed": int(random.integers(2**62, 2**63 - 1)),
                "settings": SETTINGS,
                "images": {"train": 8000, "holdout": 2000, "test": 2000},
                "accuracy": {"source": source, "source_restricted": restricted, "reengineered": after},
                "balanced_accuracy": {"source": source, "source_restricted": restricted, "reengineered": after},
                "decided_by": "accuracy",
                **details(["a", "b", "c", "d", "e"] if "multi" in problem else [target, "rest"], after),
                "holdout_accuracy": {"source": source - 0.003, "reengineered": after + 0.002},
                "retention": retention,
                "weights": weights,
                "kept": int(weights * retention),
                "epochs": epochs,
                "selected_epoch": selected,
                "seconds": float(random.uniform(30, 60)),
                "device": "cpu",
                "precision": "float32",
                "threads": 2,
                "torch": "2.14.1",
            }
            (place / "metrics.json").write_text(json.dumps(metrics))
            parts = {
                "source": {"convolution": dense - 51_200, "linear": 51_200, "other": 0, "total": dense},
                "reengineered_dense": {
                    "convolution": dense - 51_200,
                    "linear": 51_220,
                    "other": 0,
                    "total": dense + 20,
                },
                "reengineered": {"convolution": sparse - 1000, "linear": 1000, "other": 0, "total": sparse},
            }
            (place / "macs.json").write_text(json.dumps(parts))
            header = "epoch,phase,loss,cross_entropy,penalty,train_accuracy,accuracy,retention,seconds,selected"
            lines = [header, *(",".join(map(str, line)) for line in rows)]
            (place / "history.csv").write_text("\n".join(lines) + "\n")
            made["metrics.json"].append(place / "metrics.json")
            made["macs.json"].append(place / "macs.json")
            made["history.csv"].append(place / "history.csv")
            for engine in engines:
                slow = dense / 5e6 * float(random.uniform(0.9, 1.1))
                share = min(1.0, 0.45 + retention) if engine == "deepsparse" else float(random.uniform(0.96, 1.03))
                fast = slow * share
                times = {name: statistics(value) for name, value in (("source", slow), ("reengineered", fast))}
                latency = {
                    "engine": engine,
                    "version": "1.0",
                    "instruction_set": "avx2",
                    "gains_from_zeros": engine in ("deepsparse", "seam"),
                    "fallback": {},
                    "cpu": "A CPU",
                    "warmup": 1,
                    "iterations": 100,
                    "runs": 2,
                    "statistic": "mean",
                    "bytes": {"source": 4 * weights, "reengineered": 4 * weights + 100},
                    "measurements": [
                        {"batch_size": 16, "threads": 2, **times},
                        {"batch_size": 1, "threads": 2, **times},
                    ],
                }
                (place / f"latency_{engine}.json").write_text(json.dumps(latency))
                made["latency"].append(place / f"latency_{engine}.json")
    return {name: [str(path) for path in paths] for name, paths in made.items()}
