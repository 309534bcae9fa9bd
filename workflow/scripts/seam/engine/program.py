"""Turns a plan into the structures that the kernels read."""

import ctypes
import math
from typing import Any

import numpy as np

from seam.engine.layers import Activation, Layer
from seam.engine.layout import Placement, Split
from seam.engine.native import (
    ACTIVATE,
    ACTIVATIONS,
    ADD,
    CONVOLVE,
    MULTIPLY,
    PACK,
    POOL_AVERAGE,
    POOL_GLOBAL,
    POOL_MAX,
    UNPACK,
    Map,
    Op,
    Picture,
    Stage,
)
from seam.engine.plan import Plan, Planner, Segment, Step, channel_borders
from seam.engine.tiling import pack

_KINDS = {
    "convolution": CONVOLVE,
    "max pool": POOL_MAX,
    "average pool": POOL_AVERAGE,
    "global pool": POOL_GLOBAL,
    "activation": ACTIVATE,
    "concatenate": ACTIVATE,
    "add": ADD,
    "multiply": MULTIPLY,
}


class Program:
    """A plan as the kernels take it.

    stages: ctypes array of Stage; workspace: floats that each thread needs; shared: floats for what stages hand to
    each other; images: at most so many at once.
    """

    def __init__(self, planner: Planner, plan: Plan):
        self.images = plan.images
        self.lanes = planner.machine.lanes
        self.planner = planner
        self.kept: list[object] = []  # arrays that the structures point into
        self.workspace = max(segment.vectors for segment in plan.segments) * self.lanes
        self.shared = 0
        stages = []
        for segment in plan.segments:
            last = segment is plan.segments[-1]
            stages.append(self._stage(segment, -1 if last else self.shared))
            if not last:
                self.shared += plan.images * math.prod(planner.network.shapes[segment.output])
        self.stages = (Stage * len(stages))(*stages)

    def _stage(self, segment: Segment, buffer: int) -> Stage:
        shapes = self.planner.network.shapes
        ops = [self._transfer(PACK, segment, segment.source)]
        for step in segment.steps:
            ops += self._ops(step, segment)
        ops.append(self._transfer(UNPACK, segment, segment.output))
        array = (Op * len(ops))(*ops)
        self.kept.append(array)
        return Stage(
            ctypes.addressof(array),
            len(ops),
            segment.split.images,
            math.prod(shapes[segment.source]),
            math.prod(shapes[segment.output]),
            buffer,
        )

    def _transfer(self, kind: int, segment: Segment, name: str) -> Op:
        place = segment.placements[name]
        op = self._op(kind, place, segment.split, Activation())
        op.picture.height, op.picture.width = place.shape[1:]
        if kind == PACK:
            self._set_borders(op, place, segment.split)
        else:
            op.in_ = op.out
        return op

    def _ops(self, step: Step, segment: Segment) -> list[Op]:
        layer, split = step.layer, segment.split
        source, output = segment.placements[layer.inputs[0]], segment.placements[layer.output]
        if layer.kind == "concatenate":
            return self._concatenate(layer, segment)
        op = self._op(_KINDS[layer.kind], output, split, layer.activation)
        op.in_ = self._map(source)
        self._set_borders(op, output, split)
        op.step_y, op.step_x = layer.window.stride
        if layer.kind == "convolution":
            self._convolution(op, step, source, segment)
        elif layer.kind in ("max pool", "average pool"):
            self._pooling(op, layer, source, output, split)
        elif layer.kind == "global pool":
            op.taps, op.step_x = source.height, source.width
            op.scale = self._keep(np.array([1 / math.prod(source.shape[1:])], np.float32))
        elif layer.kind in ("add", "multiply"):
            other = segment.placements[layer.inputs[1]]
            op.other = self._map(other)
            op.other_step = int(other.shape == output.shape)
        return [op]

    def _concatenate(self, layer: Layer, segment: Segment) -> list[Op]:
        """Return a copy per input. Each writes the borders of its channels."""
        output = segment.placements[layer.output]
        ops, channel = [], 0
        for name in layer.inputs:
            source = segment.placements[name]
            op = self._op(ACTIVATE, output, segment.split, layer.activation)
            op.channels = source.shape[0]
            op.in_ = self._map(source)
            op.out.start += channel * output.plane * self.lanes
            self._set_borders(op, output, segment.split)
            ops.append(op)
            channel += source.shape[0]
        return ops

    def _convolution(self, op: Op, step: Step, source: Placement, segment: Segment) -> None:
        layer, tiling = step.layer, step.tiling
        assert tiling is not None
        lists = pack(layer, self.planner.pattern(layer), tiling, source, self.lanes)
        op.outputs, op.parts = tiling.outputs, tiling.parts
        op.groups = (len(lists["first"]) - 1) // tiling.parts
        op.first, op.offset = self._keep(lists["first"]), self._keep(lists["offset"])
        op.value, op.bias = self._keep(lists["value"]), self._keep(lists["bias"])
        blocks = tiling.blocks(self.planner.machine)
        op.blocks, op.block = len(blocks), self._keep(blocks)
        if layer.residual:
            op.other = self._map(segment.placements[layer.residual])

    def _pooling(self, op: Op, layer: Layer, source: Placement, output: Placement, split: Split) -> None:
        window = layer.window
        rows = np.arange(window.kernel[0]) * window.dilation[0] - window.before[0]
        columns = np.arange(window.kernel[1]) * window.dilation[1] - window.before[1]
        offset = (rows[:, None] * source.row + columns).reshape(-1) * (4 * self.lanes)
        op.taps, op.offset = len(offset), self._keep(offset.astype(np.int32))
        if layer.kind == "average pool":
            op.scale = self._keep(_shares(layer, source, output, split, self.lanes))

    def _op(self, kind: int, place: Placement, split: Split, activation: Activation) -> Op:
        op = Op(kind=kind, channels=place.shape[0], height=place.height, width=place.width, step_y=1, step_x=1)
        op.out = self._map(place)
        op.in_, op.other = Map(-1, 0, 0), Map(-1, 0, 0)
        op.activation = ACTIVATIONS[activation.name]
        op.low, op.high = activation.low, activation.high
        op.alpha, op.beta, op.fill = activation.alpha, activation.beta, place.fill
        op.picture = Picture(split.images, split.rows, split.columns, *place.shape[1:])
        return op

    def _set_borders(self, op: Op, place: Placement, split: Split) -> None:
        entries, lanes = channel_borders(place, split, self.lanes)
        op.borders = len(entries)
        op.border, op.lanes = self._keep(entries), self._keep(lanes)

    def _map(self, place: Placement) -> Map:
        return Map((place.start + place.origin) * self.lanes, place.row, place.plane)

    def _keep(self, array: np.ndarray) -> int:
        """Return the address of an aligned copy that lives as long as the program."""
        copy = aligned(max(array.size, 1), array.dtype)
        copy[: array.size] = array.reshape(-1)
        copy[array.size :] = 0  # of an empty array
        self.kept.append(copy)
        return copy.ctypes.data


