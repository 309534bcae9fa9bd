"""After a run that failed: the tables and figures of what is there, with the gaps named in them.

`collect` takes what was asked for and which jobs are not done, as partial.smk says it:
{"problems": [{"model", "dataset", "architecture", "weights_origin", "problem", "target", "classes", "folder"}],
 "students": [{"model", "dataset", "architecture", "weights_origin", "student", "threshold", "folder"}],
 "engines": [...], "jobs": [{"rule", "input": [...], "output": [...], "log", "failed"}], "published": a file,
 "folder": where to}.
"""

import os
import re
import shutil
from pathlib import Path

from seam.errors import UserError
from seam.files import write_csv
from seam.report import direct as direct_tables
from seam.report import direct_figures, indirect_figures
from seam.report import indirect as indirect_tables
from seam.report.style import note, save
from seam.report.summary import summarise
from seam.report.tables import PROBLEMS, Record, engine_name, published_students, read_table, student_name

MOST = 3  # reasons on the terminal
UNEXPECTED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b.*")  # the last line of a traceback


def said(path):
    """The sentence in which a job ended, from its log; what there is to say where it has none."""
    try:
        lines = Path(path or "").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "its job failed without a log"
    for line in reversed(lines):
        if line.startswith("seam.errors.UserError: "):
            return line.partition(": ")[2]
        if "INFO stopped by " in line:
            return line.partition(" INFO ")[2]
        if UNEXPECTED.fullmatch(line):
            return f"{line} (all of it is in {path})"
    return f"its job ended without a word (its log is {path})"


class Gaps:
    """Why a file is not there, from the jobs that are not done: dictionaries as above."""

    def __init__(self, jobs):
        self.makers = {file: one for one in jobs for file in one["output"]}

    def has(self, file):
        return file in self.makers or not Path(file).exists()

    def reason(self, file):
        maker = self.makers.get(file)
        if maker is None:
            return f"{file} is missing"
        if maker["failed"]:
            return said(maker["log"])
        needed = next((path for path in self.roots(maker)), None)
        if needed is None:
            return "not run: the run ended before"
        return f"not run: it needs {needed} ({self.reason(needed).removesuffix('.')})"

    def roots(self, maker):
        """The files of failed jobs that a job waits for, directly or not."""
        for file in maker["input"]:
            if file in self.makers:
                before = self.makers[file]
                if before["failed"]:
                    yield file
                else:
                    yield from self.roots(before)


def sorted_out(entries, needs, gaps, read):
    """{folder: why it is missing} of the `entries` that cannot be read or lack a file of `needs(entry)`.

    read(entry): reads one; raises UserError where a file of it lacks something.
    """
    missing = {}
    for entry in entries:
        lacking = [file for file in needs(entry) if gaps.has(file)]
        if lacking:
            missing[entry["folder"]] = gaps.reason(lacking[0])
            continue
        try:
            read(entry)
        except UserError as error:
            missing[entry["folder"]] = str(error)
    return missing


def with_gaps(table, entries, missing):
    """The table with a row for each of `entries`, in their order, and the column `missing`.

    missing: {folder: reason}, of those without a row or without a part of one; as objects, so that counts stay whole.
    """
    import pandas as pd

    names = [name for name in table.columns if name in {key for entry in entries for key in entry}]
    absent = [entry for entry in entries if entry["folder"] not in set(table["folder"])]
    rows = pd.DataFrame([{name: entry[name] for name in names} for entry in absent], columns=names, dtype=object)
    whole = pd.concat([table.astype(object), rows]).reindex(columns=table.columns)
    order = {entry["folder"]: place for place, entry in enumerate(entries)}
    whole = whole.sort_values("folder", key=lambda folders: folders.map(order), kind="stable")
    return whole.assign(missing=whole["folder"].map(missing))


def name_of(entry):
    if "problem" in entry:
        return f"{entry['model']}, {PROBLEMS[entry['problem']]}: {entry['target']}"
    return f"{entry['model']} on {entry['dataset']}: {student_name(entry['student'], entry['threshold'])}"


def direct(run, gaps):
    """(tables without gaps, {folder: reason} of the problems missing, that of those without a latency)."""

    def files(entry):
        return [f"{entry['folder']}/{name}.json" for name in ("metrics", "macs")] + [model_of(entry)]

    def model_of(entry):
        return f"results/models/{entry['model']}/metrics.json"

    def latencies(entry):
        return {name: f"{entry['folder']}/latency_{name}.json" for name in run["engines"]}

    def tables(entries):
        times = [file for entry in entries for file in latencies(entry).values() if not gaps.has(file)]
        metrics, macs = ([files(entry)[place] for entry in entries] for place in (0, 1))
        return direct_tables.tables(metrics, macs, times, map(model_of, entries), run["engines"])

    missing = sorted_out(run["problems"], files, gaps, lambda entry: tables([entry]))
    there = [entry for entry in run["problems"] if entry["folder"] not in missing]
    untimed = {}
    for entry in there:
        for name, file in latencies(entry).items():
            if gaps.has(file) and entry["folder"] not in untimed:
                untimed[entry["folder"]] = f"no latency by {engine_name(name)}: {gaps.reason(file)}"
    return tables(there), missing, untimed


