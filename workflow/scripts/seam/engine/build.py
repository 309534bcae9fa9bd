"""Compiles the kernels for every instruction set of this kind of machine, to be shipped with a package.

python -m seam.engine.build [FOLDER]

The libraries go into FOLDER, by default beside this file, where `load` finds them and needs no compiler.
"""

import platform
import sys
from pathlib import Path

from seam.engine.errors import EngineError
from seam.engine.native import BUILT, INSTRUCTION_SETS, build, file_name


def build_all(folder: Path = BUILT) -> list[Path]:
    """Compile the kernels for every instruction set and return the libraries. Raises EngineError if one fails."""
    arm = platform.machine() in ("aarch64", "arm64")
    names = ("neon", "portable") if arm else ("avx512", "avx2", "portable")
    if not arm and platform.machine() not in ("x86_64", "AMD64"):
        names = ("portable",)
    libraries = []
    for instructions in INSTRUCTION_SETS:
        if instructions.name in names:
            libraries.append(folder / file_name(instructions))
            build(instructions, libraries[-1])
    return libraries


if __name__ == "__main__":
    try:
        for library in build_all(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILT):
            print(library)
    except EngineError as error:
        sys.exit(str(error))
