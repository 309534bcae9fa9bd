"""advertorch's PGD, its import mended: it asks for a function that torch lost in 1.9 and that is not needed."""

import sys

import torch.autograd.gradcheck  # noqa: F401 (the name torch.autograd.gradcheck is then a function, not the module)

module = sys.modules["torch.autograd.gradcheck"]
if not hasattr(module, "zero_gradients"):
    module.zero_gradients = None

from advertorch.attacks import LinfPGDAttack  # noqa: E402

__all__ = ["LinfPGDAttack"]
