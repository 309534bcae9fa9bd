"""Run a `reengineer` job up to its second step, and print the seconds of each part of its start as JSON.

`python -m seam.bench.job_start BEGAN ARGUMENTS.json`: BEGAN is the `time.time()` at which the process was started, the
file holds the arguments of `seam.reuse.direct.reengineer`. The imports stand where the clock measures them.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from typing import Any


class Clock:
    """Seconds by the name of a part (`spent`), since `began`, a `time.time()`."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.spent: dict[str, float] = {}

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self.spent[part] = self.spent.get(part, 0.0) + seconds

    def lap(self, part: str) -> None:
        """Add all seconds since the last lap to this part, except those that `timed` has added since."""
        self.add(part, time.time() - self.began - sum(self.spent.values()))

    def timed(self, module: Any, name: str, part: str) -> None:
        """Let calls of a module's function count for this part."""
        function = getattr(module, name)

        @functools.wraps(function)
        def wrapper(*arguments, **options):
            start = time.time()
            try:
                return function(*arguments, **options)
            finally:
                self.add(part, time.time() - start)

        setattr(module, name, wrapper)


class SecondStep(Exception):
    """Raised when the start is over."""


def stop_at_second_step(clock: Clock, run_class: Any) -> None:
    """Let the first step of a `seam.training.run.TrainingRun` count for a part, and the second one raise SecondStep."""
    train_epoch = run_class.train_epoch

    def watched_epoch(self, step):
        def watched_step(images, labels):
            if "first step" in clock.spent:
                raise SecondStep
            clock.lap("the rest")
            logits, loss = step(images, labels)
            loss.detach().item()  # waits for a GPU
            clock.lap("first step")
            return logits, loss

        return train_epoch(self, watched_step)

    run_class.train_epoch = watched_epoch


def main(began: float, arguments: dict[str, Any]) -> dict[str, float]:
    """Return the seconds by part, in their order."""
    clock = Clock(began)
    clock.lap("Python")
    import snakemake.script  # noqa: F401 (Snakemake imports it before each script)

    clock.lap("Snakemake's part of the script")
    import torch  # noqa: F401

    clock.lap("import torch")
    from seam.memory import use_threads
    from seam.reuse import direct
    from seam.training import run

    use_threads(1)
    clock.lap("import the library")
    clock.timed(direct, "open_dataset", "data and source model")
    clock.timed(direct, "open_source", "data and source model")
    clock.timed(direct, "predict", "the source model's accuracy")
    stop_at_second_step(clock, run.TrainingRun)
    try:
        direct.reengineer(**arguments)
    except SecondStep:
        return clock.spent
    raise RuntimeError("the job ended before its second step")


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        print(json.dumps(main(float(sys.argv[1]), json.load(file))))
