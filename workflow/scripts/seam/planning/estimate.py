"""How long jobs take: by what has run, by steps measured on this machine, and for short jobs by experience.

    world = World(config["models"], config["datasets"])
    past = history(jobs, world)
    seconds, start = calibration.measure(missing(jobs, world, past), "auto", cores=8), calibration.start()
    jobs = timed(jobs, world, past, seconds, start)
    print(table(jobs))

A job is a dictionary, as the workflow's dry run writes it (rules/estimate.smk): {"number", "after" (numbers of the jobs
it needs), "todo", "rule", "wildcards", "params", "threads", "resources", "priority", "benchmark", "output"}.
"""

import heapq
import statistics
from bisect import insort
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from seam.data.kinds import imagefolder
from seam.data.kinds.registry import KINDS, class_names
from seam.files import read_json

# Images of a class for training and for testing in the published data sets: means, where classes differ.
PUBLISHED = {
    "digits": (1437 / 10, 360 / 10),
    "cifar10": (5000, 1000),
    "cifar100": (500, 100),
    "imagenet": (1281167 / 1000, 50),
    "mit67": (5360 / 67, 1340 / 67),
    "cub200": (5994 / 200, 5794 / 200),
    "flower102": (2040 / 102, 6149 / 102),
    "dog120": (100, 8580 / 120),
    "action40": (100, 5532 / 40),
}
# Seconds of jobs that train nothing, on the two cores of a virtual machine; those with True load torch before.
SHORT = {
    "prepare_dataset": (2, False),
    "fetch_weights": (5, True),
    "count_macs": (1, True),
    "export_onnx": (1, True),
    "export_source": (1, True),
    "time_deepsparse": (3, False),
    "time_onnxruntime": (2, False),
    "make_env": (50, False),
    "plot_direct": (5, False),
    "plot_indirect": (3, False),
}
OTHER = (1, False)
PREPARED = 0.0003, 0.01  # seconds of one processor for an image below 128 px, which is small, and for a large one


@dataclass(frozen=True, order=True)
class Step:
    """A kind of step, which takes a time of its own: what `calibration.measure` measures.

    kind: train (all weights), masks, head (it alone), outputs (none: only the model's outputs), attack.
    size: of the images in pixels; threads: those that torch computes with; classes: the model's outputs, of which the
    time hardly depends.
    """

    kind: str
    architecture: str
    size: int
    augmentation: tuple
    batch_size: int
    threads: int
    classes: int = field(compare=False)


class World:
    """The models and data sets of a validated config, and how many images there are.

    folder: where the workflow keeps prepared data sets.
    """

    def __init__(self, models, datasets, folder="results/datasets"):
        self.models, self.datasets, self.folder, self.counted = models, datasets, Path(folder), {}

    def counts(self, dataset):
        """{"train": {class: images}, "test": ...} of a data set: as prepared, as published, or counted."""
        if dataset not in self.counted:
            self.counted[dataset] = self._counts(self.datasets[dataset], self.folder / dataset / "dataset.json")
        return self.counted[dataset]

    def _counts(self, entry, manifest):
        classes = class_names(entry)
        if manifest.exists():
            counts = read_json(manifest)["counts"]
            if list(counts["train"]) == classes:  # else it will be prepared again
                return counts
        if entry["kind"] in PUBLISHED:
            parts = zip(("train", "test"), PUBLISHED[entry["kind"]], strict=True)
            return {part: dict.fromkeys(classes, number) for part, number in parts}
        root = Path(entry["root"])
        return {
            part: {name: len(imagefolder.image_files(root / part / name)) for name in classes}
            for part in ("train", "test")
        }

    def total(self, dataset, part):
        return sum(self.counts(dataset)[part].values())

    def problem(self, dataset, kind, members):
        """{"train": images, "test": images} of a target problem."""
        found = {}
        for part, counts in self.counts(dataset).items():
            own = sum(counts[name] for name in members)
            found[part] = 2 * min(own, sum(counts.values()) - own) if kind == "binary" else own
        return found

    def size(self, dataset):
        entry = self.datasets[dataset]
        return entry.get("size") or KINDS[entry["kind"]].size

    def step(self, kind, model, dataset, batch_size, threads=1):
        entry, size = self.datasets[dataset], self.size(dataset)
        usual = KINDS[entry["kind"]].augmentation(size)
        augmentation = usual if entry.get("augmentation") is None else entry["augmentation"]
        trains = kind in ("train", "masks", "head")
        classes = len(class_names(self.datasets[self.models[model]["dataset"]]))
        architecture = self.models[model]["architecture"]
        return Step(kind, architecture, size, tuple(augmentation) * trains, batch_size, threads, classes)


