"""docs/api.md is made from the docstrings, and the program of docs/library.md runs."""

import ast
import re
from pathlib import Path

import torch
from small import build_plain
from torch.utils.data import DataLoader, TensorDataset

from seam.api import MODULES, PACKAGE, document

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == document(), "run make docs"


def test_every_public_name_of_a_module_is_on_the_page_with_its_first_line():
    page = document()
    for module in MODULES:
        for node in ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert f"### {node.name}\n" in page
                assert (ast.get_docstring(node) or "no docstring").splitlines()[0] in page, node.name


def test_the_program_for_own_data_loaders_runs(capsys):
    """Two of four colours, told apart by a network that knows all four."""
    torch.manual_seed(0)
    labels = torch.arange(160) % 4
    colours = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [2, 2, 0]])
    images = colours[labels][:, :, None, None] + torch.randn(160, 3, 8, 8)
    network = build_plain(4)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    pair = labels < 2
    data = [TensorDataset(images[pair][part], labels[pair][part]) for part in (slice(0, 60), slice(60, None))]
    names = {
        "network": network.eval(), "train": DataLoader(data[0], 16, shuffle=True), "held_out": DataLoader(data[1], 16),
        "test": DataLoader(data[1], 16), "source_accuracy": 1.0,
    }  # fmt: skip
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(encoding="utf-8"), re.S)
    assert code is not None
    exec(code[1], names)
    shown = re.fullmatch(r"([\d.]+)% right with ([\d.]+)% of the weights\n", capsys.readouterr().out)
    assert shown is not None and float(shown[1]) > 80 and float(shown[2]) < 27
