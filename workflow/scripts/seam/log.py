"""Job logs: all messages go to the log file; the terminal shows a failure as one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from seam.errors import UserError
from seam.progress import TerminalLines, job_name, progress

log = logging.getLogger("seam")


@contextlib.contextmanager
def job_log(path: str | os.PathLike[str]) -> Iterator[None]:
    """Send log messages, warnings and any error of the block to the file `path`.

    An error ends the process with status 1. The terminal shows a UserError as its sentence, and any other error as
    its last line with the path of the log. The log has the traceback.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"")
        # Appended, because a rule can write there what an engine prints, too.
        handler = logging.FileHandler(path, mode="a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        print(f"\nError: Cannot write the log {path} ({error.strerror}): fix its permissions.\n", file=sys.stderr)
        sys.exit(1)
    handler.handleError = lambda record: None  # on a full disk the error about the job's output says enough
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.addHandler(handler)
    log.setLevel(logging.INFO)
    progress.name, progress.listener = job_name(path), TerminalLines()
    logging.captureWarnings(True)
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        log.error("the job ends here", exc_info=error)
        if not isinstance(error, Exception):
            raise
        if isinstance(error, UserError):
            print(f"\nError: {error}\n", file=sys.stderr)
        else:
            kind = type(error).__name__
            print(f"\nError: {kind}: {error} (this is not expected; the traceback is in {path})\n", file=sys.stderr)
        sys.exit(1)
    finally:
        progress.listener = None
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
