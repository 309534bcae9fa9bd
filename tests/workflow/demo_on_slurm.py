"""The demo through a Slurm, and what must hold of it (make demo-slurm). It takes minutes: no part of make test."""

import json
import os
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
import slurm
from slurm_jobs import GPU as PUBLISHED_GPU
from slurm_jobs import LOCAL, Going
from workflows import ROOT, jobs

from seam.cost.processor import physical_cores

CORES = len(os.sched_getaffinity(0))  # the node's: no more runs at a time than without Slurm
ENGINES = ("deepsparse", "seam", "onnxruntime")
GPU = PUBLISHED_GPU | {"recover"}
GROUPS = {
    "cost": {"count_macs": 6, "export_onnx": 6},
    "timing": {"time_deepsparse": 6, "time_engine": 12},
    "defects": {"evaluate_defects": 8},
}
GROUPED = {rule: name for name, rules in GROUPS.items() for rule in rules}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What Snakemake said, the jobs of each rule, and [what Slurm says] of the queue entries of each rule or group."""
    if slurm.missing():
        pytest.exit("Slurm is not installed: apt-get install slurm-wlm munge", 1)
    if (ROOT / "envs/.built").exists() or {path.name for path in (ROOT / "results").iterdir()} > {"README.md"}:
        pytest.exit("This looks at a whole run: remove what results/ and envs/.built have of an earlier one", 1)
    options = ["--profile", "profiles/demo", "--cores", str(CORES)]
    options += ["--config", f"engines=[{','.join(ENGINES)}]"]  # DeepSparse as well
    options += ["--set-threads", f"time_deepsparse={CORES}", f"time_engine={CORES}"]
    with slurm.running(CORES) as environment:
        run = Going(ROOT, tmp_path_factory.mktemp("demo") / "snakemake.txt", environment, *options)
        try:
            said = run.ends(seconds=1800)
        finally:
            run.process.kill()
        entries = {}
        for number, name in run.entries().items():
            kind, _, name = name.partition("/")[0].partition("_")
            name = name.partition("_")[0] if kind == "group" else name
            entries.setdefault(name, []).append(run.about(number))
    return SimpleNamespace(said=said, jobs=jobs(said), entries=entries)


def test_each_job_ran_once(demo):
    assert demo.jobs.keys() == LOCAL | GPU | GROUPED.keys() | {"prepare_dataset", "export_source"}
    assert "75 of 75 steps (100%) done" in demo.said and sum(demo.jobs.values()) == 75
    assert "Trying to restart" not in demo.said
    assert {entry["JobState"] for entries in demo.entries.values() for entry in entries} == {"COMPLETED"}


def test_short_jobs_are_no_queue_entries_of_their_own(demo):
    alone = dict(demo.jobs)
    for group in GROUPS.values():
        for rule, number in group.items():
            assert alone.pop(rule) == number
    expected = {rule: number for rule, number in alone.items() if rule not in LOCAL} | dict.fromkeys(GROUPS, 1)
    assert Counter({name: len(entries) for name, entries in demo.entries.items()}) == expected
    assert sum(expected.values()) == 32


def test_jobs_that_compute_have_a_gpu(demo):
    wanted = {GROUPED.get(rule, rule) for rule in GPU}
    assert {name for name in demo.entries if all("TresPerJob" in entry for entry in demo.entries[name])} == wanted
    assert not any("TresPerJob" in entry for name in demo.entries.keys() - wanted for entry in demo.entries[name])


def test_timing_has_the_node_for_itself_and_goes_one_by_one(demo):
    (timing,) = demo.entries["timing"]
    assert timing["OverSubscribe"] == "NO" and timing["CPUs/Task"] == str(CORES)
    assert timing["TimeLimit"] == "04:30:00"  # the sum of eighteen
    others = [entry for entries in demo.entries.values() for entry in entries if entry is not timing]
    assert len(others) == 31
    for entry in others:  # ISO dates
        assert entry["EndTime"] <= timing["StartTime"] or timing["EndTime"] <= entry["StartTime"], entry
    for engine in ENGINES:
        found = [json.loads(path.read_text()) for path in ROOT.glob(f"results/direct/*/*/*/latency_{engine}.json")]
        assert [one["measurements"][0]["threads"] for one in found] == 6 * [min(CORES, physical_cores())]


def test_the_tables_hold_all_problems_and_students(demo):
    tables = ROOT / "results/tables"
    summary = pd.read_csv(tables / "summary.csv").set_index(["quantity", "group"])
    assert summary.loc[("weights_kept", "all"), "problems"] == 6
    direct = pd.concat([pd.read_csv(tables / f"direct_{kind}.csv") for kind in ("binary", "multiclass")])
    assert len(direct) == 6 and all((direct[f"speedup_{engine}"] > 0).all() for engine in ENGINES)
    assert len(pd.read_csv(tables / "indirect.csv")) == 8
