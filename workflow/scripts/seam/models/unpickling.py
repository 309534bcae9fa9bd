"""The tensors in a torch checkpoint that holds other objects, too, read without running any code of the file.

`torch.load(weights_only=True)` refuses a file with an object of an unknown class: Lightning's checkpoints have such
hyper-parameters, torchvision's reference scripts an `argparse.Namespace`, and `torch.save(model)` the module itself.
This unpickler makes an inert `Placeholder` of every object that it does not know. It imports no module, calls no
function that a file names, and builds the tensors from the archive's bytes itself.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from seam.errors import UserError

if TYPE_CHECKING:
    import torch

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "UntypedStorage": "uint8",
}  # fmt: skip
EXPORTED = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64"}
EXPORTED |= {12: "bool", 13: "bfloat16"}  # ScalarType of torch.export's archives
MOST_DIMENSIONS = 64  # torch's own limit
LEGACY_PICKLES = 5  # at the start of a file that torch.save wrote before 1.6
MOST_NESTED = 4  # tuples in each other, as a key


_PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore  # Python's own, of which each operation is a method


class Placeholder:
    """An object whose class is not known: its name, its arguments and its state. It does nothing."""

    def __init__(self, name: str, arguments: tuple = ()) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Global:
    """A class or function that a file names. It is not imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Storage:
    """The bytes of a storage in the archive, as a flat tensor."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is an archive that `read_archive` may read."""
    return zipfile.is_zipfile(path)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a program that `torch.export.save` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/model_weights_config.json") for name in archive.namelist())


def require_harmless(path: str | os.PathLike[str]) -> None:
    """Raise UserError if a torch checkpoint could fill the memory or take years to read.

    torch.load unpacks compressed parts, a thousand times the file's size, reads the same bytes under many names, and
    computes the hash of any key. torch.save writes no such files.
    """
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        else:
            with open(path, "rb") as file:
                for _ in range(LEGACY_PICKLES):
                    _KeyCheck(file).load()
    except UserError:
        raise
    except _NestedKeys as error:
        raise UserError(f"{path} has keys of deeply nested tuples: save the state_dict() alone.") from error
    except Exception:  # whatever is wrong with it, torch.load says so
        return


def _check_archive(path: str | os.PathLike[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise UserError(f"{path} is compressed, which torch's own files are not: save the state_dict() again.")
        if sum(part.file_size for part in parts) > os.path.getsize(path):
            raise UserError(f"{path} has parts that overlap, which torch's own files have not: copy it again.")
        for part in parts:
            if part.filename.endswith(".pkl"):
                _KeyCheck(io.BytesIO(archive.read(part))).load()


def read_archive(path: str | os.PathLike[str]) -> Any:
    """Return the content of a file that `torch.save` or `torch.export.save` wrote, with placeholders.

    `require_harmless` must have checked it.
    Raises pickle.UnpicklingError for TorchScript and for content that torch does not write; the errors of `zipfile` and
    OSError for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if weights := [name for name in names if name.endswith("/model_weights_config.json")]:
            return _exported_weights(archive, weights[0])
        if any(name.endswith("/constants.pkl") for name in names):
            raise pickle.UnpicklingError("it is TorchScript")
        pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("its bytes are in another order than this machine's")
        try:
            return _Unpickler(
                io.BytesIO(archive.read(pickles[0])), lambda key: archive.read(f"{folder}data/{key}")
            ).load()
        except (struct.error, OverflowError, RecursionError, MemoryError) as error:
            raise pickle.UnpicklingError("its pickle is damaged") from error


def module_state(content: Any) -> dict[str, torch.Tensor] | None:
    """Return the state dictionary of a pickled module, from the attributes of its placeholder; None if it is none."""
    import torch

    state: dict[str, torch.Tensor] = {}
    waiting, visited = [("", content)], set()
    while waiting:
        prefix, module = waiting.pop()
        attributes = getattr(module, "state", None)
        if not isinstance(module, Placeholder) or not isinstance(attributes, dict) or id(module) in visited:
            continue
        visited.add(id(module))
        left_out = attributes.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            values = attributes.get(kind)
            for name, value in values.items() if isinstance(values, dict) else ():
                is_state = isinstance(name, str) and isinstance(value, torch.Tensor)
                if is_state and not (kind == "_buffers" and isinstance(left_out, set) and name in left_out):
                    state[f"{prefix}{name}"] = value
        modules = attributes.get("_modules")
        for name, child in modules.items() if isinstance(modules, dict) else ():
            if isinstance(name, str):
                waiting.append((f"{prefix}{name}.", child))
    return state or None


def _exported_weights(archive: zipfile.ZipFile, name: str) -> dict[str, torch.Tensor]:
    """Return the weights in an archive of torch.export, of which neither the program nor a pickle is read."""
    folder, state = name.rpartition("/")[0], {}
    for key, entry in json.loads(archive.read(name))["config"].items():
        if entry["use_pickle"]:
            raise pickle.UnpicklingError("its weights are pickled")
        meta = entry["tensor_meta"]
        size, stride = ([number["as_int"] for number in meta[part]] for part in ("sizes", "strides"))
        values = _flat(archive.read(f"{folder}/{entry['path_name']}"), EXPORTED.get(meta["dtype"]))
        state[key] = _rebuild(_Storage(values), meta["storage_offset"]["as_int"], size, stride)
    return state


def _flat(content: bytes, dtype: str | None) -> torch.Tensor:
    import torch

    if dtype is None:
        raise pickle.UnpicklingError("it has numbers of an unknown type")
    kind = getattr(torch, dtype)
    return torch.frombuffer(bytearray(content), dtype=kind) if content else torch.empty(0, dtype=kind)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """Return a tensor over a storage, of which it is a part."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
        raise pickle.UnpicklingError("it has a tensor without a storage")
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError("it has a tensor whose strides do not fit its shape")
    if 0 not in size:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage.values):
            raise pickle.UnpicklingError("it has a tensor that is larger than its storage")
    return storage.values.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered(items: Any = ()) -> OrderedDict:
    return OrderedDict((key, value) for key, value in items if _is_key(key))


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    return codecs.latin_1_encode(text)[0] if isinstance(text, str) else b""


# What a file may call: names to functions of this module. Everything else becomes a placeholder.
KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _encoded,
    "torch.Size": lambda items=(): tuple(items),
    "builtins.set": lambda items=(): {item for item in items if _is_key(item)},
    "__builtin__.set": lambda items=(): {item for item in items if _is_key(item)},
}


