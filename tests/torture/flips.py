"""Bits that flip in result files, and files that are cut: damage on a disk, which keeps the file's date."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import golden
from workflows import ROOT

from . import commands
from .outcomes import HELD, SILENT, SKIPPED, UNCLEAR, Ending, generator
from .world import DATASET, DIRECT, INDIRECT, MODEL, World, copy, digests, remove

# Files that a job of the workflow reads: the file; what is removed before a rerun; what is asked for again.
RERUN: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "head": (
        f"{INDIRECT}/search/head.safetensors",
        (f"{INDIRECT}/search/masks.safetensors", f"{INDIRECT}/search/history.csv"),
        (f"{INDIRECT}/search/masks.safetensors",),
    ),
    "perturbations": (
        f"{INDIRECT}/attack/perturbations.npy",
        (f"{INDIRECT}/standard/metrics.json",),
        (f"{INDIRECT}/standard/metrics.json",),
    ),
    "metrics": (f"{DIRECT}/metrics.json", ("results/tables",), ("results/tables/direct_binary.csv",)),
    "history": (f"{DIRECT}/history.csv", ("results/figures",), ("results/figures/history.png",)),
    "onnx": (
        f"{DIRECT}/model.onnx",
        (f"{DIRECT}/latency_onnxruntime.json",),
        (f"{DIRECT}/latency_onnxruntime.json",),
    ),
}
# Files that the function opens which their readers call: most damage is tried here, since a run takes much longer.
OPENED = {
    "images": f"{DATASET}/arrays/train_images.npy",
    "labels": f"{DATASET}/arrays/train_labels.npy",
    "manifest": f"{DATASET}/dataset.json",
    "source": f"{MODEL}/source.safetensors",
    "masks": f"{DIRECT}/masks.safetensors",
    "metrics": f"{DIRECT}/metrics.json",
    "history": f"{DIRECT}/history.csv",
    "macs": f"{DIRECT}/macs.json",
    "latency": f"{DIRECT}/latency_onnxruntime.json",
    "onnx": f"{DIRECT}/model.onnx",
    "source metrics": f"{MODEL}/metrics.json",
    "table": "results/tables/direct_binary.csv",
    "student": f"{INDIRECT}/standard/student.safetensors",
    "training": f"{INDIRECT}/standard/training.json",
    "student metrics": f"{INDIRECT}/standard/metrics.json",
    "perturbations": f"{INDIRECT}/attack/perturbations.npy",
    "attack": f"{INDIRECT}/attack/attack.json",
    "head": f"{INDIRECT}/search/head.safetensors",
    "head history": f"{INDIRECT}/search/head.csv",
    "student masks": f"{INDIRECT}/search/masks.safetensors",
    "checkpoint": "results/checkpoints",
}
FILES = list(OPENED)
JOBS = [f"{name} in a job" for name in [*RERUN, "checkpoint"]]
JOBS_EVERY = 20  # of so many attempts, one lets a job of the workflow read the file
SEARCH = [f"{DIRECT}/{name}" for name in ("masks.safetensors", "history.csv", "metrics.json")]


def attempt(world: World, number: int, seed: int, files: list[str] | None = None) -> tuple[str, Ending]:
    """Damage one file of the run and use it; return the attempt's name and its ending."""
    chance = generator(seed, "flips", number)
    if files is None and number % JOBS_EVERY == JOBS_EVERY - 1:
        file = JOBS[number // JOBS_EVERY % len(JOBS)]
    else:
        file = (files or FILES)[number % len(files or FILES)]
    how, name = "flip" if chance.random() < 0.72 else "truncation", file.removesuffix(" in a job")
    if name == file:
        ending = _open(world, file, how, chance)
    elif name == "checkpoint":
        ending = _resume(world, how, chance)
    else:
        ending = _rerun(world, name, how, chance)
    return f"{file}: {how}", ending


def damage(path: Path, how: str, chance: random.Random) -> str:
    """Flip one bit of a file, or cut it; keep its date. Return what was done."""
    dates, size = path.stat(), path.stat().st_size
    place = chance.randrange(size)
    if how == "flip":
        bit = chance.randrange(8)
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0] ^ 1 << bit
            file.seek(place)
            file.write(bytes([byte]))
        done = f"bit {bit} of byte {place} of {size}"
    else:
        os.truncate(path, place)
        done = f"cut to {place} of {size} bytes"
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    return done


