"""A small world for the tests: images of four colours as files, a small network trained on them."""

import numpy as np
import pytest
from PIL import Image

# What takes minutes begins first, so that the processes of `make test` end at about the same time.
LONG = ("test_slurm", "test_workflow")

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


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """The folder of the images."""
    return paint(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def dataset_folder(colours, tmp_path_factory):
    """The data set as the workflow keeps it."""
    from seam.data.kinds.registry import prepare_dataset

    folder = tmp_path_factory.mktemp("datasets") / "colours"
    prepare_dataset({"kind": "imagefolder", "root": str(colours), "size": 16}, folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(dataset_folder, tmp_path_factory):
    """A small source model trained on it, as the workflow keeps it."""
    return trained_model(tmp_path_factory.mktemp("models") / "small", ARCHITECTURE, dataset_folder)


def trained_model(folder, architecture, dataset_folder):
    """The folder, with a source model that is called like it."""
    from train_source import train_source

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


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test logged is sent to the process that reports it: a name that is no text must not break that either."""
    report = yield
    report.sections = [(name, said.encode("utf-8", "backslashreplace").decode()) for name, said in report.sections]
    return report


ARCHITECTURE = f"{__file__.rsplit('/', 1)[0]}/small.py:build"
