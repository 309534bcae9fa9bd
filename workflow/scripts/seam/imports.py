"""Which files of the package a module depends on, found by reading its import statements.

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
    """Return the files of the package that `file` itself imports, at any depth of its code.

    Importing a module runs the `__init__.py` of each package above it, so these are among them. Imports for type
    checkers alone (`if TYPE_CHECKING:`) are not. Raises SyntaxError if the file is not Python.
    """
    names: set[str] = set()
    ahead: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            ahead += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        ahead += ast.iter_child_nodes(node)
    files: set[Path] = set()
    for name in names:
        parts = name.split(".")
        if not (root / parts[0]).is_dir():
            continue
        folders = [root.joinpath(*parts[: count + 1]) for count in range(len(parts))]
        candidates = [folder / "__init__.py" for folder in folders] + [folders[-1].with_suffix(".py")]
        files |= {candidate for candidate in candidates if candidate.is_file()}
    return frozenset(files)


def dependencies(file: Path, root: Path = ROOT, ignored: Collection[Path] = ()) -> list[Path]:
    """Return the files of the package that `file` imports, directly or through others, sorted.

    ignored: files that are left out with all that only they import.
    """
    found: set[Path] = set()
    ahead = [file]
    while ahead:
        new = imported_files(ahead.pop(), root) - found - set(ignored)
        found |= new
        ahead += new
    return sorted(found)


def code_digest(file: str | Path) -> str:
    """Return the SHA-256 of a module's source and of all files of the package that it depends on."""
    digest = hashlib.sha256()
    for path in [Path(file), *dependencies(Path(file))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
