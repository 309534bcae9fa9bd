"""A small world for the tests: images of four colours as files, and a small network trained on them."""

import numpy as np
from PIL import Image

COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60), "yellow": (190, 190, 60)}


def paint(root, train=40, test=20, size=16, seed=0):
    """train/CLASS/*.png and test/CLASS/*.png: noise around the colour of the class."""
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
    """The folder, with a source model that is called like it."""
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


def binary_searches(root, names, model_folder, dataset_folder, settings):
    """{target: arguments of `reengineer`, but for the device}, in folders as the workflow has them."""
    model = model_folder.name
    return {
        name: {
            "folder": str(root / "direct" / model / "binary" / name),
            "model_folder": str(model_folder),
            "dataset_folder": str(dataset_folder),
            "checkpoint": str(root / f"checkpoints/{name}.pt"),
            **{"model": model, "dataset": "colours", "problem": "binary", "target": name, "members": [name]},
            **{"settings": settings, "seed": 0},
        }
        for name in names
    }


ARCHITECTURE = f"{__file__.rsplit('/', 1)[0]}/small.py:build"