def work(job, world):
    """{Step: how many images go through it} of a job, epochs in full; empty if it trains and judges no model."""
    return WORK[job["rule"]](job, world) if job["rule"] in WORK else {}


def _train_source(job, world):
    settings, model = job["params"]["settings"], job["wildcards"]["model"]
    dataset, training = settings["dataset"], settings["training"]
    threads = min(job["threads"], 2)  # torch's, whatever the job has for other work
    steps = [world.step(kind, model, dataset, training["batch_size"], threads) for kind in ("train", "outputs")]
    return {
        step: training["epochs"] * world.total(dataset, part)
        for step, part in zip(steps, ("train", "test"), strict=True)
    }


def _evaluate_source(job, world):
    """By the outputs that other jobs ask for, too, of which the time for an image is about the same."""
    model, dataset = job["wildcards"]["model"], job["params"]["settings"]["dataset"]
    return {world.step("outputs", model, dataset, 64): world.total(dataset, "test") / min(job["threads"], 2)}


def _reengineer(job, world):
    model, wanted = job["wildcards"]["model"], job["params"]["job"]
    settings, dataset = wanted["settings"], wanted["dataset"]
    images = world.problem(dataset, job["wildcards"]["problem"], wanted["members"])
    train, held_out = _parts(images, settings)
    epochs = settings["epochs"]
    head = 1 if settings["schedule"] == "fast" else -(-epochs // settings["head_every"])
    step = {kind: world.step(kind, model, dataset, settings["batch_size"]) for kind in ("head", "masks", "outputs")}
    # The source model is judged on both, the result on the test images.
    judged = (-(-epochs // settings["evaluate_every"]) + 1) * held_out + 2 * images["test"]
    return {step["head"]: head * train, step["masks"]: (epochs - head) * train, step["outputs"]: judged}


def _parts(images, settings):
    """(training images, those on which an epoch is chosen)"""
    if settings["selection"] == "test":
        return images["train"], images["test"]
    return (1 - settings["holdout"]) * images["train"], settings["holdout"] * images["train"]


def _transfer(kind, block):
    """What a step of indirect reuse has to do, with the epochs of the `block` of its parameters."""

    def found(job, world):
        model, dataset, wanted = job["wildcards"]["model"], job["wildcards"]["dataset"], job["params"]["job"]
        common, epochs = wanted["common"], wanted[block]["epochs"]
        train, judged = _parts({part: world.total(dataset, part) for part in ("train", "test")}, common)
        trains, outputs = (world.step(name, model, dataset, common["batch_size"]) for name in (kind, "outputs"))
        return {trains: epochs * train, outputs: epochs * judged}

    return found


def _attack_source(job, world):
    model, dataset, settings = job["wildcards"]["model"], job["wildcards"]["dataset"], job["params"]["job"]["settings"]
    images = world.total(dataset, "test")
    attack, outputs = (world.step(kind, model, dataset, settings["batch_size"]) for kind in ("attack", "outputs"))
    return {attack: settings["steps"] * images, outputs: 2 * images}


def _evaluate_defects(job, world):
    model, dataset = job["wildcards"]["model"], job["wildcards"]["dataset"]
    return {world.step("outputs", model, dataset, 64): 2 * world.total(dataset, "test")}


def _time(job, world):
    """Two models in turn. Torch stands in for the engines, which share an image's work among a few threads."""
    model, timing = job["wildcards"]["model"], job["params"]["timing"]
    passes = 2 * timing["runs"] * (timing["warmup"] + timing["iterations"])
    step = world.step("outputs", model, world.models[model]["dataset"], 64)
    return {step: passes * timing["batch_size"] / min(job["threads"], 8)}


WORK = {
    "train_source": _train_source,
    "evaluate_source": _evaluate_source,
    "reengineer": _reengineer,
    "attack_source": _attack_source,
    "finetune_standard": _transfer("train", "settings"),
    "retrain": _transfer("train", "settings"),
    "finetune_seam_head": _transfer("head", "head"),
    "finetune_seam_masks": _transfer("masks", "search"),
    "finetune_seam": _transfer("train", "settings"),
    "evaluate_defects": _evaluate_defects,
    "time_deepsparse": _time,
    "time_onnxruntime": _time,
}


def group(job):
    """What jobs have in common that take alike, for the same number of images."""
    names = job["wildcards"]
    return (job["rule"], *(names[name] for name in ("model", "problem", "dataset") if name in names))


def history(jobs, world):
    """{group: [seconds, or seconds an image for jobs that have `work`]} of what has run.

    Of jobs that have work only those count that are done and up to date, since others had other settings; it is by
    images, so that it holds for other numbers of epochs, too.
    """
    found = {}
    for job in jobs:
        images = sum(work(job, world).values())
        if job["todo"] and images:
            continue
        if (seconds := _measured(job)) is not None:
            found.setdefault(group(job), []).append(seconds / (images or 1))
            if not images:
                found.setdefault((job["rule"],), []).append(seconds)
    return found


def _measured(job):
    """Seconds that the job took, from its benchmark; None if there is none.

    A job that was continued has a benchmark of its last part alone, and a history of all its epochs.
    """
    seconds = _column(job["benchmark"], "s", "\t") if job["benchmark"] else []
    if not seconds:
        return None
    epochs = [sum(_column(file, "seconds", ",")) for file in job["output"] if file.endswith(".csv")]
    return max([seconds[-1], *epochs]) if job["rule"] in WORK else seconds[-1]


def _column(path, name, separator):
    """The numbers of a table's column; none where there is no such table."""
    try:
        return pd.read_csv(path, sep=separator)[name].astype(float).tolist()
    except (OSError, ValueError, KeyError):
        return []


def missing(jobs, world, past):
    """The steps, sorted, whose time must be known to say how long the jobs take that nothing like it has run of."""
    unknown = (job for job in jobs if job["todo"] and group(job) not in past)
    return sorted({step for job in unknown for step in work(job, world)})


def timed(jobs, world, past, seconds, start):
    """The jobs with "seconds" and "known" (from what: "run", "measured", "assumed").

    past: of `history`; seconds: {Step: seconds an image}; start: seconds until a job has loaded torch.
    """
    found = []
    for job in jobs:
        images = work(job, world)
        alike = past.get(group(job)) or (None if images else past.get((job["rule"],)))
        if alike:
            time, known = statistics.median(alike) * (sum(images.values()) or 1), "run"
        elif not job["todo"]:
            time, known = 0.0, "run"
        else:
            time, known = _short(job, world, start), "measured" if images else "assumed"
            time += sum(seconds[step] * count for step, count in images.items())
        found.append({**job, "seconds": time, "known": known})
    return found


def _short(job, world, start):
    """Seconds of a job beside its `work`."""
    rule = job["rule"]
    if rule in WORK and rule not in SHORT:
        return start
    seconds, torch = SHORT.get(rule, OTHER)
    if rule == "prepare_dataset":
        dataset = job["wildcards"]["dataset"]
        images = sum(world.total(dataset, part) for part in ("train", "test"))
        seconds += images * PREPARED[world.size(dataset) >= 128] / job["threads"]
    return seconds + start * torch


def wall_time(jobs, limits):
    """Seconds until all jobs to do are done, each started once what it needs is there and there is room for it.

    limits: {resource: how much there is of it}, as Snakemake has it: `_cores` for threads, `_nodes` for jobs.
    """
    todo = {job["number"]: job for job in jobs if job["todo"]}
    before = {number: todo.keys() & set(job["after"]) for number, job in todo.items()}
    waits = {number: len(others) for number, others in before.items()}
    next_ones = {number: [] for number in todo}
    for number, others in before.items():
        for other in others:
            next_ones[other].append(number)
    needs = {
        number: {name: min(job["resources"].get(name, 0), most) for name, most in limits.items()}
        for number, job in todo.items()
    }
    ready = sorted((-job["priority"], number) for number, job in todo.items() if not waits[number])
    free, running, now = dict(limits), [], 0.0
    while ready or running:
        later = []
        for place, (priority, number) in enumerate(ready):
            if 0 in (free.get("_cores"), free.get("_nodes")):  # each job needs one
                later += ready[place:]
                break
            if any(free[name] < need for name, need in needs[number].items()):
                later.append((priority, number))
                continue
            for name, need in needs[number].items():
                free[name] -= need
            heapq.heappush(running, (now + todo[number]["seconds"], number))
        ready = later
        now, done = heapq.heappop(running)
        for name, need in needs[done].items():
            free[name] += need
        for number in next_ones[done]:
            waits[number] -= 1
            if not waits[number]:
                insort(ready, (-todo[number]["priority"], number))
    return now


EARLY = {"reengineer", "finetune_standard", "retrain", "finetune_seam_head", "finetune_seam_masks", "finetune_seam"}
KNOWN = {"run": "what has run", "measured": "measured steps", "assumed": "experience"}


def duration(seconds):
    """
    >>> duration(3.2), duration(5000), duration(30000), duration(300000)
    ('3 s', '83 min', '8.3 h', '3.5 days')
    """
    for unit, length, most in (("s", 1, 99), ("min", 60, 5940), ("h", 3600, 172800)):
        if seconds < most:
            number = seconds / length
            return f"{number:.1f} {unit}" if unit == "h" and number < 9.95 else f"{number:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def table(jobs):
    """The estimate as text: a line for each stage and, where they differ, for each model in it; then the sum."""
    rows = [["stage", "jobs", "to do", "each", "together", "known by"]]
    for rule, members in _grouped(jobs, lambda job: job["rule"]).items():
        rows.append(_row(rule, members))
        models = _grouped(members, lambda job: " ".join(group(job)[1:3]))
        if len(models) > 1 and rule in EARLY and any(job["todo"] for job in members):
            rows += [_row(f"  {name}", alike) for name, alike in models.items()]
    todo = [job for job in jobs if job["todo"]]
    rows.append(["all", str(len(jobs)), str(len(todo)), "", duration(sum(job["seconds"] for job in todo)), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in (0, 5) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(max(lines, key=len)), *lines[1:]])


def _grouped(jobs, key):
    found = {}
    for job in jobs:
        found.setdefault(key(job), []).append(job)
    return found


def _row(name, jobs):
    todo = [job for job in jobs if job["todo"]]
    times = [job["seconds"] for job in todo]
    each = dict.fromkeys([duration(min(times)), duration(max(times))]) if times else []
    known = dict.fromkeys(KNOWN[job["known"]] for job in todo)
    numbers = [str(len(jobs)), str(len(todo))]
    return [name, *numbers, " to ".join(each), duration(sum(times)) if times else "", ", ".join(known)]


def notes(jobs, limits, device):
    """What a reader of the table has to know, a line each."""
    todo = [job for job in jobs if job["todo"]]
    if not todo:
        yield "Nothing is to be done."
        return
    names = {"_cores": "core", "_nodes": "job at a time", "gpu": "GPU"}
    room = [f"{limits[name]} {names[name]}{'s' * (limits[name] != 1)}" for name in names if name in limits]
    room = [words.replace("job at a times", "jobs at a time") for words in room]
    yield f"About {duration(wall_time(jobs, limits))} with {' and '.join(room) or 'this machine'}, downloads aside."
    if any(job["rule"] in EARLY and job["known"] == "measured" for job in todo):
        yield "Epochs are counted in full: jobs that end early (patience, or a threshold reached) take less."
    if any(job["known"] == "measured" for job in todo):
        yield f"Steps were measured on this machine ({device}): other machines take other times."
