"""Compiles the kernels for every instruction set of this kind of machine, to be shipped with a package.

python -m seam.engine.build [FOLDER]

The libraries go into FOLDER, by default beside this file, where `load` finds them and needs no compiler.
"""

import sys
from pathlib import Path

from seam.engine.compiler import BUILT, build_all
from seam.engine.errors import EngineError

if __name__ == "__main__":
    try:
        for library in build_all(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILT):
            print(library)
    except EngineError as error:
        sys.exit(str(error))
