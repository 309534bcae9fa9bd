"""The estimate: what jobs have to do, how long that takes by what has run and by measured steps, when all is done."""

import json
import os
import re
import sys

import pytest
import yaml
from colours import ARCHITECTURE, paint
from estimate import estimate, planned
from workflows import ROOT, jobs, small_config, snakemake

from seam.data.kinds.registry import KINDS
from seam.data.problems import binary_problem, multiclass_problem
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.files import write_json
from seam.planning import calibration
from seam.planning.calibration import ENOUGH, LEAST, Clock, _batch_size, measure
from seam.planning.estimate import SHORT, Step, World, duration, history, missing, notes, table, timed, wall_time, work

MODELS = {"m": {"architecture": "resnet20", "dataset": "c"}, "other": {"architecture": "vgg16_bn", "dataset": "c"}}
DATASETS = {"c": {"kind": "cifar10", "size": 32}}
SEARCH = {
    "epochs": 300,
    "batch_size": 64,
    "head_every": 5,
    "evaluate_every": 1,
    "schedule": "published",
    "selection": "holdout",
    "holdout": 0.2,
}


def job(number=0, rule="reengineer", todo=True, after=(), seconds=None, folder="", **more):
    """A job as the dry run has it."""
    wildcards = {"model": "m", "problem": "binary", "target": str(number)}
    settings = SEARCH | more.pop("settings", {})
    return {
        "number": number,
        "after": list(after),
        "todo": todo,
        "rule": rule,
        "wildcards": wildcards,
        "params": {"job": {"dataset": "c", "members": ["ship"], "settings": settings}},
        "threads": 1,
        "resources": {"_cores": 1, "_nodes": 1},
        "priority": 0,
        "benchmark": f"{folder}/{rule}{number}.tsv",
        "output": [f"{folder}/history{number}.csv", f"{folder}/metrics{number}.json"],
        **more,
    } | ({"seconds": seconds, "known": "run"} if seconds is not None else {})


@pytest.fixture
def world(tmp_path):
    return World(MODELS, DATASETS, tmp_path)


def ran(folder, number, seconds, rule="reengineer", epochs=()):
    (folder / f"{rule}{number}.tsv").write_text(f"s\th:m:s\n{seconds}\t0:00:01\n")
    if epochs:
        rows = "".join(f"{epoch},{value}\n" for epoch, value in enumerate(epochs, 1))
        (folder / f"history{number}.csv").write_text("epoch,seconds\n" + rows)


# ---------------------------------------------------------------------- how many images


def test_published_data_sets_are_known_without_their_images(tmp_path):
    world = World({}, {name: {"kind": name} for name in ("cifar10", "cifar100", "mit67", "flower102")}, tmp_path)
    found = {name: (world.total(name, "train"), world.total(name, "test")) for name in world.datasets}
    assert found["cifar10"] == found["cifar100"] == (50000, 10000)
    assert found["mit67"] == pytest.approx((5360, 1340)) and found["flower102"] == pytest.approx((2040, 6149))


def test_every_kind_but_folders_of_ones_own_has_its_numbers():
    from seam.planning.estimate import PUBLISHED

    assert PUBLISHED.keys() == KINDS.keys() - {"imagefolder"}


def test_a_prepared_data_set_is_read_and_folders_are_counted(colours, tmp_path):
    entry = {"kind": "imagefolder", "root": str(colours), "classes": ["red", "blue"]}
    counted = World({}, {"mine": entry}, tmp_path).counts("mine")
    assert counted == {"train": {"red": 40, "blue": 40}, "test": {"red": 20, "blue": 20}}
    prepared = {"train": {"red": 7, "blue": 8}, "test": {"red": 1, "blue": 2}}
    write_json(tmp_path / "mine/dataset.json", {"counts": prepared})
    assert World({}, {"mine": entry}, tmp_path).counts("mine") == prepared
    # Prepared for other classes: it will be made again.
    write_json(tmp_path / "mine/dataset.json", {"counts": {"train": {"red": 7}, "test": {"red": 1}}})
    assert World({}, {"mine": entry}, tmp_path).counts("mine") == counted


