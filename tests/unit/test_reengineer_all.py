"""Several target problems in one job."""

import json
from pathlib import Path

import pandas as pd
import pytest
from colours import ARCHITECTURE, binary_searches, trained_model
from contents import content
from networks import PLAIN

from seam.errors import UserError
from seam.reuse import direct
from seam.reuse.direct import reengineer, reengineer_all
from seam.search import stacked

SETTINGS = {"epochs": 5, "batch_size": 24, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100, "alpha": 2.0}
TARGETS = ("red", "green", "blue")


@pytest.fixture
def searches(tmp_path, model_folder, dataset_folder):
    """The arguments of `reengineer_all` for three targets."""
    return list(binary_searches(tmp_path / "all", TARGETS, model_folder, dataset_folder, SETTINGS).values())


@pytest.fixture
def alone(tmp_path, model_folder, dataset_folder):
    """A function that searches a target alone and returns the content of its folder."""

    def search(target):
        (arguments,) = binary_searches(tmp_path / "alone", [target], model_folder, dataset_folder, SETTINGS).values()
        reengineer(**arguments, device="cpu")
        return content(arguments["folder"])

    return search


def checkpoints(searches):
    return [Path(arguments["checkpoint"]).exists() for arguments in searches]
