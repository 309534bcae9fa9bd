"""Runs the sparse parts of a model inside ONNX Runtime, so that a program needs one other line.

    session = seam.engine.session("model.onnx")       # was: onnxruntime.InferenceSession("model.onnx")

The session is ONNX Runtime's own. Each part of the graph that this engine has the operations for, and that has enough
zeros, becomes one operator of the domain `seam` (kernels/onnxruntime.c), which calls an engine of this process. Other
operations, other inputs and outputs, and other types stay as they are.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seam.engine import native, reader
from seam.engine.engine import Runner, check_threads
from seam.engine.errors import EngineError
from seam.engine.fuse import fuse
from seam.engine.layers import Network, convert
from seam.engine.worth import is_sparse

DOMAIN, OPERATOR = "seam", "Zeros"
LEAST_VERSION = (1, 17)  # of ONNX Runtime

_runners: dict[int, Runner] = {}  # number in the rewritten model: engine
_numbers = itertools.count(1)
_failures: dict[int, BaseException] = {}  # thread: what ended the engine's part of its call
_registered: weakref.WeakSet[Any] = weakref.WeakSet()  # options that have the operator


def session(model: str | Path, options: Any = None, providers: Sequence[str] | None = None, threads: int = 1) -> Any:
    """Return an `onnxruntime.InferenceSession` of a model whose sparse parts run in this engine.

    model: an ONNX file. options: `onnxruntime.SessionOptions`; the operator is registered with them. providers: for
    the other operations; by default the processor. threads: of this engine; ONNX Runtime's own are in the options.

    A model without sparse parts, or a machine without kernels, gives an ordinary session. Raises EngineError if ONNX
    Runtime is missing or too old, or if the model cannot be read; ONNX Runtime's own errors pass.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("ONNX Runtime is not installed: install onnxruntime, or use seam.engine.load.") from error
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < LEAST_VERSION:
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} is too old: install 1.17 or later.")
    options = options or onnxruntime.SessionOptions()
    data, numbers = rewrite(model, threads)
    if numbers:
        library = native.library()
        library.set_runner(_run)
        if options not in _registered:
            options.register_custom_ops_library(str(library.path))
            _registered.add(options)
    try:
        opened = _session_class()(data or str(model), options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception:
        _release(numbers)
        raise
    weakref.finalize(opened, _release, numbers)
    return opened


@functools.cache
def _session_class() -> Any:
    """Return ONNX Runtime's session with a `run` that raises what ended the engine's part of it."""
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        def run(self, *arguments: Any, **options: Any) -> Any:
            thread = threading.get_ident()
            _failures.pop(thread, None)  # of another kind of call
            try:
                return super().run(*arguments, **options)
            except Exception:
                failure = _failures.pop(thread, None)
                if failure is None:
                    raise
                raise failure from None

    return Session


def rewrite(path: str | Path, threads: int = 1) -> tuple[bytes, list[int]]:
    """Return the bytes of the model in `path` with an operator for each sparse part, and the engines' numbers.

    The bytes are of use in this process only: elsewhere the operator ends in an error. A model without sparse parts,
    or a machine without kernels, gives nothing. Raises EngineError if the file cannot be read, or if that is no number
    of threads.
    """
    import onnx

    check_threads(threads)

    path = Path(path)
    try:
        model = onnx.load_model_from_string(reader.content(path))
        onnx.load_external_data_for_model(model, str(path.parent))
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"Cannot read {path}: {next(iter(str(error).splitlines()), 'no ONNX file')}.") from error
    try:
        library = native.library()
    except EngineError as error:
        warnings.warn(f"{error} ONNX Runtime runs the whole model, zeros included.", stacklevel=3)
        return b"", []
    numbers: list[int] = []
    nodes = list(model.graph.node)
    computed = _computed(model.graph)
    kept, end = [], 0
    for begin, stop, network, source, result in sparse_parts(model):
        try:
            runner = Runner(network, library, threads)
        except EngineError:
            continue
        number = next(_numbers)
        _runners[number] = runner
        numbers.append(number)
        sizes = dict(zip(("channels", "height", "width"), network.shapes[network.input], strict=True))
        sizes |= dict(zip(("out_channels", "out_height", "out_width"), network.shapes[network.output], strict=True))
        if network.output_rank == 2:
            sizes["out_channels"] = int(np.prod(network.shapes[network.output]))
        sizes |= {"engine": number, "rank": network.output_rank}
        operator = onnx.helper.make_node(OPERATOR, [source], [result], f"seam_{number}", domain=DOMAIN)
        operator.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in sizes.items())
        fixed = [node for node in nodes[begin:stop] if not computed & set(node.output)]  # others may read them
        kept += [*nodes[end:begin], *fixed, operator]
        end = stop
    if not numbers:
        return b"", []
    _replace_nodes(model, [*kept, *nodes[end:]])
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model.SerializeToString(), numbers


