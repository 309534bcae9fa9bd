"""Builds the kernels with the machine's C compiler, once, and calls them."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seam.engine.errors import EngineError
from seam.engine.tiling import Machine

KERNELS = Path(__file__).parent / "kernels"
BUILT = Path(__file__).parent / "built"  # libraries that an installation brings along
CACHE_VARIABLE = "SEAM_ENGINE_CACHE"
FLAGS_VARIABLE = "SEAM_ENGINE_CFLAGS"  # further flags of the compiler, such as -fsanitize=address
COMPILER_SECONDS = 300

(PACK, UNPACK, CONVOLVE, POOL_MAX, POOL_AVERAGE, POOL_GLOBAL, ACTIVATE, ADD, MULTIPLY) = range(9)
ACTIVATIONS = {"clip": 0, "sigmoid": 1, "silu": 2, "hard_sigmoid": 3, "hard_swish": 4, "leaky": 5}


@dataclass(frozen=True)
class InstructionSet:
    """A set of vector instructions: floats per vector, registers, and the flags that make a compiler use it."""

    name: str
    lanes: int
    registers: int
    flags: tuple[str, ...]
    needs: frozenset[str]  # of the processor's flags as Linux names them


INSTRUCTION_SETS = (
    InstructionSet(
        "avx512",
        16,
        32,
        ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
        frozenset(("avx512f", "avx512vl", "avx512dq", "avx512bw", "fma")),
    ),
    InstructionSet("avx2", 8, 16, ("-mavx2", "-mfma"), frozenset(("avx2", "fma"))),
    InstructionSet("neon", 4, 32, (), frozenset(("asimd",))),
    InstructionSet("portable", 4, 16, (), frozenset()),
)


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
        self.instructions = instructions
        self.pool_new = library.seam_pool_new
        self.pool_new.restype, self.pool_new.argtypes = ctypes.c_void_p, [ctypes.c_int]
        self.pool_delete = library.seam_pool_delete
        self.pool_delete.restype, self.pool_delete.argtypes = None, [ctypes.c_void_p]
        self.run = library.seam_run
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.run.restype = None
        self.run.argtypes = [pointer, pointer, number, number, pointer, ctypes.c_int64, pointer, pointer, pointer]
        self.time = library.seam_time
        self.time.restype, self.time.argtypes = None, [pointer, pointer, pointer, number, pointer]
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


def instruction_set(name: str | None = None) -> InstructionSet:
    """Return the best instruction set of this machine, or the one of that name if the machine has it."""
    flags = _processor_flags()
    usable = [s for s in INSTRUCTION_SETS if s.needs <= flags]
    if name is None:
        return usable[0]
    for candidate in usable:
        if candidate.name == name:
            return candidate
    raise EngineError(f"This machine does not have the instruction set {name!r}: take {[s.name for s in usable]}.")


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
    path = cache_folder() / file_name(instructions, extra)
    if not path.exists():
        build(instructions, path, extra)
    return Library(path, instructions)


def build(instructions: InstructionSet, path: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile the kernels for an instruction set into the shared library `path`.

    The library appears under its name only when it is complete. Raises EngineError if there is no compiler or it
    fails.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        raise EngineError("There is no C compiler: install gcc or clang, or set CC to one.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            target = Path(folder) / path.name
            sources = [str(KERNELS / "kernels.c"), str(KERNELS / "runtime.c")]
            flags = [*_FLAGS, f"-DLANES={instructions.lanes}", *instructions.flags, *extra]
            command = [compiler, *flags, "-o", str(target), *sources, "-lpthread", "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_SECONDS)
            if done.returncode:
                reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
                raise EngineError(f"The C compiler {compiler} cannot compile the kernels: {reason}")
            os.replace(target, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"Cannot compile the kernels into {path.parent}: {error}.") from error


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


_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=fast", "-fvisibility=default")


def file_name(instructions: InstructionSet, extra: tuple[str, ...] = ()) -> str:
    """Return a name that changes with the sources, the flags and the kind of machine."""
    digest = hashlib.sha256()
    for source in sorted(KERNELS.iterdir()):
        if source.suffix in (".c", ".h"):
            digest.update(source.read_bytes())
    digest.update(repr((_FLAGS, instructions, extra, platform.system(), platform.machine())).encode())
    return f"{instructions.name}-{digest.hexdigest()[:16]}.so"


@functools.lru_cache
def _processor_flags() -> frozenset[str]:
    if platform.machine() in ("aarch64", "arm64"):
        return frozenset(("asimd",))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def _cache_bytes(index: int, default: int) -> int:
    """Return the size of a cache of the first processor (Linux: 0 data of the first level, 2 the second level)."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text().strip()
        size = int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return default
    return size if default // 4 <= size <= default * 64 else default
