"""Which files of the package a module depends on, from its import statements.

The workflow makes these files inputs of the rules, and a checkpoint records their digest. So a change of the code
reruns the jobs that can depend on it, and no others.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[1]  # the folder that holds the package


@functools.cache
def imported_files(file: Path, root: Path = ROOT) -> frozenset[Path]:
    """Return the files below `root` that `file` itself imports, at any depth of its code.

    They include the `__init__.py` of each package above an imported module, because the import runs it. They do not
    include imports for type checkers alone (`if TYPE_CHECKING:`). Raises SyntaxError if the file is not Python.
    """
    modules: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        nodes += ast.iter_child_nodes(node)
    return frozenset(path for module in modules for path in _module_files(module, root))


def _module_files(module: str, root: Path) -> set[Path]:
    """Return the files below `root` that an import of `module` runs; none if it is of another package."""
    parts = module.split(".")
    if not (root / parts[0]).is_dir():
        return set()
    folders = [root.joinpath(*parts[: count + 1]) for count in range(len(parts))]
    candidates = [folder / "__init__.py" for folder in folders] + [folders[-1].with_suffix(".py")]
    return {candidate for candidate in candidates if candidate.is_file()}


def dependencies(file: Path, root: Path = ROOT, ignored: Collection[Path] = ()) -> list[Path]:
    """Return the files below `root` that `file` imports, directly or through others, sorted.

    ignored: files to leave out, with all that only they import.
    """
    known: set[Path] = set()
    pending = [file]
    while pending:
        new = imported_files(pending.pop(), root) - known - set(ignored)
        known |= new
        pending += new
    return sorted(known)


def code_digest(file: str | Path, root: Path = ROOT) -> str:
    """Return the SHA-256 of the source of a module and of all files below `root` that it depends on."""
    digest = hashlib.sha256()
    for path in [Path(file), *dependencies(Path(file), root)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
