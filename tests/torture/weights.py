"""Hostile files of weights."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import commands
from .outcomes import Ending, generator
from .world import CLASSES, World

ARCHITECTURE = "resnet20"
NORMALIZATION = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
State = dict[str, torch.Tensor]
# Writes the file; returns the right state, None if it must be refused. `marker` is for code to write.
Maker = Callable[[Path, State, random.Random, Path], State | None]


class Code:
    """What runs code when it is unpickled by a careless reader."""

    def __init__(self, marker: Path, way: int):
        self.marker, self.way = marker, way

    def __reduce__(self) -> tuple:
        line = f"open({str(self.marker)!r}, 'w').close()"
        ways = [(exec, (line,)), (os.system, (f"touch '{self.marker}'",)), (eval, (line,)), (open, (self.marker, "w"))]
        return ways[self.way % len(ways)]


def _saved(change: Callable[[State, random.Random], Any], right: bool | str = False) -> Maker:
    """A file by torch.save of what `change` returns; right: the same state is (True), or as float32 ("cast")."""

    def make(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
        content = change(dict(state), chance)
        torch.save(content, path)
        if right == "cast":
            return {name: value.float() if value.is_floating_point() else value for name, value in content.items()}
        return state if right else None

    return make


def _each(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State, random.Random], State]:
    """Apply a function to each tensor of fractions."""

    def change(state: State, chance: random.Random) -> State:
        return {name: function(value) if value.is_floating_point() else value for name, value in state.items()}

    return change


def _matrices(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State, random.Random], State]:
    """Apply a function to the last layer's weight."""

    def change(state: State, chance: random.Random) -> State:
        return {name: function(value) if value.ndim == 2 else value for name, value in state.items()}

    return change


def _value(number: float, ending: str = "weight") -> Callable[[State, random.Random], State]:
    """Put a number into one place of a random tensor."""

    def change(state: State, chance: random.Random) -> State:
        name = chance.choice([name for name, value in state.items() if name.endswith(ending)])
        value = state[name].clone()
        value.view(-1)[chance.randrange(value.numel())] = number
        return {**state, name: value}

    return change


def _dtype(dtype: torch.dtype) -> Callable[[State, random.Random], State]:
    return _each(lambda value: (value * 10).to(dtype) if not dtype.is_floating_point else value.to(dtype))


def _prefixed(state: State, chance: random.Random) -> State:
    return {f"module.{name}": value for name, value in state.items()}


def _both(state: State, chance: random.Random) -> State:
    other = {f"module.{name}": value + 1 for name, value in state.items()}
    return {**state, **other} if chance.random() < 0.5 else {**other, **state}


def _some_both(state: State, chance: random.Random) -> State:
    name = chance.choice(list(state))
    return {**state, f"module.{name}": state[name] * 2}


def _two_dictionaries(state: State, chance: random.Random) -> dict:
    return {"state_dict": state, "model": _value(9.0)(state, chance)}


def _missing(state: State, chance: random.Random) -> State:
    del state[chance.choice([name for name in state if not name.endswith("num_batches_tracked")])]
    return state


