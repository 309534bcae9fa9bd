"""Explains a plan to people."""

import math

from seam.engine.layers import Layer
from seam.engine.plan import Planner, Segment, Step


def describe(planner: Planner, images: int) -> str:
    """Return a table of how `images` images at once run (the next power of two, at most one per lane)."""
    size = next((s for s in planner.sizes() if s >= images), planner.sizes()[-1])
    plan = planner.plan(size)
    lines = [
        f"{size} images at once, vectors of {planner.machine.lanes} floats; lanes are images x rows x columns of cells."
    ]
    header = f"{'layer':28} {'output':>14} {'cell':>7} {'MACs':>11} {'zeros':>6} {'share':>6}  kernel, and why"
    for segment in plan.segments:
        lines += ["", f"lanes {segment.split}: {segment.vectors * planner.machine.lanes * 4 / 1024:.0f} KiB", header]
        lines += [_row(planner, segment, step, plan.cycles / plan.images) for step in segment.steps]
    return "\n".join(lines)


def _row(planner: Planner, segment: Segment, step: Step, cycles: float) -> str:
    layer = step.layer
    shape = planner.network.shapes[layer.output]
    place = segment.placements[layer.output]
    macs, zeros, kernel = "", "", layer.kind
    if layer.kind == "convolution":
        pattern = planner.pattern(layer)
        macs = str(pattern.nonzeros * shape[1] * shape[2])
        zeros = f"{100 - 100 * pattern.nonzeros / max(layer.weight.size, 1):.0f} %"
        kernel = _kernel(planner, step)
    fused = " + ".join(filter(None, (f"add {layer.residual}" if layer.residual else "", str(layer.activation))))
    kernel += f", then {fused}" if fused else ""
    share = f"{100 * step.cycles / segment.split.images / cycles:.1f} %"
    output = "x".join(map(str, shape))
    cell = f"{place.height}x{place.width}"
    label = (layer.name or layer.output)[-28:]
    return f"{label:28} {output:>14} {cell:>7} {macs:>11} {zeros:>6} {share:>6}  {kernel}"


def _kernel(planner: Planner, step: Step) -> str:
    tiling, machine, layer = step.tiling, planner.machine, step.layer
    pattern = planner.pattern(layer)
    assert tiling is not None  # a layer without one has no kernel of its own
    rows, columns = tiling.main(machine)
    text = _name(layer, tiling.outputs, pattern.nonzeros, tiling.entries)
    text += f", {rows}x{columns} pixels"
    if tiling.parts > 1:
        text += f", inputs in {tiling.parts} parts so that they fit the cache"
    return text


def _name(layer: Layer, outputs: int, nonzeros: int, entries: int) -> str:
    if layer.groups == layer.weight.shape[0] and layer.weight.shape[1] == 1:
        return "per channel"
    if outputs == 1:
        return "sparse"
    stored = entries * outputs
    dense = math.prod(layer.weight.shape)
    if stored >= dense:
        return f"dense, {outputs} channels at once"
    return (
        f"{outputs} channels share inputs ({100 * nonzeros / max(stored, 1):.0f} % of the stored weights are not zero)"
    )
