"""Chooses how a convolution runs: how many output channels share a list of inputs, in which blocks of pixels, and into
how many ranges its input channels are split.

A cost model chooses, not a measurement, so that the same model gives the same plan on the same kind of machine. Its
constants come from timing the kernels (docs/engine.md).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from seam.engine.layers import Layer
from seam.engine.layout import Placement

PART_CHANNELS = (1 << 30, 128, 64, 48, 32, 24, 16, 12, 8, 4)  # input channels per range that are tried


@dataclass(frozen=True)
class Machine:
    """What the cost model knows of a processor. Cycles are those of one core."""

    lanes: int
    cache: int  # bytes of the first-level data cache
    second_cache: int  # bytes of the second-level cache
    shapes: tuple[tuple[int, int, int, int], ...]  # the block kernels: channels, rows, columns, stride (0: any)
    registers: int = 32


@dataclass(frozen=True)
class Area:
    """A rectangle of blocks of one kernel: where it begins, and how many blocks it has down and across."""

    y: int
    x: int
    down: int
    across: int
    kernel: int


@dataclass(frozen=True)
class Tiling:
    """How a convolution runs. `cycles` is what the cost model expects of one block of images."""

    outputs: int  # output channels that share a list of inputs
    parts: int  # ranges of input channels
    areas: tuple[Area, ...]  # that cover a cell
    entries: int  # of all lists
    cycles: float

    def main(self, machine: Machine) -> tuple[int, int]:
        """Return rows and columns of the largest block."""
        return max((machine.shapes[area.kernel][1:3] for area in self.areas), key=math.prod)

    def blocks(self, machine: Machine) -> np.ndarray:
        """Return every block as (y, x, index of the kernel): int32 [blocks, 3]."""
        blocks = []
        for area in self.areas:
            _, rows, columns, _ = machine.shapes[area.kernel]
            y, x = np.divmod(np.arange(area.down * area.across), area.across)
            kernel = np.full(len(y), area.kernel)
            blocks.append(np.stack([area.y + y * rows, area.x + x * columns, kernel], axis=1))
        return np.concatenate(blocks).astype(np.int32)


class Pattern:
    """Which weights of a layer are not zero, as far as costs depend on it."""

    def __init__(self, layer: Layer):
        weight = layer.weight
        self.channels, self.per_group, rows, columns = weight.shape
        self.groups = layer.groups
        self.taps = rows * columns
        self.nonzero = weight.reshape(self.channels, -1) != 0
        self.nonzeros = int(np.count_nonzero(self.nonzero))
        self._entries: dict[int, int] = {}

    def entries(self, outputs: int) -> int:
        """Return how long all lists are if `outputs` channels share one."""
        if outputs not in self._entries:
            self._entries[outputs] = int(np.count_nonzero(shared(self.nonzero, outputs)))
        return self._entries[outputs]

    def can_share(self, outputs: int) -> bool:
        """Whether `outputs` consecutive channels read the same inputs."""
        return outputs == 1 or self.groups == 1 or (self.channels // self.groups) % outputs == 0


def shared(nonzero: np.ndarray, outputs: int) -> np.ndarray:
    """Return which inputs any of `outputs` consecutive channels needs: bool [ceil(channels / outputs), inputs]."""
    missing = -len(nonzero) % outputs
    padded = np.pad(nonzero, ((0, missing), (0, 0)))
    return np.any(padded.reshape(-1, outputs, nonzero.shape[1]), axis=1)


def choose(layer: Layer, pattern: Pattern, source: Placement, output: Placement, machine: Machine) -> Tiling:
    """Return the cheapest tiling for a convolution between two layouts."""
    stride = layer.window.stride[1]
    sizes = (source.size * machine.lanes * 4, output.size * machine.lanes * 4)
    best: Tiling | None = None
    for outputs in sorted({shape[0] for shape in machine.shapes}):
        if not pattern.can_share(outputs) or outputs > max(1, pattern.channels):
            continue
        for rows, columns in _mains(machine, outputs, stride, output.height, output.width):
            areas = _cover(machine, outputs, stride, output.height, output.width, rows, columns)
            for parts in _part_counts(pattern):
                cycles = _cycles(layer, pattern, machine, outputs, parts, areas, (rows, columns), sizes)
                if best is None or cycles < best.cycles:
                    best = Tiling(outputs, parts, areas, pattern.entries(outputs), cycles)
    assert best is not None
    return best


def _part_counts(pattern: Pattern) -> Iterable[int]:
    if pattern.groups > 1:
        return (1,)
    return sorted({-(-pattern.per_group // min(size, pattern.per_group)) for size in PART_CHANNELS})


@dataclass(frozen=True)
class Costs:
    """Constants of the cost model, in cycles, fitted to timings of the kernels (docs/engine.md)."""

    load: float = 0.5  # of a vector in the first-level cache
    miss: float = 0.5  # what a vector costs beyond that if the inputs of a block do not fit the cache
    arithmetic: float = 0.5  # of a multiply-add
    latency: float = 4.0  # of a chain of multiply-adds
    row: float = 0.4  # of each row of a block
    entry: float = 0.1  # of each entry of a list
    sum: float = 2.5  # to start and end a sum
    list: float = 22.0  # to start and end a list
    part: float = 17.0  # to continue a list in another part
    part_sum: float = 4.5  # to continue a sum
    fetch: float = 0.05  # of a vector that comes into the first-level cache from the second
    far: float = 1.6  # of one that comes from beyond it
    byte: float = 0.15  # of a byte of the lists if they do not fit the second-level cache


COSTS = Costs()


def _cycles(
    layer: Layer,
    pattern: Pattern,
    machine: Machine,
    outputs: int,
    parts: int,
    areas: tuple[Area, ...],
    main: tuple[int, int],
    sizes: tuple[int, int],
    costs: Costs = COSTS,
) -> float:
    """Return the expected cycles of one pass over blocks, the first of which are of `main` rows and columns.

    An entry of a list costs its loads or its multiply-adds, whatever takes longer, and at least the latency of a
    chain of additions. sizes: bytes of the input and of the output in memory.
    """
    window = layer.window
    rows = (main[0] - 1) * window.stride[0] + window.dilation[0] * (window.kernel[0] - 1) + 1
    columns = (main[1] - 1) * window.stride[1] + window.dilation[1] * (window.kernel[1] - 1) + 1
    channels = -(-pattern.per_group // parts)
    footprint = channels * rows * columns * machine.lanes * 4
    missing = min(1.0, max(0.0, footprint / machine.cache - 0.75) / 0.5) if pattern.groups == 1 else 0.3
    fetch, store = (costs.fetch if size < 0.75 * machine.second_cache else costs.far for size in sizes)
    step = min(window.stride[0], window.kernel[0]) * min(window.stride[1], window.kernel[1])
    lists = -(-pattern.channels // outputs)
    entries = pattern.entries(outputs)
    bytes_ = entries * 4 * (1 + outputs)
    stream = costs.byte * bytes_ if bytes_ > 0.75 * machine.second_cache else 0.0
    total = 0.0
    for area in areas:
        count = area.down * area.across
        _, high, wide, _ = machine.shapes[area.kernel]
        pixels = high * wide
        sums = pixels * outputs
        chains = 8 if sums < 2 else 4 if sums < 4 else 2 if sums < 8 else 1
        loads = pixels * (costs.load + costs.miss * missing) + costs.load * (1 + outputs)
        instructions = (sums + outputs + 2 + high + (pixels if outputs > 1 else 0)) / 6
        spilled = max(0, sums + outputs + 1 - machine.registers)
        entry = max(loads, sums * costs.arithmetic, costs.latency / chains, instructions)
        entry += spilled + costs.entry + costs.row * (high - 1)
        ends = costs.list + costs.sum * sums + (parts - 1) * (costs.part + costs.part_sum * sums)
        moved = pixels * (fetch * step * pattern.per_group * pattern.groups + store * pattern.channels)
        total += count * (entries * entry + lists * ends + moved + stream)
    return total


@lru_cache(maxsize=4096)
def _mains(machine: Machine, outputs: int, stride: int, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the (rows, columns) of kernels that fit into a cell."""
    shapes = _fitting(machine, outputs, stride)
    return tuple((r, c) for r, c in shapes if r <= height and c <= width)


