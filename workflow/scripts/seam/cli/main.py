"""The entry of the command `seam`: its subcommands, its errors and its exit codes.

A subcommand is a module with `NAME`, `HELP`, `add_arguments(parser)` and `run(options)`, which returns an exit code.
It imports heavy packages in functions, so that `seam --help` answers at once. `STOPPED` is the sentence after Ctrl-C,
if the command resumes. To add one, write it and name it in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from seam import __version__
from seam.cli import check, compile, evaluate, export, show, shrink
from seam.cli.ranges import require_ranges
from seam.errors import UserError, one_line

COMMANDS: tuple[ModuleType, ...] = (shrink, check, evaluate, show, export, compile)

EXIT_CODES = """\
exit codes:
  0   all is well
  1   an error that you can fix: one sentence says what happened, where, and what to do
  2   the command line is wrong
  3   done, but the result is not what was asked for: it misses the budget, or lost more accuracy than --lose allows;
      for check: something would fail later
  70  an unexpected error, with its traceback
  75  interrupted: the same command resumes (shrink) or begins again (all others)
"""
EXIT_UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
EXIT_STOPPED = 75  # EX_TEMPFAIL


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code. A UserError is one sentence on the terminal and status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the letters of a class name shows their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
    except BrokenPipeError:  # such as `seam show FOLDER | head -1`
        code = 1
    except SystemExit:  # of argparse
        if not _flush():
            return 1
        raise
    return code if _flush() else code or 1


def _run(arguments: list[str] | None) -> int:
    stopped = "Stopped."
    try:
        with _interrupts_kept():
            options = parser().parse_args(arguments)
            stopped = options.stopped
            for option, value in vars(options).items():
                if isinstance(value, Path) or (option == "data" and value):  # a shell leaves --data=~/photos as it is
                    setattr(options, option, type(value)(os.path.expanduser(value)))
            require_ranges(options)
            return options.run(options)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        exec("")  # else `python -m` ends by SIGINT if the interrupt came out of an earlier exec, such as torch's
        return EXIT_STOPPED
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and _is_of_print(error):
            _say_unwritable(error)
            return 1
        traceback.print_exc()
        print(
            f"\nError: {one_line(error)} (this is not expected: please report it with the lines above)", file=sys.stderr
        )
        return EXIT_UNEXPECTED


def _is_of_print(error: OSError) -> bool:
    """Return whether an error comes from a print of a subcommand: these modules read and write no files themselves."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return error.filename is None and Path(place).parent == Path(__file__).parent


def _flush() -> bool:
    """Write out what was printed, and return whether that worked.

    If Python itself failed to do so at its end, the exit code would be 120.
    """
    worked = True
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed by who started the command
            continue
        try:
            stream.flush()
        except OSError as error:
            worked = False
            with contextlib.suppress(OSError, ValueError):  # ValueError: a stream of a test has no number
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                _say_unwritable(error)
    return worked


def _say_unwritable(error: OSError) -> None:
    with contextlib.suppress(OSError):
        print(f"Error: The output cannot be written ({error.strerror}): write it elsewhere.", file=sys.stderr)


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Raise Ctrl-C again where Python drops it, because it comes while a finalizer or a C library's callback runs."""
    before = sys.unraisablehook

    def again(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        # When the callback has returned; by a signal, which also ends a wait of the main thread.
        timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="seam",
        description="Re-engineer a trained network to the part of it that your problem needs.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"seam {__version__}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=module.__doc__,
            epilog=getattr(module, "EPILOG", EXIT_CODES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, stopped=getattr(module, "STOPPED", "Stopped."))
    return root
