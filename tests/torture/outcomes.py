"""What an attempt ended in, and the tables that count it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

GROUPED = ("flips", "kills")  # kinds whose targets get rows of their own
HELD, SILENT, LOST, RUN, UNCLEAR, SKIPPED = "held", "silent", "lost", "run", "unclear", "skipped"
VERDICTS = (HELD, SILENT, LOST, RUN, UNCLEAR, SKIPPED)
LEGEND = """\
- held: one clear sentence, a correct result, or a file that is made again.
- silent: a wrong result without a word.
- lost: results of an earlier run are missing or changed.
- run: code from a stranger, or another program, ran.
- unclear: it failed aloud, but with a traceback, a bare exception, a crash or a hang.
- skipped: this machine does not allow the attempt.
- without effect (flips and truncations only): held because the result stayed equal: the changed byte did not matter.
"""


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended.

    kind and attempt, with the seed of the campaign, reproduce it. name says what was attacked and how. matters says
    whether the attack changed what the file means; None where the question makes no sense.
    """

    kind: str
    attempt: int
    name: str
    verdict: str
    detail: str = ""
    matters: bool | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Ending:
    """The verdict about one attempt, with a detail that explains it."""

    verdict: str
    detail: str = ""
    matters: bool | None = None


def generator(seed: int, kind: str, attempt: int) -> random.Random:
    """Return the random numbers of one attempt; the same for the same seed, kind and number."""
    return random.Random(f"{seed} {kind} {attempt}")


def holes(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes that break a promise: all that were neither held nor skipped."""
    return [outcome for outcome in outcomes if outcome.verdict not in (HELD, SKIPPED)]


def table(outcomes: Iterable[Outcome]) -> str:
    """Return a Markdown table with a row per kind of attack, and one for all of them."""
    outcomes = list(outcomes)
    rows = [_row(kind, [o for o in outcomes if o.kind == kind]) for kind in dict.fromkeys(o.kind for o in outcomes)]
    return _markdown(["kind", "tried", *VERDICTS, "without effect"], [*rows, _row("all", outcomes)])


def details(outcomes: Iterable[Outcome]) -> str:
    """Return a Markdown table with a row per target of flips and kills.

    The target is the part of an attempt's name before the colon.
    """
    outcomes = [outcome for outcome in outcomes if outcome.kind in GROUPED]
    rows = []
    for kind, target in dict.fromkeys((o.kind, _target(o)) for o in outcomes):
        chosen = [o for o in outcomes if (o.kind, _target(o)) == (kind, target)]
        rows.append([kind, *_row(target, chosen)])
    return _markdown(["kind", "target", "tried", *VERDICTS, "without effect"], rows)


def report(outcomes: Iterable[Outcome], seed: int) -> str:
    """Return the Markdown page about a campaign: both tables, and a list of its holes."""
    outcomes = list(outcomes)
    lines = [table(outcomes), LEGEND]
    if any(outcome.kind in GROUPED for outcome in outcomes):
        lines.append(details(outcomes))
    if found := holes(outcomes):
        lines.append("Holes, each with the options that reproduce it:\n")
        for o in found:
            again = f"--only {o.kind} --seed {seed} --attempt {o.attempt}"
            lines.append(f"- {o.verdict}: {o.name} (`{again}`): {o.detail}")
    return "\n".join(lines) + "\n"


def _target(outcome: Outcome) -> str:
    return outcome.name.partition(":")[0]


def _row(name: str, outcomes: list[Outcome]) -> list[str]:
    counts = Counter(outcome.verdict for outcome in outcomes)
    judged = [outcome.matters for outcome in outcomes if outcome.matters is not None]
    effect = str(judged.count(False)) if judged else ""
    return [name, str(len(outcomes)), *(str(counts[verdict]) for verdict in VERDICTS), effect]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
