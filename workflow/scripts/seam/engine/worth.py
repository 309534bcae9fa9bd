"""Says whether a network has so few zeros that an engine for dense networks is faster."""

import math

import numpy as np

from seam.engine.layers import Network

SPARSE = 0.5  # of the multiply-adds: about there both are as fast (docs/engine.md has the measurements)


def multiply_adds(network: Network) -> tuple[int, int]:
    """Return an image's multiply-adds with the weights that are not zero, and with all weights."""
    kept = total = 0
    for layer in network.layers:
        if layer.kind == "convolution":
            pixels = math.prod(network.shapes[layer.output][1:])
            kept += pixels * int(np.count_nonzero(layer.weight))
            total += pixels * layer.weight.size
    return kept, total


def is_sparse(network: Network) -> bool:
    """Return whether at most a share of SPARSE of the multiply-adds remains."""
    kept, total = multiply_adds(network)
    return total > 0 and kept <= SPARSE * total
