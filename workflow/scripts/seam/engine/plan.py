"""Plans how a network runs: into which stages it falls, how each lays out its tensors, and which kernel a layer takes.

Within a stage all tensors share a split of the lanes (layout.py). Large maps do best with many cells of one image,
since an image's data stays in the cache then; maps of few pixels with many images. Between stages the tensor is
written as [image, channel, y, x]. The cost model in tiling.py weighs one against the other.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from seam.engine.errors import UnsupportedError
from seam.engine.fuse import reads
from seam.engine.layers import Layer, Network
from seam.engine.layout import Misfit, Placement, Split, borders, nonnegative, place
from seam.engine.tiling import Machine, Pattern, Tiling, choose

MOST_BYTES = 1 << 30  # of a thread's workspace
MOST_CUTS = 16


@dataclass
class Step:
    """A layer of a stage, and how it runs."""

    layer: Layer
    tiling: Tiling | None
    cycles: float  # expected, of one block of images


@dataclass
class Segment:
    """Consecutive layers that share a split."""

    source: str
    output: str
    split: Split
    steps: list[Step]
    placements: dict[str, Placement]
    vectors: int  # of the workspace
    cycles: float  # expected, of one block of images, with reading the input and writing the output


@dataclass
class Plan:
    """How `images` images run: segment after segment."""

    images: int
    segments: list[Segment]
    cycles: float


@dataclass
class Planner:
    """Makes plans of one network for one machine, and remembers what it has weighed."""

    network: Network
    machine: Machine
    patterns: dict[str, Pattern] = field(default_factory=dict)
    segments: dict[tuple, Segment | None] = field(default_factory=dict)
    tilings: dict[tuple, Tiling] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = _with_copies(self.network)
        self.cuts = _cuts(self.network)

    def sizes(self) -> list[int]:
        """Return the numbers of images that there are plans for: powers of two, at most one image per lane."""
        sizes = []
        for size in (1 << i for i in range(self.machine.lanes.bit_length())):
            try:
                self.plan(size)
            except UnsupportedError:
                break  # too large
            sizes.append(size)
        return sizes

    def plan(self, images: int) -> Plan:
        """Return the cheapest plan for some images at once. Raises UnsupportedError if there is none."""
        if images not in self.plans:
            self.plans[images] = self._plan(images)
        return self.plans[images]

    def _plan(self, images: int) -> Plan:
        splits = _splits(self.machine.lanes, images)
        handed = [4 * images * math.prod(self.network.shapes[name]) for _, name in self.cuts]
        best: list[Plan | None] = [Plan(images, [], 0.0)] + [None] * (len(self.cuts) - 1)
        for end in range(1, len(self.cuts)):
            for begin in range(end):
                before = best[begin]
                if before is None or (begin and handed[begin] > MOST_BYTES // 4):
                    continue
                for split in splits:
                    segment = self.segment(begin, end, split)
                    if segment is None:
                        continue
                    cycles = before.cycles + segment.cycles * images / split.images
                    known = best[end]
                    if known is None or cycles < known.cycles:
                        best[end] = Plan(images, [*before.segments, segment], cycles)
        plan = best[-1]
        if plan is None:
            raise UnsupportedError("its tensors are too large, or their sizes do not fit each other")
        return plan

    def segment(self, begin: int, end: int, split: Split) -> Segment | None:
        """Return the layers between two cuts with a split, or None if they cannot share it."""
        key = (begin, end, split)
        if key not in self.segments:
            try:
                self.segments[key] = self._segment(begin, end, split)
            except Misfit:
                self.segments[key] = None
        return self.segments[key]

    def _segment(self, begin: int, end: int, split: Split) -> Segment:
        (first, source), (last, output) = self.cuts[begin], self.cuts[end]
        layers = self.network.layers[first:last]
        placements = place(self.network, layers, source, split)
        lanes = self.machine.lanes
        for placement in placements.values():
            if placement.size * lanes * 4 >= 1 << 31:
                raise Misfit("A tensor is larger than 2 GiB.")
        steps = [self._step(layer, placements, split) for layer in layers]
        vectors = _allocate(layers, placements, source, output)
        if vectors * lanes * 4 > MOST_BYTES:
            raise Misfit("The workspace is larger than 1 GiB.")
        moved = sum(placements[n].shape[0] * placements[n].height * placements[n].width for n in (source, output))
        cycles = sum(step.cycles for step in steps) + 1.5 * moved * lanes + 2000
        return Segment(source, output, split, steps, placements, vectors, cycles)

    def _step(self, layer: Layer, placements: dict[str, Placement], split: Split) -> Step:
        source, output = placements[layer.inputs[0]], placements[layer.output]
        pixels = output.height * output.width
        ragged = output.height * split.rows > output.shape[1] or output.width * split.columns > output.shape[2]
        edge = 0 if output.spread else output.plane - pixels + (pixels / 4 if ragged else 0)
        cycles = output.shape[0] * (edge * 2.5 + 4)
        tiling = None
        if layer.kind == "convolution":
            tiling = self._tiling(layer, source, output)
            cycles += tiling.cycles
            if layer.activation.name != "clip":
                cycles += output.shape[0] * pixels * 12
        elif layer.kind in ("max pool", "average pool"):
            cycles += output.shape[0] * pixels * (math.prod(layer.window.kernel) + 6)
        elif layer.kind == "global pool":
            cycles += source.shape[0] * source.height * source.width * 1.5
        else:
            cycles += output.shape[0] * pixels * (4 if layer.activation.name == "clip" else 14)
        return Step(layer, tiling, cycles)

    def _tiling(self, layer: Layer, source: Placement, output: Placement) -> Tiling:
        key = (layer.output, output.height, output.width)
        if key not in self.tilings:
            pattern = self.pattern(layer)
            self.tilings[key] = choose(layer, pattern, source, output, self.machine)
        return self.tilings[key]

    def pattern(self, layer: Layer) -> Pattern:
        """Return which of a convolution's weights are not zero."""
        if layer.output not in self.patterns:
            self.patterns[layer.output] = Pattern(layer)
        return self.patterns[layer.output]