# ------------------------------------------------------------------ files that are opened by a function


def dataset_value(folder: Path) -> str:
    """Return a digest of all that `open_dataset` gives."""
    from seam.data.storage import open_dataset

    dataset, digest = open_dataset(folder), hashlib.sha256()
    for split in (dataset.train, dataset.test):
        for array in (split.images, split.labels):
            assert array is not None
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    about = (dataset.kind, dataset.classes, dataset.size, dataset.mean, dataset.std, dataset.augmentation)
    digest.update(repr(about).encode())
    return digest.hexdigest()


def model_value(module, *about) -> str:
    """Return a digest of a model's tensors, of its answer to one image, and of `about`."""
    import torch

    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    torch.set_num_threads(1)
    with torch.no_grad():
        digest.update(module.eval()(torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)).numpy().tobytes())
    return digest.hexdigest()


def source_value(folder: Path) -> str:
    """Return a digest of the source model in a folder."""
    from seam.models.weights import open_source

    source = open_source(folder)
    return model_value(source.module, source.classes, source.normalization, source.architecture)


def loaded_value(folder: Path) -> str:
    """Return a digest of the re-engineered model in a folder."""
    import seam

    model = seam.load(folder)
    return model_value(model, model.classes, model.normalization)


def student_value(folder: Path) -> str:
    """Return a digest of the student in a folder."""
    import seam

    model = seam.load_student(folder)
    return model_value(model, model.classes, model.normalization)


