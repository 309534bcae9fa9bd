"""Mutated configs: each is refused in one sentence, and no result is touched."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import yaml

from . import commands
from .outcomes import HELD, LOST, RUN, SILENT, UNCLEAR, Ending, generator
from .world import World, difference, snapshot

WHOLE_EVERY = 8  # of so many plans, one is made by a Python of its own
MOST_LINES = 30  # of a plan that is refused: a sentence, and what Snakemake prints around it
NONSENSE: list[object] = ["text", [], {}, [[]], {"a": {}}, True, "1e-3", "", float("nan"), float("inf"), -5, 10**400]
# Places that take a positive number.
PLACES = [
    ("search", "epochs"),
    ("search", "batch_size"),
    ("search", "lr_mask"),
    ("search", "patience"),
    ("timing", "batch_size"),
    ("timing", "runs"),
    ("models", "small", "training", "epochs"),
    ("models", "small", "training", "lr"),
    ("datasets", "colours", "size"),
    ("transfer", "batch_size"),
    ("transfer", "head", "epochs"),
    ("transfer", "search", "lr_mask"),
    ("attack", "steps"),
]
BLOCKS = ["search", "timing", "models", "datasets", "transfer", "attack", "direct_reuse", "indirect_reuse", "engines"]
Writer = Callable[[Path, dict, random.Random], list[str] | None]


def _place(path: Path, config: dict, chance: random.Random) -> None:
    *parents, last = chance.choice(PLACES)
    block = config
    for key in parents:
        block = block[key]
    block[last] = chance.choice(NONSENSE)
    path.write_text(yaml.safe_dump(config))


def _block(path: Path, config: dict, chance: random.Random) -> None:
    config[chance.choice(BLOCKS)] = chance.choice(["text", 7, True, [["x"]], [7], "a: b"])
    path.write_text(yaml.safe_dump(config))


def _misspelt_key(path: Path, config: dict, chance: random.Random) -> None:
    block = config[chance.choice(["search", "timing", "transfer", "attack"])]
    key = chance.choice(list(block))
    block[f"{key}x"] = block.pop(key)
    path.write_text(yaml.safe_dump(config))


def _unknown_name(path: Path, config: dict, chance: random.Random) -> None:
    where = chance.randrange(4)
    name = chance.choice(["smal", "", "small ", "sm\u00e4ll", "../small", "s\u202e", "\U0001f600", "null", "x" * 300])
    if where == 0:
        config["direct_reuse"][0]["model"] = name
    elif where == 1:
        config["models"]["small"]["dataset"] = name
    elif where == 2:
        config["direct_reuse"][0]["targets"] = [name]
    else:
        config["indirect_reuse"][0]["datasets"] = [name]
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")


def _odd_name(path: Path, config: dict, chance: random.Random) -> None:
    """A model whose name cannot be that of a folder."""
    name = chance.choice(["", "..", "a/b", "/etc", "a\0b", "a\nb", "x" * 300, "{model}", "\u202ea", ".", "~\x07"])
    config["models"][name] = config["models"].pop("small")
    config["direct_reuse"][0]["model"] = config["indirect_reuse"][0]["model"] = name
    path.write_text(yaml.safe_dump(config, allow_unicode=False))


def _written(text: str | bytes) -> Writer:
    """The config with its first block exchanged for this text, in which {marker} is a file that code could write."""

    def write(path: Path, config: dict, chance: random.Random) -> None:
        config.pop(str(text).partition(":")[0], None)  # a block that is there twice is refused for that alone
        content = text if isinstance(text, bytes) else text.replace("{marker}", str(path.parent / "code-ran")).encode()
        path.write_bytes(yaml.safe_dump(config).encode() + b"\n" + content + b"\n")

    return write


def _encoded(encoding: str) -> Writer:
    def write(path: Path, config: dict, chance: random.Random) -> None:
        path.write_bytes(f"# d\u00e9j\u00e0 vu\n{yaml.safe_dump(config)}\n".encode(encoding))

    return write


def _whole(content: bytes) -> Writer:
    def write(path: Path, config: dict, chance: random.Random) -> None:
        path.write_bytes(content)

    return write


def _cut(path: Path, config: dict, chance: random.Random) -> None:
    """A config that ends within a quoted text."""
    path.write_text(yaml.safe_dump(config) + '\nseed: "0')


def _noise(path: Path, config: dict, chance: random.Random) -> None:
    content = bytearray(yaml.safe_dump(config).encode())
    for _ in range(5):
        content[chance.randrange(len(content))] = chance.choice([0, 7, 0x80, 0xFF])
    path.write_bytes(content)


def _folder(path: Path, config: dict, chance: random.Random) -> None:
    path.mkdir()


def _missing(path: Path, config: dict, chance: random.Random) -> None:
    """A misspelt --configfile."""


def _fifo(path: Path, config: dict, chance: random.Random) -> None:
    os.mkfifo(path)


def _unreadable(path: Path, config: dict, chance: random.Random) -> None:
    path.symlink_to(path.name)


def _octal(path: Path, config: dict, chance: random.Random) -> None:
    """Folders called 007 and 010 beside 7 and 8: YAML reads the numbers 7 and 8."""
    root = path.parent / "numbers"
    for split in ("train", "test"):
        for number, name in enumerate(("007", "010", "7", "8")):
            (root / split / name).mkdir(parents=True)
            origin = Path(config["datasets"]["colours"]["root"]) / split / ["blue", "green", "red", "yellow"][number]
            for image in sorted(origin.iterdir())[:8]:
                (root / split / name / image.name).symlink_to(image)
    for name in ("colours", "two"):
        config["datasets"][name] = {"kind": "imagefolder", "root": str(root), "size": 16}
    text = yaml.safe_dump(config)
    config["datasets"]["colours"]["classes"] = "CLASSES"
    text = yaml.safe_dump(config).replace("CLASSES", "[007, 010]")
    path.write_text(text.replace("- red", "- '7'"))


def _option(*words: str) -> Writer:
    """A good config with options of the command line that are not."""

    def write(path: Path, config: dict, chance: random.Random) -> list[str]:
        path.write_text(yaml.safe_dump(config))
        return list(words)

    return write


def _laughs(path: Path, config: dict, chance: random.Random) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    path.write_text(yaml.safe_dump(config) + "\n" + "\n".join(lines) + "\n")


# What it is: the function that writes the config, and may return options of the command line.
FIXED: dict[str, Writer] = {
    "Latin-1": _encoded("latin-1"),
    "UTF-16": _encoded("utf-16"),
    "misspelt file": _missing,
    "--config seed": _option("--config", "seed"),
    "recursive alias": _written("search: &a\n  epochs: 3\n  again: *a"),
    "recursive list": _written("engines: &a [*a]"),
    "400 digits": _written("seed: " + "9" * 400),
    "5000 digits": _written("seed: " + "9" * 5000),
    "name of 300 characters": _written("models:\n  " + "x" * 300 + ": {architecture: resnet20}"),
    "classes 007": _octal,
    "--config seed=": _option("--config", "seed="),
    "--config with a block": _option("--config", "search=3"),
    "--config that is no YAML": _option("--config", "seed={"),
    "code by a tag": _written("seed: !!python/object/apply:os.system [\"touch '{marker}'\"]"),
    "code by a class": _written("seed: !!python/object/new:os.system [\"touch '{marker}'\"]"),
    "billion laughs": _laughs,
    "folder for a file": _folder,
    "FIFO for a file": _fifo,
    "link to itself": _unreadable,
    "zero bytes in it": _written(b"seed: \0"),
    "bad UTF-8": _written(b"seed: \xff\xfe"),
    "tab": _written("search:\n\tepochs: 3"),
    "cut within a text": _cut,
    "list for a config": _whole(b"- a\n- b\n"),
    "text for a config": _whole(b"just a text\n"),
    "number for a config": _whole(b"7\n"),
    "two documents": _whole(b"seed: 0\n---\nseed: 1\n"),
    "deep lists": _whole(b"seed: " + b"[" * 3000 + b"]" * 3000),
    "key given twice": _written("seed: 1\nseed: 2"),
    "key that is a list": _written("? [a, b]\n: 3"),
    "key that is a number": _written("7: 3"),
    "seed 0777": _written("seed: 0777"),
    "seed in base 60": _written("seed: 1:30"),
    "seed that is a date": _written("seed: 2026-01-01"),
    "seed with underscores": _written("seed: 1_0.5"),
    "unknown tag": _written("seed: !seed 3"),
    "merge of a number": _written("x:\n  <<: 3"),
}
RANDOM: dict[str, Writer] = {
    "wrong value": _place,
    "wrong block": _block,
    "misspelt key": _misspelt_key,
    "unknown name": _unknown_name,
    "odd name": _odd_name,
    "noise": _noise,
}
ORDER = [*FIXED, *(name for _ in range(9) for name in RANDOM)]  # 37 and 54
# As good as the plain config if it is taken: the same in another encoding.
HARMLESS = ("Latin-1", "UTF-16")


def attempt(world: World, number: int, seed: int) -> tuple[str, Ending]:
    """Plan a run with a bad config over finished results."""
    chance, name = generator(seed, "configs", number), ORDER[number % len(ORDER)]
    write = {**FIXED, **RANDOM}[name]
    world.direct  # noqa: B018 (makes the run)
    with world.clone() as folder:
        config = folder / "bad.yaml"
        options = write(config, json.loads(json.dumps(world.config)), chance) or []
        before = snapshot(folder)
        said = commands.run(folder, "-n", *options, config=config, deadline=60, whole=number % WHOLE_EVERY == 0)
        missing, other = difference(before, snapshot(folder))
        if (folder / "code-ran").exists():
            return name, Ending(RUN, "code in the config ran")
    if missing or other:
        return name, Ending(LOST, (missing + other)[0])
    if said.problem:
        return name, Ending(UNCLEAR, said.problem)
    if said.status != 0 and said.text.count("\n") > MOST_LINES:
        return name, Ending(UNCLEAR, f"{said.text.count(chr(10))} lines")
    if said.status == 0:
        change = _last_change(write, world, number, seed)
        return name, Ending(HELD if name in HARMLESS else SILENT, f"accepted; {change}")
    return name, Ending(HELD, said.sentence)


def _last_change(write: Writer, world: World, number: int, seed: int) -> str:
    """Return what a random change was, for the list of holes."""
    with world.attempt() as folder:
        write(folder / "bad.yaml", json.loads(json.dumps(world.config)), generator(seed, "configs", number))
        lines = set(yaml.safe_dump(world.config).splitlines())
        text = (folder / "bad.yaml").read_text(errors="replace") if (folder / "bad.yaml").is_file() else ""
        return "; ".join(line.strip() for line in text.splitlines() if line not in lines)[:100]
