"""Random models give what ONNX Runtime gives. SEAM_ENGINE_MODELS: how many (default 120)."""

import os

import numpy as np
import pytest
from conftest import INSTRUCTIONS, assert_agrees, needs_compiler
from random_models import ComputedModel, RandomModel

MODELS = int(os.environ.get("SEAM_ENGINE_MODELS", 120))
COUNTS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 33)


@needs_compiler
@pytest.mark.parametrize("block", range(8))
def test_random_models(block, tmp_path):
    path = tmp_path / "model.onnx"
    for seed in range(block, MODELS, 8):
        random = np.random.default_rng(seed)
        path.write_bytes(RandomModel(seed).draw(int(random.integers(1, 7))))
        counts = sorted({int(n) for n in random.choice(COUNTS, 3)})
        try:
            assert_agrees(path, counts, instructions=INSTRUCTIONS[seed % len(INSTRUCTIONS)], threads=1 + seed % 3)
        except Exception as error:
            raise AssertionError(f"RandomModel({seed})") from error


@needs_compiler
@pytest.mark.parametrize("seed", range(12))
def test_padding_computed_from_the_shape(seed, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(ComputedModel(seed, largest=17).draw(2))
    assert_agrees(path, (1, 3), instructions=INSTRUCTIONS[0])
