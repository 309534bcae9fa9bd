"""The tables of direct reuse: what is known of each target problem, one table per kind of problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seam.errors import UserError
from seam.log import log
from seam.report.tables import Record, Table, engine_name, missing_file, records, with_others, write_table

Paths = Iterable[str | Path]

SETTINGS = [
    *["accuracy_worth", "alpha", "batch_size", "epochs", "evaluate_every", "head_every", "holdout", "lr_head"],
    *["lr_mask", "patience", "selection", "tolerance"],
]
NESTED = ("budget", "channels")  # settings with keys of their own, which are no column
LATENCY = ["latency_source_ms", "latency_reengineered_ms", "speedup", "latency_threads"]


RECOVERY = ["accuracy_before_recovery", "recovery_epochs", "recovery_seconds"]  # if a problem of the run has a recovery
BUDGET = ["budget", "budget_limit", "budget_cost", "budget_met"]  # if a problem of the run has a budget


def columns(engines: list[str], settings: list[str], budget: bool = False, recovery: bool = False) -> list[str]:
    """Return the columns of a table, which are the same whether it has rows or not."""
    return [
        *["model", "dataset", "architecture", "weights_origin", "target", "classes"],
        *["accuracy_source", "accuracy_source_restricted", "accuracy_reengineered", "accuracy_gain_points"],
        *["holdout_accuracy_source", "holdout_accuracy_reengineered"],
        *(RECOVERY if recovery else []),
        *["retention", "weights", "weights_kept", "macs_source", "macs_reengineered", "macs_reduction"],
        *(BUDGET if budget else []),
        *(f"{name}_{engine}" for engine in engines for name in LATENCY),
        *["epochs", "selected_epoch", "seconds", "images_train", "images_holdout", "images_test"],
        *(f"search_{name}" for name in settings),
        *["seed", "device", "precision", "threads", "torch", "folder"],
    ]


def row(
    problem: Record,
    macs: Record,
    model: Record,
    latency: Mapping[str, Record],
    settings: list[str],
    recovery: Record | None = None,
) -> dict[str, Any]:
    """Return one problem as {column: value}. latency: the records of those engines that timed it.

    recovery: the record of its recovery, if it has one; the model's accuracies are then those after it.
    """
    before, after = problem["accuracy", "source"], problem["accuracy", "reengineered"]
    if recovery is not None:
        after = recovery["accuracy", "after"]
    dense, sparse = macs["source", "total"], macs["reengineered", "total"]
    holdout = problem.data.get("holdout_accuracy") or {}  # no images are held out if the test images select the epoch
    cells = {
        **problem.select("model", "dataset", "target", "retention", "weights", "epochs", "selected_epoch", "seconds"),
        **problem.select("seed", "device", "precision", "threads", "torch"),
        **model.select("architecture", "weights_origin"),
        "classes": len(problem["classes"]),
        "accuracy_source": before,
        "accuracy_source_restricted": problem["accuracy", "source_restricted"],
        "accuracy_reengineered": after,
        "accuracy_gain_points": round(100 * (after - before), 9),  # 4.3, not 4.299999999999993
        "holdout_accuracy_source": holdout.get("source"),
        "holdout_accuracy_reengineered": holdout.get("reengineered"),
        "weights_kept": problem["kept"],
        "macs_source": dense,
        "macs_reengineered": sparse,
        "macs_reduction": 1 - sparse / dense,
        **{f"images_{subset}": problem["images", subset] for subset in ("train", "holdout", "test")},
        **{f"search_{name}": problem["settings"].get(name) for name in settings},
        "folder": problem.path.parent.as_posix(),
    }
    if budget := problem.data.get("budget"):
        values = budget["name"], budget["limit"], budget["cost"], int(budget["met"])
        cells |= dict(zip(BUDGET, values, strict=True))
    if recovery is not None:
        cells["accuracy_before_recovery"] = recovery["accuracy", "before"]
        cells["holdout_accuracy_reengineered"] = (recovery.data.get("holdout_accuracy") or {}).get("after")
        cells |= {f"recovery_{name}": recovery[name] for name in ("epochs", "seconds")}
    for engine, times in latency.items():
        slow, fast = times["source_ms_mean"], times["reengineered_ms_mean"]
        values = slow, fast, slow / fast, times["threads"]
        cells |= {f"{name}_{engine}": value for name, value in zip(LATENCY, values, strict=True)}
    return cells


def tables(
    metrics: Paths, macs: Paths, latency: Paths, models: Paths, engines: list[str], recovery: Paths = ()
) -> dict[str, Table]:
    """Return {"binary": table, "multiclass": table} from the paths of the problems' and the models' JSON files.

    recovery: those of the problems that have a recovery.

    Rows are in the order of `metrics`. An engine without a file for a problem leaves its cells empty.
    Raises UserError if a file lacks a value, or if a problem's MACs or model are missing.
    """
    problems, counts, recoveries = records(metrics), records(macs), records(recovery)
    times = {(Path(path).parent, Path(path).stem.removeprefix("latency_")): Record(path) for path in latency}
    sources = {folder.name: record for folder, record in records(models).items()}
    names = (name for problem in problems.values() for name in problem["settings"] if name not in NESTED)
    settings = with_others(SETTINGS, names)
    budget = any("budget" in problem.data for problem in problems.values())
    rows: dict[str, list[dict[str, Any]]] = {"binary": [], "multiclass": []}
    for folder, problem in problems.items():
        if folder not in counts:
            raise missing_file(folder / "macs.json")
        if problem["model"] not in sources:
            raise UserError(f"The model {problem['model']} has no metrics.json: run the workflow again to make it.")
        measured = {engine: times[folder, engine] for engine in engines if (folder, engine) in times}
        facts = problem, counts[folder], sources[problem["model"]], measured, settings, recoveries.get(folder)
        rows[problem["problem"]].append(row(*facts))
    for engine in engines:
        missing = sum((folder, engine) not in times for folder in problems)
        if missing:
            log.warning("no latency by %s for %d of %d problems", engine_name(engine), missing, len(problems))
    names = columns(engines, settings, budget, bool(recoveries))
    return {kind: pd.DataFrame(cells, columns=names) for kind, cells in rows.items()}


def write_tables(
    paths: Mapping[str, str | Path],
    metrics: Paths,
    macs: Paths,
    latency: Paths,
    models: Paths,
    engines: list[str],
    recovery: Paths = (),
) -> None:
    """Write both tables of problems to `paths`, {"binary": path, "multiclass": path}; the rest is as in `tables`."""
    for kind, table in tables(metrics, macs, latency, models, engines, recovery).items():
        write_table(paths[kind], table, "target problems")
