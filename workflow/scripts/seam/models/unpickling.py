"""Files of `torch.save` and `torch.export.save`, read without running any code of theirs: weights and checkpoints.

`torch.load(weights_only=True)` runs no code either. But it refuses a file with an object of an unknown class:
Lightning's checkpoints have such hyper-parameters, torchvision's reference scripts an `argparse.Namespace`, and
`torch.save(model)` the module itself. It unpacks compressed parts, a thousand times the file's size. It computes the
hash of any key, which can take years, and it ignores the archive's checksums.

This reader makes an inert `Placeholder` of every object that it does not know. It imports no module, calls no function
that a file names, and builds the tensors from the file's bytes itself.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any

from seam.errors import UserError
from seam.files import open_file

if TYPE_CHECKING:
    import torch

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "UntypedStorage": "uint8", "QInt8Storage": "int8", "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}  # fmt: skip
# Types that torch saves as bytes, and names where it needs them.
BYTE_TYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
BYTE_TYPES += ("uint16", "uint32", "uint64")
EXPORTED = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64"}
EXPORTED |= {12: "bool", 13: "bfloat16"}  # ScalarType of torch.export's archives
MOST_DIMENSIONS = 64  # torch's own limit
MOST_REPEATED = 1 << 24  # numbers of a tensor that is larger than what it is stored in
MOST_REPEATS = 10  # how often, on average, each byte of a pickle may be looked at as a part of keys and lists
MOST_PARTS = 10_000_000  # the same in all
LARGEST_KEY = 1 << 60  # larger integers can be chosen such that all have the same hash
MOST_NUMBERED = 30_000  # parts of keys that are tuples with numbers, which can be chosen in the same way
MOST_NESTED = 1000  # tuples within tuples of a key
MOST_NAME = 1000  # characters of a tensor's name
MOST_WORK = 100_000_000  # of a search for weights, in characters of names
ENTRY_WORK = 100  # of an entry of a dictionary beside its name
LEGACY = 0x1950A86A20F9469CFC6C, 1001  # the numbers at the start of a file that torch.save wrote before 1.6
DAMAGED = (
    *(struct.error, OverflowError, RecursionError, MemoryError, EOFError, LookupError, TypeError, ValueError),
    *(AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error),
)


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


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Any, bool]:
    """Return the content of a file that `torch.save` or `torch.export.save` wrote, and whether it has placeholders.

    Raises pickle.UnpicklingError, with the reason, for a file that is damaged, of another kind or TorchScript; OSError
    if it cannot be opened; UserError for an archive that could fill the memory, and for keys that would take years to
    hash. torch writes no such files.
    """
    try:
        with open_file(path) as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return _read_legacy(file, os.path.getsize(path))
            with zipfile.ZipFile(file) as archive:
                _check_parts(archive, path)
                return _read_archive(archive)
    except _TooManyParts as error:
        raise UserError(f"{path} {error}: save the state_dict() alone.") from error
    except DAMAGED as error:
        raise pickle.UnpicklingError("it is damaged") from error


def _check_parts(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> None:
    parts = archive.infolist()
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise pickle.UnpicklingError("it is TorchScript")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise UserError(f"{path} is compressed, which torch's own files are not: save the state_dict() again.")
    if sum(part.file_size for part in parts) > os.path.getsize(path):
        raise UserError(f"{path} has parts that overlap, which torch's own files have not: copy it again.")


def _read_archive(archive: zipfile.ZipFile) -> tuple[Any, bool]:
    names = archive.namelist()
    if weights := [name for name in names if name.endswith("/model_weights_config.json")]:
        return _exported_weights(archive, weights[0]), False
    pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("it has no data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise pickle.UnpicklingError("its bytes are in another order than this machine's")
    content = archive.read(pickles[0])

    def read_storage(key: str, dtype: str, count: int) -> torch.Tensor:
        return _flat(bytearray(archive.read(f"{folder}data/{key}")), dtype)

    unpickler = _Unpickler(io.BytesIO(content), read_storage, len(content))
    return unpickler.load(), unpickler.has_placeholders


def _read_legacy(file: IO[bytes], size: int) -> tuple[Any, bool]:
    """Return the content of a file as torch.save wrote it before 1.6: pickles, and then the storages' bytes."""
    for number in LEGACY:
        if _Unpickler(file, _no_storage, size).load() != number:
            raise pickle.UnpicklingError("it is a bare pickle")
    _Unpickler(file, _no_storage, size).load()  # facts about the machine
    buffers: dict[str, tuple[bytearray, int]] = {}
    left = size

    def make_storage(key: str, dtype: str, count: int) -> torch.Tensor:
        import torch

        nonlocal left
        width = getattr(torch, dtype).itemsize
        if count < 0 or count * width > left:
            raise pickle.UnpicklingError("it has a storage that is larger than the file")
        left -= count * width
        buffers[key] = bytearray(count * width), count
        return _flat(buffers[key][0], dtype)

    unpickler = _Unpickler(file, make_storage, size)
    content = unpickler.load()
    keys = _Unpickler(file, _no_storage, size).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(buffers):
        raise pickle.UnpicklingError("it lacks storages")
    for key in keys:
        buffer, count = buffers[key]
        if file.read(8) != struct.pack("<q", count) or file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it is damaged")
    return content, unpickler.has_placeholders


