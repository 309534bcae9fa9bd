"""The estimate: what jobs have to do, how long it takes by what has run and by measured steps, and what is printed."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from colours import ARCHITECTURE

from seam.data.kinds.registry import KINDS
from seam.data.problems import binary_problem, multiclass_problem
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.files import write_json
from seam.planning import calibration
from seam.planning.estimate import OTHER, estimate, history, missing, notes, read_plan, table, timed
from seam.planning.work import PUBLISHED, Inventory, Step, work
from seam.settings import search_settings

MODELS = {"m": {"architecture": "resnet20", "dataset": "c"}, "other": {"architecture": "vgg16_bn", "dataset": "c"}}
DATASETS = {"c": {"kind": "cifar10", "size": 32}}
CPU = torch.device("cpu")
SEARCH = {
    "epochs": 300,
    "batch_size": 64,
    "head_every": 5,
    "evaluate_every": 1,
    "schedule": "published",
    "selection": "holdout",
    "holdout": 0.2,
}


def make_job(number=0, rule="reengineer", todo=True, folder="", **more):
    """Return a job as the dry run writes it."""
    return {
        "todo": todo,
        "rule": rule,
        "wildcards": {"model": "m", "problem": "binary", "target": str(number)},
        "params": {},
        "threads": 1,
        "benchmark": f"{folder}/{rule}{number}.tsv",
        "output": [f"{folder}/history{number}.csv", f"{folder}/metrics{number}.json"],
        **more,
    }


def search_job(number=0, model="m", problem="binary", members=("ship",), rule="reengineer", count=1, todo=True,
               folder="", **settings):  # fmt: skip
    """Return a job of `count` searches as the dry run writes it."""
    search = {"model": model, "dataset": "c", "problem": problem, "members": members, "settings": SEARCH | settings}
    return make_job(number, rule, todo, folder, params={"searches": [search] * count, "device": "cpu"})


@pytest.fixture
def inventory(tmp_path):
    return Inventory(MODELS, DATASETS, tmp_path)


def write_benchmark(folder, number, seconds, rule="reengineer", epochs=()):
    (folder / f"{rule}{number}.tsv").write_text(f"s\th:m:s\n{seconds}\t0:00:01\n")
    if epochs:
        rows = "".join(f"{epoch},{value}\n" for epoch, value in enumerate(epochs, 1))
        (folder / f"history{number}.csv").write_text("epoch,seconds\n" + rows)


def images_by_kind(job, inventory):
    return {step.kind: images for step, images in work(job, inventory).items()}


# ---------------------------------------------------------------------- how many images


def test_published_data_sets_are_known_without_their_images(tmp_path):
    names = "cifar10", "cifar100", "mit67", "flower102"
    inventory = Inventory({}, {name: {"kind": name} for name in names}, tmp_path)
    images = {name: tuple(inventory.images(name).values()) for name in names}
    assert images["cifar10"] == images["cifar100"] == (50000, 10000)
    assert images["mit67"] == pytest.approx((5360, 1340)) and images["flower102"] == pytest.approx((2040, 6149))
    assert PUBLISHED.keys() == KINDS.keys() - {"imagefolder"}


def test_a_prepared_data_set_is_read_and_folders_are_counted(colours, tmp_path):
    entry = {"kind": "imagefolder", "root": str(colours), "classes": ["red", "blue"]}
    counted = Inventory({}, {"mine": entry}, tmp_path).counts("mine")
    assert counted == {"train": {"red": 40, "blue": 40}, "test": {"red": 20, "blue": 20}}
    prepared = {"train": {"red": 7, "blue": 8}, "test": {"red": 1, "blue": 2}}
    write_json(tmp_path / "mine/dataset.json", {"counts": prepared})
    assert Inventory({}, {"mine": entry}, tmp_path).counts("mine") == prepared
    # Prepared for other classes, it will be prepared again.
    write_json(tmp_path / "mine/dataset.json", {"counts": {"train": {"red": 7}, "test": {"red": 1}}})
    assert Inventory({}, {"mine": entry}, tmp_path).counts("mine") == counted


@pytest.mark.parametrize("layout", ["classes", "val", "table", "table with splits"])
def test_images_are_counted_in_every_layout(colours, tmp_path, layout):
    root = shutil.copytree(colours / "train" if layout == "classes" else colours, tmp_path / "own")
    if layout == "val":
        (root / "test").rename(root / "val")
    elif layout.startswith("table"):
        rows = [(path, path.parent.name, path.parent.parent.name) for path in sorted(root.rglob("*.png"))]
        root = tmp_path / "own.csv"
        columns = 3 if layout.endswith("splits") else 2
        lines = [("path", "label", "split"), *rows]
        root.write_text("".join(",".join(map(str, line[:columns])) + "\n" for line in lines))
    entry = {"kind": "imagefolder", "root": str(root), "classes": ["red", "blue"], "size": 16, "test_share": 0.3}
    splits = KINDS["imagefolder"].load(entry, entry["classes"], "")
    counted = Inventory({}, {"mine": entry}, tmp_path).counts("mine")
    for name, split in splits.items():
        assert counted[name] == dict(zip(entry["classes"], np.bincount(split.labels).tolist(), strict=True))


def test_the_images_of_a_problem_are_those_that_a_search_has(colours, dataset_folder, tmp_path):
    images = open_dataset(dataset_folder)
    inventory = Inventory({}, {"colours": {"kind": "imagefolder", "root": str(colours)}}, tmp_path)
    for kind, members in (("binary", ["red"]), ("multiclass", ["red", "blue", "green"])):
        make = binary_problem if kind == "binary" else multiclass_problem
        problem = make(images, members[0] if kind == "binary" else members, 0)
        expected = {"train": len(problem.train), "test": len(problem.test)}
        assert inventory.problem("colours", kind, members) == expected
    # If the target has more images than all other classes, it is sampled down to their number.
    write_json(tmp_path / "two/dataset.json", {"counts": dict.fromkeys(("train", "test"), {"red": 30, "blue": 10})})
    entry = {"kind": "imagefolder", "root": str(colours), "classes": ["red", "blue"]}
    assert Inventory({}, {"two": entry}, tmp_path).problem("two", "binary", ["red"]) == {"train": 20, "test": 20}


# ---------------------------------------------------------------------- what a job has to do


def test_a_search_has_its_epochs_in_full(inventory):
    # Of 10,000 images 8,000 train: 60 epochs of the head, which only predict, and 240 of the masks. 2,000 select.
    images = images_by_kind(search_job(), inventory)
    assert images == {"train": 240 * 8000, "outputs": 60 * 8000 + 301 * 2000 + 2 * 2000}
    images = images_by_kind(search_job(selection="test"), inventory)
    assert images == {"train": 240 * 10000, "outputs": 60 * 10000 + 301 * 2000 + 2 * 2000}
    images = images_by_kind(search_job(evaluate_every=7), inventory)
    assert images["outputs"] == 60 * 8000 + 44 * 2000 + 2 * 2000  # 42 times 7, the last epoch, and the source model
    images = images_by_kind(search_job(schedule="fast"), inventory)
    assert images == {"train": 299 * 8000, "outputs": 8000 + 301 * 2000 + 2 * 2000}
    job = search_job()
    job["params"]["searches"][0]["settings"] = search_settings(SEARCH | {"budget": {"weights": 0.1, "epochs": 40}})
    images = images_by_kind(job, inventory)  # all epochs train, and the source model predicts beside them
    assert images == {"train": 40 * 8000, "outputs": 40 * 8000 + 41 * 2000 + 2 * 2000}
    channels = search_job()
    for teaches in (1.0, 0.0):  # the first epoch trains the head alone
        own = {"budget": {"macs": 0.5, "epochs": 40}, "granularity": "channel", "channels": {"distillation": teaches}}
        channels["params"]["searches"][0]["settings"] = search_settings(SEARCH | own)
        passes = (40 if teaches else 1) * 8000
        assert images_by_kind(channels, inventory) == {"train": 39 * 8000, "outputs": passes + 41 * 2000 + 2 * 2000}
    multiclass = search_job(problem="multiclass", members=["ship", "cat", "dog"])
    assert sum(work(multiclass, inventory).values()) == 300 * 15000 * 0.8 + 301 * 3000 + 2 * 3000


def test_a_search_with_few_images_has_its_own_epochs(inventory):
    job = search_job(members=("ship",), few_images=5000)
    images = images_by_kind(job, inventory)  # 60 epochs of all 10,000 training images, and only the last is evaluated
    assert images == {"train": 59 * 10000, "outputs": 10000 + 2 * 2000}


def test_a_baseline_trains_as_long_as_its_search(inventory):
    search = search_job()["params"]["searches"][0]
    job = {"todo": True, "rule": "train_scratch", "wildcards": {"model": "m"}, "params": {"search": search}}
    assert images_by_kind(job, inventory) == {"train": 300 * 8000, "outputs": 301 * 2000 + 2 * 2000}


def test_a_baseline_with_masks_trains_the_head_or_what_the_search_trains(inventory):
    def steps(baseline, **settings):
        search = search_job()["params"]["searches"][0]
        search["settings"] = search_settings(SEARCH | settings)
        job = {"todo": True, "rule": "train_baseline", "wildcards": {"model": "m", "baseline": baseline}}
        return images_by_kind({**job, "params": {"search": search}}, inventory)

    evaluated = 301 * 2000 + 2 * 2000
    assert steps("magnitude") == {"outputs": 300 * 8000 + evaluated}
    assert steps("biases") == {"train": 300 * 8000, "outputs": evaluated}
    budget = {"weights": 0.1, "epochs": 40}
    evaluated = 41 * 2000 + 2 * 2000
    assert steps("magnitude", budget=budget) == {"train": 40 * 8000, "outputs": 40 * 8000 + evaluated}
    assert steps("magnitude", budget=budget | {"lr_bias": 0}) == {"outputs": 40 * 8000 + evaluated}
    assert steps("head", budget=budget) == {"outputs": 40 * 8000 + evaluated}


def test_a_recovery_trains_its_epochs_with_the_source_models_answers(inventory):
    search = search_job()["params"]["searches"][0]
    recovery = {**search, "settings": {"epochs": 10, "batch_size": 64, "distillation": 1.0}}
    job = {"todo": True, "rule": "recover", "wildcards": {"model": "m"}, "search": search["settings"]}
    job["params"] = {"recovery": recovery}
    held = 10 * 2000 + 2 * 2000
    assert images_by_kind(job, inventory) == {"train": 10 * 8000, "outputs": 10 * 8000 + held}
    assert images_by_kind({**job, "rule": "recover_baseline"}, inventory) == images_by_kind(job, inventory)
    recovery["settings"]["distillation"] = 0.0
    assert images_by_kind(job, inventory) == {"train": 10 * 8000, "outputs": held}


def test_a_stack_has_the_images_of_all_its_searches(inventory):
    alone, stack = images_by_kind(search_job(), inventory), search_job(rule="reengineer_stack_7", count=3)
    assert images_by_kind(stack, inventory) == {kind: 3 * images for kind, images in alone.items()}


def test_the_steps_of_models_differ(inventory):
    steps = set(work(search_job(), inventory)) | set(work(search_job(model="other"), inventory))
    names = [(kind, name) for kind in ("train", "outputs") for name in ("resnet20", "vgg16_bn")]
    assert steps == {Step(kind, name, 32, 64) for kind, name in names}


def test_indirect_reuse_has_its_epochs_in_full(inventory):
    names = {"model": "m", "dataset": "c"}
    common = {"batch_size": 16, "selection": "holdout", "holdout": 0.1}
    images = {}
    for rule, block, epochs in (
        ("finetune_standard", "settings", 7),
        ("retrain", "settings", 7),
        ("finetune_seam", "settings", 7),
        ("finetune_seam_head", "head", 5),
        ("finetune_seam_masks", "search", 3),
    ):
        params = {"settings": {"common": common, "seed": 0, block: {"epochs": epochs}}, "student": {}}
        images[rule] = images_by_kind(make_job(rule=rule, wildcards=names, params=params), inventory)
        assert sum(images[rule].values()) == pytest.approx(epochs * 50000)
    assert images["finetune_seam_head"].keys() == {"outputs"}
    assert images["finetune_seam_masks"] == {"train": 3 * 45000, "outputs": 3 * 5000}
    assert images["retrain"] == images["finetune_standard"] == images["finetune_seam"]
    attack = {"settings": {"settings": {"batch_size": 8, "steps": 40}}}
    attacked = images_by_kind(make_job(rule="attack_source", wildcards=names, params=attack), inventory)
    assert attacked == {"train": 400000, "outputs": 20000}


def test_a_source_model_has_its_epochs_in_full(inventory):
    settings = {"dataset": "c", "training": {"epochs": 30, "batch_size": 128}}
    train = make_job(rule="train_source", wildcards={"model": "m"}, params={"settings": settings})
    assert images_by_kind(train, inventory) == {"train": 30 * 50000, "outputs": 30 * 10000}
    evaluate = make_job(rule="evaluate_source", wildcards={"model": "m"}, params={"settings": {"dataset": "c"}})
    assert images_by_kind(evaluate, inventory) == {"outputs": 10000}


# ---------------------------------------------------------------------- how long it takes


def test_what_has_run_tells_the_time_of_the_rest(inventory, tmp_path):
    done = [search_job(number, todo=False, folder=tmp_path) for number in range(3)]
    for number, seconds in enumerate((100, 130, 900)):
        write_benchmark(tmp_path, number, seconds)
    other = search_job(5, "other", folder=tmp_path)
    jobs = [*done, search_job(3, folder=tmp_path), search_job(4, folder=tmp_path, epochs=600), other]
    past = history(jobs, inventory)
    assert {step.architecture for step in missing(jobs, inventory, past)} == {"vgg16_bn"}
    estimated = timed(jobs, inventory, past, dict.fromkeys(missing([other], inventory, past), 0.001))
    assert [job["seconds"] for job in estimated[:3]] == [0, 0, 0]
    assert estimated[3]["seconds"] == pytest.approx(130) and estimated[3]["known"] == "what has run"
    assert estimated[4]["seconds"] == pytest.approx(260, rel=0.01)  # twice the epochs
    assert estimated[5]["seconds"] == pytest.approx(OTHER + 0.001 * sum(work(other, inventory).values()))
    assert estimated[5]["known"] == "measured steps"


def test_a_stack_tells_the_time_of_a_search(inventory, tmp_path):
    write_benchmark(tmp_path, 0, 100, rule="reengineer_stack_0")
    stack = search_job(0, rule="reengineer_stack_0", count=4, todo=False, folder=tmp_path)
    alone = search_job(1, folder=tmp_path)
    assert timed([alone], inventory, history([stack], inventory), {})[0]["seconds"] == pytest.approx(25)


def test_a_job_that_is_to_run_again_tells_nothing_of_its_new_settings(inventory, tmp_path):
    write_benchmark(tmp_path, 0, 100)
    again = search_job(0, folder=tmp_path)
    assert history([again], inventory) == {} and missing([again], inventory, {})


def test_a_job_that_was_resumed_took_the_seconds_of_all_its_epochs(inventory, tmp_path):
    write_benchmark(tmp_path, 0, 20, epochs=[50, 60, 70])
    past = history([search_job(0, todo=False, folder=tmp_path)], inventory)
    assert list(past.values()) == [[pytest.approx(180 / sum(work(search_job(), inventory).values()))]]


def test_the_seconds_of_the_jobs_in_a_collected_table_are_not_those_of_collecting(inventory, tmp_path):
    write_benchmark(tmp_path, 0, 2.5, rule="collect_direct", epochs=[36000, 36000])
    job = make_job(0, "collect_direct", folder=tmp_path)
    assert list(history([job], inventory).values()) == [[2.5]]


def test_the_seconds_of_all_cores_count_on_a_cpu(inventory, tmp_path):
    write_benchmark(tmp_path, 0, 100, rule="time_engine")
    job = make_job(0, "time_engine", folder=tmp_path) | {"threads": 8}
    assert list(history([job], inventory).values()) == [[800]]
    assert list(history([job], inventory, "cuda").values()) == [[100]]


def test_short_jobs_take_what_those_of_other_models_took(inventory, tmp_path):
    for number, seconds in enumerate((4, 6)):
        write_benchmark(tmp_path, number, seconds, rule="count_macs")
    # A short job that is to run again counts, too.
    there = [make_job(number, "count_macs", todo=number == 1, folder=tmp_path) for number in range(2)]
    other = make_job(2, "count_macs", folder=tmp_path, wildcards={"model": "other"})
    estimated = timed([*there, other], inventory, history([*there, other], inventory), {})
    assert estimated[2]["seconds"] == 5 and estimated[2]["known"] == "what has run"
    assumed = timed([other], inventory, {}, {})[0]
    assert assumed["seconds"] == OTHER and assumed["known"] == "an assumption"


@pytest.mark.parametrize("text", ["", "s\n", "s\n-\n", "h:m:s\n0:01\n"])
def test_a_benchmark_without_seconds_is_no_history(inventory, tmp_path, text):
    (tmp_path / "reengineer0.tsv").write_text(text)
    assert history([search_job(0, todo=False, folder=tmp_path)], inventory) == {}


# ---------------------------------------------------------------------- what is printed


def test_the_table_has_a_line_for_each_stage_and_the_sum():
    jobs = [make_job(0, "train_source", todo=False) | {"seconds": 0, "known": ""}]
    jobs += [search_job(number) | {"seconds": 3600 * number, "known": "measured steps"} for number in (1, 2)]
    jobs += [search_job(3, rule="reengineer_stack_0") | {"seconds": 7200, "known": "what has run"}]
    jobs += [make_job(4, "count_macs") | {"seconds": 36, "known": "what has run"}]
    cells = [re.split(r" {2,}", line) for line in table(jobs).splitlines()]
    assert cells[2] == ["train_source", "1", "0", "0.00"]
    assert cells[3] == ["reengineer", "3", "3", "5.00", "measured steps, what has run"]
    assert cells[4] == ["count_macs", "1", "1", "0.01", "what has run"]
    assert cells[5] == ["all", "5", "4", "5.01"]


def test_the_notes_give_a_lower_bound(monkeypatch):
    job = search_job() | {"seconds": 4 * 7200, "known": "measured steps"}
    text = " ".join(notes([job], "cpu", 2))
    assert "At least 4.0 h with 2 cores (hours / cores)" in text and "end early" in text and "(cpu)" in text
    monkeypatch.setattr("seam.planning.estimate.count_gpus", lambda: 1)
    text = " ".join(notes([job | {"known": "what has run"}], "cuda", 16))
    assert "At least 8.0 h with 1 GPU (hours / GPUs)" in text and "end early" not in text and "measured" not in text


def test_nothing_is_measured_when_all_is_done(monkeypatch, inventory):
    monkeypatch.setattr(calibration, "measure", None)
    assert estimate([search_job(todo=False)], inventory, "cpu", 2).endswith("Nothing is to be done.")


def test_a_run_that_cannot_be_planned_ends_in_a_sentence(capfd):
    command = [sys.executable, "-c", "import sys; sys.exit('the reason')"]
    with pytest.raises(UserError, match="for the reason above"):
        read_plan(command, "SEAM_PLAN")
    assert "the reason" in capfd.readouterr().err


# ---------------------------------------------------------------------- steps are measured


def make_step(kind="train", size=16, architecture=ARCHITECTURE, batch_size=8):
    return Step(kind, str(architecture), size, batch_size)


def test_steps_are_measured_an_image(monkeypatch):
    monkeypatch.setattr(calibration, "ENOUGH", 0.05)
    steps = [make_step(), make_step("outputs")]
    times = calibration.measure(steps, CPU)
    assert times.keys() == set(steps) and all(1e-7 < value < 1 for value in times.values())


def test_an_estimate_measures_what_has_not_run(monkeypatch, inventory):
    monkeypatch.setattr(calibration, "seconds", lambda step, device: {"train": 0.002, "outputs": 0.001}[step.kind])
    images = images_by_kind(search_job(), inventory)
    hours = (OTHER + 0.002 * images["train"] + 0.001 * images["outputs"]) / 3600
    assert f"{hours:.2f}  measured steps" in estimate([search_job()], inventory, "cpu", 2)


def test_the_processors_time_is_measured_whatever_else_runs(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(calibration.time, "process_time", lambda: next(now))
    assert calibration.seconds(make_step("outputs", batch_size=4), CPU) == pytest.approx(1 / 4)


def test_large_images_are_measured_in_small_batches_on_a_cpu(monkeypatch):
    sizes = []

    def note(architecture, device, batch, size):
        sizes.append(batch)
        raise UserError("enough")

    monkeypatch.setattr(calibration, "Bench", note)
    for size in (32, 224):
        with pytest.raises(UserError):
            calibration.seconds(make_step(size=size, batch_size=64), CPU)
    assert sizes == [64, calibration.FEW]


def test_a_model_that_does_not_take_its_images_ends_in_a_sentence(tmp_path):
    (tmp_path / "own.py").write_text("import torch\nbuild = lambda classes: torch.nn.Linear(5, classes)\n")
    with pytest.raises(UserError, match="own.py:build does not run on 16 px images in batches of 8"):
        calibration.seconds(make_step(architecture=f"{tmp_path}/own.py:build"), CPU)
