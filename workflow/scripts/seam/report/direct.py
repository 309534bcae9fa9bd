"""Collect what is known of each target problem of direct reuse into one table per kind of problem."""

from pathlib import Path

import pandas as pd

from seam.errors import UserError
from seam.files import write_csv
from seam.log import log
from seam.report.tables import Record, engine_name, records

SETTINGS = [
    *["accuracy_worth", "alpha", "batch_size", "epochs", "evaluate_every", "head_every", "holdout", "lr_head"],
    *["lr_mask", "patience", "selection", "tolerance"],
]


def latencies(paths):
    """The latency files by folder and engine, from `.../latency_{engine}.json`."""
    return {(Path(path).parent, Path(path).stem.removeprefix("latency_")): Record(path) for path in paths}


def settings_of(problems):
    """The names of all hyper-parameters: those that are always there, then any others by name."""
    found = {name for problem in problems for name in problem["settings"]}
    return SETTINGS + sorted(found - set(SETTINGS))


def columns(engines, settings):
    """The columns of a table, the same whether it has rows or not."""
    return [
        *["model", "dataset", "architecture", "weights_origin", "target", "classes"],
        *["accuracy_source", "accuracy_source_restricted", "accuracy_reengineered", "accuracy_gain_points"],
        *["holdout_accuracy_source", "holdout_accuracy_reengineered"],
        *["retention", "weights", "weights_kept", "macs_source", "macs_reengineered", "macs_reduction"],
        *(
            f"{name}_{engine}"
            for engine in engines
            for name in ("latency_source_ms", "latency_reengineered_ms", "speedup", "latency_threads")
        ),
        *["epochs", "selected_epoch", "seconds", "images_train", "images_holdout", "images_test"],
        *(f"search_{name}" for name in settings),
        *["seed", "device", "precision", "threads", "torch", "folder"],
    ]


def row(problem, macs, model, latency, settings):
    """One problem as a dictionary by column. `latency`: its records by engine, only those that are there."""
    before, after = problem["accuracy", "source"], problem["accuracy", "reengineered"]
    dense, sparse = macs["source", "total"], macs["reengineered", "total"]
    holdout = problem.data.get("holdout_accuracy") or {}  # nothing is held out where the test images select
    cells = {
        **{
            name: problem[name]
            for name in ["model", "dataset", "target", "retention", "weights", "epochs", "selected_epoch"]
        },
        **{name: problem[name] for name in ["seconds", "seed", "device", "precision", "threads", "torch"]},
        "architecture": model["architecture"],
        "weights_origin": model["weights_origin"],
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
        **{f"images_{part}": problem["images", part] for part in ("train", "holdout", "test")},
        **{f"search_{name}": problem["settings"].get(name) for name in settings},
        "folder": problem.path.parent.as_posix(),
    }
    for engine, times in latency.items():
        slow, fast = times["source_ms_mean"], times["reengineered_ms_mean"]
        cells[f"latency_source_ms_{engine}"] = slow
        cells[f"latency_reengineered_ms_{engine}"] = fast
        cells[f"speedup_{engine}"] = slow / fast
        cells[f"latency_threads_{engine}"] = times["threads"]
    return cells


def tables(metrics, macs, latency, models, engines):
    """{"binary": frame, "multiclass": frame} from the paths of the problems' and the models' JSON files.

    Rows are in the order of `metrics`; an engine without a file for a problem leaves its cells empty.
    Raises UserError where a file lacks a value, or where a problem's MACs or model are missing.
    """
    problems, counts, times = records(metrics), records(macs), latencies(latency)
    sources = {folder.name: record for folder, record in records(models).items()}
    settings = settings_of(problems.values())
    rows = {"binary": [], "multiclass": []}
    for folder, problem in problems.items():
        if folder not in counts:
            raise UserError(f"{folder}/macs.json is missing: run the workflow again to make it.")
        if problem["model"] not in sources:
            raise UserError(f"The model {problem['model']} has no metrics.json: run the workflow again to make it.")
        measured = {engine: times[folder, engine] for engine in engines if (folder, engine) in times}
        rows[problem["problem"]].append(row(problem, counts[folder], sources[problem["model"]], measured, settings))
    for engine in engines:
        missing = sum((folder, engine) not in times for folder in problems)
        if missing:
            log.warning("no latency by %s for %d of %d problems", engine_name(engine), missing, len(problems))
    return {kind: pd.DataFrame(cells, columns=columns(engines, settings)) for kind, cells in rows.items()}


def write_tables(paths, *inputs):
    """Write the tables that `tables` makes of `inputs` to {"binary": path, "multiclass": path}."""
    for kind, table in tables(*inputs).items():
        write_csv(paths[kind], table)
        log.info("%s: target problems: %d", paths[kind], len(table))
