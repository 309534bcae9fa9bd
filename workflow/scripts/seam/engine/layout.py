"""Where the pixels of a tensor lie: lanes, cells and borders.

A vector holds one value of each lane. A *split* says what lanes are: images x rows of cells x columns of cells. With
16 lanes, 16 x 1 x 1 takes the same pixel of 16 images, 1 x 4 x 4 cuts one image into a grid of 4 x 4 cells and takes
the same pixel of each cell. Shifting a map by a pixel is then a shift by a whole vector: every load is aligned, for
every stride, padding and map size, and one kernel serves one image and many. A cell's border holds copies of its
neighbours' pixels (or padding), so that a window can leave its cell; whoever writes a tensor writes its border.

A layer of stride 2 halves the cells, not the grid: a pixel stays in its lane.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from seam.engine.errors import EngineError
from seam.engine.fuse import reads
from seam.engine.layers import Layer, Network, Shape, Window


@dataclass(frozen=True)
class Split:
    """What the lanes of a vector are."""

    images: int
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """Lanes per image."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.images} x {self.rows} x {self.columns}"


@dataclass
class Placement:
    """How one tensor is laid out."""

    shape: Shape
    height: int  # of a cell
    width: int
    spread: bool = False  # one pixel, and every lane of an image holds it
    above: int = 0  # rows and columns of the border
    left: int = 0
    below: int = 0
    right: int = 0
    fill: float = 0.0  # beyond the map's edge
    start: int = field(default=-1)  # in the workspace, in vectors; set by the planner

    @property
    def row(self) -> int:
        """Vectors from a row to the next."""
        return self.left + self.width + self.right

    @property
    def plane(self) -> int:
        """Vectors from a channel to the next. Odd, so that channels do not compete for the same lines of a cache."""
        return (self.above + self.height + self.below) * self.row | 1

    @property
    def size(self) -> int:
        """Vectors in all."""
        return self.shape[0] * self.plane

    @property
    def origin(self) -> int:
        """Vectors from the start to the pixel (0, 0) of the first channel."""
        return self.above * self.row + self.left


class Misfit(EngineError):
    """These layers cannot share this split."""


def place(network: Network, layers: list[Layer], source: str, split: Split) -> dict[str, Placement]:
    """Return the layout of every tensor of some layers, which begin at the tensor `source`.

    Raises Misfit if a map cannot keep its pixels in their lanes, say because cells of one pixel would be halved.
    """
    spread = _spread(network, layers) if split.cells > 1 else set()
    placements = {}
    names = [source, *(layer.output for layer in layers)]
    heights = _cells(network, layers, names, spread, 0, split.rows)
    widths = _cells(network, layers, names, spread, 1, split.columns)
    for name in names:
        placements[name] = Placement(network.shapes[name], heights[name], widths[name], name in spread)
    for layer in layers:
        _check_operands(layer, placements, split)
        if layer.kind in ("convolution", "max pool", "average pool"):
            _widen(placements[layer.inputs[0]], placements[layer.output], layer)
    _set_fill(layers, placements, nonnegative(network))
    return placements


def borders(
    placement: Placement, split: Split
) -> tuple[list[tuple[int, int, int]], list[tuple[np.ndarray, np.ndarray]]]:
    """Return how to complete a channel whose cells' pixels are written.

    Returns entries (to, from, pattern), offsets in vectors from the pixel (0, 0), and patterns (source lane of each
    lane; whether the lane's pixel lies on the map). Pattern -1: no lane's does.
    """
    p = placement
    entries: list[tuple[int, int, int]] = []
    patterns: list[tuple[np.ndarray, np.ndarray]] = []
    known: dict[tuple, int] = {}
    if p.spread:
        return entries, patterns
    lanes = np.arange(split.images * split.cells)
    cell_y, cell_x = np.divmod(lanes % split.cells, split.columns)
    rows = _axis(range(-p.above, p.height + p.below), p.height, p.shape[1], cell_y)
    columns = _axis(range(-p.left, p.width + p.right), p.width, p.shape[2], cell_x)
    everywhere = bytes([1]) * len(lanes)
    edges = {x: column for x, column in columns.items() if column[0] or column[2] != everywhere}
    for y, (shift_y, from_y, valid_y) in rows.items():
        inside = shift_y == 0 and valid_y == everywhere
        for x, (shift_x, from_x, valid_x) in (edges if inside else columns).items():
            key = (shift_y, valid_y, shift_x, valid_x)
            if key not in known:
                valid = np.frombuffer(valid_y, bool) & np.frombuffer(valid_x, bool)
                source = np.where(valid, lanes + shift_y * split.columns + shift_x, lanes)
                known[key] = _pattern(patterns, source, valid)
            pattern = known[key]
            entries.append((y * p.row + x, from_y * p.row + from_x if pattern >= 0 else 0, pattern))
    return entries, patterns


