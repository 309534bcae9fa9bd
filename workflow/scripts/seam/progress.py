"""Progress of long jobs on the terminal: a line now and then, which other jobs' lines may stand between."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIRST_SECONDS = 10.0  # of a job, before its first line: short jobs have none
EVERY_SECONDS = 60.0  # between two lines of a job

Listener = Any  # called with (name, epoch, epochs or None, row of the history, seconds left or None)


class Progress:
    """What a job says of its epochs.

    listener: is called after each epoch; None, the default: nothing is shown. name: of the job, such as
    "reengineer resnet20/binary/cat". hides_bars: whether bars of decoding and downloads stay off the terminal, too.
    """

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.name = ""
        self.hides_bars = False

    def end_epoch(
        self, name: str | None, epoch: int, epochs: int | None, row: Mapping[str, Any], seconds_left: float | None
    ) -> None:
        """Tell the listener, if there is one. name: of one of several searches of the job."""
        if self.listener is not None:
            self.listener(f"{self.name}: {name}" if name else self.name, epoch, epochs, row, seconds_left)


progress = Progress()


class TerminalLines:
    """A listener that prints lines: the first after ten seconds, then one a minute."""

    def __init__(self, clock: Any = time.monotonic) -> None:
        self.clock = clock
        self.next = clock() + FIRST_SECONDS

    def __call__(
        self, name: str, epoch: int, epochs: int | None, row: Mapping[str, Any], seconds_left: float | None
    ) -> None:
        """Print a line if it is time for one."""
        if self.clock() >= self.next and epoch != epochs:
            self.next = self.clock() + EVERY_SECONDS
            print(describe(name, epoch, epochs, row, seconds_left), file=sys.stderr, flush=True)


def describe(name: str, epoch: int, epochs: int | None, row: Mapping[str, Any], seconds_left: float | None) -> str:
    """Return a line such as "reengineer net/cat: epoch 7 of at most 30, accuracy 93.1 %, ..."."""
    parts = [f"epoch {epoch} of at most {epochs}" if epochs else f"epoch {epoch}"]
    accuracies = [row[key] for key in ("accuracy", "test_accuracy", "train_accuracy") if row.get(key) is not None]
    if accuracies:
        parts.append(f"accuracy {100 * accuracies[0]:.1f} %")
    if row.get("retention") is not None:
        parts.append(f"{100 * row['retention']:.1f} % of the weights kept")
    if seconds_left is not None:
        parts.append(f"at most {duration(seconds_left)} left")
    return f"{name}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use.

    >>> duration(0.2), duration(42), duration(600), duration(8000), duration(300000)
    ('1 s', '42 s', '10 min', '2.2 h', '3.5 days')
    """
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def job_name(log: str | os.PathLike[str]) -> str:
    """Return the name of a job from the path of its log: results/logs/RULE/MODEL/binary/cat.log."""
    parts = Path(log).with_suffix("").parts
    inner = parts[parts.index("logs") + 1 :] if "logs" in parts else parts[-1:]
    return " ".join([inner[0], "/".join(inner[1:])]).strip()