class Work:
    """Counts the entries of dictionaries in a file that are looked at: the same one can be there many times."""

    def __init__(self, origin: str | os.PathLike[str]) -> None:
        """origin: the file, as a sentence names it."""
        self.origin, self.left = origin, MOST_WORK

    def add(self, dictionary: Mapping[Any, Any], prefix: str = "") -> None:
        """Raise UserError if the names in a dictionary behind their prefix are too long, or too many by now.

        Names count if they are those of tensors or modules.
        """
        import torch

        self.left -= (ENTRY_WORK + len(prefix)) * len(dictionary)
        if self.left < 0:
            raise UserError(f"{self.origin} repeats parts of itself too often: save the state_dict() alone.")
        for name, value in dictionary.items():
            if isinstance(name, str) and isinstance(value, (torch.Tensor, Placeholder)):
                length = len(prefix) + len(name)
                self.left -= len(name)
                if length > MOST_NAME:
                    raise UserError(
                        f"{self.origin} has a name of {length:,} characters, {(prefix + name[:40])[:40]}...: save the "
                        "state_dict() of the model alone, with shorter names."
                    )


def module_state(content: Any, work: Work) -> dict[str, torch.Tensor] | None:
    """Return the state dictionary of a pickled module, from the attributes of its placeholder; None if it is none.

    Raises UserError if that is too much `work`.
    """
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
        parameters, buffers, modules = (
            value if isinstance(value := attributes.get(key), dict) else {}
            for key in ("_parameters", "_buffers", "_modules")
        )
        for part in (parameters, buffers, modules):
            work.add(part, prefix)
        for values in (parameters, buffers):
            for name, value in values.items():
                is_state = isinstance(name, str) and isinstance(value, torch.Tensor)
                if is_state and not (values is buffers and isinstance(left_out, set) and name in left_out):
                    state[f"{prefix}{name}"] = value
        for name, child in modules.items():
            if isinstance(name, str):
                waiting.append((f"{prefix}{name}.", child))
    return state or None


def _exported_weights(archive: zipfile.ZipFile, name: str) -> dict[str, torch.Tensor]:
    """Return the weights in an archive of torch.export, of which neither the program nor a pickle is read."""
    folder, state, storages = name.rpartition("/")[0], {}, {}
    for key, entry in json.loads(archive.read(name))["config"].items():
        if entry["use_pickle"]:
            raise pickle.UnpicklingError("its weights are pickled")
        meta = entry["tensor_meta"]
        size, stride = ([number["as_int"] for number in meta[part]] for part in ("sizes", "strides"))
        part, dtype = f"{folder}/{entry['path_name']}", EXPORTED.get(meta["dtype"])
        if (part, dtype) not in storages:
            storages[part, dtype] = _Storage(_flat(bytearray(archive.read(part)), dtype))
        state[key] = _rebuild(storages[part, dtype], meta["storage_offset"]["as_int"], size, stride)
    return state


