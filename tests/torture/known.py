"""The holes that are open now. Fixing one means removing its line."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from .outcomes import UNCLEAR, Outcome


@dataclass(frozen=True)
class Hole:
    """A hole that is open.

    kind: of the attack; names: a pattern (*, ?) of the attempts' names; verdict: what they end in; what: why;
    always: every such attempt ends so, which the tests check; detail: a pattern of what is said about it.
    """

    kind: str
    names: str
    verdict: str
    what: str
    always: bool = True
    detail: str = "*"


_TRACEBACK = "a traceback on the terminal, while Python imports Snakemake and before any code of the workflow runs"

KNOWN: list[Hole] = [
    Hole(
        "kills",
        "SIGINT to the process group: *",
        UNCLEAR,
        _TRACEBACK,
        always=False,
        detail="*before the workflow began",
    ),
]


def hole_of(outcome: Outcome) -> Hole | None:
    """Return the known hole that explains an outcome, None if there is none."""
    found = (hole for hole in KNOWN if _matches(hole, outcome) and hole.verdict == outcome.verdict)
    return next((hole for hole in found if fnmatchcase(outcome.detail, hole.detail)), None)


def fixed(outcome: Outcome) -> list[Hole]:
    """Return the holes that an outcome which was held shows to be closed: their lines can go."""
    return [hole for hole in KNOWN if _matches(hole, outcome) and hole.always]


def _matches(hole: Hole, outcome: Outcome) -> bool:
    return hole.kind == outcome.kind and fnmatchcase(outcome.name, hole.names)
