"""Write a model as one C file for a device without Python: kernels, plan and weights, and no library.

Reads model.onnx in FOLDER. Writes NAME.c, NAME.h, an example main.c and a Makefile. docs/engine.md says more.
"""

from __future__ import annotations

import argparse

from seam.errors import UserError

NAME = "compile"
HELP = "write a model as one C file that skips its zeros"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    from seam.engine import emit

    emit.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Write the files and print a summary. Raises UserError."""
    from seam.engine import emit
    from seam.engine.errors import EngineError

    try:
        emit.run(options)
    except EngineError as error:
        raise UserError(str(error)) from error
    return 0
