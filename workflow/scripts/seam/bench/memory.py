"""Item `memory`: the peak of a search against what it has to hold."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from seam.bench.network import BATCH, CLASSES, Bench, quiet
from seam.bench.timing import Options, Row, row
from seam.device import select_device
from seam.memory import use_threads
from seam.models.architectures import build_model
from seam.models.folding import fold
from seam.models.surgery import with_head
from seam.precision import forward
from seam.search.plain import search
from seam.settings import SearchSettings
from seam.training.checkpoint import Checkpoint


def memory(options: Options) -> Iterator[Row]:
    """Compare the peak of a search with what it has to hold."""
    if options.device.type == "mps" or (options.device.type == "cpu" and sys.platform != "linux"):
        print("  left out: this system does not tell the peak of a process", file=sys.stderr)
        return
    cpu = options.device.type == "cpu"
    ways: list[tuple[str, float | None, dict[str, bool]]] = [  # what is added to the subject, goal, arguments
        ("", 1.5, {}),
        (" without checkpoints", None, {"checkpoints": False}),
        (", tensors alone", 1.5, {"tensors": True}) if cpu else
        (", with what torch has reserved", None, {"reserved": True}),
    ]  # fmt: skip
    context = multiprocessing.get_context("spawn")  # a process whose peak is that of this search alone
    for architecture in options.architectures:
        for suffix, goal, arguments in ways:
            # The share of memory that an allocator leaves unused differs each time; the size of tensors does not.
            deterministic = not cpu or "tensors" in arguments
            peaks, required = [], {}
            for _ in range(1 if deterministic else min(options.repeats, 5)):
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    job = pool.submit(peak_of_search, architecture, options.requested_device, **arguments)
                    highest, required = job.result()
                peaks.append(highest)
            megabytes = {"peak": statistics.median(peaks) / 1e6} | {k: v / 1e6 for k, v in required.items()}
            shares = [highest / sum(required.values()) for highest in peaks]
            quantity = "peak / (network + masks + Adam + activations)"
            yield row("memory", quantity, architecture + suffix, shares, goal, megabytes=megabytes)


def peak_of_search(
    architecture: str, requested_device: str, checkpoints: bool = True, tensors: bool = False, reserved: bool = False
) -> tuple[int, dict[str, int]]:
    """Return (the most bytes that a search takes, {what: bytes that it has to hold}). Call it in a new process.

    checkpoints: whether the search writes them. tensors: count its tensors, not the memory that the process takes for
    them. reserved: on a GPU, where tensors are counted, count the memory that torch has reserved for them.
    """
    use_threads(1)
    device = select_device(requested_device)
    # The first convolution and the first product of a process load libraries, which are not the search's.
    warm = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 2)).to(device)
    forward(warm, torch.randn(2, 3, 8, 8, device=device)).sum().backward()
    bench = Bench(architecture, device)
    required = {
        "network": size_of([*bench.model.parameters(), *bench.model.buffers()]),
        "masks": size_of(bench.masks.values.values()),
        "adam": 2 * size_of([*bench.masks.values.values(), *bench.model.head.parameters()]),
        "activations": saved(bench),
    }
    train, select_on = bench.training_loader(4 * BATCH), bench.loader(4 * BATCH)
    del bench, warm

    def run_search(folder: str) -> None:
        torch.manual_seed(0)
        network: Any = build_model(architecture, CLASSES)
        network = network.eval().to(device, memory_format=torch.channels_last)
        model = with_head(fold(network), CLASSES, 2).to(device)
        checkpoint = Checkpoint(Path(folder) / "checkpoint.pt", {}, __file__) if checkpoints else None
        search(model, train, select_on, 0.5, SearchSettings(epochs=3), checkpoint)

    with tempfile.TemporaryDirectory() as folder:
        if tensors:
            return peak_of_tensors(lambda: run_search(folder)), required
        before, code = peak(device, reserved, reset=True), pages_of_files()
        run_search(folder)
        # All processes share the code of libraries that the search is the first to use: it is no memory of its own.
        more_code = pages_of_files() - code if device.type == "cpu" else 0
        return peak(device, reserved) - before - more_code, required


def peak_of_tensors(function: Callable[[], Any]) -> int:
    """Return the most bytes that the tensors made by a call take at once on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    results: Any = profiled.profiler
    events = (event for event in results.kineto_results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved(bench: Bench) -> int:
    """Return the bytes that a step's forward pass saves for its backward pass, without weights; a storage once."""
    sizes = {}
    weights = {p.untyped_storage().data_ptr() for p in bench.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = cross_entropy(forward(bench.model, bench.images), bench.labels)
    size = sum(sizes.values())
    del loss
    return size


def peak(device: torch.device, reserved: bool = False, reset: bool = False) -> int:
    """Return the most bytes that this process has held; on a GPU by its tensors, or reserved for them.

    reset: begin anew, so that the next call returns the peak from now on.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_reserved(device) if reserved else torch.cuda.max_memory_allocated(device)
    if reset:
        release_freed()
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmHWM")


def pages_of_files() -> int:
    """Return the bytes of files, such as libraries, in this process's memory."""
    return status("RssFile")


def status(name: str) -> int:
    """Return an entry of this process's status, in bytes."""
    entries = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(entries[name].split()[0])


def release_freed() -> None:
    """Return freed memory to the system, so that it does not hide what is taken next."""
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
