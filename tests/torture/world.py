"""A small finished run that attacks start from, made once for a campaign."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import golden
from colours import paint
from workflows import small_config

from . import commands

DATASET = "results/datasets/colours"
MODEL = "results/models/small"
DIRECT = "results/direct/small/binary/red"
INDIRECT = "results/indirect/small/two"
DIRECT_FILES = [f"{DIRECT}/{name}" for name in ("masks.safetensors", "metrics.json", "history.csv")]
CLASSES = ["blue", "green", "red", "yellow"]


def small(images: Path) -> dict:
    """Return the config of the small run: every kind of result, few of each, a built-in architecture.

    An architecture that is a file would make each load depend on how the caller names it.
    """
    config = small_config(images)
    config["models"]["small"] |= {"architecture": "resnet20", "training": {"epochs": 3, "batch_size": 16, "lr": 0.05}}
    config["search"] |= {"epochs": 6, "few_images": 0}
    config["timing"] = {"batch_size": 2, "warmup": 1, "iterations": 1, "runs": 1}
    config["direct_reuse"] = [{"model": "small", "problem": "binary", "targets": ["red"]}]
    config["transfer"] |= {"head": {"epochs": 2}, "search": {"epochs": 80, "lr_mask": 0.05, "alpha": 10.0}}
    config["attack"] = {"steps": 2}
    config["indirect_reuse"] = [
        {"model": "small", "datasets": ["two"], "students": ["standard", "seam"], "thresholds": [0.3]}
    ]
    return config


class World:
    """The folder with the finished run. `folder` is kept if it is given, and used again if it is there."""

    def __init__(self, folder: Path | None = None):
        self.work = (folder or Path(tempfile.mkdtemp(prefix="torture-"))).resolve()
        self.kept = folder is not None
        self.folder = self.work / "world"
        self.images = self.folder / "images"
        if not self.images.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            paint(self.images)
        self.config = small(self.images)
        commands.write_config(self.folder, self.config)

    def close(self) -> None:
        """Remove the folder, unless it was given."""
        if not self.kept:
            shutil.rmtree(self.work, ignore_errors=True)

    def make(self, *targets: str) -> Path:
        """Make targets of the run (without any: all of it), unless they are there, and return its folder."""
        note = self.work / "made.txt"
        made = note.read_text().splitlines() if note.exists() else []
        line = " ".join(targets) or "all"
        if not {line, "all"} & set(made):
            said = commands.run(self.folder, *targets)
            if said.status != 0:
                raise RuntimeError(f"the run that the attacks start from failed: {said.text[-3000:]}")
            note.write_text("\n".join([*made, line]) + "\n")
        return self.folder

    @cached_property
    def direct(self) -> Path:
        """The folder, once a search is finished in it."""
        return self.make(*DIRECT_FILES)

    @cached_property
    def whole(self) -> Path:
        """The folder, once all of the run is finished in it."""
        return self.make()

    @contextmanager
    def attempt(self, *parts: str) -> Iterator[Path]:
        """A new folder with copies of `parts` of the run; no process that works in it outlives the block."""
        folder = Path(tempfile.mkdtemp(prefix="attempt-", dir=self.work))
        try:
            for part in parts:
                copy(self.folder / part, folder / part)
            yield folder
        finally:
            commands.end_all(folder)
            for _ in range(3):
                with suppress(OSError):
                    shutil.rmtree(folder)
                    break

    @contextmanager
    def clone(self, config: dict | None = None) -> Iterator[Path]:
        """A new folder with a copy of the whole run, as it is now, and its config or another."""
        with self.attempt("results", ".snakemake") as folder:
            shutil.rmtree(folder / ".snakemake/log", ignore_errors=True)
            commands.write_config(folder, config or self.config)
            yield folder


def copy(origin: Path, to: Path) -> None:
    """Copy a file or a folder with its dates."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, to, symlinks=True)
    else:
        shutil.copy2(origin, to)


def remove(folder: Path, *names: str) -> None:
    """Remove files or folders below `folder`, as a person would who wants them made again."""
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of the results in a folder, clock times aside."""
    found = golden.digests(folder / "results")
    return {path: digest for path, digest in found.items() if not path.startswith(("checkpoints/", "."))}


def snapshot(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each result file, byte for byte; not of logs, benchmarks and checkpoints."""
    results = folder / "results"
    found = {}
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results).as_posix()
        if path.is_file() and name.partition("/")[0] not in ("logs", "benchmarks", "checkpoints"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def difference(before: dict[str, str], after: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the sorted names (missing, changed) of what is in `before`."""
    missing = sorted(before.keys() - after.keys())
    return missing, sorted(name for name in before if name in after and before[name] != after[name])
