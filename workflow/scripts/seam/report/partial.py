"""Tables and figures after a run that failed: of the finished results, with what is missing named in them.

`collect` takes a description of the run, as partial.smk gives it:
{"problems": [{"model", "dataset", "architecture", "weights_origin", "problem", "target", "classes", "folder"}],
 "students": [{"model", "dataset", "architecture", "weights_origin", "student", "threshold", "folder"}],
 "engines": [name], "jobs": [{"rule", "input": [file], "output": [file], "log", "failed"}],
 "published": path of published.csv, "folder": path of the output}.

An entry is one of `problems` or `students`. `jobs` are those that the run did not finish.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from seam.cost.engines import ENGINES
from seam.errors import UserError
from seam.files import write_csv
from seam.report import direct, direct_figures, indirect, indirect_figures
from seam.report.style import add_note, save
from seam.report.summary import compared, summarise
from seam.report.tables import (
    PROBLEMS,
    TABLE_OF,
    Column,
    Record,
    Table,
    engine_name,
    published_students,
    read_table,
    student_name,
)

Entry = dict[str, Any]
Run = dict[str, Any]
Reasons = dict[str, str]  # why the results of an entry are missing, by its folder

MOST_LINES = 3  # reasons on the terminal
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b.*")  # the last line of a traceback


def failure_reason(log: str | Path | None) -> str:
    """Return the sentence in which a job ended, from its log."""
    try:
        lines = Path(log or "").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "its job failed without a log"
    for line in reversed(lines):
        if line.startswith("seam.errors.UserError: "):
            return line.partition(": ")[2]
        if line.startswith("Error: "):  # of a rule's shell command
            return line.removeprefix("Error: ")
        if "INFO stopped by " in line:
            return line.partition(" INFO ")[2]
        if EXCEPTION.fullmatch(line):
            return f"{line} (all of it is in {log})"
    return f"its job ended without a word (its log is {log})"


class UnfinishedJobs:
    """Tell which files are missing or out of date, and why, from the jobs that a run did not finish."""

    def __init__(self, jobs: Iterable[dict[str, Any]]) -> None:
        self.job_of = {file: job for job in jobs for file in job["output"]}

    def lack(self, file: str) -> bool:
        """Return whether the file does not exist, or is left from an earlier run."""
        return file in self.job_of or not Path(file).exists()

    def reason(self, file: str) -> str:
        """Return why such a file is missing."""
        job = self.job_of.get(file)
        if job is None:
            return f"{file} is missing"
        if job["failed"]:
            return failure_reason(job["log"])
        needed = next(self._failed_inputs(job), None)
        if needed is None:
            return "not run: the run ended before"
        return f"not run: it needs {needed} ({self.reason(needed).removesuffix('.')})"

    def _failed_inputs(self, job: dict[str, Any]) -> Iterator[str]:
        """Yield the outputs of failed jobs that a job waits for, directly or not."""
        for file in job["input"]:
            if file in self.job_of:
                maker = self.job_of[file]
                if maker["failed"]:
                    yield file
                else:
                    yield from self._failed_inputs(maker)


def missing_entries(
    entries: Iterable[Entry],
    files_of: Callable[[Entry], list[str]],
    jobs: UnfinishedJobs,
    read: Callable[[Entry], object],
) -> Reasons:
    """Return {folder: reason} of the entries that lack a file, or that `read` refuses with a UserError."""
    reasons = {}
    for entry in entries:
        lacking = [file for file in files_of(entry) if jobs.lack(file)]
        if lacking:
            reasons[entry["folder"]] = jobs.reason(lacking[0])
            continue
        try:
            read(entry)
        except UserError as error:
            reasons[entry["folder"]] = str(error)
    return reasons


def with_missing_rows(table: Table, entries: list[Entry], reasons: Reasons) -> Table:
    """Return the table with a row for each of the entries, in their order, and the reasons in the column `missing`.

    reasons: of entries without a row, or without a part of their row. Values are objects, so that counts stay whole.
    """
    names = [name for name in table.columns if name in {key for entry in entries for key in entry}]
    absent = [entry for entry in entries if entry["folder"] not in set(table["folder"])]
    rows = pd.DataFrame([{name: entry[name] for name in names} for entry in absent], columns=names, dtype=object)
    complete = pd.concat([table.astype(object), rows]).reindex(columns=table.columns)
    order = {entry["folder"]: place for place, entry in enumerate(entries)}
    complete = complete.sort_values("folder", key=lambda folders: folders.map(order), kind="stable")
    return complete.assign(missing=complete["folder"].map(reasons.get))


def entry_name(entry: Entry) -> str:
    """Return how people write an entry: "net, binary: cat" or "net on pets: SeaM, t = 0.6"."""
    if "problem" in entry:
        return f"{entry['model']}, {PROBLEMS[entry['problem']]}: {entry['target']}"
    return f"{entry['model']} on {entry['dataset']}: {student_name(entry['student'], entry['threshold'])}"


def finished_problems(run: Run, jobs: UnfinishedJobs) -> tuple[dict[str, Table], Reasons, Reasons]:
    """Return (tables of the finished problems, reasons of the missing ones, reasons of those without a latency)."""

    def files_of(entry: Entry) -> list[str]:
        names = [f"{entry['folder']}/{name}.json" for name in ("metrics", "macs")]
        recovery = [f"{entry['folder']}/recovery.json"] if entry.get("recovery") else []
        return [*names, f"results/models/{entry['model']}/metrics.json", *recovery]

    def latencies(entry: Entry) -> dict[str, str]:
        return {name: f"{entry['folder']}/latency_{name}.json" for name in run["engines"]}

    def tables(entries: list[Entry]) -> dict[str, Table]:
        metrics, macs, models = ([files_of(entry)[place] for entry in entries] for place in range(3))
        times, int8 = (
            [
                file
                for entry in entries
                for name in run["engines"]
                if not jobs.lack(file := f"{entry['folder']}/{kind}_{name}.json")
            ]
            for kind in ("latency", "accuracy")
        )
        recovery = [file for entry in entries for file in files_of(entry)[3:]]
        return direct.tables(metrics, macs, times, models, run["engines"], recovery, int8)

    missing = missing_entries(run["problems"], files_of, jobs, lambda entry: tables([entry]))
    finished = [entry for entry in run["problems"] if entry["folder"] not in missing]
    untimed: Reasons = {}
    for entry in finished:
        for name, file in latencies(entry).items():
            if jobs.lack(file):
                untimed.setdefault(entry["folder"], f"no latency by {engine_name(name)}: {jobs.reason(file)}")
            file = f"{entry['folder']}/accuracy_{name}.json"
            if ENGINES[name].int8 and jobs.lack(file):
                untimed.setdefault(entry["folder"], f"no accuracy by {engine_name(name)}: {jobs.reason(file)}")
    return tables(finished), missing, untimed


def finished_students(run: Run, jobs: UnfinishedJobs, published: Table) -> tuple[Table, Reasons]:
    """Return (the table of the finished students, reasons of the missing ones)."""
    known = published_students(published)

    def files_of(entry: Entry) -> list[str]:
        return [f"{entry['folder']}/{name}.json" for name in ("training", "metrics")]

    def read(entry: Entry) -> object:
        training, metrics = map(Record, files_of(entry))
        return indirect.row(training, metrics, known)

    missing = missing_entries(run["students"], files_of, jobs, read)
    finished = [files_of(entry) for entry in run["students"] if entry["folder"] not in missing]
    training, metrics = ([files[place] for files in finished] for place in range(2))
    return indirect.students(training, metrics, published), missing


def with_missing_counts(summary: Table, run: Run, missing: Reasons) -> Table:
    """Return the summary with a column `missing`: how many of the problems or students behind a row are missing."""
    compared_students: list[Entry] = []
    if run["students"]:  # of the thresholds, the summary has one
        places = compared(pd.DataFrame(run["students"])).index
        compared_students = [run["students"][place] for place in places]

    def count(row: Column) -> str | None:
        if row["group"] == "indirect":
            entries = [entry for entry in compared_students if entry["student"] == row["student"]]
            noun = "students"
        else:
            entries = [entry for entry in run["problems"] if row["group"] in ("all", entry["problem"])]
            noun = "target problems"
        lacking = sum(entry["folder"] in missing for entry in entries)
        if row["engine"]:  # a problem may lack only what an engine has to tell of it
            lacking = max(lacking, len(entries) - int(row["problems"]))
        return f"{lacking} of {len(entries)} {noun}" if lacking else None

    return summary.assign(missing=[count(row) for _, row in summary.iterrows()])


def draw(
    run: Run,
    tables: Mapping[str, Table],
    histories: Mapping[str, Table],
    published: Table,
    missing: Reasons,
    untimed: Reasons,
) -> Iterator[tuple[str, Figure, Bbox | None]]:
    """Yield (name, figure, area to save) of the figures of the run, each with a note on what is missing in it."""
    figures, problems, students = {}, run["problems"], run["students"]
    if problems:
        figures |= direct_figures.figures(tables["direct_binary"], tables["direct_multiclass"], histories, published)
    if students:
        study = indirect.thresholds(tables["indirect"])
        figures |= indirect_figures.figures(tables["indirect"], study, published)
    entries_of = {
        "accuracy_binary": [entry for entry in problems if TABLE_OF[entry["problem"]] == "binary"],
        "accuracy_multiclass": [entry for entry in problems if TABLE_OF[entry["problem"]] == "multiclass"],
        "thresholds": [entry for entry in students if entry["threshold"] is not None],
        "defects": students,
    }
    for name, figure in figures.items():
        for text in figure.texts:  # of a figure without results
            text.set_text(text.get_text().replace(" in this config", " among what is there"))
        lacking = missing | untimed if name in ("cost", "engines") else missing
        names = [entry_name(entry) for entry in entries_of.get(name, problems) if entry["folder"] in lacking]
        yield name, figure, add_note(figure, "Missing: ", names) if names else None


def collect(run: Run) -> list[str]:
    """Write the tables and figures to run["folder"]; return the lines for the terminal.

    Nothing is written, and there are no lines, if no problem and no student is finished.
    """
    jobs, published, folder = UnfinishedJobs(run["jobs"]), read_table(run["published"]), Path(run["folder"])
    problems, missing_problems, untimed = finished_problems(run, jobs)
    students, missing_students = finished_students(run, jobs, published)
    missing = missing_problems | missing_students
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    if len(missing) == len(run["problems"]) + len(run["students"]):
        return []
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")

    def write(name: str, table: Table) -> None:
        write_csv(temporary / f"tables/{name}.csv", table)

    try:
        # Figures and summary read the tables back, as in a run that succeeds, so that the numbers are the same.
        latency = problems.pop("latency")
        tables = {"direct_binary": problems["binary"], "direct_multiclass": problems["multiclass"]}
        tables |= {"latency": latency, "indirect": students}
        for name, table in tables.items():
            write(name, table)
        tables = {name: read_table(temporary / f"tables/{name}.csv") for name in tables}
        summary = summarise(tables["direct_binary"], tables["direct_multiclass"], tables["indirect"], published)
        files = {entry["folder"]: f"{entry['folder']}/history.csv" for entry in run["problems"]}
        histories = {
            name: read_table(file) for name, file in files.items() if name not in missing and not jobs.lack(file)
        }
        for name, figure, area in draw(run, tables, histories, published, missing, untimed):
            save(figure, [temporary / f"figures/{name}.{kind}" for kind in ("png", "pdf")], area)
        for kind, table in problems.items():
            entries = [entry for entry in run["problems"] if TABLE_OF[entry["problem"]] == kind]
            write(f"direct_{kind}", with_missing_rows(table, entries, missing_problems | untimed))
        write("indirect", with_missing_rows(students, run["students"], missing_students))
        masked = [entry for entry in run["students"] if entry["threshold"] is not None]
        masked.sort(key=lambda entry: [entry[name] for name in ("model", "dataset", "student", "threshold")])
        write("thresholds", with_missing_rows(indirect.thresholds(students), masked, missing_students))
        write("summary", with_missing_counts(summary, run, missing))
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return list(terminal_lines(run, missing, untimed))


def terminal_lines(run: Run, missing: Reasons, untimed: Reasons) -> Iterator[str]:
    """Yield what the terminal shows: where the results are, and the first reasons of missing ones."""
    counts = []
    for entries, noun in ((run["problems"], "target problems"), (run["students"], "students")):
        if entries:
            finished = sum(entry["folder"] not in missing for entry in entries)
            counts.append(f"{finished} of {len(entries)} {noun}")
    folder, reasons = run["folder"], missing | untimed
    where = f"{folder}/tables and {folder}/figures"
    yield f"Tables and figures of the finished results ({', '.join(counts)}) are in {where}."
    entries = [entry for entry in run["problems"] + run["students"] if entry["folder"] in reasons]
    yield from (f"Missing: {entry_name(entry)}: {reasons[entry['folder']]}" for entry in entries[:MOST_LINES])
    if len(entries) > MOST_LINES:
        yield f"Missing: {len(entries) - MOST_LINES} more, which the tables name."
