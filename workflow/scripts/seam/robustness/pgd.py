"""advertorch's PGD attack, made importable with current versions of torch.

advertorch 0.2.3 imports `zero_gradients`, which torch removed in 1.9 and which the attack does not use.
"""

import sys

import torch.autograd.gradcheck  # noqa: F401 (torch.autograd then names a function gradcheck, not the module)

module = sys.modules["torch.autograd.gradcheck"]
if not hasattr(module, "zero_gradients"):
    setattr(module, "zero_gradients", None)  # noqa: B010

from advertorch.attacks import LinfPGDAttack  # noqa: E402

__all__ = ["LinfPGDAttack"]
