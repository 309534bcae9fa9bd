"""The rooms of the package: what each rule can depend on, and the order in which rooms may import each other."""

import ast
import functools
from pathlib import Path

import pytest

from seam.data.kinds.registry import KINDS
from seam.imports import ROOT, dependencies, imported_files

PACKAGE = ROOT / "seam"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports only from its own row or from rows above it.
ORDER = [
    {"errors"},
    {"files", "log", "memory", "gpus", "seeds", "imports", "outputs", "process", "progress"},
    {"precision", "download"},
    {"device"},
    {"settings"},
    {"data"},
    {"data.kinds"},
    {"models"},
    {"masks"},
    {"evaluation"},
    {"training"},
    {"search"},
    {"engine"},
    {"cost"},
    {"robustness"},
    {"reuse"},
    {"config"},
    {"report"},
    {"delivery"},
    {"bench"},
    {"planning", "cli", "api"},
]

# What a job of each rule depends on: a change there reruns it, and nothing else does. Keep these lists short.
FILES = "errors files log process progress"
DEVICE = "device gpus precision"
TRAINING = f"data {DEVICE} evaluation {FILES} imports masks memory models outputs reuse seeds settings training"
RULES = {
    "prepare_dataset": f"data data.kinds download {FILES}",
    "fetch_weights": f"download {FILES} models outputs",
    "train_source": TRAINING,
    "evaluate_source": f"data {DEVICE} evaluation {FILES} memory models reuse",
    "reengineer": f"{TRAINING} search",
    "recover": TRAINING,
    "recover_baseline": TRAINING,
    "count_macs": f"cost {FILES} masks models reuse",
    "export_onnx": f"cost {FILES} masks memory models reuse",
    "export_source": f"cost {FILES} memory models",
    "time_engine": f"cost cost.runners engine {FILES}",
    "time_deepsparse": f"cost cost.runners {FILES}",
    "quantize": f"cost data {FILES} memory seeds",
    "evaluate_int8": f"cost cost.runners data engine evaluation {FILES} memory models precision seeds",
    "measure_channel_costs": f"cost cost.runners engine {FILES} masks memory models",
    "time_budget": f"cost cost.runners engine {FILES}",
    "time_baselines": f"cost cost.runners {FILES}",
    "collect_budgets": f"{FILES} report",
    "plot_channel_baselines": f"{FILES} report",
    "train_channel_baseline": f"{TRAINING} search",
    "measure_layer_costs": f"cost engine {FILES} memory models",
    "attack_source": f"data {DEVICE} {FILES} masks memory models reuse robustness seeds settings",
    "evaluate_defects": f"data {DEVICE} {FILES} masks memory models reuse robustness seeds settings",
    "train_student": TRAINING,
    "train_baseline": f"{TRAINING} search",
    "collect_baselines": f"{FILES} report",
    "plot_baselines": f"{FILES} report",
    "finetune_seam_head": TRAINING,
    "finetune_seam_masks": f"{TRAINING} search",
    "collect_direct": f"{FILES} report settings",
    "collect_indirect": f"{FILES} report",
    "summarise": f"{FILES} report",
    "make_report": f"cost {FILES} report",
    "plot_direct": f"{FILES} report",
    "plot_indirect": f"{FILES} report",
}
NO_RULE = {
    *("bench", "bench_engine", "check_models", "collect_evidence", "collect_partial", "document_api"),
    *("document_config", "estimate", "plot_engine", "quick_baselines"),
}


def room(file):
    """Return the room of a module, such as "data.kinds"; None for the package's own `__init__.py`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1]) if len(parts) > 1 else None if parts[0] == "__init__" else parts[0]


def rank(file):
    """Return the row of a module's room in ORDER; a folder in a room belongs to the room."""
    name = room(file)
    names = [name, *(name.rpartition(".")[0] for _ in (1,) if "." in name)]
    return next(number for name in names for number, rooms in enumerate(ORDER) if name in rooms)


@functools.cache
def rooms_of(script):
    return {room(file) for file in dependencies(ROOT / f"{script}.py") if file.name != "__init__.py"}


def test_every_script_is_in_the_table():
    assert {path.stem for path in ROOT.glob("*.py")} == RULES.keys() | NO_RULE


@pytest.mark.parametrize("script", RULES)
def test_a_rule_depends_on_these_rooms_and_no_others(script):
    assert sorted(rooms_of(script)) == sorted(RULES[script].split())


@pytest.mark.parametrize("file", [file for file in MODULES if room(file)], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_from_its_room_and_the_rooms_above(file):
    below = {str(other.relative_to(ROOT)) for other in imported_files(file) if room(other) and rank(other) > rank(file)}
    assert below == set()


def test_package_files_import_nothing():
    """Every module of a package runs its `__init__.py`. `seam.load` and the like are imported at their first use."""
    for file in PACKAGE.rglob("__init__.py"):
        assert {other for other in imported_files(file) if other.name != "__init__.py"} == set(), file


def test_no_module_imports_itself_through_others():
    for file in MODULES:
        if file.name != "__init__.py":
            assert file not in dependencies(file), file


def test_imports_are_absolute():
    """`seam.imports` does not see relative imports: a job would not rerun after a change behind one."""
    for file in MODULES:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), file


def test_the_engine_imports_no_other_room():
    for file in (PACKAGE / "engine").glob("*.py"):
        assert {room(other) for other in dependencies(file)} <= {"engine", None}, file


def test_a_data_set_depends_on_its_own_kind_alone():
    """Rule prepare_dataset leaves the modules of other kinds out of its inputs: a kind may import only what
    several kinds share.
    """
    kinds = PACKAGE / "data/kinds"
    for kind in KINDS:
        others = {file.stem for file in dependencies(kinds / f"{kind}.py") if file.parent == kinds}
        assert others <= {"__init__", "cifar", "groups", "kind", "listing", "published", "imagefolder"}, kind


def test_scripts_are_thin():
    """The estimate, the benchmarks and DeepSparse's script, which its own Python runs, have arguments to parse."""
    for script in RULES.keys() - {"time_deepsparse"}:
        lines = Path(ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 30, script
