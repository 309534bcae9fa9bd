"""The tables of direct reuse: what is known of each target problem, one table per kind of problem."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seam.errors import UserError
from seam.log import log
from seam.report.tables import TABLE_OF, Record, Table, engine_name, missing_file, records, with_others, write_table
from seam.settings import OPTIONAL

Paths = Iterable[str | Path]

SETTINGS = [
    *["accuracy_worth", "alpha", "batch_size", "epochs", "evaluate_every", "head_every", "holdout", "lr_head"],
    *["lr_mask", "patience", "selection", "tolerance"],
]
NESTED = ("budget", "channels")  # settings with keys of their own, which are no column
# Columns of each engine. The first ones are of the first batch size and the first number of threads of the config.
LATENCY = [
    *["latency_source_ms", "latency_reengineered_ms", "speedup", "latency_threads"],
    *["gains_from_zeros", "version", "bytes_source", "bytes_reengineered"],
]
INT8 = ["accuracy_source", "accuracy_source_restricted", "accuracy_reengineered"]  # of engines with int8 also
MODELS = ("source", "reengineered")
LATENCIES = [  # the columns of latency.csv
    *["model", "dataset", "problem", "target", "engine", "version", "instruction_set", "gains_from_zeros", "fallback"],
    *["batch_size", "threads", "speedup", "speedup_of_means"],
    *(
        f"{model}_{name}_ms"
        for model in MODELS
        for name in ("median", "lower_quartile", "upper_quartile", "mean", "minimum")
    ),
    *(f"{model}_difference" for model in MODELS),
    *(f"bytes_{model}" for model in MODELS),
    *["passes", "cpu", "folder"],
]


RECOVERY = [  # if a problem of the run has a recovery
    *["accuracy_before_recovery", "balanced_accuracy_before_recovery", "recovery_epochs", "recovery_seconds"],
]
BUDGET = ["budget", "budget_limit", "budget_cost", "budget_met"]  # if a problem of the run has a budget


def columns(
    engines: list[str],
    settings: list[str],
    budget: bool = False,
    recovery: bool = False,
    int8: Collection[str] = (),
) -> list[str]:
    """Return the columns of a table, which are the same whether it has rows or not.

    int8: those of the engines that run a quantized model, of which the accuracy is known.
    """
    return [
        *["model", "dataset", "architecture", "weights_origin", "problem", "target", "classes"],
        *["accuracy_source", "accuracy_source_restricted", "accuracy_reengineered", "accuracy_gain_points"],
        *["balanced_accuracy_source", "balanced_accuracy_source_restricted", "balanced_accuracy_reengineered"],
        *["decided_by", "lowest_recall_reengineered"],
        *["holdout_accuracy_source", "holdout_accuracy_reengineered"],
        *(RECOVERY if recovery else []),
        *["retention", "weights", "weights_kept", "macs_source", "macs_reengineered", "macs_reduction"],
        *(BUDGET if budget else []),
        *(["timing_batch_size", "timing_statistic"] if engines else []),
        *(f"{name}_{engine}" for engine in engines for name in [*LATENCY, *(INT8 if engine in int8 else [])]),
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
    int8: Mapping[str, Record] | None = None,
) -> dict[str, Any]:
    """Return one problem as {column: value}. latency: the records of those engines that timed it.

    recovery: the record of its recovery, if it has one; the model's accuracies are then those after it. int8: the
    records of the accuracy of its quantized model, by engine.
    """
    decisive = problem["decided_by"]
    accuracies = {
        f"{kind}_{model}": problem[kind, model]
        for kind in ("accuracy", "balanced_accuracy")
        for model in ("source", "source_restricted", "reengineered")
    }
    per_class = problem["per_class", "reengineered"]
    if recovery is not None:
        per_class = recovery["per_class"]
        accuracies |= {f"{kind}_reengineered": recovery[kind, "after"] for kind in ("accuracy", "balanced_accuracy")}
    before, after = accuracies[f"{decisive}_source"], accuracies[f"{decisive}_reengineered"]
    dense, sparse = macs["source", "total"], macs["reengineered", "total"]
    holdout = problem.data.get("holdout_accuracy") or {}  # no images are held out if the test images select the epoch
    cells = {
        **problem.select(
            "model", "dataset", "problem", "target", "retention", "weights", "epochs", "selected_epoch", "seconds"
        ),
        **problem.select("seed", "device", "precision", "threads", "torch"),
        **model.select("architecture", "weights_origin"),
        "classes": len(problem["classes"]),
        **accuracies,
        "decided_by": decisive,
        "lowest_recall_reengineered": min(metrics["recall"] for metrics in per_class.values()),
        "accuracy_gain_points": round(100 * (after - before), 9),  # 4.3, not 4.299999999999993
        "holdout_accuracy_source": holdout.get("source"),
        "holdout_accuracy_reengineered": holdout.get("reengineered"),
        "weights_kept": problem["kept"],
        "macs_source": dense,
        "macs_reengineered": sparse,
        "macs_reduction": 1 - sparse / dense if dense else float("nan"),
        **{f"images_{subset}": problem["images", subset] for subset in ("train", "holdout", "test")},
        **{f"search_{name}": problem["settings"].get(name, OPTIONAL.get(name)) for name in settings},
        "folder": problem.path.parent.as_posix(),
    }
    if budget := problem.data.get("budget"):
        values = budget["name"], budget["limit"], budget["cost"], int(budget["met"])
        cells |= dict(zip(BUDGET, values, strict=True))
    if recovery is not None:
        cells |= {f"{kind}_before_recovery": recovery[kind, "before"] for kind in ("accuracy", "balanced_accuracy")}
        cells["holdout_accuracy_reengineered"] = (recovery.data.get("holdout_accuracy") or {}).get("after")
        cells |= {f"recovery_{name}": recovery[name] for name in ("epochs", "seconds")}
    for engine, times in latency.items():
        first = "measurements", 0
        slow, fast = (times[(*first, name, f"{times['statistic']}_ms")] for name in MODELS)
        gains = "yes" if times["gains_from_zeros"] else "no"
        sizes = (times["bytes", name] for name in MODELS)
        values = slow, fast, slow / fast, times[(*first, "threads")], gains, times["version"], *sizes
        cells |= {f"{name}_{engine}": value for name, value in zip(LATENCY, values, strict=True)}
        cells |= {"timing_batch_size": times[(*first, "batch_size")], "timing_statistic": times["statistic"]}
    for engine, record in (int8 or {}).items():
        cells |= {f"{name}_{engine}": record["accuracy", name.removeprefix("accuracy_")] for name in INT8}
    return cells


def latency_rows(problem: Record, times: Record) -> list[dict[str, Any]]:
    """Return the measurements of a problem in one engine as rows of latency.csv, {column: value}."""
    rows = []
    for place, measured in enumerate(times["measurements"]):
        cells = {
            **problem.select("model", "dataset", "problem", "target"),
            **times.select("engine", "version", "instruction_set", "cpu"),
            "gains_from_zeros": "yes" if times["gains_from_zeros"] else "no",
            "fallback": " ".join(dict.fromkeys(times["fallback"].values())),
            **{name: times["measurements", place, name] for name in ("batch_size", "threads")},
            "passes": times["runs"] * times["iterations"],
            "folder": problem.path.parent.as_posix(),
        }
        for name in MODELS:
            values = {key: times["measurements", place, name, f"{key}_ms"] for key in ("median", "mean", "minimum")}
            values["lower_quartile"], values["upper_quartile"] = times["measurements", place, name, "quartiles_ms"]
            cells |= {f"{name}_{statistic}_ms": value for statistic, value in values.items()}
            cells |= {f"{name}_difference": measured[name].get("difference"), f"bytes_{name}": times["bytes", name]}
        cells["speedup"] = cells["source_median_ms"] / cells["reengineered_median_ms"]
        cells["speedup_of_means"] = cells["source_mean_ms"] / cells["reengineered_mean_ms"]
        rows.append(cells)
    return rows


def tables(
    metrics: Paths,
    macs: Paths,
    latency: Paths,
    models: Paths,
    engines: list[str],
    recovery: Paths = (),
    int8: Paths = (),
) -> dict[str, Table]:
    """Return {"binary": table, "multiclass": table, "latency": table} from the problems' and the models' JSON files.

    metrics, macs, latency, models, recovery, int8: their paths; recovery are those of the problems that have one, int8
    those of accuracy_{engine}.json. Rows are in the order of `metrics`; in latency.csv, those of a problem are in the
    order of `engines`. An engine without a file for a problem leaves its cells empty.
    Raises UserError if a file lacks a value, or if a problem's MACs or model are missing.
    """
    problems, counts, recoveries = records(metrics), records(macs), records(recovery)
    times, accuracies = (
        {(Path(path).parent, Path(path).stem.partition("_")[2]): Record(path) for path in paths}
        for paths in (latency, int8)
    )
    sources = {folder.name: record for folder, record in records(models).items()}
    names = (name for problem in problems.values() for name in problem["settings"] if name not in NESTED)
    settings = with_others(SETTINGS, names)
    budget = any("budget" in problem.data for problem in problems.values())
    rows: dict[str, list[dict[str, Any]]] = {"binary": [], "multiclass": [], "latency": []}
    for folder, problem in problems.items():
        if folder not in counts:
            raise missing_file(folder / "macs.json")
        if problem["model"] not in sources:
            raise UserError(f"The model {problem['model']} has no metrics.json: run the workflow again to make it.")
        measured, known = (
            {engine: table[folder, engine] for engine in engines if (folder, engine) in table}
            for table in (times, accuracies)
        )
        facts = problem, counts[folder], sources[problem["model"]], measured, settings, recoveries.get(folder)
        rows[TABLE_OF[problem["problem"]]].append(row(*facts, known))
        for record in measured.values():
            rows["latency"] += latency_rows(problem, record)
    for engine in engines:
        missing = sum((folder, engine) not in times for folder in problems)
        if missing:
            log.warning("no latency by %s for %d of %d problems", engine_name(engine), missing, len(problems))
    names = columns(engines, settings, budget, bool(recoveries), {engine for _, engine in accuracies})
    return {
        kind: pd.DataFrame(cells, columns=LATENCIES if kind == "latency" else names) for kind, cells in rows.items()
    }


def write_tables(
    paths: Mapping[str, str | Path],
    metrics: Paths,
    macs: Paths,
    latency: Paths,
    models: Paths,
    engines: list[str],
    recovery: Paths = (),
    int8: Paths = (),
) -> None:
    """Write all tables to `paths`, {"binary": path, "multiclass": path, "latency": path}. The rest: see `tables`."""
    for kind, table in tables(metrics, macs, latency, models, engines, recovery, int8).items():
        write_table(paths[kind], table, "measurements" if kind == "latency" else "target problems")
