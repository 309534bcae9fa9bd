"""Collect what is known of each student of indirect reuse into one table, and the threshold study into another."""

import pandas as pd

from seam.errors import UserError
from seam.files import write_csv
from seam.log import log
from seam.report.tables import STUDENTS, published_students, read_table, records, same_threshold, student_name

MASKED = ["head", "search", "finetune"]  # the blocks of settings behind a student that has masks
BLOCKS = {**dict.fromkeys(STUDENTS, MASKED), "standard": ["standard"], "retrain": ["retrain"]}
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


def settings_of(made):
    """The settings that made a student by column: {"transfer_batch_size": 64, "standard_lr": 0.005, ...}."""
    found = {f"transfer_{name}": value for name, value in made["settings"].items() if not isinstance(value, dict)}
    for block in BLOCKS[made["student"]]:
        found |= {f"{block}_{name}": value for name, value in made["settings", block].items()}
    return found


def columns(settings):
    """The columns of the table, the same whether it has rows or not."""
    return [
        *["model", "dataset", "architecture", "weights_origin", "student", "threshold"],
        *["accuracy", "published_accuracy", "accuracy_perturbed", "holdout_accuracy"],
        *["defect_inheritance_rate", "published_defect_inheritance_rate", "inherited_defects_reduction"],
        *["images_test", "images_right", "images_inherited", "images_train", "images_holdout"],
        *["retention", "weights", "weights_kept", "sparsity", "student_weights", "student_zeros"],
        *["epochs", "selected_epoch", "seconds", "epochs_to_threshold", "seconds_to_threshold"],
        *settings,
        *["seed", "device", "precision", "threads", "torch", "folder"],
    ]


def row(made, judged, published):
    """One student as a dictionary by column, from the records of its training.json and metrics.json."""
    cells = {
        **{
            name: made[name]
            for name in ["model", "dataset", "architecture", "weights_origin", "student", "threshold", "retention"]
        },
        **{name: made[name] for name in ["weights", "holdout_accuracy", "epochs", "selected_epoch", "seconds"]},
        **{name: made[name] for name in ["seed", "device", "precision", "threads", "torch"]},
        **{name: judged[name] for name in ["accuracy", "accuracy_perturbed", "defect_inheritance_rate", "sparsity"]},
        **settings_of(made),
        "images_test": judged["images"],
        "images_right": judged["right"],
        "images_inherited": judged["inherited"],
        "images_train": made["images", "train"],
        "images_holdout": made["images", "holdout"],
        "weights_kept": made["kept"],
        "student_weights": judged["weights"],
        "student_zeros": judged["zeros"],
        "epochs_to_threshold": made["search_epochs"],
        "seconds_to_threshold": made["search_seconds"],
        "folder": made.path.parent.as_posix(),
    }
    of_student = cells["architecture"], cells["dataset"], cells["student"], same_threshold(cells["threshold"])
    for quantity in ("accuracy", "defect_inheritance_rate"):
        value = published.get((quantity, *of_student))
        cells[f"published_{quantity}"] = None if value is None else value / 100
    return cells


def reduction(table):
    """By which share each student's DIR is lower than that of the standard student of its model and data set."""
    names = ["model", "dataset"]
    standard = table[table["student"] == "standard"].set_index(names)["defect_inheritance_rate"].astype(float)
    rates = table.join(standard.where(standard > 0).rename("standard"), on=names)
    return 1 - rates["defect_inheritance_rate"].astype(float) / rates["standard"]


def gaps(table):
    """A sentence for each value that is not there because something else is not."""
    for (model, dataset), rows in table.groupby(["model", "dataset"], sort=False):
        if "standard" not in set(rows["student"]):
            yield f"{model} on {dataset}: no standard student, so no reduction of inherited defects"
        for one in rows[rows["images_right"] == 0].itertuples():
            name = student_name(one.student, one.threshold)
            yield f"{model} on {dataset}: no defect inheritance rate of {name}, which gets no test image right"


def students(training, metrics, published):
    """The table of all students, from the paths of their training.json and metrics.json and the published values.

    Rows are in the order of `training`. Raises UserError where a file lacks a value, or where a student
    has only one of its two files.
    """
    made, judged, known = records(training), records(metrics), published_students(published)
    for folder in [*made, *judged]:
        for name, found in (("training.json", made), ("metrics.json", judged)):
            if folder not in found:
                raise UserError(f"{folder}/{name} is missing: run the workflow again to make it.")
    rows = [row(made[folder], judged[folder], known) for folder in made]
    extra = {name for record in made.values() for name in settings_of(record)}
    # As objects, so that counts stay whole numbers beside empty cells.
    table = pd.DataFrame(rows, columns=columns(SETTINGS + sorted(extra - set(SETTINGS))), dtype=object)
    table["inherited_defects_reduction"] = reduction(table)
    for gap in gaps(table):
        log.warning("%s", gap)
    return table


def thresholds(table):
    """The students with masks, sorted by model, data set, student and threshold, with the columns of the study."""
    masked = table[table["threshold"].notna()]
    return masked.sort_values(["model", "dataset", "student", "threshold"], kind="stable")[STUDY]


def write_tables(path, study_path, training, metrics, published):
    """Write the table of students and that of the threshold study, from the paths of JSON files and published.csv."""
    table = students(training, metrics, read_table(published))
    for one, rows in ((path, table), (study_path, thresholds(table))):
        write_csv(one, rows)
        log.info("%s: students: %d", one, len(rows))
