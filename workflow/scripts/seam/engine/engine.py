"""Loads a model.onnx and runs it."""

import contextlib
import ctypes
import math
import threading
import warnings
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from seam.engine import native
from seam.engine.errors import EngineError, UnsupportedError
from seam.engine.fuse import fuse
from seam.engine.layers import Network, convert
from seam.engine.plan import Planner
from seam.engine.program import Program, aligned
from seam.engine.reader import read
from seam.engine.report import describe
from seam.engine.worth import SPARSE, is_sparse, multiply_adds

MOST_THREADS = 256
KEPT_WORKSPACES = 2  # per program, for calls to come
KEPT_CHUNKS = 1000


class Engine:
    """A network that is ready to run: `logits = engine(images)`.

    backend: "seam" or "onnxruntime". reason: why this engine cannot run the model; empty if it can.
    input_shape: (channels, height, width) of an image. threads: how many a call uses.
    """

    def __init__(
        self, backend: str, reason: str, input_shape: tuple[int, int, int], threads: int, run: Callable, describe
    ):
        self.backend, self.reason, self.input_shape, self.threads = backend, reason, input_shape, threads
        self._run = run
        self._describe = describe

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the model's output, float32 [n, ...], for `images`, float32 [n, channels, height, width].

        Can be called from several threads at once. Raises EngineError if `images` has another type or shape.
        """
        if not isinstance(images, np.ndarray):
            raise EngineError(f"The images must be a NumPy array, not {type(images).__name__}.")
        if images.dtype != np.float32:
            raise EngineError(f"The images must be float32, not {images.dtype}.")
        if images.ndim != 4 or images.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, self.input_shape))
            raise EngineError(f"The images must have the shape [n, {wanted}], not {list(images.shape)}.")
        return self._run(np.ascontiguousarray(images))

    def plan(self, images: int = 1) -> str:
        """Return a table of how a batch of `images` runs: each layer's kernel, zeros, multiply-adds, and why."""
        return self._describe(images)

    def __repr__(self) -> str:
        return f"<seam.engine.Engine backend={self.backend!r} input={self.input_shape} threads={self.threads}>"


def load(path: str | Path, threads: int = 1, *, fallback: bool = True, instructions: str | None = None) -> Engine:
    """Return an engine for the model in the ONNX file `path`.

    threads: how many a call uses. fallback: give a model to ONNX Runtime if that is faster, because the model has few
    zeros, or, with a warning, if this engine does not have its operations or cannot be compiled here. instructions:
    avx512, avx2, neon or portable, which this engine then uses for any model; by default the best of the machine.

    >>> engine = load("model.onnx", threads=2)  # doctest: +SKIP
    >>> logits = engine(images)  # doctest: +SKIP

    Raises EngineError if the file is malformed, or if no engine can run it.
    """
    check_threads(threads)
    try:
        model = read(path)
        network = fuse(convert(model))
        reason = ""
    except UnsupportedError as error:
        reason = f"The engine does not run {path}, because {error}."
    if not reason:
        try:
            library = native.library(instructions)
            if fallback and instructions is None and not is_sparse(network) and find_spec("onnxruntime"):
                with contextlib.suppress(EngineError):  # a file that is too new for ONNX Runtime, say
                    return _load_dense(path, network, threads)
            return _load_native(network, library, threads)
        except UnsupportedError as error:
            reason = f"The engine does not run {path}, because {error}."
        except EngineError as error:
            if instructions is not None:
                raise
            reason = str(error)
    if not fallback:
        raise UnsupportedError(reason)
    from seam.engine.fallback import load_onnxruntime

    run, shape = load_onnxruntime(path, threads, reason)
    warnings.warn(f"{reason} ONNX Runtime runs it instead, which does not skip zeros.", stacklevel=2)
    return Engine("onnxruntime", reason, shape, threads, run, lambda images: f"ONNX Runtime runs the model. {reason}")


def check_threads(threads: object) -> None:
    """Raise EngineError unless that is a number of threads that a call can use."""
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MOST_THREADS:
        raise EngineError(f"The number of threads must be from 1 to {MOST_THREADS}, not {threads!r}.")


