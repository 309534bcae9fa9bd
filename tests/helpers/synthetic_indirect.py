"""Make up students in the layout of real ones: the demo's, some with three thresholds, or the full config's."""

import json
from pathlib import Path

import numpy as np

SETTINGS = {
    "batch_size": 64,
    "finetune": {
        **{"epochs": 300, "keep_zeros": False, "lr": 0.005, "lr_last": 0.05, "momentum": 0.0, "patience": 30},
        "weight_decay": 0.0001,
    },
    "head": {"epochs": 300, "lr": 0.1, "momentum": 0.0, "patience": 30, "weight_decay": 0.0001},
    "holdout": 0.1,
    "retrain": {**{"epochs": 300, "lr": 0.1, "lr_last": 0.1, "momentum": 0.5, "patience": 300, "weight_decay": 0.0001}},
    "search": {"alpha": 0.5, "epochs": 300, "lr_last": 0.001, "lr_mask": 0.05},
    "selection": "holdout",
    "standard": {
        **{"epochs": 300, "lr": 0.005, "lr_last": 0.05, "momentum": 0.0, "patience": 300, "weight_decay": 0.0001}
    },
}
SIZES = {"resnet20": 272_474, "torchvision:resnet18": 11_683_712, "torchvision:resnet50": 25_503_912}
LEVELS = {  # accuracy and DIR of the standard student, about the published ones
    "mit67": (0.75, 0.62),
    "cub200": (0.78, 0.51),
    "flower102": (0.95, 0.38),
    "dog120": (0.82, 0.89),
    "action40": (0.77, 0.73),
}
IMAGES = {"mit67": 1340, "cub200": 5794, "flower102": 6149, "dog120": 8580, "action40": 5532}


def students(thresholds, compare_at=None):
    """Return [(student, threshold or None)] in the config's order."""
    at = {"seam": thresholds, **dict.fromkeys(("magnitude", "random"), compare_at or thresholds)}
    return [
        (student, t)
        for student in ("standard", "retrain", "seam", "magnitude", "random")
        for t in at.get(student, [None])
    ]


DEMO = [("digits-low-resnet20", "resnet20", "digits-high", "train", students([0.4, 0.6]))]
THREE = [("resnet20-cifar6", "resnet20", "cifar4", "train", students([0.3, 0.5, 0.7]))]
FULL = [
    (f"{short}-imagenet", f"torchvision:{short}", dataset, "IMAGENET1K_V1", students(thresholds, [0.6]))
    for short, thresholds in (("resnet18", [0.3, 0.4, 0.5, 0.6, 0.7]), ("resnet50", [0.6]))
    for dataset in LEVELS
]


def rates(random, student, threshold, level, inherited):
    """Return (accuracy, DIR) that such a student might have."""
    if student == "retrain":
        return 0.55 * level + 0.05 * random.random(), 0.04 + 0.06 * random.random()
    if student == "standard":
        return level, inherited
    loss, fall = {"seam": (0.08, 1.15), "magnitude": (0.1, 0.7), "random": (0.25, 1.1)}[student]
    accuracy = level - loss * threshold**2 + random.normal(0, 0.004)
    return accuracy, inherited * max(0.08, 1 - fall * threshold**0.6) + 0.02 * random.random()


def make(folder, entries, seed=0):
    """Write the students' JSON files under `folder`/results; return {"training": paths, "metrics": paths}."""
    made = {"training": [], "metrics": []}
    for model, architecture, dataset, origin, wanted in entries:
        random = np.random.default_rng([seed, len(model), len(dataset), ord(dataset[0])])
        level, inherited = LEVELS.get(dataset, (0.94, 0.55))
        images, weights = IMAGES.get(dataset, 450), SIZES[architecture]
        for student, threshold in wanted:
            method = student if threshold is None else f"{student}-{threshold:g}"
            place = Path(folder) / "results" / "indirect" / model / dataset / method
            place.mkdir(parents=True)
            accuracy, rate = rates(random, student, threshold, level, inherited)
            right = round(images * accuracy)
            wrong = round(right * rate)
            masked = threshold is not None
            kept = int(weights * (1 - threshold - 0.01 * random.random())) if masked else None
            same = {"model": model, "dataset": dataset, "student": student, "threshold": threshold}
            training = {
                **same,
                "architecture": architecture,
                "weights_origin": origin,
                "seed": int(random.integers(2**62, 2**63 - 1)),
                "settings": SETTINGS,
                "images": {"train": 9 * images, "holdout": images, "test": images},
                "retention": kept / weights if masked else None,
                "weights": weights,
                "kept": kept,
                "holdout_accuracy": right / images + 0.01,
                "epochs": 120,
                "selected_epoch": 89,
                "seconds": float(random.uniform(300, 600)),
                "search_epochs": round(40 * threshold) if masked else None,
                "search_seconds": 10.5 * threshold if masked else None,
                "device": "cpu",
                "precision": "float32",
                "threads": 2,
                "torch": "2.14.1",
            }
            zeros = int(weights * random.uniform(0, 0.01))
            metrics = {
                **same,
                "images": images,
                "right": right,
                "inherited": wrong,
                "accuracy": right / images,
                "defect_inheritance_rate": wrong / right,
                "accuracy_perturbed": (right - wrong) / images,
                "weights": weights + 1000,
                "zeros": zeros,
                "sparsity": zeros / (weights + 1000),
            }
            for name, data in (("training", training), ("metrics", metrics)):
                (place / f"{name}.json").write_text(json.dumps(data))
                made[name].append(str(place / f"{name}.json"))
    return made
