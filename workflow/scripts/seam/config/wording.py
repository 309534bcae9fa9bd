"""How error sentences name keys, show values and suggest names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from seam.errors import UserError

BOUNDS = {
    "minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"
}  # fmt: skip


def dotted(path: Iterable[str | int]) -> str:
    """Return a path as people write it: ["direct_reuse", 0, "search"] is `direct_reuse[0].search`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def shown(value: Any) -> str:
    """Return a value of the config as an error sentence shows it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"keys with values ({', '.join(value)})" if value else "an empty mapping"
    if isinstance(value, list):
        return f"the list [{', '.join(map(str, value))}]" if value else "an empty list"
    if isinstance(value, str):
        return f"'{value}'" if value.isprintable() else repr(value)
    return str(value)


def bounds(rules: dict[str, Any]) -> list[str]:
    """Return the bounds that a schema sets to a number, in words: ["more than 0", "at most 0.5"]."""
    return [f"{text} {rules[rule]}" for rule, text in BOUNDS.items() if rule in rules]


def require_known_names(key: str, names: Iterable[str], known: Collection[str] | None, description: str) -> None:
    """Raise UserError for the first of `names` that comes twice or is not in `known`.

    known: None if the names are not known yet. description: what a known name is, as in "a class of cifar10".
    """
    seen, members = set(), set(known or ())
    for name in names:
        if name in seen:
            raise UserError(f"{key} names {shown(name)} twice: once is enough.")
        seen.add(name)
        if known is not None and name not in members:
            raise UserError(f"{key} names {shown(name)}, which is not {description}{hint(name, known)}")


def hint(name: str, known: Iterable[str], most: int = 12) -> str:
    """Return the end of a sentence about an unknown name: the closest known one, or the first `most` of all."""
    known = list(known)
    close = closest(name, known)
    if close:
        return f": did you mean {close}?"
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f": known are {', '.join(known[:most])}{more}." if known else ": there is none."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the closest of the known names, or nothing if none is close."""
    close = closest(name, known)
    return f" (did you mean {close}?)" if close else ""


def closest(name: object, known: Iterable[object]) -> str | None:
    """Return the known name whose spelling is closest to `name`; None if none is close (`gpu` is not `cpu`)."""
    by_lower = {str(other).lower(): str(other) for other in known}
    cutoff = 0.7 if len(str(name)) <= 3 else 0.6
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def alternatives(names: Iterable[object]) -> str:
    """Return names as alternatives: "auto, cpu or cuda"."""
    *others, last = map(str, names)
    return f"{', '.join(others)} or {last}" if others else last