def tensors_value(name: str) -> Callable[[Path], str]:
    """Return the function that gives a digest of the tensors and metadata in a file, as jobs open it."""

    def value(folder: Path) -> str:
        from seam.files import load_tensors

        tensors, about = load_tensors(folder / name)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for key, tensor in sorted(tensors.items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    return value


def problem_value(folder: Path) -> str:
    """Return the table of problems that `collect_direct` makes of one problem, and what `seam show` prints of it."""
    from seam.report.direct import tables

    results = folder.parents[3]
    names = ("metrics.json", "macs.json", "latency_onnxruntime.json")
    metrics, macs, latency = ([folder / name] for name in names)
    found = tables(metrics, macs, latency, [results / "models/small/metrics.json"], ["onnxruntime"])
    return found["binary"].to_csv() + found["multiclass"].to_csv()


def students_value(folder: Path) -> str:
    """Return the table of students that `collect_indirect` makes of one student."""
    from seam.report.indirect import students
    from seam.report.tables import read_table

    published = read_table(ROOT / "workflow/scripts/seam/resources/published.csv")
    return students([folder / "training.json"], [folder / "metrics.json"], published).to_csv()


def table_value(name: str) -> Callable[[Path], str]:
    """Return the function that gives the table in a CSV file, as figures read it."""

    def value(folder: Path) -> str:
        from seam.report.tables import read_table

        return read_table(folder / name).to_csv()

    return value


def defects_value(folder: Path) -> str:
    """Return what `evaluate_defects` finds about a student under the perturbations in a folder."""
    import torch

    from seam.files import read_json
    from seam.reuse.defects import evaluate_defects

    torch.set_num_threads(1)
    evaluate_defects(folder.parent / "standard", folder, folder.parents[3] / "datasets/two", "cpu")
    return json.dumps(read_json(folder.parent / "standard/metrics.json"))


def onnx_value(folder: Path) -> str:
    """Return the answer of an ONNX file in ONNX Runtime, once its seal is checked as `time_onnxruntime` does."""
    import numpy as np
    import onnxruntime

    from seam.files import check_onnx_seal

    check_onnx_seal(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.linspace(-1, 1, 1536, dtype=np.float32).reshape(2, 3, 16, 16)
    return session.run(None, {"images": images})[0].tobytes().hex()


def checkpoint_value(folder: Path) -> str:
    """Return a digest of the state that a job resumes from. Raises UserError if it sets the checkpoint aside."""
    import torch

    from seam.errors import UserError
    from seam.training.checkpoint import Checkpoint

    path = next(folder.rglob("*.pt"))
    checkpoint = Checkpoint(path, {}, __file__)
    checkpoint.provenance = json.loads((folder / PROVENANCE).read_text())
    state = checkpoint.read()
    if state is None:
        raise UserError("the checkpoint is set aside")
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                digest.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for one in value:
                add(one)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()


VALUES: dict[str, Callable[[Path], str]] = {
    "images": dataset_value,
    "labels": dataset_value,
    "manifest": dataset_value,
    "source": source_value,
    "masks": loaded_value,
    "metrics": problem_value,
    "history": table_value("history.csv"),
    "macs": problem_value,
    "latency": problem_value,
    "onnx": onnx_value,
    "source metrics": lambda folder: problem_value(folder.parents[1] / DIRECT.removeprefix("results/")),
    "table": table_value("direct_binary.csv"),
    "student": student_value,
    "training": students_value,
    "student metrics": students_value,
    "perturbations": defects_value,
    "attack": defects_value,
    "head": tensors_value("head.safetensors"),
    "head history": table_value("head.csv"),
    "student masks": tensors_value("masks.safetensors"),
    "checkpoint": checkpoint_value,
}
BESIDE = {  # what the function reads beside the folder of the file
    "masks": [MODEL],
    "metrics": [MODEL],
    "macs": [MODEL],
    "latency": [MODEL],
    "source metrics": [DIRECT],
    "perturbations": [f"{INDIRECT}/standard", "results/datasets/two"],
    "attack": [f"{INDIRECT}/standard", "results/datasets/two"],
}
SEARCHED = ("images", "labels", "manifest", "source", "masks", "history")  # are there once a search is finished
PROVENANCE = "provenance.json"


def _open(world: World, file: str, how: str, chance: random.Random) -> Ending:
    if file == "checkpoint":
        origin = checkpoint_of(world)
        if origin is None:
            return Ending(SKIPPED, "no search could be interrupted at a checkpoint")
    else:
        origin = world.direct if file in SEARCHED or file not in BUILT_IN else world.whole
    path, value = OPENED[file], VALUES[file]
    part = path if file == "checkpoint" else path.rpartition("/arrays" if "/arrays" in path else "/")[0]
    expected = reference(world, f"value of {file}", lambda: value(origin / part), origin)
    with world.attempt() as folder:
        for one in [part, *BESIDE.get(file, [])]:
            copy(origin / one, folder / one)
        damaged = next((folder / part).rglob("*.pt")) if file == "checkpoint" else folder / path
        done = damage(damaged, how, chance)
        ending = commands.judge(commands.call(lambda: value(folder / part), folder), expected)
    return Ending(ending.verdict, f"{done}; {ending.detail}", ending.matters)


BUILT_IN = frozenset(OPENED)  # those of the run; tests plant others


def reference(world: World, name: str, value: Callable[[], str], folder: Path | None = None) -> str:
    """Return what a call in `folder`, by default the world's, gives on the undamaged run; it is called once."""
    known = world.__dict__.setdefault("_references", {})
    if name not in known:
        answer = commands.call(value, folder or world.folder)
        if answer.how != "value":
            raise RuntimeError(f"{name}: the undamaged run ends in {answer}")
        known[name] = answer.text
    return known[name]


# ------------------------------------------------------------------ files that a job reads


def _rerun(world: World, file: str, how: str, chance: random.Random) -> Ending:
    path, removed, targets = RERUN[file]
    world.whole  # noqa: B018 (makes the run)
    with world.clone() as folder:
        before, pictures = digests(folder), _pictures(folder)
        remove(folder, *removed)
        done = damage(folder / path, how, chance)
        said = commands.run(folder, *targets)
        return _judge(folder, said, path, targets, before, pictures, done)


def _judge(
    folder: Path,
    said: commands.Said,
    path: str,
    targets: tuple[str, ...],
    before: dict[str, str],
    pictures: dict[str, bytes],
    done: str,
) -> Ending:
    """Return the verdict about a run that used the damaged file `path`."""
    if said.problem:
        return Ending(UNCLEAR, f"{done}; {said.problem}", True)
    if said.status != 0:
        return Ending(HELD, f"{done}; {said.sentence}", True)
    after = _digests_or_none(folder, path)
    used = [path.removeprefix("results/"), *(target.removeprefix("results/") for target in targets)]
    changed = [name for name in used if name in before and after.get(name) != before[name]]
    changed += [name for name, content in pictures.items() if _pictures(folder).get(name, content) != content]
    results = [name for name in changed if name != used[0]]
    if not changed:
        return Ending(HELD, f"{done}; equal", False)
    if path.endswith(".onnx") or results:
        return Ending(SILENT, f"{done}; another {(results or changed)[0]}", True)
    return Ending(HELD, f"{done}; what it makes is equal", False)


def _digests_or_none(folder: Path, path: str) -> dict[str, str]:
    """Return the digests of results; of the damaged file none if it cannot be read."""
    try:
        return digests(folder)
    except Exception:  # whatever a reader says about damage
        (folder / path).unlink(missing_ok=True)
        return digests(folder)


def _pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "results/figures").glob("*.png")}


