"""The students of several runs, such as those of several seeds: each student of indirect reuse with its defects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from seam.errors import UserError
from seam.report.intervals import student_t, wilson
from seam.report.tables import STUDENTS, Table, read_table, student_name

GROUP = ["model", "dataset", "student", "threshold"]
MEANS = ["accuracy", "accuracy_perturbed", "accuracy_adaptive", "defect_inheritance_rate", "retention"]
DIFFERENCES = {  # of a student's DIR from that of another one of its seed, in points
    "dir_over_standard": ("standard", False),
    "dir_over_seam": ("seam", True),  # at the same threshold
}
COLUMNS = [
    *[*GROUP, "seeds", "images_test", "images_right", "images_inherited", *MEANS],
    *["defect_inheritance_rate_low", "defect_inheritance_rate_high"],
    *(f"{name}_{end}" for name in DIFFERENCES for end in ("points", "low", "high")),
]


def read_students(folders: Iterable[str | Path]) -> Table:
    """Return the students of runs, one row each, from their results/tables/indirect.csv.

    A run without students adds nothing. Raises UserError if two runs have the same seed of a student.
    """
    paths = [Path(folder) / "results" / "tables" / "indirect.csv" for folder in folders]
    tables = [table for path in paths if path.is_file() and len(table := read_table(path))]
    if not tables:
        return pd.DataFrame(columns=[*GROUP, "seed"])
    table = pd.concat(tables, ignore_index=True)
    twice = table[table.duplicated([*GROUP, "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(
            f"Two of the runs have seed {row['seed']} of {row['model']} on {row['dataset']}: leave one out, or give "
            "the second run another seed."
        )
    return table


def indirect_evidence(students: Table) -> Table:
    """Return one row per source model, data set, student and threshold, from a table of students.

    Rates are means over the seeds, and counts are sums. The interval of a DIR is Wilson's over the images that the
    student gets right with one seed, because further seeds add no images. Differences of DIR are paired by seed, with
    Student's interval over the seeds: it says how much another run on the same images would differ.
    """
    table = students.assign(accuracy_adaptive=students.get("accuracy_adaptive", float("nan")))
    rate = table["defect_inheritance_rate"].astype(float)
    for name, (other, at_threshold) in DIFFERENCES.items():
        keys = ["model", "dataset", "seed", *["threshold"] * at_threshold]
        others = table[table["student"] == other].set_index(keys)["defect_inheritance_rate"].astype(float)
        reference = table[keys].join(others.rename("reference"), on=keys)["reference"]
        table[name] = (100 * (rate - reference)).where(table["student"] != other)
    rows = []
    groups: Any = table.groupby(GROUP, sort=False, dropna=False)
    for names, group in groups:
        row = {
            **dict(zip(GROUP, names, strict=True)),
            "seeds": group["seed"].nunique(),
            **{name: int(group[name].sum()) for name in ("images_test", "images_right", "images_inherited")},
            **group[MEANS].astype(float).mean().to_dict(),
        }
        inherited = row["images_inherited"] / max(row["images_right"], 1)
        interval = wilson(inherited, row["images_right"] / row["seeds"])  # the seeds share their test images
        row["defect_inheritance_rate_low"], row["defect_inheritance_rate_high"] = interval
        for name in DIFFERENCES:
            values = list(group[name].dropna())
            low, high = student_t(values)
            mean = sum(values) / len(values) if values else float("nan")
            row |= {f"{name}_points": mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    result = pd.DataFrame(rows, columns=COLUMNS)
    result["order"] = [list(STUDENTS).index(name) for name in result["student"]]
    order = ["model", "dataset", "order", "threshold"]
    return result.sort_values(order, kind="stable").drop(columns="order").reset_index(drop=True)


def render_students(table: Table) -> str:
    """Return the table as Markdown: each rate with its counts, each difference with its interval."""
    heads = ["model", "data set", "student", "seeds", "weights removed", "accuracy", "attacked", "attacked itself"]
    heads += ["DIR (95 %)", "inherited of right", "DIR over standard (95 %)", "DIR over SeaM (95 %)"]
    lines = [heads, ["---"] * len(heads)]
    for each in table.to_dict("records"):
        differences = (
            _difference(*(each[f"{name}_{end}"] for end in ("points", "low", "high"))) for name in DIFFERENCES
        )
        lines.append(
            [
                *(each["model"], each["dataset"], student_name(each["student"], each["threshold"]), str(each["seeds"])),
                _share(1 - each["retention"]),
                *(_share(each[name]) for name in MEANS[:3]),
                _rate(*(each[f"defect_inheritance_rate{end}"] for end in ("", "_low", "_high"))),
                f"{each['images_inherited']:,} of {each['images_right']:,}",
                *differences,
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float) -> str:
    return "" if value != value else f"{100 * value:.1f} %"


def _rate(value: float, low: float, high: float) -> str:
    return "" if value != value else f"{100 * value:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _difference(value: float, low: float, high: float) -> str:
    if value != value:
        return ""
    return f"{value:+.1f}" + ("" if low != low else f" ({low:+.1f} to {high:+.1f})")
