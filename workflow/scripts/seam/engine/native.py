"""Loads the compiled kernels, compiling them if nobody has, and calls them."""

import contextlib
import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from seam.engine.compiler import BUILT, FLAGS_VARIABLE, InstructionSet, build, file_name, instruction_set, is_whole
from seam.engine.errors import EngineError
from seam.engine.tiling import Machine

CACHE_VARIABLE = "SEAM_ENGINE_CACHE"

(PACK, UNPACK, CONVOLVE, POOL_MAX, POOL_AVERAGE, POOL_GLOBAL, ACTIVATE, ADD, MULTIPLY) = range(9)
ACTIVATIONS = {"clip": 0, "sigmoid": 1, "silu": 2, "hard_sigmoid": 3, "hard_swish": 4, "leaky": 5}


class Map(ctypes.Structure):
    """As in seam.h."""

    _fields_ = [("start", ctypes.c_int64), ("row", ctypes.c_int32), ("plane", ctypes.c_int32)]


class Picture(ctypes.Structure):
    """As in seam.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ("images", "grid_y", "grid_x", "height", "width")]


class Op(ctypes.Structure):
    """As in seam.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "channels", "height", "width", "step_y", "step_x")),
        *((name, Map) for name in ("out", "in_", "other")),
        ("other_step", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("low", "high", "alpha", "beta", "fill")),
        *((name, ctypes.c_int32) for name in ("outputs", "groups", "parts", "taps")),
        *((name, ctypes.c_void_p) for name in ("first", "offset", "value", "bias", "scale")),
        ("blocks", ctypes.c_int32),
        ("borders", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("block", "border", "lanes")),
        ("picture", Picture),
    ]


class Stage(ctypes.Structure):
    """As in seam.h."""

    _fields_ = [
        ("ops", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("images", ctypes.c_int32),
        ("input", ctypes.c_int64),
        ("output", ctypes.c_int64),
        ("buffer", ctypes.c_int64),
    ]


class Library:
    """The compiled kernels for one instruction set."""

    def __init__(self, path: Path, instructions: InstructionSet):
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineError(f"Cannot load the compiled kernels {path}: {error}.") from error
        self.path, self.instructions = path, instructions
        self.set_runner = library.seam_set_runner
        self.set_runner.restype, self.set_runner.argtypes = None, [ctypes.c_void_p]
        self.pool_new = library.seam_pool_new
        self.pool_new.restype, self.pool_new.argtypes = ctypes.c_void_p, [ctypes.c_int]
        self.pool_delete = library.seam_pool_delete
        self.pool_delete.restype, self.pool_delete.argtypes = None, [ctypes.c_void_p]
        self.run = library.seam_run
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.run.restype = None
        self.run.argtypes = [pointer, pointer, number, number, pointer, ctypes.c_int64, pointer, pointer, pointer]
        shapes = []
        shape = np.zeros(4, np.int32)
        if library.seam_sizes(0) != ctypes.sizeof(Op) or library.seam_sizes(1) != ctypes.sizeof(Stage):
            raise EngineError(f"The compiled kernels {path} belong to another version: delete that file.")
        while library.seam_kernel(len(shapes), shape.ctypes.data_as(pointer)):
            shapes.append(tuple(map(int, shape)))
        self.machine = Machine(
            instructions.lanes,
            _cache_bytes(0, 32 << 10),
            _cache_bytes(2, 512 << 10),
            tuple(shapes),
            instructions.registers,
        )


@functools.lru_cache
def library(name: str | None = None) -> Library:
    """Return the kernels for the best (or named) instruction set, compiled now if that has not been done.

    Raises EngineError if there is no compiler or it fails.
    """
    instructions = instruction_set(name)
    extra = tuple(os.environ.get(FLAGS_VARIABLE, "").split())
    built = BUILT / file_name(instructions)
    if not extra and built.exists():
        return Library(built, instructions)
    folder = cache_folder()
    try:
        path = folder.resolve() / file_name(instructions, extra)  # without a folder, the system would look elsewhere
        if path.exists() and is_whole(path):
            with contextlib.suppress(EngineError):  # a damaged file is compiled anew
                return Library(path, instructions)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineError(
            f"The folder {folder} for compiled kernels cannot be read ({reason}): set {CACHE_VARIABLE} to another."
        ) from error
    build(instructions, path, extra)
    return Library(path, instructions)


def cache_folder() -> Path:
    """Return where compiled kernels are kept: $SEAM_ENGINE_CACHE, or a folder in the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "seam-engine"
    except RuntimeError as error:
        raise EngineError(f"There is no folder for compiled kernels: set {CACHE_VARIABLE} to one.") from error


def _cache_bytes(index: int, default: int) -> int:
    """Return the size of a cache of the first processor (Linux: 0 data of the first level, 2 the second level)."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text().strip()
        size = int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return default
    return size if default // 4 <= size <= default * 64 else default
