"""The API as a page of Markdown, from signatures and docstrings, which are read and not imported."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

# The modules that people use who write their own programs, in the order in which they need them.
MODULES = (
    "reuse.load", "reuse.delivered", "data.batches", "data.kinds.registry", "data.storage", "data.problems",
    "models.architectures", "models.weights", "models.published", "models.fitting", "models.unpickling",
    "models.classes", "models.surgery", "models.folding", "masks.layers", "masks.masks", "masks.bits", "masks.biases",
    "masks.channels", "masks.shrink",
    "settings", "search.plain", "search.by_channel", "search.mask_search", "search.budget", "search.distillation",
    "training.run", "training.checkpoint", "evaluation", "reuse.direct", "cost.macs", "cost.export", "cost.latency",
    "engine.engine", "delivery.choices", "delivery.shrinking", "delivery.checking", "delivery.evaluating",
    "delivery.package",
)  # fmt: skip

INTRODUCTION = """\
# API

<!-- Made from the docstrings by workflow/scripts/document_api.py: change them, then run make docs -->

These are the functions and classes for programs of your own; [library.md](library.md) shows how they fit together.
`seam.load`, `seam.load_student` and `seam.image` are `seam.reuse.load.load_reengineered`,
`seam.reuse.load.load_student` and `seam.data.batches.load_image`. Names that begin with `_` can change at any time.
"""


def document(modules: tuple[str, ...] = MODULES) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for name in modules:
        tree = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
        entries = [entry for node in tree.body for entry in _entries(node)]
        if entries:
            parts += [f"## seam.{name}\n", _docstring(tree), *entries]
    return "\n".join(parts).rstrip() + "\n"


def _entries(node: ast.stmt) -> list[str]:
    """Return the text of a public function or class, with its public methods."""
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
        return []
    if isinstance(node, ast.FunctionDef):
        return [f"### {node.name}\n", _code(_signature(node)), _docstring(node)]
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    entries = [f"### {node.name}\n", _code(f"class {node.name}{bases}"), _docstring(node)]
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or (method.name.startswith("_") and method.name != "__init__"):
            continue
        if method.name != "__init__" or ast.get_docstring(method):
            entries += [_code(_signature(method)), _docstring(method)]
    return entries


def _signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = ast.unparse(node.args)
    line = f"{node.name}({arguments}){returns}"
    if len(line) <= 110:
        return line
    return f"{node.name}(\n{textwrap.indent(_wrapped(node.args), '    ')}\n){returns}"


def _wrapped(arguments: ast.arguments) -> str:
    """Return the arguments, one a line."""
    lines: list[str] = []
    text, depth = "", 0
    for character in ast.unparse(arguments):
        depth += character in "([{"
        depth -= character in ")]}"
        if character == "," and not depth:
            lines.append(f"{text.strip()},")
            text = ""
        else:
            text += character
    return "\n".join([*lines, f"{text.strip()},"])


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _docstring(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """Return the docstring; its examples become blocks of code."""
    lines, inside = [], False
    for line in (ast.get_docstring(node) or "").splitlines():
        is_example = line.startswith((">>>", "..."))
        if is_example and not inside:
            lines += ["```python"]
            inside = True
        elif inside and not line.strip():
            lines += ["```"]
            inside = False
        lines.append(
            line.replace("  # doctest: +SKIP", "").replace("# doctest: +SKIP", "").rstrip() if inside else line
        )
    return "\n".join([*lines, *(["```"] if inside else []), ""])
