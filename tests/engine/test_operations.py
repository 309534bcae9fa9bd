"""Random models give what ONNX Runtime gives. SEAM_ENGINE_MODELS: how many (default 120)."""

import os

import numpy as np
import pytest
from conftest import INSTRUCTIONS, assert_agrees, needs_compiler
from random_models import RandomModel

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
