"""Shared by the tests of mistakes: spoil files, act without root's privileges, and see that no file changed."""

import contextlib
import ctypes
import os
import sys

import numpy as np
import pytest
from PIL import Image

from seam.files import sha256

PRIVILEGES = (1, 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, with which permissions do not bind Linux's root


def hashes(folder):
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def bound_by_permissions():
    """Root, too, may read and write in this block only what permissions allow."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("permissions do not bind root here, and only Linux lets him go without his privileges")
    libc = ctypes.CDLL(None, use_errno=True)
    header, found = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, found) == 0
    effective = found[0]
    found[0] &= ~sum(1 << number for number in PRIVILEGES)
    assert libc.capset(header, found) == 0
    try:
        yield
    finally:
        found[0] = effective
        assert libc.capset(header, found) == 0


def without_privileges():
    """The same for a new process, as its `preexec_fn`."""
    if os.geteuid() == 0 and sys.platform == "linux":
        for number in PRIVILEGES:
            ctypes.CDLL(None).prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP


def photograph(path, **options):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path, **options)
    return path


def truncated(path, left=0.5):
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])


class Harm:
    def __reduce__(self):
        return os.system, ("echo harm > harmed",)
