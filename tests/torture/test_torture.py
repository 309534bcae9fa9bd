"""The campaign counts as it says, and some attempts of each kind end as they should or as KNOWN says they do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import campaign, commands, flips, full_disk, kills, known, strangers
from .__main__ import main
from .outcomes import HELD, LOST, RUN, SILENT, SKIPPED, UNCLEAR, Ending, Outcome, details, holes, table
from .world import World

SEED = 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The run that the attacks start from."""
    made = World(tmp_path_factory.mktemp("torture"))
    yield made
    shutil.rmtree(made.work, ignore_errors=True)


# ------------------------------------------------------------------ the counting


def test_the_table_counts_each_verdict() -> None:
    verdicts = [HELD, HELD, SILENT, LOST, RUN, UNCLEAR, SKIPPED]
    outcomes = [Outcome("flips", n, "x: flip", verdict, "", n > 1) for n, verdict in enumerate(verdicts)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(outcomes).splitlines()]
    assert rows[0] == ["kind", "tried", "held", "silent", "lost", "run", "unclear", "skipped", "without effect"]
    assert rows[2] == ["flips", "7", "2", "1", "1", "1", "1", "1", "2"]
    assert rows[3] == ["all", *rows[2][1:]]
    assert [outcome.verdict for outcome in holes(outcomes)] == [SILENT, LOST, RUN, UNCLEAR]
    assert "| flips | x | 7 | 2 |" in details(outcomes)


@pytest.mark.parametrize("verdict, status", [(HELD, 0), (SKIPPED, 0), (SILENT, 1), (LOST, 1), (RUN, 1), (UNCLEAR, 1)])
def test_the_exit_status_is_1_if_a_promise_is_broken(
    verdict: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(campaign.KINDS, "images", lambda world, number, seed: ("x", Ending(verdict)))
    page = tmp_path / "table.md"
    arguments = ["--only", "images", "--images", "2", "--work", str(tmp_path / "work"), "--table", str(page)]
    assert main(arguments) == status
    assert page.read_text().startswith("| kind | tried |") and "| images | 2 |" in page.read_text()


def _plant(world: World, monkeypatch: pytest.MonkeyPatch, checked: bool) -> None:
    """Let flips damage a file of our own, which a careless or a careful function opens."""
    place = world.folder / "results/planted/value.bin"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(bytes(range(100)))
    (world.work / "made.txt").write_text("all\n")

    def opened(folder: Path) -> str:
        from seam.errors import UserError

        content = (folder / "value.bin").read_bytes()
        if checked and content != bytes(range(100)):
            raise UserError("value.bin is damaged: make it again.")
        return content.hex()

    monkeypatch.setitem(flips.OPENED, "planted", "results/planted/value.bin")
    monkeypatch.setitem(flips.VALUES, "planted", opened)


@pytest.mark.parametrize("checked, verdict", [(False, SILENT), (True, HELD)])
def test_a_planted_silent_change_is_counted_as_silent(
    checked: bool, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted = World(tmp_path / "planted")
    _plant(planted, monkeypatch, checked)
    monkeypatch.setitem(campaign.KINDS, "flips", lambda *arguments: flips.attempt(*arguments, files=["planted"]))
    outcomes = list(campaign.run(planted, {"flips": 10}, SEED))
    assert [(outcome.verdict, outcome.matters) for outcome in outcomes] == [(verdict, True)] * 10


def test_the_same_seed_makes_the_same_attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planted = World(tmp_path / "planted")
    _plant(planted, monkeypatch, checked=False)
    first, again, other = (flips.attempt(planted, 3, seed, files=["planted"]) for seed in (1, 1, 2))
    assert first == again != other


def test_foreign_code_crashes_and_hangs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import time

    def verdict(function, expected: str | None = None) -> str:
        marker = tmp_path / "code-ran"
        ending = commands.judge(commands.call(function, tmp_path), expected, marker)
        marker.unlink(missing_ok=True)
        return ending.verdict

    monkeypatch.setattr(commands, "PATIENCE", 5)
    assert verdict(lambda: "right", "right") == HELD
    assert verdict(lambda: "wrong", "right") == SILENT
    assert verdict(lambda: Path("code-ran").touch() or "right", "right") == RUN
    assert verdict(lambda: {}["a"]) == UNCLEAR
    assert verdict(lambda: os.kill(os.getpid(), 9) or "") == UNCLEAR
    assert verdict(lambda: time.sleep(30) or "") == UNCLEAR


def test_a_run_is_refused_in_one_sentence_or_else() -> None:
    error = 'WorkflowError in file "/x/common.smk", line 36:\nseed is x.\n  File "/x/common.smk", line 36, in <module>'
    assert commands.Said(1, error).problem is None
    assert commands.Said(1, error + '\n  File "/x/plan.py", line 3, in look').problem
    assert commands.Said(1, "Traceback (most recent call last):\nKeyError: 3").problem == "a traceback (KeyError: 3)"
    assert commands.Said(1, "").problem and commands.Said(None, "").problem


# ------------------------------------------------------------------ a tiny campaign

SEARCHED = ["images", "labels", "manifest", "source", "masks", "history"]
TINY: dict[str, tuple[campaign.Attempt, list[int]]] = {
    "images": (campaign.KINDS["images"], list(range(33))),
    "weights": (campaign.KINDS["weights"], list(range(61))),
    "strangers": (lambda *arguments: strangers.attempt(*arguments, students=False), list(range(23))),
    "flips": (lambda *arguments: flips.attempt(*arguments, files=SEARCHED), list(range(24))),
    "configs": (campaign.KINDS["configs"], [3, 13]),
    "kills": (lambda *arguments: kills.attempt(*arguments, modes=["failing rerun"]), [0]),
    "full-disk": (lambda *arguments: full_disk.attempt(*arguments, quick=True), [0]),
}


@pytest.mark.parametrize("kind", TINY)
def test_a_tiny_campaign(kind: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, numbers = TINY[kind]
    monkeypatch.setitem(campaign.KINDS, kind, attempt)
    monkeypatch.setattr(commands, "PATIENCE", 30)
    outcomes = [campaign.run_one(world, kind, number, SEED) for number in numbers]
    unknown = [outcome for outcome in holes(outcomes) if known.hole_of(outcome) is None]
    assert not unknown, f"not in known.py: {unknown}"
    fixed = [(hole, outcome) for outcome in outcomes if outcome.verdict == HELD for hole in known.fixed(outcome)]
    assert not fixed, f"fixed: remove these lines of known.py: {fixed}"
