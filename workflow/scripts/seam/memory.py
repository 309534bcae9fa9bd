"""How glibc keeps or returns the memory of a training step."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from seam.log import log

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # parameters of glibc's mallopt
LARGE_BLOCK = 17 << 19  # bytes, 8.5 MiB: glibc keeps smaller blocks and returns larger ones to the system
_keeps_memory = False  # whether `keep_memory` was called


def use_threads(threads: int) -> None:
    """Let torch compute with this number of threads for the rest of the process, and call `keep_memory`.

    The number of threads belongs to a job, not to the cores that it is given: it decides the order of torch's sums,
    and so the results. Only a process that is bound to fewer processors has fewer threads, because two threads that
    wait for each other on one processor take ten times as long.
    """
    import torch

    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    if processors < threads:
        log.info("%d of %d threads: this process is bound to so many processors", processors, threads)
    torch.set_num_threads(min(threads, processors))
    keep_memory()


def keep_memory() -> None:
    """Let glibc keep the memory that a step frees, so that the next step reuses it.

    It saves some 10,000 page faults (7 % of the time) in each step. Large blocks are still returned to the system:
    keeping them, too, would fragment memory. VGG16's search would then take 1.5 to 1.65 times the memory that it
    needs, not 1.4 to 1.45, and its steps 0.95 of the time.
    """
    global _keeps_memory
    _keeps_memory = True
    _mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
    _mallopt(TRIM_THRESHOLD, 1 << 30)


@contextlib.contextmanager
def own_mappings() -> Iterator[None]:
    """Allocate the block's tensors in memory mappings of their own. Use it for tensors that outlive many steps.

    They then leave no gaps in the memory that `keep_memory` keeps (VGG16's search takes 489 instead of 531 MiB).
    """
    if _keeps_memory:
        _mallopt(MMAP_THRESHOLD, 1 << 17)
    try:
        yield
    finally:
        if _keeps_memory:
            _mallopt(MMAP_THRESHOLD, LARGE_BLOCK)


def _mallopt(parameter: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(parameter, value)
