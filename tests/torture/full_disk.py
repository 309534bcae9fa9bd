"""Runs whose disk fills: they end in a sentence, and with more space end with the same results."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import commands
from .outcomes import HELD, LOST, SILENT, SKIPPED, UNCLEAR, Ending, generator
from .world import DATASET, DIRECT, DIRECT_FILES, MODEL, World, difference, digests, remove

PLENTY = "256m"
# What is removed before the run; bytes that may be free at most, at which some of the attempts still succeed.
STARTS = {"a source model": ((DIRECT,), 6 << 20), "images": ((DIRECT, MODEL), 8 << 20)}
EVERYTHING = {"nothing": ((DIRECT, MODEL, DATASET), 8 << 20)}


@contextmanager
def small_disk(folder: Path, free: int) -> Iterator[bool]:
    """A disk of its own for `folder`, with its content and `free` bytes more; False where none can be mounted."""
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())
    used += 4096 * sum(1 for _ in folder.rglob("*"))
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={(used + free) // 1024}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        if mounted:
            subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
        yield mounted
    finally:
        if mounted:
            commands.end_all(folder.parent)
            subprocess.run(["umount", "-l", str(folder)], check=False)


def attempt(world: World, number: int, seed: int, quick: bool = False) -> tuple[str, Ending]:
    """Let the disk of results/ fill in a run, give it more space, and run again."""
    chance = generator(seed, "full-disk", number)
    starts = STARTS if quick else STARTS | EVERYTHING
    begin = "a source model" if quick else chance.choice(list(starts))
    removed, most = starts[begin]
    free = chance.choice([0, chance.randrange(64 << 10), chance.randrange(1 << 20), chance.randrange(most)])
    name = f"from {begin}: {free} bytes free"
    world.direct  # noqa: B018 (makes the run)
    with world.clone() as folder:
        expected = {file: digest for file, digest in digests(folder).items() if "results/" + file in DIRECT_FILES}
        remove(folder, *removed, "results/checkpoints")
        before = digests(folder)
        with small_disk(folder / "results", free) as mounted:
            if not mounted:
                return name, Ending(SKIPPED, "mounting a tmpfs is not allowed here")
            first = commands.run(folder, *DIRECT_FILES)
            missing, other = difference(before, digests(folder))
            if missing or other:
                return name, Ending(LOST, f"{(missing + other)[0]} after the disk was full")
            subprocess.run(["mount", "-o", f"remount,size={PLENTY}", str(folder / "results")], check=True)
            last = commands.run_until_done(folder, *DIRECT_FILES)
            after = digests(folder)
    missing, other = difference(expected, after)
    if last.status != 0:
        return name, Ending(UNCLEAR, f"with more space: {last.sentence}")
    if missing or other:
        return name, Ending(LOST if missing else SILENT, f"{(missing + other)[0]} with more space")
    if first.problem:
        return name, Ending(UNCLEAR, first.problem)
    return name, Ending(HELD, "enough space" if first.status == 0 else first.sentence)
