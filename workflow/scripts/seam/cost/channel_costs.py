"""What layers take in a dense engine with fewer channels, measured on this machine: for latency budgets of channels.

Each layer is timed alone, at several numbers of input and output channels. Whole networks of several widths then say
how these times add up, and others, which that fit has not seen, how well they do.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seam.cost.export import OPSET, export
from seam.cost.latency import OpenEngine, Run
from seam.cost.processor import describe_cpu
from seam.errors import UserError, first_line
from seam.files import write_json
from seam.log import log
from seam.masks.channel_costs import ChannelTime, multiples
from seam.masks.channels import ChannelGroups, find_groups
from seam.masks.layouts import CONVOLUTIONS, TRANSPOSED
from seam.masks.shrink import shrink
from seam.models.surgery import copy_module
from seam.models.uses import input_shapes

POINTS = 8  # numbers of channels at which a layer is timed, at most, for its inputs and for its outputs
PASSES = 30  # of each layer and network, in turn
QUIET = 10  # percentile of the passes that counts: other programs disturb it least
SHARES = (1.0, 0.85, 0.75, 0.6, 0.5, 0.25)  # of the channels, in the networks that the fit sees
BARE = (1.0, 0.5)  # the same, in networks without their residual branches
CHECKS = 4  # networks of random widths and branches that it does not see
PRODUCED_FROM = 4  # input channels of the convolution before a layer that is timed
LEAST = 0.05  # of what a call with a layer takes is the layer's at least


def measure_channel_costs(
    module: nn.Module, image_shape: tuple[int, ...], batch: int, multiple: int, engine: str, open_engine: OpenEngine
) -> dict[str, Any]:
    """Return what the layers of `module` take in an engine, on one thread, for a batch of `batch` images.

    The result is the table of `seam.masks.channel_costs.ChannelTime`: `layers`, {name: `inputs` and `outputs`, numbers
    of channels, and `ms` [inputs][outputs]}, `scale` and `fixed_ms`, so that a network takes scale x the sum of its
    layers + fixed_ms. `networks` has the widths of whole networks, and their measured and predicted milliseconds;
    `error` is the mean error of those that the fit has not seen, as a share of the measured time.

    module: the source model, which stays as it is. image_shape: (channels, height, width). multiple: of the widths that
    the search takes. engine: its name; open_engine: its function of `seam.cost.runners`. Raises UserError if the engine
    is missing or does not run a layer.
    """
    module = copy_module(module).cpu().eval()
    groups = find_groups(module, torch.zeros(1, *image_shape))
    description, load = open_engine(1, batch)
    with tempfile.TemporaryDirectory() as name:
        folder, known = Path(name), {}
        layers = {}
        for name, shapes in input_shapes(module, torch.zeros(1, *image_shape)).items():
            if name not in groups.layers:
                continue  # part of what is fixed
            layer, units = module.get_submodule(name), groups.layers[name]
            axes = [_axis(channels, multiple) for channels in (units.inputs, units.outputs)]
            for shape in shapes:
                signature = (*_signature(layer), shape, *map(tuple, axes))
                if signature not in known:
                    known[signature] = _time_layer(layer, shape, axes, batch, load, folder)
            times = sum((known[(*_signature(layer), shape, *map(tuple, axes))] for shape in shapes), np.zeros(()))
            layers[name] = {"inputs": axes[0], "outputs": axes[1], "ms": times.tolist()}
        log.info("%d layers, of which %d differ, timed alone", len(layers), len(known))
        networks = _time_networks(module, groups, image_shape, batch, multiple, load, folder)
    sums = ChannelTime(groups, {"layers": layers, "scale": 1.0, "fixed_ms": 0.0})
    seen = len(networks) - CHECKS
    expected = np.array([sums.milliseconds(kept) for kept, _ in networks])
    measured = np.array([milliseconds for _, milliseconds in networks])
    scale, fixed = _fit(expected[:seen], measured[:seen])
    predicted = scale * expected + fixed
    errors = np.abs(predicted / measured - 1)[seen:]
    log.info("time = %.3f x layers + %.4f ms; mean error of other networks %.1f %%", scale, fixed, 100 * errors.mean())
    return {
        "engine": engine,
        **description,
        "batch": batch,
        "threads": 1,
        "multiple": multiple,
        "cpu": describe_cpu()[0],
        "scale": scale,
        "fixed_ms": fixed,
        "error": float(errors.mean()),
        "networks": [
            {
                "widths": {name: int(units.sum()) for name, units in groups.split(kept).items()},
                "measured_ms": float(measured_time),
                "predicted_ms": float(model),
                "fitted": number < seen,
            }
            for number, ((kept, measured_time), model) in enumerate(zip(networks, predicted, strict=True))
        ],
        "layers": layers,
    }


def write_channel_costs(path: str | os.PathLike[str], *arguments: Any) -> None:
    """Write `measure_channel_costs` as JSON."""
    write_json(path, measure_channel_costs(*arguments))


def _axis(units: torch.Tensor, multiple: int) -> list[int]:
    """Return the numbers of channels at which a layer is timed, ascending: at most POINTS multiples, and all."""
    count, removable = len(units), int((units >= 0).sum())
    if not removable:
        return [count]
    step = multiple * -(-count // (multiple * POINTS))
    return [number for number in multiples(count, step) if number >= min(count - removable, step)]


def _signature(layer: nn.Module) -> tuple:
    """Return what the time of a layer depends on beside its channels."""
    if isinstance(layer, nn.Linear):
        return ("linear",)
    assert isinstance(layer, CONVOLUTIONS)
    depthwise = layer.groups > 1 and layer.in_channels // layer.groups
    return type(layer).__name__, layer.kernel_size, layer.stride, layer.padding, layer.dilation, depthwise


def _time_layer(
    layer: nn.Module, shape: tuple[int, ...], axes: Sequence[Sequence[int]], batch: int, load: Callable, folder: Path
) -> np.ndarray:
    """Return the milliseconds of a layer, [inputs, outputs], without those of the call of the engine.

    shape: of its input for one image. A layer that reads channels that can be removed reads them from a small
    convolution, as it does in the network: engines pad the channels between two convolutions to full blocks. The time
    of this convolution alone is subtracted.
    """
    passes: dict[tuple[int, int], Callable[[], Any]] = {}
    grouped = getattr(layer, "groups", 1) > 1
    has_producer = len(shape) == 3 and (len(axes[0]) > 1 or grouped)
    path = folder / "layer.onnx"
    for row, inputs in enumerate(axes[0]):
        for column, outputs in enumerate(axes[1]):
            if grouped and row != min(column, len(axes[0]) - 1):
                continue  # its inputs follow from its outputs
            size = _write_layer(layer, inputs, outputs, shape, batch, path, has_producer)
            passes[row, column] = _bound(_loaded(load, path, type(layer).__name__), size)
        size = _write_producer(inputs, shape, batch, path) if has_producer else _write_nothing(batch, path)
        passes[row, -1] = _bound(_loaded(load, path, "Conv2d"), size)
    times = _time_in_turn(passes)
    table = np.full((len(axes[0]), len(axes[1])), np.nan)
    for (row, column), milliseconds in times.items():
        if column >= 0:
            table[row, column] = max(milliseconds - times[row, -1], LEAST * milliseconds)
    if grouped:
        for column in range(table.shape[1]):
            table[:, column] = np.nanmax(table[:, column])
    return table


def _loaded(load: Callable, path: Path, kind: str) -> Run:
    try:
        return load(path)[0]
    except UserError:
        raise
    except Exception as error:  # engines' errors have no common class
        reason = first_line(error, 200)
        raise UserError(
            f"The engine cannot time a layer of the kind {kind} alone ({reason}): set a budget in macs or weights."
        ) from error


def _bound(run: Run, size: tuple[int, ...]) -> Callable[[], Any]:
    images = np.random.default_rng(0).standard_normal(size, np.float32)
    return lambda: run(images)


def _time_in_turn(passes: Mapping[Any, Callable[[], Any]]) -> dict[Any, float]:
    """Return the milliseconds of each of `passes`, which run in turn.

    They are those of the processor, which on one thread are those of the clock if no other program runs.
    """
    times: dict[Any, list[float]] = {name: [] for name in passes}
    for number in range(PASSES + 2):
        for name, run in passes.items():
            start = time.process_time()
            run()
            if number >= 2:  # the first warm up
                times[name].append(1000 * (time.process_time() - start))
    return {name: float(np.percentile(values, QUIET)) for name, values in times.items()}


def _write_layer(
    layer: nn.Module, inputs: int, outputs: int, shape: tuple[int, ...], batch: int, path: Path, has_producer: bool
) -> tuple[int, ...]:
    """Write a layer with other numbers of channels, and the ReLU behind it, as ONNX; return the size of its input."""
    from onnx import helper

    attributes: dict[str, Any] = {}
    nodes, weights, features = [], {}, "images"
    if isinstance(layer, nn.Linear):
        operation, size, weight = "MatMul", (batch, *shape[:-1], inputs), (inputs, outputs)
        if len(shape) == 1:  # the engine for zeros takes images alone
            size, features = (batch, inputs, 1, 1), "flat"
            nodes.append(helper.make_node("Flatten", ["images"], ["flat"]))
    else:
        assert isinstance(layer, CONVOLUTIONS)
        blocks = 1
        if layer.groups > 1:
            inputs = outputs * layer.in_channels // layer.out_channels
            blocks = inputs * layer.groups // layer.in_channels
        transposed = isinstance(layer, TRANSPOSED)
        operation = "ConvTranspose" if transposed else "Conv"
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        size, weight = (batch, inputs, *shape[1:]), (first, second // blocks, *layer.kernel_size)
        padding = layer.padding
        if isinstance(padding, str):
            widths = zip(layer.kernel_size, layer.dilation, strict=True)
            padding = [(kernel - 1) * spread // 2 if padding == "same" else 0 for kernel, spread in widths]
        attributes = {
            "kernel_shape": list(layer.kernel_size), "strides": list(layer.stride), "pads": [*padding, *padding],
            "dilations": list(layer.dilation), "group": blocks,
        }  # fmt: skip
    if has_producer:
        nodes, weights["producer"] = _producer("features"), (inputs, PRODUCED_FROM, 1, 1)
        size, features = (batch, PRODUCED_FROM, *shape[1:]), "features"
    nodes += [
        helper.make_node(operation, [features, "weight"], ["sums"], **attributes),
        helper.make_node("Relu", ["sums"], ["logits"]),
    ]
    _write(nodes, size, {**weights, "weight": weight}, path)
    return size


def _producer(output: str) -> list[Any]:
    """Return the ONNX nodes of a small convolution and its ReLU."""
    from onnx import helper

    convolution = helper.make_node("Conv", ["images", "producer"], ["produced"], kernel_shape=[1, 1])
    return [convolution, helper.make_node("Relu", ["produced"], [output])]


def _write_producer(outputs: int, shape: tuple[int, ...], batch: int, path: Path) -> tuple[int, ...]:
    """Write the small convolution alone as ONNX; return the size of its input."""
    size = batch, PRODUCED_FROM, *shape[1:]
    _write(_producer("logits"), size, {"producer": (outputs, PRODUCED_FROM, 1, 1)}, path)
    return size


def _write_nothing(batch: int, path: Path) -> tuple[int, ...]:
    """Write a model that computes next to nothing as ONNX; return the size of its input."""
    from onnx import helper

    size = batch, 1, 1, 1
    _write([helper.make_node("Relu", ["images"], ["logits"])], size, {}, path)
    return size


def _write(nodes: list[Any], size: tuple[int, ...], weights: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Write these nodes, from `images` to `logits`, with random weights of these shapes as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(1)
    values = {
        name: generator.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        for name, shape in weights.items()
    }
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def _time_networks(
    module: nn.Module,
    groups: ChannelGroups,
    image_shape: tuple[int, ...],
    batch: int,
    multiple: int,
    load: Callable,
    folder: Path,
) -> list[tuple[torch.Tensor, float]]:
    """Return [(kept units, milliseconds)] of whole networks: those of SHARES and BARE, then CHECKS of random ones."""
    generator = torch.Generator().manual_seed(0)
    networks = [dict.fromkeys(groups.sizes, share) | dict.fromkeys(groups.branches, 1.0) for share in SHARES]
    if groups.branches:
        networks += [dict.fromkeys(groups.sizes, share) | dict.fromkeys(groups.branches, 0.0) for share in BARE]
    for _ in range(CHECKS):
        shares = torch.rand(len(groups.sizes), generator=generator).tolist()
        networks.append(dict(zip(groups.sizes, shares, strict=True)))
    choices = [_kept(groups, shares, multiple) for shares in networks]
    passes = {}
    for number, kept in enumerate(choices):
        path = folder / f"network{number}.onnx"
        export(shrink(copy_module(module), groups, kept), path, image_shape, batch)
        passes[number] = _bound(_loaded(load, path, "network"), (batch, *image_shape))
    return [(choices[number], milliseconds) for number, milliseconds in _time_in_turn(passes).items()]


def _kept(groups: ChannelGroups, shares: Mapping[str, float], multiple: int) -> torch.Tensor:
    """Return the kept units of a network with these shares of its groups; a branch stays from a half on."""
    kept = []
    for name, size in groups.sizes.items():
        count = round(shares[name])
        if name not in groups.branches:
            count = min(multiples(size, multiple), key=lambda width: abs(width - shares[name] * size))
        kept.append(torch.arange(size) < count)
    return torch.cat(kept)


def _fit(expected: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return (scale, fixed) so that scale x expected + fixed is about `measured`, by the medians of Theil and Sen.

    A network that the machine disturbed changes little.
    """
    first, second = np.triu_indices(len(expected), 1)
    differs = expected[first] != expected[second]
    first, second = first[differs], second[differs]
    slopes = (measured[second] - measured[first]) / (expected[second] - expected[first])
    scale = float(np.median(slopes)) if len(slopes) else 0.0
    fixed = float(np.median(measured - scale * expected))
    if scale <= 0 or fixed < 0:  # noise: the line through the origin
        scale, fixed = float(np.median(measured / expected)), 0.0
    return scale, fixed
