"""Check config files and --config as they are written, before YAML makes something else of them.

Snakemake reads config files before it reads the Snakefile, and ends in a traceback or waits forever if it cannot. So
the profile profiles/default, which Snakemake loads earlier still, has these checks made (`check_command`). The
Snakefile makes those that it can make once more (`check_content`), for runs without that profile.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from seam.config.schema import require_unique_keys
from seam.config.startup import use_writable_cache
from seam.config.wording import dotted
from seam.errors import UserError

MOST_VALUES = 200_000  # of a config, once its aliases are followed
MOST_DEPTH = 100
MOST_BYTES = 50_000_000
MOST_DIGITS = 25
OCTAL = re.compile(r"[-+]?0[0-9_]+")
SIXTIES = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
FILES, VALUES = ("--configfile", "--configfiles"), ("--config", "-C")
TAG = "tag:yaml.org,2002:"


def before_snakemake(arguments: Sequence[str]) -> None:
    """Check what Snakemake's command line says about the config; end the process with a sentence if it is wrong.

    Snakemake gets a folder for its caches as well, if the home folder cannot have one. Ctrl-C gets a sentence where
    Snakemake has none: until it runs jobs.
    """
    sys.excepthook = _report_uncaught
    use_writable_cache()
    try:
        check_command(arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def _report_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a sentence for Ctrl-C that nothing has caught, and for other exceptions what Python prints."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nStopped by Ctrl-C: run again to resume.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def check_command(arguments: Sequence[str]) -> None:
    """Raise UserError for a config file that cannot be read, or a --config without a value."""
    option = ""
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            option, equals, argument = argument.partition("=")
            if option == "--":
                return
            if not equals:
                continue
        if option in FILES:
            check_file(argument)
        elif option in VALUES and not re.match(r"[A-Za-z_][\w-]*\w=|\w=", argument):
            raise UserError(
                f"--config {argument} is no key with a value: write --config seed=1, and targets before --config."
            )


def check_file(path: str | Path) -> None:
    """Raise UserError if a config file cannot be read, or holds what `check_content` refuses."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"The config file {path} is no file: name one in YAML or JSON.")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"The config file {path} has {path.stat().st_size:,} bytes: is it another file?")
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(
            f"The config file {path} is not in UTF-8 (line {line}): save it with that encoding in your editor."
        ) from None
    except FileNotFoundError:
        raise UserError(f"The config file {path} does not exist: correct its name after --configfile.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The config file {path} cannot be read ({reason}): fix that, or name another one.") from None
    check_content(path)


def check_content(path: str | Path) -> None:
    """Raise UserError for what YAML reads in another way than it looks, and for aliases without end.

    Mistakes of YAML's grammar are left to Snakemake, which has a sentence for them.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = _compose(text)
        if root is None:
            return
        _count(root, {}, set(), str(path), 0)
    except RecursionError:
        raise UserError(f"The config file {path} is nested too deeply: no key takes more than a few levels.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    for where, node in _scalars(root, []):
        _check_scalar(f"{path}: {where}", node)
    if isinstance(root, yaml.MappingNode) and any(key.value == "__use_yte__" for key, _ in root.value):
        raise UserError(f"{path} has the key __use_yte__, with which a config runs code: write plain YAML.")
    require_unique_keys(path)


def _compose(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text. A control character or a second document raises YAMLError."""
    return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _count(node: yaml.Node, counts: dict[int, int], above: set[int], path: str, depth: int) -> int:
    """Return how many values a node stands for, each alias followed. Raises UserError if they are too many."""
    if id(node) in above:
        raise UserError(f"{path} has an alias (*name, line {node.start_mark.line + 1}) within what it stands for.")
    if id(node) in counts:
        return counts[id(node)]
    if depth > MOST_DEPTH:
        raise UserError(f"The config file {path} is nested too deeply: no key takes more than a few levels.")
    total = 1
    if isinstance(node, yaml.CollectionNode):
        above.add(id(node))
        total += sum(_count(child, counts, above, path, depth + 1) for child in _children(node))
        above.discard(id(node))
    if total > MOST_VALUES:
        raise UserError(f"{path} has aliases (*name) that stand for more than {MOST_VALUES:,} values: write fewer.")
    counts[id(node)] = total
    return total


def _children(node: yaml.CollectionNode) -> Iterator[yaml.Node]:
    for item in node.value:
        yield from item if isinstance(item, tuple) else (item,)


def _scalars(node: yaml.Node, place: list[str | int]) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Yield (key in words, node) of every scalar under a node, keys included."""
    if isinstance(node, yaml.ScalarNode):
        yield dotted(place) or "it", node
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _scalars(item, [*place, number])
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(key, place)
            yield from _scalars(value, [*place, str(key.value)[:60]])


def _check_scalar(where: str, node: yaml.ScalarNode) -> None:
    text = node.value
    if node.tag not in (f"{TAG}int", f"{TAG}float") or node.style in ("'", '"'):
        return
    if OCTAL.fullmatch(text):
        raise UserError(
            f"{where} is {text}, which YAML reads as another number: put quotes around '{text}' if it is a name, "
            "else leave out the leading zeros."
        )
    if SIXTIES.fullmatch(text):
        raise UserError(
            f"{where} is {text}, which YAML reads as a number in base 60: put quotes around '{text}' if it is a name."
        )
    if sum(character.isdigit() for character in text) > MOST_DIGITS:
        raise UserError(f"{where} is a number of {len(text)} characters: write one of at most {MOST_DIGITS} digits.")


def check_empty_mappings(path: str | Path, config: dict[str, Any]) -> None:
    """Raise UserError if a file has {} where the merged config has a value: Snakemake would drop the {} silently."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = _compose(text) if not text.lstrip().startswith("{") else _compose(json.dumps(json.loads(text)))
    except (yaml.YAMLError, ValueError):
        return
    for place in _empty_mappings(root, []):
        value: Any = config
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{dotted(place)} is an empty mapping ({{}}) in {path}, but takes a value such as {value}.")


def _empty_mappings(node: yaml.Node | None, place: list[str]) -> Iterator[list[str]]:
    if isinstance(node, yaml.MappingNode):
        if not node.value:
            yield place
        for key, value in node.value:
            yield from _empty_mappings(value, [*place, str(key.value)])