def _flat(content: bytearray, dtype: str | None) -> torch.Tensor:
    """Return the numbers in a buffer as a flat tensor that shares its memory."""
    import torch

    if dtype is None:
        raise pickle.UnpicklingError("it has numbers of an unknown type")
    kind = getattr(torch, dtype)
    return torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)


def _no_storage(key: str, dtype: str, count: int) -> torch.Tensor:
    raise pickle.UnpicklingError("it has a storage in the wrong place")


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, _: Any = False, __: Any = None, metadata: Any = None):
    """Return a tensor over a storage, of which it is a part."""
    if metadata:
        return _unusual("conjugated")
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError("it has a tensor whose strides do not fit its shape")
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
        raise pickle.UnpicklingError("it has a tensor without a storage")
    if 0 not in size:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage.values):
            raise pickle.UnpicklingError("it has a tensor that is larger than its storage")
        if math.prod(size) > max(MOST_REPEATED, len(storage.values)):  # strides of 0 repeat numbers without an end
            return _unusual("expanded")
    return storage.values.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_bytes(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, metadata: Any = None
):
    """Return a tensor of a type that torch saves as bytes."""
    import torch

    name = dtype.name.removeprefix("torch.") if isinstance(dtype, _Global) else ""
    if name not in BYTE_TYPES or not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it has numbers of an unknown type")
    return _rebuild(_Storage(storage.values.view(getattr(torch, name))), offset, size, stride, metadata=metadata)


def _unusual(kind: str) -> torch.Tensor:
    """Return an empty tensor in the place of one that is no plain array; its attribute `unusual` says what it is."""
    import torch

    tensor = torch.empty(0)
    tensor.unusual = kind  # type: ignore[attr-defined]
    return tensor


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    return codecs.latin_1_encode(text)[0] if isinstance(text, str) else b""


# What a file may call: names to functions of this module, and containers. Everything else becomes a placeholder.
KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_sparse_tensor": lambda *_: _unusual("sparse"),
    "torch._utils._rebuild_qtensor": lambda *_: _unusual("quantized"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: _unusual("meta"),
    "torch._utils._rebuild_nested_tensor": lambda *_: _unusual("nested"),
    "_codecs.encode": _encoded,
}
CONTAINERS = {"torch.Size": tuple, "collections.OrderedDict": OrderedDict, "builtins.set": set, "__builtin__.set": set}


def _is_long(number: Any) -> bool:
    return isinstance(number, int) and abs(number) > LARGEST_KEY


class _TooManyParts(pickle.UnpicklingError):
    """Parts that a file names again and again, so that their hash or their copies could take years."""


