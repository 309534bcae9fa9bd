"""Job logs: all messages go to the log file; the terminal shows a failure as one sentence."""

import contextlib
import logging
import sys
from pathlib import Path

from seam.errors import UserError

log = logging.getLogger("seam")


@contextlib.contextmanager
def job_log(path):
    """Send the log, warnings and any error of the block to the file `path`.

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