def indirect(run, gaps, published):
    """(the table of students without gaps, {folder: reason} of those missing)."""

    def files(entry):
        return [f"{entry['folder']}/{name}.json" for name in ("training", "metrics")]

    known = published_students(published)

    def read(entry):
        indirect_tables.row(*map(Record, files(entry)), known)

    def students(entries):
        return indirect_tables.students(*([files(entry)[place] for entry in entries] for place in (0, 1)), published)

    missing = sorted_out(run["students"], files, gaps, read)
    return students([entry for entry in run["students"] if entry["folder"] not in missing]), missing


def counted(summary, run, missing):
    """The summary with a column `missing`: how many of the problems or students behind a row are missing."""

    def share(row):
        if row["group"] == "indirect":
            asked, what = [entry for entry in run["students"] if entry["student"] == row["student"]], "students"
        else:
            asked, what = [e for e in run["problems"] if row["group"] in ("all", e["problem"])], "target problems"
        lacking = sum(entry["folder"] in missing for entry in asked)
        return f"{lacking} of {len(asked)} {what}" if lacking else None

    return summary.assign(missing=[share(row) for _, row in summary.iterrows()])


def histories(run, gaps, missing):
    """{folder: its history} of the problems that are there."""
    files = {entry["folder"]: f"{entry['folder']}/history.csv" for entry in run["problems"]}
    return {folder: read_table(file) for folder, file in files.items() if folder not in missing and not gaps.has(file)}


def drawn(run, tables, courses, published, missing, untimed):
    """{name: (figure, its area)} of all figures that were asked for, each with a note on what is missing in it."""

    figures, problems, students = {}, run["problems"], run["students"]
    if problems:
        figures |= direct_figures.figures(tables["direct_binary"], tables["direct_multiclass"], courses, published)
    if students:
        study = indirect_tables.thresholds(tables["indirect"])
        figures |= indirect_figures.figures(tables["indirect"], study, published)
    of_figure = {
        "accuracy_binary": [entry for entry in problems if entry["problem"] == "binary"],
        "accuracy_multiclass": [entry for entry in problems if entry["problem"] == "multiclass"],
        "thresholds": [entry for entry in students if entry["threshold"] is not None],
        "defects": students,
    }
    for name, figure in figures.items():
        for text in figure.texts:  # of a figure in which nothing is left
            text.set_text(text.get_text().replace(" in this config", " among what is there"))
        lacking = missing | untimed if name == "cost" else missing
        names = [name_of(entry) for entry in of_figure.get(name, problems) if entry["folder"] in lacking]
        figures[name] = figure, note(figure, "Missing: ", names) if names else None
    return figures


def collect(run):
    """Make all of it in run["folder"]; gives the lines for the terminal, none where nothing is there."""

    gaps, published, folder = Gaps(run["jobs"]), read_table(run["published"]), Path(run["folder"])
    found, missing, untimed = direct(run, gaps)
    students, without = indirect(run, gaps, published)
    tables = {"direct_binary": found["binary"], "direct_multiclass": found["multiclass"], "indirect": students}
    asked = run["problems"] + run["students"]
    lacking = missing | without
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    if len(lacking) == len(asked):
        return []
    # The same numbers as after a run that succeeds: read back from what is written.
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name, table in tables.items():
            write_csv(temporary / f"tables/{name}.csv", table)
        tables = {name: read_table(temporary / f"tables/{name}.csv") for name in tables}
        summary = summarise(*tables.values(), published)
        courses = histories(run, gaps, missing)
        for name, (figure, area) in drawn(run, tables, courses, published, lacking, untimed).items():
            save(figure, [temporary / f"figures/{name}.{kind}" for kind in ("png", "pdf")], area)
        for kind in ("binary", "multiclass"):
            entries = [entry for entry in run["problems"] if entry["problem"] == kind]
            write_csv(temporary / f"tables/direct_{kind}.csv", with_gaps(found[kind], entries, missing | untimed))
        write_csv(temporary / "tables/indirect.csv", with_gaps(students, run["students"], without))
        masked = [entry for entry in run["students"] if entry["threshold"] is not None]
        masked.sort(key=lambda entry: [entry[name] for name in ("model", "dataset", "student", "threshold")])
        study = with_gaps(indirect_tables.thresholds(students), masked, without)
        write_csv(temporary / "tables/thresholds.csv", study)
        write_csv(temporary / "tables/summary.csv", counted(summary, run, lacking))
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return lines(run, folder, lacking | untimed, missing, without)


def lines(run, folder, reasons, missing, without):
    counts = [
        f"{len(asked) - len(lacking)} of {len(asked)} {what}"
        for asked, lacking, what in (
            (run["problems"], missing, "target problems"),
            (run["students"], without, "students"),
        )
        if asked
    ]
    shown = [f"{name_of(entry)}: {reasons[entry['folder']]}" for entry in run["problems"] + run["students"]
             if entry["folder"] in reasons]  # fmt: skip
    yield f"Tables and figures of what is there ({', '.join(counts)}) are in {folder}/tables and {folder}/figures."
    yield from (f"Missing: {line}" for line in shown[:MOST])
    if len(shown) > MOST:
        yield f"Missing: {len(shown) - MOST} more, which the tables name."