def test_the_images_of_a_problem_are_those_that_a_search_has(colours, dataset_folder, tmp_path):
    images = open_dataset(dataset_folder)
    world = World({}, {"colours": {"kind": "imagefolder", "root": str(colours)}}, tmp_path)
    for kind, members in (("binary", ["red"]), ("multiclass", ["red", "blue", "green"])):
        make = binary_problem if kind == "binary" else multiclass_problem
        task = make(images, members[0] if kind == "binary" else members, 0)
        expected = {"train": len(task.train), "test": len(task.test)}
        assert world.problem("colours", kind, members) == expected
    # More of the target than of all others: as many of each as the others have.
    write_json(tmp_path / "colours/dataset.json", {"counts": dict.fromkeys(("train", "test"), {"red": 30, "blue": 10})})
    two = World({}, {"colours": {"kind": "imagefolder", "root": str(colours), "classes": ["red", "blue"]}}, tmp_path)
    assert two.problem("colours", "binary", ["red"]) == {"train": 20, "test": 20}


# ---------------------------------------------------------------------- what a job has to do


def test_a_search_has_its_epochs_in_full(world):
    found = {step.kind: images for step, images in work(job(), world).items()}
    # 10,000 images of which 8,000 train: 60 epochs of the head alone, 240 of the masks; 2,000 to select and to test.
    assert found == {"head": 60 * 8000, "masks": 240 * 8000, "outputs": 301 * 2000 + 2 * 2000}
    found = {step.kind: images for step, images in work(job(settings={"selection": "test"}), world).items()}
    assert found == {"head": 60 * 10000, "masks": 240 * 10000, "outputs": 301 * 2000 + 2 * 2000}
    found = {step.kind: images for step, images in work(job(settings={"evaluate_every": 7}), world).items()}
    assert found["outputs"] == 44 * 2000 + 2 * 2000  # 42 times 7, the last epoch, and the source model
    found = {step.kind: images for step, images in work(job(settings={"schedule": "fast"}), world).items()}
    assert found["head"] == 8000 and found["masks"] == 299 * 8000
    multiclass = job(wildcards={"model": "m", "problem": "multiclass", "target": "x"})
    multiclass["params"]["job"]["members"] = ["ship", "cat", "dog"]
    assert sum(work(multiclass, world).values()) == 300 * 15000 + 3000 + 2 * 3000


def test_the_steps_of_models_and_data_sets_differ(world):
    steps = set(work(job(), world)) | set(work(job(wildcards={**job()["wildcards"], "model": "other"}), world))
    assert {(step.kind, step.architecture) for step in steps} == {
        (kind, name) for kind in ("head", "masks", "outputs") for name in ("resnet20", "vgg16_bn")
    }
    assert {step.augmentation for step in steps} == {("crop", "flip"), ()}
    assert {(step.size, step.batch_size, step.threads) for step in steps} == {(32, 64, 1)}


def test_indirect_reuse_has_its_epochs_in_full(world):
    names = {"model": "m", "dataset": "c"}
    common = {"batch_size": 16, "selection": "holdout", "holdout": 0.1}
    found = {}
    for rule, block, epochs in (
        ("finetune_standard", "settings", 7),
        ("retrain", "settings", 7),
        ("finetune_seam", "settings", 7),
        ("finetune_seam_head", "head", 5),
        ("finetune_seam_masks", "search", 3),
    ):
        params = {"job": {"common": common, block: {"epochs": epochs}}}
        found[rule] = work(job(rule=rule, wildcards=names, params=params), world)
        assert sum(found[rule].values()) == pytest.approx(epochs * 50000)
    kinds = {rule: [step.kind for step in steps] for rule, steps in found.items()}
    assert kinds["finetune_seam_head"] == ["head", "outputs"] and kinds["finetune_seam_masks"] == ["masks", "outputs"]
    assert kinds["retrain"] == ["train", "outputs"] and found["retrain"] == found["finetune_standard"]
    attack = job(rule="attack_source", wildcards=names, params={"job": {"settings": {"batch_size": 8, "steps": 40}}})
    assert {step.kind: images for step, images in work(attack, world).items()} == {"attack": 400000, "outputs": 20000}


# ---------------------------------------------------------------------- how long it takes


