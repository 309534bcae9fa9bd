"""advertorch's PGD attack, which can be imported with a current torch.

advertorch 0.2.3 imports `zero_gradients`, which torch removed in 1.9 and which the attack does not need.
"""

import sys

import torch.autograd.gradcheck  # noqa: F401 (the name torch.autograd.gradcheck is then a function, not the module)

module = sys.modules["torch.autograd.gradcheck"]
if not hasattr(module, "zero_gradients"):
    module.zero_gradients = None

from advertorch.attacks import LinfPGDAttack  # noqa: E402

__all__ = ["LinfPGDAttack"]