class _NestedKeys(pickle.UnpicklingError):
    """A key whose hash could take years."""


def _is_key(value: Any, depth: int = 0) -> bool:
    """Return whether a value can be a key here. Raises _NestedKeys for tuples in tuples in tuples ...

    The hash of 60 tuples, each of which holds the one before twice, takes years.
    """
    if not isinstance(value, tuple):
        return isinstance(value, (str, int, float, bytes, type(None)))
    if depth == MOST_NESTED:
        raise _NestedKeys("it has keys of deeply nested tuples")
    return all(_is_key(part, depth + 1) for part in value)


class _Unpickler(_PythonUnpickler):
    """Python's unpickler with the operations that call something replaced by harmless ones."""

    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: IO[bytes], read: Callable[[str], bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.read_storage, self.storages = read, {}

    def find_class(self, module: str, name: str) -> Any:
        return _Global(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.append(_Global("copyreg.extension"))

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], _Global):
            raise pickle.UnpicklingError("it has a reference to something other than a storage")
        key = str(pid[2])
        if key not in self.storages:
            self.storages[key] = _Storage(_flat(self.read_storage(key), STORAGES.get(pid[1].name.rpartition(".")[2])))
        return self.storages[key]

    def call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, (_Global, Placeholder)) else type(function).__name__
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it has a call without arguments")
        if isinstance(function, _Global) and name in KNOWN:
            return KNOWN[name](*arguments)
        return Placeholder(name, arguments)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self.call(function, arguments))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_reduce()

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii", "replace") for _ in range(2))
        self.append(self.call(_Global(f"{module}.{name}"), tuple(self.pop_mark())))

    def load_obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(self.call(function, tuple(arguments)))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Placeholder):
            target.state = state

    def load_appends(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is list:
            target.extend(items)

    def load_append(self) -> None:
        item, target = self.stack.pop(), self.stack[-1]
        if type(target) is list:
            target.append(item)

    def load_setitems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(target, key, value)

    def load_setitem(self) -> None:
        value, key, target = self.stack.pop(), self.stack.pop(), self.stack[-1]
        self._set(target, key, value)

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is set:
            target.update(item for item in items if _is_key(item))

    def load_frozenset(self) -> None:
        self.append(frozenset(item for item in self.pop_mark() if _is_key(item)))

    @staticmethod
    def _set(target: Any, key: Any, value: Any) -> None:
        if type(target) in (dict, OrderedDict) and _is_key(key):
            target[key] = value

    for operation, method in (
        (pickle.REDUCE, load_reduce), (pickle.NEWOBJ, load_reduce), (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.INST, load_inst), (pickle.OBJ, load_obj), (pickle.BUILD, load_build),
        (pickle.APPEND, load_append), (pickle.APPENDS, load_appends), (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems), (pickle.ADDITEMS, load_additems), (pickle.FROZENSET, load_frozenset),
    ):  # fmt: skip
        dispatch[operation[0]] = method
    del operation, method


class _KeyCheck(_Unpickler):
    """Reads a pickle without its tensors, to look at the keys of its dictionaries and sets."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, lambda key: b"")

    def persistent_load(self, pid: Any) -> Any:
        return Placeholder("storage")

    def call(self, function: Any, arguments: Any) -> Any:
        name = getattr(function, "name", "")
        if name in ("collections.OrderedDict", "builtins.set", "__builtin__.set") and arguments:
            return KNOWN[name](*arguments)
        return Placeholder(name)