def aligned(count: int, dtype: Any = np.float32) -> np.ndarray:
    """Return an uninitialised array whose memory begins at a multiple of 64 bytes."""
    size = np.dtype(dtype).itemsize
    raw = np.empty(count * size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + count * size].view(dtype)


def _shares(layer: Layer, source: Placement, output: Placement, split: Split, lanes: int) -> np.ndarray:
    """Return what average pooling multiplies each pixel's sum by: [rows, columns, lanes] of a cell."""
    window = layer.window
    counts = []
    for axis in (0, 1):
        size, result = source.shape[1 + axis], output.shape[1 + axis]
        begin = np.arange(result) * window.stride[axis] - window.before[axis]
        end = begin + window.kernel[axis]
        low, high = (-window.before[axis], size + window.after[axis]) if layer.count_padding else (0, size)
        counts.append(np.maximum(np.minimum(end, high) - np.maximum(begin, low), 0))
    share = 1 / np.maximum(counts[0][:, None] * counts[1], 1)
    padded = np.zeros((output.height * split.rows, output.width * split.columns))
    height, width = min(padded.shape[0], share.shape[0]), min(padded.shape[1], share.shape[1])
    padded[:height, :width] = share[:height, :width]
    cells = padded.reshape(split.rows, output.height, split.columns, output.width).transpose(1, 3, 0, 2)
    cells = cells.reshape(output.height, output.width, split.cells)
    table = np.zeros((output.height, output.width, lanes), np.float32)
    table[:, :, : split.images * split.cells] = np.tile(cells, split.images)
    return table
