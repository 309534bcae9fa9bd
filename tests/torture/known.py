"""The holes that are open now. Fixing one means removing its line."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from .outcomes import LOST, RUN, SILENT, UNCLEAR, Outcome


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


_CAST = "other types of numbers are cast to float32 in silence"
_NUMBERS = "NaN and infinite weights are taken, and so are those that become so"
_TYPES = "tensors of other layouts end in a RuntimeError of torch"
_KEYS = "two sets of keys: one is taken, without a word about which"
_CODE = "metadata make code run"
_DIGEST = "digests are not recorded, or not checked when a file is opened"
_OCTAL = "YAML 1.1 reads 007 as 7, 0777 as 511 and 1:30 as 90"
_TRACEBACK = "a traceback on the terminal"

KNOWN: list[Hole] = [
    Hole("weights", "FIFO", UNCLEAR, "it is waited for, without end"),
    Hole("weights", "NaN in a weight", SILENT, _NUMBERS),
    Hole("weights", "NaN in a running mean", SILENT, _NUMBERS),
    Hole("weights", "infinity in a weight", SILENT, _NUMBERS),
    Hole("weights", "too large for float32", SILENT, _NUMBERS),
    Hole("weights", "negative running variance", SILENT, _NUMBERS),
    Hole("weights", "complex", SILENT, _CAST),
    Hole("weights", "integers", SILENT, _CAST),
    Hole("weights", "small integers", SILENT, _CAST),
    Hole("weights", "booleans", SILENT, _CAST),
    Hole("weights", "sparse", UNCLEAR, _TYPES),
    Hole("weights", "sparse rows", UNCLEAR, _TYPES),
    Hole("weights", "quantized", UNCLEAR, _TYPES),
    Hole("weights", "meta", UNCLEAR, _TYPES),
    Hole("weights", "nested", UNCLEAR, _TYPES),
    Hole("weights", "prefixed and plain keys", SILENT, _KEYS),
    Hole("weights", "one prefixed key beside the plain one", SILENT, _KEYS),
    Hole("weights", "two state dictionaries", SILENT, _KEYS),
    Hole("strangers", "code *", RUN, _CODE),
    Hole("strangers", "source_sha256 null, code: *", RUN, _CODE),
    Hole("strangers", "source folder of the sender: *", RUN, _CODE),
    Hole("strangers", "source_sha256 null, other weights: *", SILENT, "the digest can be switched off"),
    Hole("strangers", "malformed metadata: *", UNCLEAR, "a bare KeyError or TypeError", always=False),
    Hole("strangers", "no metadata: *", UNCLEAR, "a bare KeyError or TypeError", always=False),
    Hole("flips", "*: flip", SILENT, _DIGEST, always=False),
    Hole("flips", "*: truncation", SILENT, _DIGEST, always=False),
    Hole("flips", "manifest: *", UNCLEAR, "a bare KeyError or TypeError", always=False),
    Hole("kills", "failing rerun", LOST, "Snakemake deletes a job's outputs before it starts"),
    Hole("kills", "orphan under other settings", SILENT, "the old job writes over the results of the new one"),
    Hole("kills", "SIGINT to the process group: *", UNCLEAR, _TRACEBACK, always=False),
    Hole("configs", "--config seed", UNCLEAR, _TRACEBACK),
    Hole("configs", "Latin-1", UNCLEAR, _TRACEBACK),
    Hole("configs", "UTF-16", UNCLEAR, _TRACEBACK),
    Hole("configs", "bad UTF-8", UNCLEAR, _TRACEBACK),
    Hole("configs", "noise", UNCLEAR, _TRACEBACK, always=False),
    Hole("configs", "misspelt file", UNCLEAR, _TRACEBACK),
    Hole("configs", "folder for a file", UNCLEAR, _TRACEBACK),
    Hole("configs", "link to itself", UNCLEAR, _TRACEBACK),
    Hole("configs", "FIFO for a file", UNCLEAR, "it is waited for, without end"),
    Hole("configs", "recursive alias", UNCLEAR, _TRACEBACK),
    Hole("configs", "recursive list", UNCLEAR, _TRACEBACK),
    Hole("configs", "deep lists", UNCLEAR, _TRACEBACK),
    Hole("configs", "5000 digits", UNCLEAR, _TRACEBACK),
    Hole("configs", "billion laughs", UNCLEAR, "aliases are followed one by one, for minutes"),
    Hole("configs", "classes 007", SILENT, _OCTAL),
    Hole("configs", "seed 0777", SILENT, _OCTAL),
    Hole("configs", "seed in base 60", SILENT, _OCTAL),
    Hole("configs", "wrong value", UNCLEAR, "400 digits end in an OverflowError", always=False),
    Hole("configs", "wrong value", SILENT, "{} for a number is merged away: the default is taken", always=False),
]


def hole_of(outcome: Outcome) -> Hole | None:
    """Return the known hole that explains an outcome, None if there is none."""
    return next((hole for hole in KNOWN if _matches(hole, outcome) and hole.verdict == outcome.verdict), None)


def fixed(outcome: Outcome) -> list[Hole]:
    """Return the holes that an outcome which was held shows to be closed: their lines can go."""
    return [hole for hole in KNOWN if _matches(hole, outcome) and hole.always]


def _matches(hole: Hole, outcome: Outcome) -> bool:
    return hole.kind == outcome.kind and fnmatchcase(outcome.name, hole.names)
