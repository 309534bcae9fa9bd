"""Compiles the kernels: for which instruction sets, by which compiler, and under which name.

Needs the standard library only, so that the package's own build can use it.
"""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from seam.engine.errors import EngineError

KERNELS = Path(__file__).parent / "kernels"
BUILT = Path(__file__).parent / "built"  # libraries that an installation brings along
FLAGS_VARIABLE = "SEAM_ENGINE_CFLAGS"  # further flags of the compiler, such as -fsanitize=address
COMPILER_SECONDS = 300
SEAL_BYTES = 32  # of the SHA-256 at the end of a library

# -ffp-contract=fast: a product and a sum become one multiply-add, in the order in which the code has them.
MATH_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast")
_FLAGS = (*MATH_FLAGS, "-fPIC", "-shared", "-fvisibility=default")


@dataclass(frozen=True)
class InstructionSet:
    """A set of vector instructions: floats per vector, registers, and the flags that make a compiler use it."""

    name: str
    lanes: int
    registers: int
    flags: tuple[str, ...]
    needs: frozenset[str]  # of the processor's flags as Linux names them
    machines: frozenset[str] = frozenset()  # as `platform.machine` names them; none: any


_X86 = frozenset(("x86_64", "AMD64"))
_ARM = frozenset(("aarch64", "arm64"))

INSTRUCTION_SETS = (
    InstructionSet(
        "avx512",
        16,
        32,
        ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
        frozenset(("avx512f", "avx512vl", "avx512dq", "avx512bw", "fma")),
        _X86,
    ),
    InstructionSet("avx2", 8, 16, ("-mavx2", "-mfma"), frozenset(("avx2", "fma")), _X86),
    InstructionSet("neon", 4, 32, (), frozenset(("asimd",)), _ARM),
    InstructionSet("portable", 4, 16, (), frozenset()),
)


def instruction_set(name: str | None = None) -> InstructionSet:
    """Return the best instruction set of this machine, or the one of that name if the machine has it."""
    flags = processor_flags()
    usable = [s for s in INSTRUCTION_SETS if s.needs <= flags]
    if name is None:
        return usable[0]
    for candidate in usable:
        if candidate.name == name:
            return candidate
    raise EngineError(f"This machine does not have the instruction set {name!r}: take {[s.name for s in usable]}.")


@functools.lru_cache
def processor_flags() -> frozenset[str]:
    """Return the names of what the processor can do."""
    if platform.machine() in _ARM:
        return frozenset(("asimd",))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def find_compiler() -> list[str]:
    """Return the command of the C compiler: $CC, which may have arguments, or the first of cc, gcc and clang.

    Raises EngineError if there is none.
    """
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:  # such as a quotation that does not end
        raise EngineError(f"CC is {os.environ['CC']!r}, which is no command ({error}): correct it.") from error
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    raise EngineError("There is no C compiler: install gcc or clang, or set CC to one.")


def file_name(instructions: InstructionSet, extra: tuple[str, ...] = ()) -> str:
    """Return a name that changes with the sources, the flags and the kind of machine.

    A library of other sources therefore has another name, and is never loaded.
    """
    digest = hashlib.sha256()
    for source in sorted(KERNELS.iterdir()):
        if source.suffix in (".c", ".h"):
            digest.update(source.read_bytes())
    settings = (_FLAGS, instructions.name, instructions.lanes, instructions.flags, extra)
    digest.update(repr((*settings, platform.system(), platform.machine())).encode())
    return f"{instructions.name}-{digest.hexdigest()[:16]}.so"


def build(instructions: InstructionSet, path: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile the kernels for an instruction set into the shared library `path`.

    The library appears under its name only when it is complete. Raises EngineError if there is no compiler or it
    fails.
    """
    compiler = find_compiler()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            target = Path(folder) / path.name
            sources = [str(KERNELS / name) for name in ("kernels.c", "runtime.c", "onnxruntime.c")]
            flags = [*_FLAGS, f"-DLANES={instructions.lanes}", *instructions.flags, *extra]
            command = [*compiler, *flags, "-o", str(target), *sources, "-lpthread", "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_SECONDS)
            if done.returncode:
                reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
                raise EngineError(f"The C compiler {compiler[0]} cannot compile the kernels: {reason}")
            _seal(target)
            os.replace(target, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"Cannot compile the kernels into {path.parent}: {error}.") from error


def _seal(path: Path) -> None:
    """Append the SHA-256 of a library to it, which the system's loader ignores, and let the disk store it."""
    with open(path, "r+b") as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def is_whole(path: Path) -> bool:
    """Return whether a library is as `build` made it: code that a power cut has damaged would end the process."""
    content = path.read_bytes()
    return hashlib.sha256(content[:-SEAL_BYTES]).digest() == content[-SEAL_BYTES:]


def build_all(folder: Path = BUILT) -> list[Path]:
    """Compile the kernels for every instruction set of this kind of machine and return the libraries.

    Raises EngineError if one fails.
    """
    libraries = []
    for instructions in INSTRUCTION_SETS:
        if not instructions.machines or platform.machine() in instructions.machines:
            libraries.append(folder / file_name(instructions))
            build(instructions, libraries[-1])
    return libraries
