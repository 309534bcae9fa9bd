"""The processor of this machine. Python 3.9, standard library alone: DeepSparse's environment imports it, too."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def describe_cpu() -> tuple[str, set[str]]:
    """Return (model name, set of the instruction sets that it has, in Linux's words)."""
    info: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    name = info.get("model name") or platform.processor() or platform.machine()
    return name, set(info.get("flags", info.get("Features", "")).split())


def widest_instructions(flags: set[str]) -> str:
    """Return the widest vector instructions among `flags`, in DeepSparse's words."""
    names = {"avx512f": "avx512", "avx2": "avx2", "avx": "avx", "sse4_1": "sse4", "asimd": "neon"}
    return next((name for flag, name in names.items() if flag in flags), platform.machine())


def physical_cores() -> int:
    """Return how many physical cores this process may use. A second thread on a core slows the engines down."""
    try:
        siblings = {
            Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
            for number in os.sched_getaffinity(0)
        }
    except (OSError, AttributeError):  # not Linux, or a container that hides it
        return os.cpu_count() or 1
    return len(siblings)