# ------------------------------------------------------------------ checkpoints


def checkpoint_of(world: World) -> Path | None:
    """Return a folder in which a search was interrupted and has a checkpoint; None if none could be made."""
    folder = world.work / "interrupted"
    if folder.exists():
        return folder
    world.direct  # noqa: B018 (makes the run)
    for wait in (0.5, 1.0, 0.2, 2.0, 0.1, 0.05):
        with world.clone() as attempt:
            remove(attempt, DIRECT)
            process = commands.start(commands.command(attempt, *SEARCH), attempt / "said.txt")
            log = attempt / "results/logs/reengineer/small/binary/red.log"
            before = log.read_bytes() if log.exists() else b""
            while process.poll() is None and (not log.exists() or log.read_bytes() in (b"", before)):
                time.sleep(0.02)
            time.sleep(wait)
            for job in commands.jobs_of(attempt):
                job.send_signal(signal.SIGTERM)
            commands.finish(process, attempt / "said.txt")
            if list(attempt.glob("results/checkpoints/**/*.pt")):
                commands.end_all(attempt)
                _keep_provenance(attempt / "results/checkpoints")
                attempt.rename(folder)
                return folder
    return None


def _keep_provenance(checkpoints: Path) -> None:
    import torch

    content = torch.load(next(checkpoints.rglob("*.pt")), weights_only=True)
    (checkpoints / PROVENANCE).write_text(json.dumps(content["provenance"]))


def _resume(world: World, how: str, chance: random.Random) -> Ending:
    origin = checkpoint_of(world)
    if origin is None:
        return Ending(SKIPPED, "no search could be interrupted at a checkpoint")
    expected = golden.digests(world.direct / "results")
    with world.attempt() as folder:
        copied = folder / "copy"
        copy(origin, copied)
        path = next(copied.glob("results/checkpoints/**/*.pt"))
        done = damage(path, how, chance)
        said = commands.run_until_done(copied, *SEARCH)
        if said.status != 0 or said.problem:
            return Ending(UNCLEAR, f"{done}; {said.problem or said.sentence}", True)
        after = digests(copied)
        changed = [file for file in SEARCH if after.get(file[8:]) != expected[file[8:]]]
        aside = list(copied.glob("results/checkpoints/**/*.aside"))
    if changed:
        return Ending(SILENT, f"{done}; another {changed[0]}", True)
    return Ending(HELD, f"{done}; {'set aside' if aside else 'equal'}", bool(aside))