def test_what_has_run_says_how_long_the_rest_takes(world, tmp_path):
    done = [job(number, todo=False, folder=tmp_path) for number in range(3)]
    for number, seconds in enumerate((100, 130, 900)):
        ran(tmp_path, number, seconds)
    rest = [job(3, folder=tmp_path), job(4, folder=tmp_path, settings={"epochs": 600})]
    other = job(5, folder=tmp_path, wildcards={**job()["wildcards"], "model": "other"})
    past = history([*done, *rest, other], world)
    assert {step.architecture for step in missing([*done, *rest, other], world, past)} == {"vgg16_bn"}
    seconds = dict.fromkeys(missing([other], world, past), 0.001)
    found = timed([*done, *rest, other], world, past, seconds, start=5)
    assert found[3]["seconds"] == pytest.approx(130) and found[3]["known"] == "run"
    assert found[4]["seconds"] == pytest.approx(260, rel=0.01)  # twice the epochs
    assert found[5]["seconds"] == pytest.approx(5 + 0.001 * sum(work(other, world).values()))
    assert found[5]["known"] == "measured"


def test_a_job_that_is_to_be_done_again_says_nothing_of_its_new_settings(world, tmp_path):
    ran(tmp_path, 0, 100)
    again = job(0, folder=tmp_path)
    assert history([again], world) == {} and missing([again], world, {})


def test_a_job_that_was_continued_took_the_seconds_of_all_its_epochs(world, tmp_path):
    ran(tmp_path, 0, 20, epochs=[50, 60, 70])
    found = history([job(0, todo=False, folder=tmp_path), job(1, folder=tmp_path)], world)
    assert next(iter(found.values())) == [pytest.approx(180 / sum(work(job(), world).values()))]


def test_short_jobs_take_what_those_of_other_models_took(world, tmp_path):
    for number, seconds in enumerate((4, 6)):
        ran(tmp_path, number, seconds, rule="count_macs")
    # Of these also a job that is to be done again says how long it takes.
    there = [job(number, "count_macs", todo=number == 1, folder=tmp_path) for number in range(2)]
    other = job(2, "count_macs", folder=tmp_path, wildcards={**job()["wildcards"], "model": "other"})
    found = timed([*there, other], world, history([*there, other], world), {}, start=3)
    assert found[2]["seconds"] == 5 and found[2]["known"] == "run"
    nothing = timed([other], world, {}, {}, start=3)[0]
    assert nothing["seconds"] == SHORT["count_macs"][0] + 3 and nothing["known"] == "assumed"


@pytest.mark.parametrize("text", ["", "s\n", "s\n-\n", "h:m:s\n0:01\n"])
def test_a_benchmark_that_says_nothing_is_none(world, tmp_path, text):
    (tmp_path / "reengineer0.tsv").write_text(text)
    assert history([job(0, todo=False, folder=tmp_path)], world) == {}


# ---------------------------------------------------------------------- when all is done


def test_jobs_run_beside_each_other_as_far_as_there_is_room():
    five = [job(number, seconds=10) for number in range(5)]
    assert wall_time(five, {"_cores": 2}) == 30
    assert wall_time(five, {"_cores": 64}) == 10
    assert wall_time(five, {"_nodes": 3}) == 20
    for one in five:
        one["resources"]["gpu"] = 1
    assert wall_time(five, {"_cores": 64, "gpu": 1}) == 50
    assert wall_time(five, {"_cores": 64}) == 10  # no limit
    five[0]["todo"] = False
    assert wall_time(five, {"_cores": 2}) == 20
    assert wall_time([], {"_cores": 2}) == 0


def test_jobs_wait_for_what_they_need():
    chain = [job(0, seconds=5), job(1, after=[0], seconds=7), job(2, after=[0, 1], seconds=1), job(3, seconds=4)]
    assert wall_time(chain, {"_cores": 2}) == 13
    assert wall_time(chain, {"_cores": 1}) == 17
    chain[0]["todo"] = False
    assert wall_time(chain, {"_cores": 2}) == 8


def test_a_job_with_all_cores_runs_alone():
    alone = [job(number, seconds=10) for number in range(3)]
    alone[0]["resources"]["_cores"] = 8  # more than there are: Snakemake scales it down
    assert wall_time(alone, {"_cores": 2}) == 20


def test_those_that_others_wait_for_come_first():
    several = [job(0, seconds=10), job(1, seconds=10), job(2, seconds=10, priority=1), job(3, after=[2], seconds=20)]
    assert wall_time(several, {"_cores": 2}) == 30
    several[2]["priority"] = 0
    assert wall_time(several, {"_cores": 2}) == 40


def test_thousands_of_jobs_are_soon_scheduled():
    many = [job(number, seconds=1 + number % 7) for number in range(5000)]
    assert wall_time(many, {"_cores": 64}) == pytest.approx(sum(one["seconds"] for one in many) / 64, rel=0.05)


