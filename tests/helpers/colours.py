"""A small world for the tests: images of four colours as files, and a small network trained on them."""

import numpy as np
from PIL import Image

COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60), "yellow": (190, 190, 60)}


def paint(root, train=40, test=20, size=16, seed=0):
    """Write train/CLASS/*.png and test/CLASS/*.png, noise around the colour of the class; return `root`."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.normal(colour, 60, (size, size, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


def trained_model(folder, architecture, dataset_folder):
    """Train a small source model into `folder`, which gives it its name; return the folder."""
    from seam.reuse.source_training import train_source

    settings = {
        "architecture": str(architecture),
        "normalization": None,
        "seed": 0,
        "training": {"epochs": 4, "batch_size": 16, "lr": 0.05},
    }
    files = folder / "source.safetensors", folder / "training.csv"
    train_source(*files, folder.name, dataset_folder, settings, "cpu", folder / "checkpoint.pt")
    return folder


def small_world(root, data="data", model="small"):
    """Paint the images into root/colours, prepare them in root/`data`, and train the small model in root/`model`."""
    from seam.data.kinds.registry import prepare_dataset

    paint(root / "colours")
    prepare_dataset({"kind": "imagefolder", "root": str(root / "colours"), "size": 16}, root / data)
    trained_model(root / model, ARCHITECTURE, root / data)


def binary_searches(root, targets, model_folder, dataset_folder, settings):
    """Return {target: arguments of `reengineer` without the device}, in folders as the workflow has them."""
    model = model_folder.name
    return {
        target: {
            "folder": str(root / "direct" / model / "binary" / target),
            "model_folder": str(model_folder),
            "dataset_folder": str(dataset_folder),
            "checkpoint": str(root / f"checkpoints/{target}.pt"),
            **{"model": model, "dataset": "colours", "problem": "binary", "target": target, "members": [target]},
            **{
                "settings": settings,
                "seed": 0,
                "architecture": ARCHITECTURE if model == "small" else PLAIN_ARCHITECTURE,
            },
        }
        for target in targets
    }


ARCHITECTURE = f"{__file__.rsplit('/', 1)[0]}/small.py:build"
PLAIN_ARCHITECTURE = f"{ARCHITECTURE}_plain"  # without dropout
