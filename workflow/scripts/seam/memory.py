"""How glibc keeps or returns the memory of a training step."""

import contextlib
import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
KEPT = 17 << 19  # bytes, 8.5 MiB: blocks below that are kept
_keeps = False  # whether `keep_memory` was called


def use_threads(threads):
    """Let torch compute with so many threads, for the rest of the process, and keep what steps free (`keep_memory`).

    A job's number of threads is its own, not that of the cores it is given: torch's sums, and with them the results,
    depend on it.
    """
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
def own_mappings():
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