def _replace_nodes(model: Any, nodes: list) -> None:
    """Give a model other nodes, and drop nodes and constants that nothing needs any more."""
    graph = model.graph
    used = {value.name for value in graph.output}
    needed = []
    for node in reversed(nodes):
        if used & set(node.output):
            needed.append(node)
            used |= set(node.input)
    dropped = {tensor.name for tensor in graph.initializer} - used
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    inputs = [value for value in graph.input if value.name not in dropped]
    for field, values in ((graph.node, needed[::-1]), (graph.initializer, initializers), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    del graph.value_info[:]


def sparse_parts(model: Any) -> list[tuple[int, int, Network, str, str]]:
    """Return the sparse parts: first node, node after the last, network, the tensor that enters, the one that leaves.

    A part begins and ends where a single tensor passes from the nodes before to the nodes after.
    """
    import onnx

    graph = model.graph
    if any(entry.domain in ("", "ai.onnx") and entry.version not in reader.OPSETS for entry in model.opset_import):
        return []
    try:
        constants = {tensor.name: reader.array(tensor) for tensor in graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a type that this engine does not read, or a graph that ONNX cannot follow
        return []
    wrong = _after_rounded_pools(graph)
    shapes = {value.name: value for value in [*inferred.graph.value_info, *graph.input] if value.name not in wrong}
    if any(_has_graph(node) for node in graph.node):
        return []
    computed = _computed(graph)
    cuts = _cuts(graph, computed)
    nodes = list(graph.node)
    parts, index = [], 0
    while index < len(cuts) - 1:
        best = None
        fixed = [node for node in nodes[: cuts[index][0]] if not computed & set(node.output)]
        for last in range(index + 1, len(cuts)):
            network = _network(nodes, constants, shapes, cuts[index], cuts[last], fixed)
            if network is None:
                break
            best = (last, network)
        if best is None:
            index += 1
            continue
        (begin, source), (stop, result) = cuts[index], cuts[best[0]]
        if is_sparse(best[1]):
            parts.append((begin, stop, best[1], source, result))
        index = best[0]
    return parts


def _after_rounded_pools(graph: Any) -> set[str]:
    """Return the tensors whose shapes ONNX may infer wrongly: those from the first pooling on whose sizes round up.

    ONNX counts a last window that begins outside the map, which ONNX Runtime, PyTorch and this engine leave out.
    """
    tensors: set[str] = set()
    for node in graph.node:
        if tensors or any(each.name == "ceil_mode" and each.i for each in node.attribute):
            tensors |= set(node.output)
    return tensors


def _cuts(graph: Any, computed: set[str]) -> list[tuple[int, str]]:
    """Return where only one computed tensor is alive: (number of nodes before, its name)."""
    last: dict[str, int] = {value.name: len(graph.node) for value in graph.output}
    for index, node in enumerate(graph.node):
        for name in node.input:
            last[name] = max(last.get(name, 0), index)
    alive = {value.name for value in graph.input} & computed
    cuts = []
    for index in range(len(graph.node) + 1):
        alive = {name for name in alive if last.get(name, -1) >= index}
        if len(alive) == 1:
            cuts.append((index, next(iter(alive))))
        if index < len(graph.node):
            alive |= set(graph.node[index].output) & computed
    return cuts


def _computed(graph: Any) -> set[str]:
    """Return the names of the tensors that depend on the graph's inputs."""
    computed = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if computed & set(node.input):
            computed |= set(node.output)
    return computed


def _has_graph(node: Any) -> bool:
    """Whether a node has a graph of its own, which may read any tensor."""
    return any(attribute.type in (5, 10) for attribute in node.attribute)


def _network(
    nodes: list, constants: dict, shapes: dict, first: tuple[int, str], last: tuple[int, str], fixed: list
) -> Network | None:
    """Return the network between two cuts, or None if this engine cannot run it. fixed: nodes of constants before."""
    if first[1] not in shapes or first[1] == last[1]:
        return None
    part = nodes[first[0] : last[0]]
    if any(node.domain not in ("", "ai.onnx") for node in part):
        return None
    try:
        read = [reader.node(node) for node in [*fixed, *part]]
        shape = reader.image_shape(shapes[first[1]])
        return fuse(convert(reader.Model(read, constants, first[1], shape, last[1], 0, {})))
    except (EngineError, UnicodeError):
        return None


def _release(numbers: list[int]) -> None:
    for number in numbers:
        _runners.pop(number, None)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
def _run(number: int, count: int, images: int, output: int) -> int:
    runner = _runners.get(number)
    if runner is None:
        return 1
    try:
        runner.run_at(count, images, output)
    except BaseException as error:  # also Ctrl-C. It cannot pass through ONNX Runtime: the session raises it again
        _failures[threading.get_ident()] = error
        return 2
    return 0
