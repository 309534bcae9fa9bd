"""Logs: everything a job says goes to its log file; the terminal sees a mistake as one sentence."""

import contextlib
import ctypes
import logging
import sys
from pathlib import Path

from seam.files import UserError

log = logging.getLogger("seam")
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
KEPT = 17 << 19  # bytes, 8.5 MiB: blocks below that are kept
_keeps = False  # whether `keep_memory` was called


@contextlib.contextmanager
def job(path, torch_threads=None):
    """Send the log, warnings and any error of the block to the file `path`.

    torch_threads: how many threads torch computes with; None where it is not loaded yet. It is a number of the job's
    own, not that of the cores it is given, since torch's sums, and with them the results, depend on it.

    An error ends the process with status 1: a UserError as its sentence on the terminal, anything
    else as its last line with the place of the log; the traceback is in the log.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        print(f"\nError: Cannot write the log {path} ({error.strerror}): mend its permissions.\n", file=sys.stderr)
        sys.exit(1)
    handler.handleError = lambda record: None  # a full disk: the sentence about what the job writes says it
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        if torch_threads:
            compute_with(torch_threads)
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
            print(f"\nError: {kind}: {error} (this is not expected; all of it is in {path})\n", file=sys.stderr)
        sys.exit(1)
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def compute_with(threads):
    """Let torch compute with so many threads, for the rest of the process."""
    import torch

    torch.set_num_threads(threads)
    keep_memory()


def keep_memory():
    """Let glibc keep what a step frees for the next one, instead of some 10,000 page faults in each (7 % of it).

    Large blocks go back to the system all the same. Kept, they would leave so many gaps that VGG16's search took 1.5 to
    1.65 of the memory that it needs, not 1.4 to 1.45; its steps would take 0.95 of the time.
    """
    global _keeps
    _keeps = True
    _mallopt(MMAP_THRESHOLD, KEPT)
    _mallopt(TRIM_THRESHOLD, 1 << 30)


@contextlib.contextmanager
def lasting():
    """For tensors that outlast the steps: they get mappings of their own, so that among what `keep_memory` keeps they
    leave no gaps which are too small for the next tensor (VGG16's search takes 489 instead of 531 MiB)."""
    if _keeps:
        _mallopt(MMAP_THRESHOLD, 1 << 17)
    try:
        yield
    finally:
        if _keeps:
            _mallopt(MMAP_THRESHOLD, KEPT)


def _mallopt(parameter, value):
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(parameter, value)