# ---------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (98, "98 s"), (100, "2 min"), (5000, "83 min"), (6000, "1.7 h"), (90000, "25 h"), (2e5, "2.3 days")],
)
def test_times_are_said_in_units_that_fit(seconds, text):
    assert duration(seconds) == text


def test_the_table_has_a_line_for_each_stage_and_the_sum():
    done = job(0, "train_source", todo=False, seconds=0)
    searches = [job(number, seconds=3600 * number) for number in (1, 2)]
    searches += [job(3, seconds=7200, wildcards={"model": "other", "problem": "binary", "target": "x"})]
    lines = table([done, *searches, job(4, "count_macs", seconds=5)]).splitlines()
    cells = [re.split(r" {2,}", line) for line in lines]
    assert cells[2][:3] == ["train_source", "1", "0"] and len(cells[2]) == 3
    assert cells[3] == ["reengineer", "3", "3", "60 min to 2.0 h", "5.0 h", "what has run"]
    assert cells[4] == ["", "m binary", "2", "2", "60 min to 2.0 h", "3.0 h", "what has run"]
    assert cells[5][1:5] == ["other binary", "1", "1", "2.0 h"]
    assert cells[6][:4] == ["count_macs", "1", "1", "5 s"]
    assert cells[7] == ["all", "5", "4", "5.0 h"]


def test_the_notes_say_what_was_counted_with():
    search = job(0, seconds=7200) | {"known": "measured"}
    said = " ".join(notes([search], {"_cores": 1, "gpu": 2}, "cuda"))
    assert "About 2.0 h with 1 core and 2 GPUs" in said and "end early" in said and "(cuda)" in said
    said = " ".join(notes([job(0, seconds=7200)], {"_nodes": 100}, "cpu"))
    assert "with 100 jobs at a time" in said and "end early" not in said and "measured" not in said
    assert list(notes([job(0, todo=False, seconds=0)], {}, "")) == ["Nothing is to be done."]


# ---------------------------------------------------------------------- steps are measured


def step(kind="masks", size=16, architecture=ARCHITECTURE, batch_size=8, threads=1):
    return Step(kind, str(architecture), size, ("crop", "flip"), batch_size, threads, 4)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(calibration, "ENOUGH", 0.05)


@pytest.mark.parametrize("kind", ["train", "masks", "head", "outputs", "attack"])
def test_each_kind_of_step_is_measured(quick, kind):
    assert 1e-6 < calibration.seconds(step(kind), "cpu") < 1


def test_steps_are_measured_on_all_cores_at_once_and_for_an_image(quick):
    steps = [step("outputs"), step("masks"), step("outputs", threads=2)]
    found = measure(steps, "cpu", cores=2)
    assert found.keys() == set(steps) and all(value > 0 for value in found.values())


def test_a_process_that_is_ended_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setattr(calibration, "seconds", end_abruptly)
    with pytest.raises(UserError, match="for want of memory: give fewer --cores"):
        measure([step()], "cpu", cores=2)


def end_abruptly(step, device):
    os._exit(1)


def test_the_clock_goes_on_until_it_has_enough(monkeypatch):
    import torch

    now = [0.0]
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])
    clock = Clock(["a", "b"], torch.device("cpu"))
    for batch in clock:
        now[0] += {"a": 0.5, "b": 0.25}[batch]
    assert sum(clock.times) >= ENOUGH and len(clock.times) % 2 == 0
    assert clock.times[:4] == [0.5, 0.25, 0.5, 0.25]
    now[0], seen = 0.0, 0
    for _ in clock:  # steps so long that they are enough: the first does not count, so there are some more
        now[0], seen = now[0] + 100, seen + 1
    assert LEAST <= seen <= LEAST + 1


def test_a_step_that_would_take_long_is_measured_with_fewer_images(monkeypatch):
    import torch

    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))
    assert _batch_size(module, step(batch_size=64), torch.device("cpu")) == 64
    monkeypatch.setattr(calibration, "LONGEST", 1e-9)
    assert _batch_size(module, step(batch_size=64), torch.device("cpu")) == 2