@lru_cache(maxsize=256)
def _fitting(machine: Machine, outputs: int, stride: int) -> dict[tuple[int, int], int]:
    """Return the kernels for some channels and a stride: (rows, columns) to the kernel's index."""
    exact = {s[1:3]: i for i, s in enumerate(machine.shapes) if s[0] == outputs and s[3] == stride}
    return exact or {s[1:3]: i for i, s in enumerate(machine.shapes) if s[0] == outputs and s[3] == 0}


@lru_cache(maxsize=4096)
def _cover(
    machine: Machine, outputs: int, stride: int, height: int, width: int, rows: int, columns: int
) -> tuple[Area, ...]:
    """Return areas that cover a cell: as many of rows x columns as fit, then the largest that fit into the rest."""
    shapes = _fitting(machine, outputs, stride)
    areas: list[Area] = []

    def fill(y: int, x: int, high: int, wide: int, shape: tuple[int, int] | None = None) -> None:
        if not high or not wide:
            return
        if shape is None:
            shape = max((s for s in shapes if s[0] <= high and s[1] <= wide), key=lambda s: (math.prod(s), s[1]))
        down, across = high // shape[0], wide // shape[1]
        areas.append(Area(y, x, down, across, shapes[shape]))
        used_high, used_wide = down * shape[0], across * shape[1]
        fill(y, x + used_wide, used_high, wide - used_wide)
        fill(y + used_high, x, high - used_high, wide)

    fill(0, 0, height, width, (rows, columns))
    return tuple(areas)


