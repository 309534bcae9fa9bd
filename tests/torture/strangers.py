"""Result folders from strangers: whatever their metadata say, no code of theirs may run."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import commands, flips
from .outcomes import HELD, SILENT, Ending, generator
from .world import DATASET, DIRECT, INDIRECT, MODEL, World

CODE = """open({marker!r}, "w").close()
import torch


def build(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, classes))
"""
SOURCE, MASKS = f"{MODEL}/source.safetensors", f"{DIRECT}/masks.safetensors"
STUDENT = f"{INDIRECT}/standard/student.safetensors"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit(path: Path, change: Callable[[dict], Any]) -> None:
    """Change the metadata of a file of results, as its sender would."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        header = file.metadata() or {}
    about = json.loads(header.get("seam", "{}"))
    about = change(about) or about
    save_file(tensors, path, {**header, "seam": json.dumps(about, sort_keys=True)})


def digests_of(about: dict, digest: str | None) -> None:
    """Put a digest into each entry of the metadata that holds one of an architecture."""
    for name in about.keys() | {"architecture_sha256"}:
        if "architecture" in name and "sha256" in name:
            about[name] = digest


def name_architecture(folder: Path, file: str, code: str, digest: str | None = "right") -> None:
    """Let the model in `file` name the architecture `code`; its digest: the right one, None, or whatever is given."""
    path = Path(code.rpartition(":")[0])
    place = path if path.is_absolute() else folder / path
    found = sha256(place) if digest == "right" and place.is_file() else digest

    def change(about: dict) -> None:
        about["architecture"] = code
        digests_of(about, found)

    edit(folder / file, change)
    if file == SOURCE:  # the masks' digest of it is rewritten as well
        edit(folder / MASKS, lambda about: about.update(source_sha256=sha256(folder / SOURCE)))


def _code(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CODE.format(marker=str(folder / "code-ran")))
    return path


def _relative(folder: Path, file: str, chance: random.Random) -> None:
    _code(folder, "arch.py")
    name_architecture(folder, file, "arch.py:build")


def _inside(folder: Path, file: str, chance: random.Random) -> None:
    path = _code(folder, "results/arch.py")
    name_architecture(folder, file, f"{path}:build")
    edit(folder / file, lambda about: about.update(architecture="/home/somebody/results/arch.py:build"))
    if file == SOURCE:
        edit(folder / MASKS, lambda about: about.update(source_sha256=sha256(folder / SOURCE)))


def _beside(folder: Path, file: str, chance: random.Random) -> None:
    path = folder / file
    _code(folder, str(path.parent.relative_to(folder) / "arch.py"))
    name_architecture(folder, file, f"{path.parent.relative_to(folder)}/arch.py:build")


def _absolute(folder: Path, file: str, chance: random.Random) -> None:
    name_architecture(folder, file, f"{_code(folder, 'results/code/arch.py')}:build")


def _dots(folder: Path, file: str, chance: random.Random) -> None:
    _code(folder, "arch.py")
    name_architecture(folder, file, "results/../arch.py:build")


def _no_digest(folder: Path, file: str, chance: random.Random) -> None:
    name_architecture(folder, file, f"{_code(folder, 'arch.py')}:build", digest=None)


def _empty_digest(folder: Path, file: str, chance: random.Random) -> None:
    name_architecture(folder, file, f"{_code(folder, 'arch.py')}:build", digest="")


def _wrong_digest(folder: Path, file: str, chance: random.Random) -> None:
    name_architecture(folder, file, f"{_code(folder, 'arch.py')}:build", digest="0" * 64)


def _null_source(folder: Path, file: str, chance: random.Random) -> None:
    """Switch off the digest of the source model, and send another one."""
    name_architecture(folder, file, f"{_code(folder, 'arch.py')}:build")
    edit(folder / MASKS, lambda about: about.update(source_sha256=None))


def _null_source_plain(folder: Path, file: str, chance: random.Random) -> None:
    """Another source model under masks without a digest: no code, but another model."""
    from safetensors.torch import load_file, save_file

    edit(folder / MASKS, lambda about: about.update(source_sha256=None))
    path = folder / SOURCE
    about: dict = {}
    edit(path, lambda old: about.update(old))
    tensors = load_file(path)
    save_file({name: value + (value.ndim > 1) for name, value in tensors.items()}, path, {"seam": json.dumps(about)})


def _other_source(folder: Path, file: str, chance: random.Random) -> None:
    """Masks that name a source folder of the sender's."""
    name_architecture(folder, SOURCE, f"{_code(folder, 'arch.py')}:build")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/source.safetensors").write_bytes((folder / SOURCE).read_bytes())
    edit(folder / MASKS, lambda about: about.update(source=str(folder / "elsewhere")))


def _module(name: str) -> Callable[[Path, str, random.Random], None]:
    """An architecture that is named like a module of Python's."""

    def attack(folder: Path, file: str, chance: random.Random) -> None:
        _code(folder, name)
        name_architecture(folder, file, f"{name}:build")

    return attack


def _builtin(text: str) -> Callable[[Path, str, random.Random], None]:
    """An architecture that is no file."""

    def attack(folder: Path, file: str, chance: random.Random) -> None:
        _code(folder, "evil.py")
        name_architecture(folder, file, text, digest=None)

    return attack


def _torchvision_home(folder: Path, file: str, chance: random.Random) -> None:
    """A package in the working directory that is named like one that is imported."""
    for name in ("torchvision.py", "safetensors.py", "seam.py", "sitecustomize.py"):
        _code(folder, name)