class _Unpickler(_PythonUnpickler):
    """Python's unpickler with the operations that call something replaced by harmless ones."""

    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: IO[bytes], storage: Callable[[str, str, int], torch.Tensor], size: int) -> None:
        """storage: returns the flat tensor of a key, a type and a number of values; size: the pickle's, at most."""
        super().__init__(file, encoding="utf-8", errors="replace")
        self.make_storage, self.storages, self.has_placeholders = storage, {}, False
        self.most_parts, self.most_numbered = min(MOST_REPEATS * size, MOST_PARTS), MOST_NUMBERED

    def find_class(self, module: str, name: str) -> Any:
        return _Global(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.append(_Global("copyreg.extension"))

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], _Global):
            return pid[1]  # a class and its source, in old files
        if (
            not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _Global))
            or not (isinstance(pid[2], str) and type(pid[4]) is int)
            or any(view is not None for view in pid[5:])
        ):
            raise pickle.UnpicklingError("it has a reference to something other than a storage")
        key, dtype = pid[2], STORAGES.get(pid[1].name.rpartition(".")[2])
        if dtype is None:
            raise pickle.UnpicklingError("it has numbers of an unknown type")
        if key not in self.storages:
            self.storages[key] = _Storage(self.make_storage(key, dtype, pid[4]))
        return self.storages[key]

    def call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, (_Global, Placeholder)) else type(function).__name__
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it has a call without arguments")
        if isinstance(function, _Global) and name == "torch._tensor._rebuild_from_type_v2" and len(arguments) == 4:
            return self.call(arguments[0], arguments[2])  # a tensor with attributes, which are left out
        if isinstance(function, _Global) and name in CONTAINERS:
            return self.container(CONTAINERS[name], *arguments)
        if isinstance(function, _Global) and name in KNOWN:
            self.count(sum(len(each) for each in arguments if isinstance(each, (str, list, tuple, dict, set))))
            return KNOWN[name](*arguments)
        self.has_placeholders = True
        return Placeholder(name, arguments)

    def container(self, kind: type, items: Any = ()) -> Any:
        """Return a tuple, a set or an OrderedDict of the items of a list or tuple.

        Nothing else is unfolded: a tensor of a single number can have the shape of billions.
        """
        if not isinstance(items, (list, tuple)):
            raise pickle.UnpicklingError("it has a container of something other than a list")
        self.count(len(items))
        if kind is tuple:
            return tuple(items)
        if kind is set:
            return {item for item in items if self.is_key(item)}
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in items):
            raise pickle.UnpicklingError("it has a dictionary of something other than pairs")
        return OrderedDict((key, value) for key, value in items if self.is_key(key))

    def count(self, parts: int) -> None:
        """Raise _TooManyParts if the file has named more parts than it has bytes, many times more.

        The hash of 60 tuples, each of which holds the one before twice, takes years.
        """
        self.most_parts -= parts
        if self.most_parts < 0:
            raise _TooManyParts("repeats parts of itself too often")

    def is_key(self, value: Any) -> bool:
        """Return whether a value can be a key here: a text, a number, None, or a tuple of those."""
        waiting, parts, has_number = [(value, 0)], 0, False
        while waiting:
            part, depth = waiting.pop()
            self.count(1)
            parts += 1
            has_number |= isinstance(part, (int, float))
            if isinstance(part, tuple):
                if depth == MOST_NESTED:  # Python's hash calls itself for each, without a limit
                    raise _TooManyParts("nests the tuples of a key too deep")
                self.count(len(part))
                waiting += [(inner, depth + 1) for inner in part]
            elif not isinstance(part, (str, int, float, bytes, type(None))) or _is_long(part):
                return False
        if has_number and isinstance(value, tuple):
            self.most_numbered -= parts
            if self.most_numbered < 0:
                raise _TooManyParts("has too many tuples of numbers as keys")
        return True

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
        elif type(target) is OrderedDict and isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]  # the versions of a module's layers

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
            target.update(item for item in items if self.is_key(item))

    def load_frozenset(self) -> None:
        self.append(frozenset(item for item in self.pop_mark() if self.is_key(item)))

    def load_bytearray(self) -> None:
        raise pickle.UnpicklingError("it has a bytearray, for which Python would allocate any size")

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(self.stack[-1], key, value)

    def _set(self, target: Any, key: Any, value: Any) -> None:
        if type(target) in (dict, OrderedDict) and self.is_key(key):
            target[key] = value

    for operation, method in (
        (pickle.REDUCE, load_reduce), (pickle.NEWOBJ, load_reduce), (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.INST, load_inst), (pickle.OBJ, load_obj), (pickle.BUILD, load_build),
        (pickle.APPEND, load_append), (pickle.APPENDS, load_appends), (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems), (pickle.ADDITEMS, load_additems), (pickle.FROZENSET, load_frozenset),
        (pickle.BYTEARRAY8, load_bytearray), (pickle.DICT, load_dict),
    ):  # fmt: skip
        dispatch[operation[0]] = method
    del operation, method
