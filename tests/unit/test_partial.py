"""After a failed run: why something is missing, and where the tables say so."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import synthetic

from seam.files import read_json, write_json
from seam.report.partial import (
    UnfinishedJobs,
    failure_reason,
    finished_problems,
    with_missing_counts,
    with_missing_rows,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("Traceback\nseam.errors.UserError: No weight was left.\n", "No weight was left."),
        ("Traceback\ntorch.OutOfMemoryError: too much\n", "torch.OutOfMemoryError: too much (all of it is in {})"),
        ("2026-01-01 00:00:00 INFO stopped by SIGTERM in epoch 3, batch 4: run again to go on\n", "stopped by SIGTERM"),
        ("2026-01-01 00:00:00 INFO epoch 1/30 loss 0.1\n", "its job ended without a word (its log is {})"),
        (None, "its job failed without a log"),
    ],
)
def test_the_reason_is_found_in_the_log(tmp_path, log, reason):
    path = tmp_path / "x.log"
    if log:
        path.write_text(log)
    assert failure_reason(path).startswith(reason.format(path))
    assert failure_reason(None)


def test_what_waits_for_a_job_that_failed_says_for_which(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.log").write_text("seam.errors.UserError: The loss became nan in epoch 2: lower training.lr.\n")
    (tmp_path / "there").touch()
    (tmp_path / "stale").touch()
    jobs = UnfinishedJobs(
        [
            {"rule": "train", "input": [], "output": ["weights"], "log": "x.log", "failed": True},
            {"rule": "search", "input": ["there", "weights"], "output": ["masks"], "log": "y.log", "failed": False},
            {"rule": "count", "input": ["masks"], "output": ["macs"], "log": "z.log", "failed": False},
            {"rule": "time", "input": ["there"], "output": ["stale"], "log": "z.log", "failed": False},
        ]
    )
    assert not jobs.lack("there") and jobs.lack("nowhere") and jobs.lack("macs")
    assert jobs.lack("stale")  # of an earlier run, and out of date
    assert jobs.reason("weights") == "The loss became nan in epoch 2: lower training.lr."
    waits = "not run: it needs weights (The loss became nan in epoch 2: lower training.lr)"
    assert jobs.reason("masks") == jobs.reason("macs") == waits
    assert jobs.reason("stale") == "not run: the run ended before"
    assert jobs.reason("nowhere") == "nowhere is missing"


def test_missing_rows_stand_in_their_place_and_the_others_are_as_they_were(tmp_path):
    table = pd.DataFrame(
        {"target": ["a", "c"], "seed": [2**62 + 1, 7], "share": [0.1 + 0.2, 1.0], "folder": ["a", "c"]}
    )
    entries = [{"target": name, "folder": name, "other": 1} for name in "abc"]
    complete = with_missing_rows(table, entries, {"b": "No.", "c": "no latency"})
    complete.to_csv(tmp_path / "t.csv", index=False)
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "target,seed,share,folder,missing",
        f"a,{2**62 + 1},{0.1 + 0.2!r},a,",
        "b,,,b,No.",
        "c,7,1.0,c,no latency",
    ]


def test_means_tell_what_is_not_in_them():
    """A problem that lacks only what an engine has to tell is in all other means."""
    problems = [{"folder": name, "problem": "binary"} for name in "abc"]
    columns = ["group", "engine", "student", "problems"]
    rows = [["all", "", "", 2], ["all", "seam", "", 1], ["binary", "onnxruntime", "", 2]]
    summary = pd.DataFrame(rows, columns=columns)
    found = with_missing_counts(summary, {"problems": problems, "students": []}, {"a": "No."})
    assert found["missing"].tolist() == ["1 of 3 target problems", "2 of 3 target problems", "1 of 3 target problems"]


def test_means_of_students_tell_of_the_thresholds_that_are_in_them():
    students = [
        {"model": "net", "dataset": "pets", "student": "seam", "threshold": threshold, "folder": f"t{threshold}"}
        for threshold in (0.3, 0.5, 0.6, 0.7)
    ]
    summary = pd.DataFrame([["indirect", "", "seam", 1]], columns=["group", "engine", "student", "problems"])
    for missing, words in (({"t0.7": "No."}, None), ({"t0.6": "No."}, "1 of 1 students")):
        found = with_missing_counts(summary, {"problems": [], "students": students}, missing)
        assert found["missing"].tolist() == [words]


def test_an_int8_accuracy_that_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = synthetic.make(".", synthetic.DEMO)
    folder = made["metrics.json"][0].rpartition("/")[0]
    problem = read_json(f"{folder}/metrics.json")
    entry = {name: problem[name] for name in ("model", "problem", "target")} | {"folder": folder}
    run = {"problems": [entry], "engines": ["onnxruntime-int8"], "students": []}
    job = {"rule": "evaluate_int8", "input": [], "output": [f"{folder}/accuracy_onnxruntime-int8.json"], "log": None,
           "failed": True}  # fmt: skip
    for name in ("latency", "accuracy"):
        write_json(f"{folder}/{name}_onnxruntime-int8.json", {})
    tables, missing, reasons = finished_problems({**run, "engines": []}, UnfinishedJobs([job]))
    assert sum(map(len, tables.values())) == 1 and not missing and not reasons
    monkeypatch.setattr("seam.report.direct.tables", lambda *_: {})
    assert finished_problems(run, UnfinishedJobs([job]))[2][folder].startswith("no accuracy by ONNX Runtime int8: ")


def test_an_unexpected_end_of_collecting_is_no_traceback(tmp_path):
    for text in ("no json", '{"jobs": [], "published": "nowhere.csv", "folder": "x"}'):
        command = [sys.executable, ROOT / "workflow/scripts/collect_partial.py", "logs/x.log"]
        result = subprocess.run(command, input=text, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert result.returncode == 1 and "Traceback" not in result.stderr and "Error: " in result.stderr