def _linked(folder: Path, file: str, chance: random.Random) -> None:
    _code(folder, "hidden/arch.py")
    (folder / "linked.py").symlink_to("hidden/arch.py")
    name_architecture(folder, file, "linked.py:build")


def _pickled_array(folder: Path, file: str, chance: random.Random) -> None:
    """An array of objects, which are pickled."""
    import numpy as np

    from .weights import Code

    value = np.empty(1, object)
    value[0] = Code(folder / "code-ran", chance.randrange(4))
    np.save(folder / f"{DATASET}/arrays/train_{chance.choice(['images', 'labels'])}.npy", value, allow_pickle=True)


def _pickle(folder: Path, file: str, chance: random.Random) -> None:
    """A pickle in the place of the tensors."""
    import pickle

    from .weights import Code

    (folder / file).write_bytes(pickle.dumps(Code(folder / "code-ran", chance.randrange(4))))


def _malformed(folder: Path, file: str, chance: random.Random) -> None:
    """Metadata of other types: no code, but no bare KeyError either."""
    wrong = chance.choice([None, 7, [], {}, "", [["a"]], {"a": 1}])
    keys: list[str] = []
    edit(folder / file, lambda about: keys.extend(sorted(about)))
    key = chance.choice(keys)
    if chance.random() < 0.4:
        edit(folder / file, lambda about: about.pop(key, None) and None)
    else:
        edit(folder / file, lambda about: about.update({key: wrong}))


def _no_metadata(folder: Path, file: str, chance: random.Random) -> None:
    edit(folder / file, lambda about: chance.choice([[], "text", 7, None, {"seam": 1}]) or {"x": 1})


Attack = Callable[[Path, str, random.Random], None]
ATTACKS: dict[str, tuple[Attack, tuple[str, ...]]] = {
    "code relative to the working directory": (_relative, (SOURCE, STUDENT)),
    "code in the tree": (_inside, (SOURCE, STUDENT)),
    "code beside the model": (_beside, (SOURCE, STUDENT)),
    "code at an absolute path": (_absolute, (SOURCE, STUDENT)),
    "code by way of dots": (_dots, (SOURCE, STUDENT)),
    "code without a digest": (_no_digest, (SOURCE, STUDENT)),
    "code with an empty digest": (_empty_digest, (SOURCE, STUDENT)),
    "code with a wrong digest": (_wrong_digest, (SOURCE, STUDENT)),
    "code by way of a link": (_linked, (SOURCE, STUDENT)),
    "source_sha256 null, code": (_null_source, (SOURCE,)),
    "source_sha256 null, other weights": (_null_source_plain, (SOURCE,)),
    "source folder of the sender": (_other_source, (SOURCE,)),
    "code named random.py": (_module("random.py"), (SOURCE, STUDENT)),
    "code named json.py": (_module("json.py"), (SOURCE, STUDENT)),
    "code named torch.py": (_module("torch.py"), (SOURCE, STUDENT)),
    "architecture evil:build": (_builtin("evil:build"), (SOURCE, STUDENT)),
    "architecture os:system": (_builtin("os:system"), (SOURCE, STUDENT)),
    "architecture torchvision:evil": (_builtin("torchvision:../evil"), (SOURCE, STUDENT)),
    "modules in the working directory": (_torchvision_home, (SOURCE, STUDENT)),
    "pickle in an array": (_pickled_array, (DATASET,)),
    "pickle for tensors": (_pickle, (SOURCE, MASKS, STUDENT)),
    "malformed metadata": (_malformed, (SOURCE, MASKS, STUDENT)),
    "no metadata": (_no_metadata, (SOURCE, MASKS, STUDENT)),
}


def attempt(world: World, number: int, seed: int, students: bool = True) -> tuple[str, Ending]:
    """Open a folder that a stranger wrote; without `students`, which take longest to make, only other models."""
    chance, name = generator(seed, "strangers", number), list(ATTACKS)[number % len(ATTACKS)]
    attack, files = ATTACKS[name]
    file = chance.choice([file for file in files if students or file != STUDENT])
    parts = [DATASET] if file == DATASET else [MODEL, DIRECT]
    if file == STUDENT:
        parts.append(str(Path(STUDENT).parent))
    world.whole if file == STUDENT else world.direct  # noqa: B018 (makes the run)
    with world.attempt(*parts) as folder:
        attack(folder, file, chance)
        marker = folder / "code-ran"
        marker.unlink(missing_ok=True)
        value = _opened(folder, file, chance)
        expected = flips.reference(world, f"stranger {file}", lambda: _plain(world.folder, file))
        ending = commands.judge(commands.call(value, folder), None, marker)
        if ending.verdict == SILENT:
            answer = commands.call(value, folder)
            same = answer.how == "value" and answer.text.rpartition(" ")[2] == expected
            ending = Ending(HELD, "equal", False) if same else Ending(SILENT, "another model without a word", True)
    return f"{name}: {Path(file).name}", ending


def _plain(folder: Path, file: str) -> str:
    if file == DATASET:
        return flips.dataset_value(folder / DATASET)
    if file == STUDENT:
        return flips.student_value((folder / STUDENT).parent)
    return flips.loaded_value(folder / DIRECT)


def _opened(folder: Path, file: str, chance: random.Random) -> Callable[[], str]:
    """Return the function that opens what the stranger sent, in one of the ways that there are."""
    if file == SOURCE and chance.random() < 0.3:

        def both() -> str:
            flips.source_value(folder / MODEL)
            return flips.loaded_value(folder / DIRECT)

        return both
    return lambda: _plain(folder, file)
