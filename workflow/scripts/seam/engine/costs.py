"""What each convolution of a model costs in this engine, by the cost model that plans it."""

from dataclasses import dataclass
from pathlib import Path

from seam.engine import native
from seam.engine.fuse import fuse
from seam.engine.layers import convert
from seam.engine.plan import Planner
from seam.engine.reader import read


@dataclass(frozen=True)
class ConvolutionCost:
    """A convolution (or a linear layer, which is one of 1x1 pixel) of a model, in the order in which they run."""

    size: int  # of the weight
    nonzeros: int
    cycles: float  # expected, for one batch


def convolution_costs(path: str | Path, images: int, instructions: str | None = None) -> list[ConvolutionCost]:
    """Return the convolutions of the ONNX file `path` with their expected cycles, for a batch of `images`.

    A batch counts as so many times the images that run at once. instructions: as `seam.engine.load` takes them.
    Raises EngineError, or UnsupportedError if this engine does not run the model.
    """
    planner = Planner(fuse(convert(read(path))), native.library(instructions).machine)
    at_once = max(size for size in planner.sizes() if size <= images)
    costs = []
    for segment in planner.plan(at_once).segments:
        for step in segment.steps:
            if step.layer.kind == "convolution":
                nonzeros = planner.pattern(step.layer).nonzeros
                costs.append(
                    ConvolutionCost(step.layer.weight.size, nonzeros, step.cycles / segment.split.images * images)
                )
    return costs
