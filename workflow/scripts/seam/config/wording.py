"""How error messages name keys, show values and suggest names."""

import difflib

from seam.errors import UserError


def dotted(path):
    """A path as people write it: ["direct_reuse", 0, "search"] is `direct_reuse[0].search`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def shown(value):
    """A value as an error message shows it."""
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


def require_known_names(key, names, known, what):
    """Raises UserError for the first of `names` that comes twice or is not in `known` (None: not known yet)."""
    seen, right = set(), known if known is None else set(known)
    for name in names:
        if name in seen:
            raise UserError(f"{key} names {shown(name)} twice: once is enough.")
        seen.add(name)
        if right is not None and name not in right:
            raise UserError(f"{key} names {shown(name)}, which is not {what}{hint(name, known)}")


def hint(name, known, most=12):
    """The end of a sentence about a wrong name: the closest of the known ones, or these."""
    known, close = list(known), closest(name, known)
    if close:
        return f": did you mean {close}?"
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f": known are {', '.join(known[:most])}{more}." if known else ": there is none."


def did_you_mean(name, known):
    close = closest(name, known)
    return f" (did you mean {close}?)" if close else ""


def closest(name, known):
    """The one of `known` that is written most like `name`; None if none is (`gpu` is not meant to be `cpu`)."""
    by_lower = {str(other).lower(): str(other) for other in known}
    likeness = 0.7 if len(str(name)) <= 3 else 0.6
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=likeness)
    return by_lower[close[0]] if close else None


def alternatives(names):
    *some, last = map(str, names)
    return f"{', '.join(some)} or {last}" if some else last
