"""`snakemake estimate`: the jobs of a run are those that Snakemake would start, and the target makes nothing."""

import json
import re

import pytest
import yaml
from colours import paint
from workflows import ROOT, jobs, small_config, snakemake

from seam.planning.estimate import history, missing, timed
from seam.planning.work import Inventory, stage, work


def plan(folder, monkeypatch, config):
    """Return the jobs as a dry run in `folder` writes them, and what it prints."""
    path = folder / "plan.json"
    monkeypatch.setenv("SEAM_PLAN", str(path))
    _, printed = snakemake(folder, "--dry-run", config=config)
    monkeypatch.delenv("SEAM_PLAN")
    return json.loads(path.read_text()), printed


def test_the_full_config_is_planned_without_any_data(tmp_path, monkeypatch):
    planned, printed = plan(tmp_path, monkeypatch, {"engines": ["onnxruntime"]})
    counts = {rule: sum(job["rule"] == rule for job in planned) for rule in {job["rule"] for job in planned}}
    assert counts | {"all": 1} == jobs(printed) and all(job["todo"] for job in planned)
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    inventory = Inventory(config["models"], config["datasets"], tmp_path)
    steps = missing(planned, inventory, {})
    assert {(step.kind, step.architecture) for step in steps} == {
        (kind, name) for kind in ("train", "outputs") for name in ("resnet20", "vgg16_bn")
    }
    assert len(steps) == 4  # so that measuring takes seconds
    longest = max(timed(planned, inventory, {}, dict.fromkeys(steps, 0.001)), key=lambda job: job["seconds"])
    assert longest["wildcards"]["model"] in ("vgg16-cifar10", "resnet20-cifar10")
    assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    return folder, small_config(paint(folder / "images"))


def stages(printed):
    """Return {stage: (jobs, to do)} of the table."""
    lines = printed.partition("stage ")[2].partition("\n\n")[0].splitlines()[2:]
    return {line.split()[0]: tuple(map(int, line.split()[1:3])) for line in lines}


def test_the_target_prints_all_stages_and_makes_nothing(folder):
    place, config = folder
    _, printed = snakemake(place, "--quiet", "all", "--nocolor", "estimate", config=config)
    expected = jobs(snakemake(place, "--dry-run", config=config)[1])
    expected.pop("all")
    printed_stages = stages(printed)
    assert printed_stages.pop("all") == (sum(expected.values()),) * 2
    assert printed_stages == {rule: (number, number) for rule, number in expected.items()}
    assert re.search(r"At least \d+ (s|min) with 2 cores", printed) and "measured steps" in printed
    assert {path.name for path in (place / "results").iterdir()} == {"logs"}
    assert printed.partition("stage ")[2][:500] in (place / "results/logs/estimate.log").read_text()


def test_what_is_done_is_known_and_what_a_change_touches_is_to_do(folder, monkeypatch):
    place, config = folder
    monkeypatch.chdir(place)
    snakemake(place, "--nocolor", "results/models/small/metrics.json", config=config)
    planned = {seed: plan(place, monkeypatch, config | {"seed": seed})[0] for seed in (0, 1)}
    todo = {seed: {job["rule"] for job in jobs if job["todo"]} for seed, jobs in planned.items()}
    assert todo[1] - todo[0] == {"train_source", "evaluate_source"} and "reengineer" in todo[0]
    inventory = Inventory(config["models"], config["datasets"])
    trained = next(job for job in planned[0] if job["rule"] == "train_source")
    (past,) = (times for group, times in history(planned[0], inventory).items() if group[0] == "train_source")
    benchmark = (place / "results/benchmarks/train_source/small.tsv").read_text().split("\n")
    seconds = trained["threads"] * float(benchmark[1].split("\t")[0])
    assert past[0] * sum(work(trained, inventory).values()) == pytest.approx(seconds, rel=0.5)
    assert not any(group[0] == "train_source" for group in history(planned[1], inventory))


def test_the_work_of_every_job_that_trains_is_known(folder, monkeypatch):
    place, config = folder
    recovery = {"epochs": 3}
    channels, timed = {"granularity": "channel", "budget": {"macs": 0.5}}, {"budget": {"latency": 0.5}}
    names = ["finetuned", "widths-scratch"], ["head", "magnitude", "magnitude-recovered", "scratch"]
    entries = [
        {"model": "small", "problem": "binary", "targets": ["red"], "search": channels, "baselines": names[0]},
        {"model": "small", "problem": "binary", "targets": ["blue"], "search": timed, "baselines": names[1]},
    ]
    entries = [{**entry, "recovery": recovery} for entry in entries]
    planned, _ = plan(place, monkeypatch, config | {"direct_reuse": entries})
    monkeypatch.chdir(place)
    inventory = Inventory(config["models"], config["datasets"])
    known = {job["rule"] for job in planned if work(job, inventory)}
    assert known == {job["rule"] for job in planned if "device" in job["params"]} and {
        *("recover", "recover_baseline", "train_baseline", "train_scratch", "train_channel_baseline"),
    } <= known  # fmt: skip
    images = {
        rule: sum(sum(work(job, inventory).values()) for job in planned if job["rule"] == rule)
        for rule in ("recover", "recover_baseline")
    }
    assert images["recover"] == pytest.approx(2 * images["recover_baseline"])  # the problems have as many images
    baselines = [job for job in planned if job["rule"] in ("train_baseline", "train_scratch")]
    assert not any("layer_costs" in job["params"]["search"] for job in baselines)  # which they do without


def test_stacks_are_one_stage(folder, monkeypatch):
    place, config = folder
    problems = [{"model": "small", "problem": "binary", "targets": ["red", "blue", "green"]}]
    planned, _ = plan(place, monkeypatch, config | {"stack": 2, "direct_reuse": problems})
    stacks = [job for job in planned if stage(job) == "reengineer"]
    assert sorted(len(job["params"]["searches"]) for job in stacks) == [1, 2]
    assert all(work(job, Inventory(config["models"], config["datasets"])) for job in stacks)