def _pickled(way: int, protocol: int, wrap: bool = False) -> Maker:
    def make(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
        content: object = Code(marker, way)
        path.write_bytes(pickle.dumps({"state_dict": {"a": content}} if wrap else content, protocol))
        return None

    return make


def _in_zip(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
    """A file of torch.save whose pickle is exchanged."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            code = pickle.dumps(Code(marker, chance.randrange(4)), 2)
            bad.writestr(name, code if name.endswith("/data.pkl") else good.read(name))
    return None


def _legacy(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
    torch.save({"state_dict": {"x": Code(marker, 0)}}, path, _use_new_zipfile_serialization=False)
    return None


def _script(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    return None


def _bomb(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, 2))
        file.writestr("archive/version", "3\n")
        with file.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(300):
                entry.write(bytes(1 << 20))
    return None


def _cut(ending: str, new: bool = True) -> Maker:
    def make(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
        if ending == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=new)
        os.truncate(path, chance.randrange(path.stat().st_size))
        return None

    return make


def _safetensors(header: dict | bytes, size: int | None = None, data: bytes = bytes(64)) -> Maker:
    def make(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
        content = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(content) if size is None else size) + content + data)
        return None

    return make


def _tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _good_file(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
    save_file(state, path)
    return state


def _special_file(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
    os.mkfifo(path)
    return None


def _folder(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
    path.mkdir()
    return None


def _content(content: bytes) -> Maker:
    def make(path: Path, state: State, chance: random.Random, marker: Path) -> State | None:
        path.write_bytes(content)
        return None

    return make


def _quantized(value: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(value, 0.01, 0, torch.qint8)


def _nested(value: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([value, value])


# What it is: the name of its file, and the function that writes it.
ATTACKS: dict[str, tuple[str, Maker]] = {
    "good file": ("x.pt", _saved(lambda state, chance: state, right=True)),
    "NaN in a weight": ("x.pt", _saved(_value(float("nan")))),
    "infinity in a weight": ("x.pt", _saved(_value(float("inf")))),
    "NaN in a running mean": ("x.pt", _saved(_value(float("nan"), "running_mean"))),
    "negative running variance": ("x.pt", _saved(_value(-5.0, "running_var"))),
    "complex": ("x.pt", _saved(_dtype(torch.complex64))),
    "integers": ("x.pt", _saved(_dtype(torch.int64))),
    "small integers": ("x.pt", _saved(_dtype(torch.int8))),
    "booleans": ("x.pt", _saved(_each(lambda value: value > 0))),
    "too large for float32": ("x.pt", _saved(_each(lambda value: value.double() * 1e300))),
    "half": ("x.pt", _saved(_dtype(torch.float16), right="cast")),
    "bfloat16": ("x.pt", _saved(_dtype(torch.bfloat16), right="cast")),
    "double": ("x.pt", _saved(_dtype(torch.float64), right="cast")),
    "sparse": ("x.pt", _saved(_matrices(lambda value: value.to_sparse()), right=True)),
    "sparse rows": ("x.pt", _saved(_matrices(lambda value: value.to_sparse_csr()), right=True)),
    "quantized": ("x.pt", _saved(_matrices(_quantized))),
    "meta": ("x.pt", _saved(_matrices(lambda value: value.to("meta")))),
    "nested": ("x.pt", _saved(_matrices(_nested))),
    "prefixed keys": ("x.pt", _saved(_prefixed, right=True)),
    "prefixed and plain keys": ("x.pt", _saved(_both)),
    "one prefixed key beside the plain one": ("x.pt", _saved(_some_both)),
    "two state dictionaries": ("x.pt", _saved(_two_dictionaries)),
    "missing key": ("x.pt", _saved(_missing)),
    "additional key": ("x.pt", _saved(lambda state, chance: {**state, "more": torch.zeros(3)})),
    "wrong shapes": ("x.pt", _saved(_matrices(lambda value: value.T.contiguous()))),
    "scalars": ("x.pt", _saved(_matrices(lambda value: torch.tensor(1.0)))),
    "keys that are numbers": ("x.pt", _saved(lambda state, chance: dict(enumerate(state.values())))),
    "list": ("x.pt", _saved(lambda state, chance: list(state.values()))),
    "empty dictionary": ("x.pt", _saved(lambda state, chance: {})),
    "deep dictionaries": ("x.pt", _saved(lambda state, chance: {"model": {"net": {"state_dict": {"model": state}}}})),
    "parameters with gradients": (
        "x.pt",
        _saved(lambda state, chance: _each(torch.nn.Parameter)(state, chance), right=True),
    ),
    "code by exec": ("x.pt", _pickled(0, 2)),
    "code by os.system": ("x.pth", _pickled(1, 2)),
    "code by eval": ("x.pt", _pickled(2, 4)),
    "code by open": ("x.pt", _pickled(3, 3)),
    "code, old protocol": ("x.pt", _pickled(0, 0)),
    "code in a dictionary": ("x.pt", _pickled(1, 2, wrap=True)),
    "code named safetensors": ("x.safetensors", _pickled(0, 2)),
    "code in an archive": ("x.pt", _in_zip),
    "code in a legacy file": ("x.pt", _legacy),
    "TorchScript": ("x.pt", _script),
    "zip bomb": ("x.pt", _bomb),
    "truncated archive": ("x.pt", _cut("pt")),
    "truncated legacy file": ("x.pt", _cut("pt", new=False)),
    "truncated safetensors": ("x.safetensors", _cut("safetensors")),
    "good safetensors": ("x.safetensors", _good_file),
    "safetensors, huge header": ("x.safetensors", _safetensors({}, size=1 << 62)),
    "safetensors, overlapping tensors": (
        "x.safetensors",
        _safetensors({"a": _tensor(0, 64, [16]), "b": _tensor(0, 64, [16])}),
    ),
    "safetensors, overflowing shape": ("x.safetensors", _safetensors({"a": _tensor(0, 64, [1 << 32, 1 << 32, 16])})),
    "safetensors, offsets beyond the end": ("x.safetensors", _safetensors({"a": _tensor(0, 1 << 40, [1 << 38])})),
    "safetensors, unknown type": ("x.safetensors", _safetensors({"a": _tensor(0, 64, [16], "Q99")})),
    "safetensors, header in Latin-1": ("x.safetensors", _safetensors(b'{"\xe9":{}}')),
    "safetensors, deep header": ("x.safetensors", _safetensors(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}")),
    "FIFO": ("x.pt", _special_file),
    "folder": ("x.pt", _folder),
    "empty file": ("x.pt", _content(b"")),
    "empty safetensors": ("x.safetensors", _content(b"")),
    "a web page": ("x.pth", _content(b"<!DOCTYPE html><html>404</html>")),
    "deep pickle": ("x.pt", _content(b"\x80\x02" + b"(" * 200000 + b".")),
    "pickle that asks for memory": ("x.pt", _content(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.")),
}


def attempt(world: World, number: int, seed: int) -> tuple[str, Ending]:
    """Read a hostile file of weights as the workflow does, and compare what it makes of it."""
    chance, name = generator(seed, "weights", number), list(ATTACKS)[number % len(ATTACKS)]
    with world.attempt() as folder:
        ending, make = ATTACKS[name]
        marker = folder / "code-ran"
        right = make(folder / ending, _state(), chance, marker)
        marker.unlink(missing_ok=True)
        expected = None if right is None else digest(right)
        answer = commands.call(lambda: _fetched(folder, ending), folder)
        said = "module." if "prefixed key beside" in name or "prefixed and plain" in name else None
        return name, commands.judge(answer, expected, marker, word=said)


def _state() -> State:
    from seam.models.architectures import build_model

    torch.manual_seed(0)
    return {name: value.detach().clone() for name, value in build_model(ARCHITECTURE, 4).state_dict().items()}


def _fetched(folder: Path, name: str) -> str:
    from safetensors.torch import load_file

    from seam.models.published import fetch_weights

    path = folder / "source.safetensors"
    fetch_weights(ARCHITECTURE, str(folder / name), "imagefolder", [CLASSES], path, NORMALIZATION)
    return digest(load_file(path))


def digest(state: State) -> str:
    """Return a digest of a state dictionary."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.detach().numpy().tobytes())
    return found.hexdigest()
