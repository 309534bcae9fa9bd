"""What a search shows on the terminal: epoch, accuracy, kept weights and the time left."""

from __future__ import annotations

import logging
import sys
import time

from seam.log import log

EPOCH = "epoch %d/%d"  # in the message that a search logs after each epoch


class Progress(logging.Handler):
    """Shows the log of a search on the terminal, an epoch in one line; on a terminal, the line is rewritten.

    quiet: shows warnings alone.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(logging.WARNING if quiet else logging.INFO)
        self.start, self.first, self.is_open = time.monotonic(), 0, False
        self.rewrites = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Show an epoch, a warning, or that a search resumes."""
        arguments = record.args
        if EPOCH in record.msg and isinstance(arguments, tuple) and len(arguments) >= 8:
            self._show_epoch(arguments)
        elif record.levelno == logging.WARNING:  # an error ends the command, which then says it
            self.close_line()
            print(f"Warning: {record.getMessage()}", file=sys.stderr, flush=True)
        elif record.msg.startswith("resumes from"):
            self.close_line()
            print(record.getMessage(), file=sys.stderr, flush=True)

    def _show_epoch(self, arguments: tuple) -> None:
        _, epoch, epochs, _, _, accuracy, retention, _, event = arguments[:9]
        if not self.first:
            self.first, self.start = int(epoch), time.monotonic()
        done, best = int(epoch) - self.first, ", the best so far" if "selected" in str(event) else ""
        left = ""
        if done:
            seconds = (time.monotonic() - self.start) / done * (int(epochs) - int(epoch))
            left = f", {duration(seconds)} left"
        line = f"epoch {epoch}/{epochs}: {accuracy}, {retention:.1%} of the weights kept{best}{left}"
        if self.rewrites:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self.is_open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def close_line(self) -> None:
        """End the line that is rewritten, so that other text can follow."""
        if self.is_open:
            print(file=sys.stderr, flush=True)
            self.is_open = False


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    >>> duration(42), duration(600), duration(8000)
    ('42 s', '10 min', '2 h 13 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def show_log(path: str, quiet: bool) -> Progress:
    """Send the package's log to a file and, in short, to the terminal; return what shows it."""
    progress = Progress(quiet)
    file = logging.FileHandler(path, mode="a", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.setLevel(logging.INFO)
    for handler in (progress, file):
        log.addHandler(handler)
    log.propagate = False
    return progress


def hide_log() -> None:
    """Take back `show_log`."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True