def test_a_model_that_does_not_take_its_images_is_said_in_a_sentence(quick, tmp_path):
    (tmp_path / "own.py").write_text("import torch\nbuild = lambda classes: torch.nn.Linear(5, classes)\n")
    with pytest.raises(UserError, match="own.py:build does not run on 16 px images in batches of 8"):
        calibration.seconds(step(architecture=f"{tmp_path}/own.py:build"), "cpu")


# ---------------------------------------------------------------------- the target


def test_the_full_config_is_planned_without_any_data(tmp_path, monkeypatch):
    plan = tmp_path / "plan.json"
    monkeypatch.setenv("SEAM_PLAN", str(plan))
    _, said = snakemake(tmp_path, "--dry-run", config={"engines": ["onnxruntime"]})
    monkeypatch.delenv("SEAM_PLAN")
    found = json.loads(plan.read_text())
    counts = {rule: sum(one["rule"] == rule for one in found) for rule in {one["rule"] for one in found}}
    assert counts | {"all": 1} == jobs(said) and all(one["todo"] for one in found)
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    world = World(config["models"], config["datasets"], tmp_path)
    steps = missing(found, world, {})
    assert {(s.kind, s.architecture) for s in steps} == {
        (kind, name) for kind in ("head", "masks", "outputs") for name in ("resnet20", "vgg16_bn")
    }
    assert len(steps) == 6  # what has to be measured is soon measured
    found = timed(found, world, {}, dict.fromkeys(steps, 0.001), start=3)
    assert max(found, key=lambda one: one["seconds"])["wildcards"]["model"] in ("vgg16-cifar10", "resnet20-cifar10")
    assert 0 < wall_time(found, {"_cores": 8}) < sum(one["seconds"] for one in found)
    assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    return folder, small_config(paint(folder / "images"))


def stages(said):
    """{stage: (jobs, to do)} of the table."""
    lines = said.partition("stage ")[2].partition("\n\n")[0].splitlines()[2:]
    return {line.split()[0]: tuple(map(int, line.split()[1:3])) for line in lines if not line.startswith(" ")}


def test_the_target_prints_all_stages_and_makes_nothing(folder):
    place, config = folder
    _, said = snakemake(place, "--quiet", "all", "--nocolor", "estimate", config=config)
    expected = jobs(snakemake(place, "--dry-run", config=config)[1])
    expected.pop("all")
    found = stages(said)
    assert found.pop("all") == (sum(expected.values()),) * 2
    assert found == {rule: (number, number) for rule, number in expected.items()}
    assert re.search(r"About \d+ (s|min) with 2 cores", said) and "measured steps" in said
    assert {path.name for path in (place / "results").iterdir()} == {"logs"}
    assert said.partition("stage ")[2][:500] in (place / "results/logs/estimate.log").read_text()


def test_what_is_done_is_known_and_what_a_change_touches_is_to_do(folder, monkeypatch):
    place, config = folder
    monkeypatch.chdir(place)
    snakemake(place, "--nocolor", "results/models/small/metrics.json", config=config)
    found = {}
    for seed in (0, 1):
        monkeypatch.setenv("SEAM_PLAN", str(place / "plan.json"))
        snakemake(place, "--dry-run", config=config | {"seed": seed})
        monkeypatch.delenv("SEAM_PLAN")
        found[seed] = json.loads((place / "plan.json").read_text())
    todo = {seed: {one["rule"] for one in jobs if one["todo"]} for seed, jobs in found.items()}
    assert todo[1] - todo[0] == {"train_source", "evaluate_source"} and "reengineer" in todo[0]
    world = World(config["models"], config["datasets"])
    past = history(found[0], world)
    seconds = float((place / "results/benchmarks/train_source/small.tsv").read_text().split("\n")[1].split("\t")[0])
    trained = next(one for one in found[0] if one["rule"] == "train_source")
    assert past["train_source", "small"][0] * sum(work(trained, world).values()) == pytest.approx(seconds, rel=0.5)
    assert ("train_source", "small") not in history(found[1], world)


def test_what_cannot_be_planned_is_said_in_a_sentence(tmp_path, capfd):
    command = [sys.executable, "-c", "import sys; sys.exit('the reason')"]
    with pytest.raises(UserError, match="for the reason above"):
        planned(command, "SEAM_PLAN")
    assert "the reason" in capfd.readouterr().err


def test_when_all_is_done_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(calibration, "measure", None)
    said = estimate([job(0, todo=False)], MODELS, DATASETS, {"_cores": 2}, "cpu", 2)
    assert said.endswith("Nothing is to be done.")