def _load_dense(path: str | Path, network: Network, threads: int) -> Engine:
    from seam.engine.fallback import load_onnxruntime

    kept, total = multiply_adds(network)
    why = f"{100 * kept / max(total, 1):.0f} % of its multiply-adds are with weights that are not zero"
    run, shape = load_onnxruntime(path, threads, "")
    text = f"ONNX Runtime runs the model: {why}, and this engine is faster only below {100 * SPARSE:.0f} %."
    return Engine("onnxruntime", "", shape, threads, run, lambda images: text)


def _load_native(network: Network, library: native.Library, threads: int) -> Engine:
    runner = Runner(network, library, threads)
    shape = network.shapes[network.input]
    return Engine("seam", "", shape, threads, runner, lambda images: describe(runner.planner, images))


class Runner:
    """Runs a network's programs. One program per number of images that run at once, made when first needed."""

    def __init__(self, network: Network, library: native.Library, threads: int):
        self.library, self.threads = library, threads
        self.planner = Planner(network, library.machine)
        self.planner.plan(1)
        self.shape = network.shapes[network.output]
        self.rank = network.output_rank
        self.input_bytes, self.output_bytes = 4 * math.prod(network.shapes[network.input]), 4 * math.prod(self.shape)
        self._programs: dict[int, Program] = {}
        self._chunks: dict[int, list[int]] = {}
        self._workspaces: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()
        self._pool = library.pool_new(threads)
        if not self._pool:
            raise EngineError(f"The system does not give {threads} threads: ask for fewer.")
        self._finalizer = weakref.finalize(self, library.pool_delete, self._pool)
        self._finalizer.atexit = False  # a daemon thread may still be in a call

    def __call__(self, images: np.ndarray) -> np.ndarray:
        output = np.empty((len(images), *self.shape), np.float32)
        self.run_at(len(images), images.ctypes.data, output.ctypes.data)
        return output.reshape(len(images), math.prod(self.shape)) if self.rank == 2 else output

    def run_at(self, count: int, images: int, output: int) -> None:
        """Run `count` images at the address `images`, and write to the address `output`: contiguous float32."""
        begin = 0
        for size in self.chunks(count):
            now = min(size, count - begin)
            self._run(self.program(size), now, images + begin * self.input_bytes, output + begin * self.output_bytes)
            begin += now

    def chunks(self, count: int) -> list[int]:
        """Return the sizes of programs that together run `count` images in the least time expected."""
        chosen = self._chunks.get(count)
        if chosen is None:
            sizes = self.planner.sizes()
            chunks = [sizes[-1]] * (count // sizes[-1])
            rest = count % sizes[-1]
            cost = {size: self.planner.plan(size).cycles for size in sizes}
            best: list[tuple[float, list[int]]] = [(0.0, [])]
            for n in range(1, rest + 1):
                options = ((best[max(0, n - s)][0] + cost[s], [s, *best[max(0, n - s)][1]]) for s in sizes)
                best.append(min(options, key=lambda option: option[0]))
            if len(self._chunks) >= KEPT_CHUNKS:
                self._chunks.clear()
            chosen = self._chunks[count] = chunks + sorted(best[rest][1], reverse=True)
        return chosen

    def program(self, size: int) -> Program:
        """Return the program for `size` images at once."""
        program = self._programs.get(size)
        if program is None:  # made outside of the lock, which a process that forks meanwhile would inherit locked
            program = Program(self.planner, self.planner.plan(size))
            with self._lock:
                program = self._programs.setdefault(size, program)
                self._workspaces.setdefault(size, [])
        return program

    def _run(self, program: Program, count: int, images: int, output: int) -> None:
        with self._lock:
            kept = self._workspaces[program.images]
            workspace = kept.pop() if kept else None
        if workspace is None:
            workspace = self._workspace(program)
        address = workspace.ctypes.data
        self.library.run(
            self._pool,
            ctypes.addressof(program.stages),
            len(program.stages),
            count,
            address,
            program.workspace,
            address + 4 * program.workspace * self.threads,  # what the stages hand to each other
            images,
            output,
        )
        with self._lock:
            if len(kept) < KEPT_WORKSPACES:
                kept.append(workspace)

    def _workspace(self, program: Program) -> np.ndarray:
        try:
            return aligned(program.workspace * self.threads + program.shared)
        except MemoryError as error:
            raise EngineError("There is not enough memory to run the model.") from error
