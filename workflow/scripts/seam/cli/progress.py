"""What a search shows on the terminal: epoch, accuracy, kept weights and the time left."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from seam.errors import cannot_write, printable
from seam.log import log
from seam.progress import duration, progress


class Progress(logging.Handler):
    """Shows epochs on the terminal, each in one line, which a terminal rewrites, and warnings of the log.

    quiet: shows warnings alone. It is a handler of the log, and a listener of `seam.progress`.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(logging.WARNING if quiet else logging.INFO)
        self.is_open, self.is_quiet = False, quiet
        self.rewrites = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a warning, or that a search resumes."""
        if record.levelno == logging.WARNING:  # an error ends the command, which then says it
            self.close_line()
            print(printable(f"Warning: {record.getMessage()}"), file=sys.stderr, flush=True)
        elif record.msg.startswith("resumes from"):
            self.close_line()
            print(printable(record.getMessage()), file=sys.stderr, flush=True)

    def __call__(
        self, name: str, epoch: int, epochs: int | None, row: Mapping[str, Any], seconds_left: float | None
    ) -> None:
        """Show the end of an epoch, from its row of the history."""
        if self.is_quiet:
            return
        line = describe(epoch, epochs, row, seconds_left)
        if self.rewrites:
            # The terminal cannot rewrite a line that it has wrapped.
            print(f"\r\033[K{line[: terminal_width() - 1]}", end="", file=sys.stderr, flush=True)
            self.is_open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def close_line(self) -> None:
        """End the line that is rewritten, so that other text can follow."""
        if self.is_open:
            print(file=sys.stderr, flush=True)
            self.is_open = False


def terminal_width() -> int:
    """Return the number of columns of the terminal that shows the progress."""
    with contextlib.suppress(OSError, ValueError):
        if columns := os.get_terminal_size(sys.stderr.fileno()).columns:
            return columns
    return 80


def describe(epoch: int, epochs: int | None, row: Mapping[str, Any], seconds_left: float | None) -> str:
    """Return the line of an epoch.

    >>> describe(2, 30, {"accuracy": 0.931, "images": "held-out", "source_accuracy": 0.95, "retention": 0.4}, 600)
    'epoch 2/30: 93.1 % of the held-out images right (source model 95.0 %), 40.0 % of the weights kept, 10 min left'

    A budget other than of weights has a cost of its own, such as the MACs, and the line says the share of that.
    """
    parts = []
    if row.get("accuracy") is not None:
        source = row.get("source_accuracy")
        beside = "" if source is None else f" (source model {100 * source:.1f} %)"
        parts.append(f"{100 * row['accuracy']:.1f} % of the {row.get('images', 'held-out')} images right{beside}")
    elif row.get("train_accuracy") is not None:
        parts.append(f"{100 * row['train_accuracy']:.1f} % of the training images right")
    if row.get("retention") is not None:
        parts.append(f"{100 * row['retention']:.1f} % of the weights kept")
        if row.get("cost") is not None and abs(row["cost"] - row["retention"]) >= 0.001:
            parts[-1] = f"{100 * row['cost']:.1f} % of the source model's cost left"
    if row.get("selected"):
        parts.append("selected so far")
    if seconds_left is not None and epoch != epochs:
        parts.append(f"{duration(seconds_left)} left")
    return f"epoch {epoch}{f'/{epochs}' if epochs else ''}: {', '.join(parts)}"


def show_log(path: str, quiet: bool) -> Progress:
    """Send the package's log to a file and, in short, to the terminal; return what shows it."""
    shown = Progress(quiet)
    try:
        file = logging.FileHandler(path, mode="a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise cannot_write(path, error) from error
    file.handleError = lambda record: None  # on a full disk the error about the results says enough
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.setLevel(logging.INFO)
    for handler in (shown, file):
        log.addHandler(handler)
    log.propagate, progress.listener, progress.hides_bars = False, shown, quiet
    return shown


def hide_log() -> None:
    """Take back `show_log`."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
    log.propagate, progress.listener, progress.hides_bars = True, None, False