def pack(layer: Layer, pattern: Pattern, tiling: Tiling, source: Placement, lanes: int) -> dict[str, np.ndarray]:
    """Return a convolution's lists: `first`, `offset` (bytes), `value` and `bias` as kernels/seam.h describes them."""
    outputs, window = tiling.outputs, layer.window
    lists, entry = np.nonzero(shared(pattern.nonzero, outputs))
    channel, tap = np.divmod(entry, pattern.taps)
    tap_y, tap_x = np.divmod(tap, window.kernel[1])
    per_part = -(-pattern.per_group // tiling.parts)
    part = channel // per_part
    count = -(-pattern.channels // outputs)
    order = np.lexsort((entry, lists, part))
    first = np.zeros(tiling.parts * count + 1, np.int64)
    np.cumsum(np.bincount((part * count + lists), minlength=tiling.parts * count), out=first[1:])
    group = lists * outputs // (pattern.channels // pattern.groups)
    plane = (group * pattern.per_group + channel) * source.plane
    row = (tap_y * window.dilation[0] - window.before[0]) * source.row
    offset = (plane + row + tap_x * window.dilation[1] - window.before[1]) * (4 * lanes)
    weight = np.pad(layer.weight.reshape(pattern.channels, -1), ((0, count * outputs - pattern.channels), (0, 0)))
    weight = weight.reshape(count, outputs, -1)
    value = weight[lists[order], :, entry[order]]
    bias = np.pad(layer.bias, (0, count * outputs - pattern.channels))
    return {
        "first": first.astype(np.int32),
        "offset": offset[order].astype(np.int32),
        "value": np.ascontiguousarray(value, np.float32),
        "bias": np.ascontiguousarray(bias, np.float32),
    }