def _axis(positions: range, cell: int, size: int, cells: np.ndarray) -> dict[int, tuple[int, int, bytes]]:
    """Return of each position: how many cells away its pixel lies, where in that cell, and in which lanes it exists."""
    matches = {}
    for position in positions:
        shift, offset = divmod(position, cell)
        index = cells * cell + position
        matches[position] = (shift, offset, ((index >= 0) & (index < size)).tobytes())
    return matches


def _pattern(patterns: list, source: np.ndarray, valid: np.ndarray) -> int:
    if not valid.any():
        return -1
    for index, (other, mask) in enumerate(patterns):
        if np.array_equal(other, source) and np.array_equal(mask, valid):
            return index
    patterns.append((source, valid))
    return len(patterns) - 1


def _spread(network: Network, layers: list[Layer]) -> set[str]:
    """Return the tensors of one pixel that follow from global pooling alone."""
    spread: set[str] = set()
    for layer in layers:
        pixel = network.shapes[layer.output][1:] == (1, 1) and layer.window == Window()
        if layer.kind == "global pool" or (pixel and all(name in spread for name in reads(layer))):
            spread.add(layer.output)
    return spread


def _cells(network: Network, layers: list[Layer], names: list[str], spread: set[str], axis: int, grid: int) -> dict:
    """Return the size of each tensor's cells along an axis (0: rows, 1: columns)."""
    sizes = {name: network.shapes[name][1 + axis] for name in names}
    if grid == 1:
        return sizes
    ratio = {names[0]: Fraction(1)}
    for layer in layers:
        if layer.output in spread:
            continue
        ratios = {ratio[name] / layer.window.stride[axis] for name in layer.inputs if name not in spread}
        if layer.residual and layer.residual not in spread:
            ratios.add(ratio[layer.residual])
        if len(ratios) != 1:
            raise Misfit("Tensors of different resolution meet in one layer.")
        ratio[layer.output] = ratios.pop()
    unit = math.lcm(*(r.denominator for r in ratio.values()))
    if unit > 1 << 20:
        raise Misfit("Strides are too large.")
    steps = max(-(-sizes[name] // int(grid * unit * r)) for name, r in ratio.items())
    return {name: 1 if name in spread else int(unit * steps * ratio[name]) for name in names}


def _check_operands(layer: Layer, placements: dict[str, Placement], split: Split) -> None:
    """Raise Misfit if a layer reads a value that its lanes do not hold, or another pixel than a spread tensor's one."""
    if split.cells == 1:
        return
    output = placements[layer.output]
    for name in reads(layer):
        operand = placements[name]
        pointwise = layer.kind in ("add", "multiply", "concatenate", "activation") or name == layer.residual
        per_channel = pointwise and operand.shape[1:] != output.shape[1:]
        if per_channel and not operand.spread:
            raise Misfit("A value per channel is not known in all lanes.")
        if pointwise and output.spread and not operand.spread:
            raise Misfit("A value is not known in all lanes.")
        one_pixel = (pointwise or layer.window == Window()) and (output.height, output.width) == (1, 1)
        if operand.spread and not (per_channel or one_pixel):
            raise Misfit("A layer reads more than the only pixel of a tensor.")


def _widen(source: Placement, output: Placement, layer: Layer) -> None:
    """Give a tensor the border that a window over it needs."""
    window = layer.window
    extents = []
    for axis, (cell, cell_out) in enumerate(((source.height, output.height), (source.width, output.width))):
        reach = window.dilation[axis] * (window.kernel[axis] - 1)
        last = (cell_out - 1) * window.stride[axis] + reach - window.before[axis]
        extents.append((window.before[axis], max(0, last - (cell - 1))))
    (above, below), (left, right) = extents
    source.above, source.below = max(source.above, above), max(source.below, below)
    source.left, source.right = max(source.left, left), max(source.right, right)


def nonnegative(network: Network) -> set[str]:
    """Return the tensors that have no negative values, for which zero is as good a padding as minus infinity."""
    names: set[str] = set()
    for layer in network.layers:
        act = layer.activation
        never = act.name in ("sigmoid", "hard_sigmoid") or (act.name == "clip" and act.low >= 0)
        passes = layer.kind in ("max pool", "concatenate") and act.identity
        if never or (passes and all(name in names for name in layer.inputs)):
            names.add(layer.output)
    return names


def _set_fill(layers: list[Layer], placements: dict[str, Placement], positive: set[str]) -> None:
    """Give every tensor the padding that its readers need: max pooling must not see others' zeros."""
    wanted: dict[str, set[float]] = {}
    for layer in layers:
        name = layer.inputs[0]
        if layer.kind == "max pool":
            if name not in positive:
                wanted.setdefault(name, set()).add(-math.inf)
        elif layer.kind in ("convolution", "average pool", "global pool"):
            wanted.setdefault(name, set()).add(0.0)
    for name, fills in wanted.items():
        if len(fills) > 1:
            raise Misfit("A tensor is padded with zeros for one layer and not for another.")
        placements[name].fill = fills.pop()