def _splits(lanes: int, images: int) -> list[Split]:
    """Return the splits that are tried for 1, 2, 4 ... images at once, at most `images`.

    Each has a grid of cells as square as the lanes allow, or one cell, which suits maps of few pixels.
    """
    splits = []
    count = 1
    while count <= min(images, lanes):
        cells = lanes // count
        rows = 1 << ((cells.bit_length() - 1) + 1) // 2
        splits += [Split(count, rows, cells // rows)] + ([Split(count, 1, 1)] if cells > 1 else [])
        count *= 2
    return splits


def _with_copies(network: Network) -> Network:
    """Give max pooling a tensor of its own if others read its input, too, and zeros are no padding for it."""
    positive = nonnegative(network)
    readers: dict[str, int] = {}
    for layer in network.layers:
        for name in reads(layer):
            readers[name] = readers.get(name, 0) + 1
    layers, shapes = [], dict(network.shapes)
    for layer in network.layers:
        name = layer.inputs[0]
        if layer.kind == "max pool" and name not in positive and readers[name] > 1:
            copy = f"{layer.output} (input)"
            while copy in shapes:
                copy += "'"
            shapes[copy] = shapes[name]
            layers.append(Layer("activation", [name], copy, name=f"{layer.name} (copy)"))
            layer.inputs = [copy]
        layers.append(layer)
    return Network(layers, shapes, network.input, network.output, network.output_rank)


def _cuts(network: Network) -> list[tuple[int, str]]:
    """Return where a stage may begin or end: (layers before it, the only tensor that passes).

    Cuts matter where the resolution changes; others are left out.
    """
    last_use = {network.output: len(network.layers)}
    for index, layer in enumerate(network.layers):
        for name in reads(layer):
            last_use[name] = max(last_use.get(name, 0), index)
    cuts = []
    alive = {network.input}
    for index, layer in enumerate(network.layers[:-1]):
        alive.add(layer.output)
        alive = {name for name in alive if last_use.get(name, -1) > index}
        following = network.layers[index + 1]
        if len(alive) == 1:
            (name,) = alive
            sizes = {network.shapes[n][1:] for n in (name, layer.inputs[0], following.output)}
            if len(sizes) > 1:
                cuts.append((index + 1, name))
    while len(cuts) > MOST_CUTS:
        cuts = cuts[1::2]
    return [(0, network.input), *cuts, (len(network.layers), network.output)]


def _allocate(layers: list[Layer], placements: dict[str, Placement], source: str, output: str) -> int:
    """Give each tensor a place in the workspace, shared with tensors that are not alive at the same time.

    Returns the vectors of the workspace. First fit, in the order in which tensors are written.
    """
    end = {output: len(layers)}
    for index, layer in enumerate(layers):
        for name in reads(layer):
            end[name] = max(end.get(name, 0), index)
    taken: list[tuple[int, int, str]] = []  # (start, stop, name), sorted
    size = 0
    for index, name in enumerate([source, *(layer.output for layer in layers)]):
        taken = [t for t in taken if end.get(t[2], -1) >= index - 1]
        start, needed = 0, placements[name].size
        for begin, stop, _ in taken:
            if begin - start >= needed:
                break
            start = max(start, stop)
        placements[name].start = start
        taken = sorted([*taken, (start, start + needed, name)])
        size = max(size, start + needed)
    return size


def channel_borders(placement: Placement, split: Split, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the borders of a channel as kernels/seam.h describes them: entries [n, 3], lanes [patterns, 2, lanes]."""
    entries, patterns = borders(placement, split)
    table = np.zeros((len(patterns), 2, lanes), np.int32)
    table[:, 0] = np.arange(lanes)
    for index, (source, valid) in enumerate(patterns):
        table[index, 0, : len(source)] = source
        table[index, 1, : len(valid)] = -valid.astype(np.int32)
    return np.array(entries, np.int32).reshape(-1, 3), table
