"""The holes that are open now. Fixing one means removing its line."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from .outcomes import Outcome


@dataclass(frozen=True)
class Hole:
    """A hole that is open.

    kind: of the attack; names: a pattern (*, ?) of the attempts' names; verdict: what they end in; what: why;
    always: every such attempt ends so, which the tests check.
    """

    kind: str
    names: str
    verdict: str
    what: str
    always: bool = True


KNOWN: list[Hole] = []


def hole_of(outcome: Outcome) -> Hole | None:
    """Return the known hole that explains an outcome, None if there is none."""
    for hole in KNOWN:
        if hole.kind == outcome.kind and fnmatchcase(outcome.name, hole.names) and hole.verdict == outcome.verdict:
            return hole
    return None
