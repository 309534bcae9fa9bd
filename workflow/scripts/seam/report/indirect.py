"""The tables of indirect reuse: what is known of each student, and the threshold study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seam.log import log
from seam.report.tables import (
    STUDENTS,
    Column,
    Record,
    Table,
    missing_file,
    published_students,
    read_table,
    records,
    student_name,
    threshold_key,
    with_others,
    write_table,
)

MASKED_BLOCKS = ["head", "search", "finetune"]  # the blocks of settings behind a student that has masks
BLOCKS = {
    **dict.fromkeys(STUDENTS, MASKED_BLOCKS),
    "standard": ["standard"],
    "retrain": ["retrain"],
    "remos": ["remos"],
}
SETTINGS = [
    *["transfer_batch_size", "transfer_holdout", "transfer_selection"],
    *["head_epochs", "head_lr", "head_momentum", "head_patience", "head_weight_decay"],
    *["search_alpha", "search_epochs", "search_lr_last", "search_lr_mask"],
    "finetune_keep_zeros",
    *(
        f"{block}_{name}"
        for block in ("finetune", "standard", "retrain")
        for name in ("epochs", "lr", "lr_last", "momentum", "patience", "weight_decay")
    ),
]
STUDY = [
    *["model", "dataset", "architecture", "student", "threshold", "accuracy", "published_accuracy"],
    *["defect_inheritance_rate", "published_defect_inheritance_rate", "inherited_defects_reduction"],
    *["retention", "epochs", "epochs_to_threshold", "seconds", "seconds_to_threshold", "folder"],
]


def columns(settings: list[str], adaptive: bool = False) -> list[str]:
    """Return the columns of the table of students, which are the same whether it has rows or not.

    adaptive: whether a student was attacked itself.
    """
    return [
        *["model", "dataset", "architecture", "weights_origin", "student", "threshold"],
        *["accuracy", "published_accuracy", "accuracy_perturbed", *["accuracy_adaptive"] * adaptive],
        "holdout_accuracy",
        *["defect_inheritance_rate", "published_defect_inheritance_rate", "inherited_defects_reduction"],
        *["images_test", "images_right", "images_inherited", "images_train", "images_holdout"],
        *["retention", "weights", "weights_kept", "sparsity", "student_weights", "student_zeros"],
        *["epochs", "selected_epoch", "seconds", "epochs_to_threshold", "seconds_to_threshold"],
        *settings,
        *["seed", "device", "precision", "threads", "torch", "folder"],
    ]


def settings_of(training: Record) -> dict[str, Any]:
    """Return the settings that made a student by column: {"transfer_batch_size": 64, "standard_lr": 0.005, ...}."""
    common = {name: value for name, value in training["settings"].items() if not isinstance(value, dict)}
    settings = {f"transfer_{name}": value for name, value in common.items()}
    for block in BLOCKS[training["student"]]:
        settings |= {f"{block}_{name}": value for name, value in training["settings", block].items()}
    return settings


def row(training: Record, metrics: Record, published: Mapping[tuple, float]) -> dict[str, Any]:
    """Return one student as {column: value}, from its training.json and metrics.json."""
    cells = {
        **training.select("model", "dataset", "architecture", "weights_origin", "student", "threshold", "retention"),
        **training.select("weights", "holdout_accuracy", "epochs", "selected_epoch", "seconds"),
        **training.select("seed", "device", "precision", "threads", "torch"),
        **metrics.select("accuracy", "accuracy_perturbed", "defect_inheritance_rate", "sparsity"),
        **settings_of(training),
        "accuracy_adaptive": metrics.data.get("accuracy_adaptive"),
        "images_test": metrics["images"],
        "images_right": metrics["right"],
        "images_inherited": metrics["inherited"],
        "images_train": training["images", "train"],
        "images_holdout": training["images", "holdout"],
        "weights_kept": training["kept"],
        "student_weights": metrics["weights"],
        "student_zeros": metrics["zeros"],
        "epochs_to_threshold": training["search_epochs"],
        "seconds_to_threshold": training["search_seconds"],
        "folder": training.path.parent.as_posix(),
    }
    key = cells["architecture"], cells["dataset"], cells["student"], threshold_key(cells["threshold"])
    for quantity in ("accuracy", "defect_inheritance_rate"):
        value = published.get((quantity, *key))
        cells[f"published_{quantity}"] = None if value is None else value / 100
    return cells


def reduction(table: Table) -> Column:
    """Return by which share each student's DIR is lower than that of the standard student of its model and data set."""
    names = ["model", "dataset"]
    standard = table[table["student"] == "standard"].set_index(names)["defect_inheritance_rate"].astype(float)
    rates = table.join(standard.where(standard > 0).rename("standard"), on=names)
    return 1 - rates["defect_inheritance_rate"].astype(float) / rates["standard"]


def gaps(table: Table) -> Iterator[str]:
    """Yield a sentence for each value that is undefined because another one is missing."""
    for (model, dataset), rows in table.groupby(["model", "dataset"], sort=False):
        if "standard" not in set(rows["student"]):
            yield f"{model} on {dataset}: no standard student, so no reduction of inherited defects"
        for student in rows[rows["images_right"] == 0].itertuples():
            name = student_name(student.student, student.threshold)
            yield f"{model} on {dataset}: no defect inheritance rate of {name}, which gets no test image right"


def students(training: Iterable[str | Path], metrics: Iterable[str | Path], published: Table) -> Table:
    """Return the table of students, from the paths of their JSON files and the table of published values.

    Rows are in the order of `training`. Raises UserError if a file lacks a value, or if a student has only one of its
    two files.
    """
    trainings, results, known = records(training), records(metrics), published_students(published)
    for folder in [*trainings, *results]:
        for name, files in (("training.json", trainings), ("metrics.json", results)):
            if folder not in files:
                raise missing_file(folder / name)
    rows = [row(trainings[folder], results[folder], known) for folder in trainings]
    settings = with_others(SETTINGS, (name for record in trainings.values() for name in settings_of(record)))
    # As objects, so that counts stay whole numbers beside empty cells.
    adaptive = any(each["accuracy_adaptive"] is not None for each in rows)
    table = pd.DataFrame(rows, columns=columns(settings, adaptive), dtype=object)
    table["inherited_defects_reduction"] = reduction(table)
    for gap in gaps(table):
        log.warning("%s", gap)
    return table


def thresholds(table: Table) -> Table:
    """Return the threshold study: the students with masks, sorted by model, data set, student and threshold."""
    masked = table[table["threshold"].notna()]
    return masked.sort_values(["model", "dataset", "student", "threshold"], kind="stable")[STUDY]


def write_tables(
    path: str | Path,
    study_path: str | Path,
    training: Iterable[str | Path],
    metrics: Iterable[str | Path],
    published: str | Path,
) -> None:
    """Write the table of students and the threshold study, from the paths of JSON files and of published.csv."""
    table = students(training, metrics, read_table(published))
    write_table(path, table, "students")
    write_table(study_path, thresholds(table), "students")
