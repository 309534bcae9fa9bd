"""Which files a module depends on, by its imports: on small packages of a test's own, and on the real one."""

from pathlib import Path

import pytest

from seam import imports
from seam.imports import code_digest, dependencies, imported_files


@pytest.fixture
def package(tmp_path):
    """A function that writes modules {path: source} of packages, and returns the folder that holds them."""

    def write(modules):
        for path, source in modules.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(source)
        return tmp_path

    return write


def names(files, root):
    return sorted(path.relative_to(root).as_posix() for path in files)


def test_the_init_files_of_all_packages_above_a_module_are_followed(package):
    root = package(
        {
            "own/__init__.py": "import own.ground",
            "own/ground.py": "",
            "own/room/__init__.py": "import own.beside",
            "own/room/module.py": "",
            "own/beside.py": "",
            "script.py": "from own.room.module import name",
        }
    )
    expected = ["own/__init__.py", "own/beside.py", "own/ground.py", "own/room/__init__.py", "own/room/module.py"]
    assert names(dependencies(root / "script.py", root), root) == expected


@pytest.mark.parametrize(
    "statement",
    ["import own.module", "import own.module as other", "from own import module", "from own.module import name"],
)
def test_all_forms_of_import_name_the_module(package, statement):
    root = package({"own/__init__.py": "", "own/module.py": "", "script.py": statement})
    assert names(imported_files(root / "script.py", root), root) == ["own/__init__.py", "own/module.py"]


def test_imports_for_type_checkers_do_not_count_but_their_else_does(package):
    source = """
import typing
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from own import first
if typing.TYPE_CHECKING:
    from own import second
else:
    from own import third
"""
    modules = dict.fromkeys(["own/__init__.py", "own/first.py", "own/second.py", "own/third.py"], "")
    root = package(modules | {"script.py": source})
    assert names(imported_files(root / "script.py", root), root) == ["own/__init__.py", "own/third.py"]


def test_imports_in_functions_and_conditions_count(package):
    source = """
if "snakemake" in globals():
    import own.first

def function():
    with open("file"):
        from own.second import name
"""
    root = package({"own/__init__.py": "", "own/first.py": "", "own/second.py": "", "script.py": source})
    assert names(imported_files(root / "script.py", root), root) == ["own/__init__.py", "own/first.py", "own/second.py"]


def test_other_packages_and_the_names_in_a_module_are_no_files(package):
    root = package({"own/__init__.py": "", "script.py": "import torch\nfrom pathlib import Path\nfrom own import name"})
    assert names(dependencies(root / "script.py", root), root) == ["own/__init__.py"]


def test_circles_end(package):
    root = package({"own/__init__.py": "", "own/a.py": "import own.b", "own/b.py": "import own.a"})
    assert names(dependencies(root / "own/a.py", root), root) == ["own/__init__.py", "own/a.py", "own/b.py"]


def test_the_digest_changes_with_each_file_that_a_module_depends_on_and_no_other(package):
    modules = {
        "own/__init__.py": "",
        "own/direct.py": "import own.transitive",
        "own/transitive.py": "",
        "own/unrelated.py": "",
        "script.py": "import own.direct",
    }
    changed = {}
    for path in [None, *modules]:
        imports.imported_files.cache_clear()  # files do not change within a real process
        root = package({name: source + "\n# changed" * (name == path) for name, source in modules.items()})
        changed[path] = code_digest(root / "script.py", root)
    assert changed.pop("own/unrelated.py") == changed[None]
    assert len(set(changed.values())) == len(changed)


# ---------------------------------------------------------------------- the package


def rooms(module):
    """Return the rooms and ground modules on which a module of the package depends."""
    package = imports.ROOT / "seam"
    files = dependencies(package / module)
    return {Path(path.relative_to(package).parts[0]).stem for path in files} - {"__init__"}


def test_loading_a_result_needs_neither_search_nor_training():
    assert not rooms("reuse/load.py") & {"search", "training", "settings", "evaluation", "robustness", "seeds"}


def test_the_code_of_a_search_does_not_depend_on_students_and_their_not_on_direct_reuse():
    direct = dependencies(imports.ROOT / "seam/reuse/direct.py")
    indirect = dependencies(imports.ROOT / "seam/reuse/threshold_search.py")
    both = {path.relative_to(imports.ROOT / "seam").as_posix() for path in direct} & {
        path.relative_to(imports.ROOT / "seam").as_posix() for path in indirect
    }
    assert {"search/mask_search.py", "search/training.py", "training/run.py"} <= both
    assert not both & {"search/plain.py", "search/stacked.py", "search/by_threshold.py", "training/supervised.py"}
