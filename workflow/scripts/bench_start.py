"""A `reengineer` job up to its second step: what bench.py starts again and again.

`python bench_start.py BEGAN ARGUMENTS.json` prints the seconds that each part of its start took, as JSON. BEGAN is when
it was started, by `time.time()`; the file holds the arguments of `seam.reengineer.reengineer`.
"""

import functools
import json
import sys
import time


class Clock:
    """spent: seconds by the name of the part."""

    def __init__(self, began):
        self.began, self.spent = began, {}

    def add(self, part, seconds):
        self.spent[part] = self.spent.get(part, 0.0) + seconds

    def lap(self, part):
        """All since the last lap, less what was added in between by `timed`, belongs to this part."""
        self.add(part, time.time() - self.began - sum(self.spent.values()))

    def timed(self, module, name, part):
        """Let calls of a function of a module count for this part."""
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
    """The start is over."""


def stop_at_second_step(clock, Run):
    one_epoch = Run.one_epoch

    def until(self, step):
        def watched(images, labels):
            if "first step" in clock.spent:
                raise SecondStep
            clock.lap("the rest")
            given = step(images, labels)
            given[1].detach().item()  # on a GPU: once it is done
            clock.lap("first step")
            return given

        return one_epoch(self, watched)

    Run.one_epoch = until


def main(began, arguments):
    """The seconds by part, in the order in which they came."""
    clock = Clock(began)
    clock.lap("Python")
    import snakemake.script  # noqa: F401 (Snakemake puts as much before each script)

    clock.lap("Snakemake's part of the script")
    import torch

    clock.lap("import torch")
    torch.set_num_threads(1)
    from seam.reuse.direct import reengineer
    from seam.training import run

    clock.lap("import the library")
    clock.timed(data, "open", "data and source model")
    clock.timed(models, "open", "data and source model")
    clock.timed(evaluate, "outputs", "the source model's accuracy")
    stop_at_second_step(clock, run.Run)
    try:
        reengineer(**arguments)
    except SecondStep:
        return clock.spent
    raise RuntimeError("the job ended before its second step")


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        print(json.dumps(main(float(sys.argv[1]), json.load(file))))
