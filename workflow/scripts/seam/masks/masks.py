"""A mask on any model: one real number per weight; the weight is kept while its number is above zero.

The masked network is the module itself. Before each step its weights become `w * [m > 0]`; the source's weights `w` are
stored aside. The backward pass gives the gradient of these effective weights, which becomes the gradient of the masks.
So no architecture is rewritten, autograd never sees a mask, and the search ends with a plain module whose removed
weights are zero.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import nn

from seam.errors import UserError
from seam.masks.layers import maskable

GPU_UPDATE_BYTES = 16 << 20  # gradients that one update on a GPU covers: each launch of a kernel costs time


class Optimizer(Protocol):
    """An optimizer that can update some of its parameters, and free their gradients, before its step ends."""

    def update(self, parameters: list[torch.Tensor]) -> None:
        """Update `parameters` now."""
        ...


class Masks:
    """The masks on a module, all ones at first.

    values: {name: mask}, for an optimizer. Masks and weights are float32, because the gradient of the penalty is as
        small as 1e-8 per mask; what the network computes may be in another precision.
    """

    def __init__(self, module: nn.Module, exclude: Collection[str] = ()) -> None:
        """Put masks on all maskable parameters but those in `exclude` (see `maskable`).

        Raises ValueError if there are none.
        """
        self.parameters: dict[str, torch.Tensor] = dict(maskable(module, exclude))
        if not self.parameters:
            raise ValueError("the model has no convolution or linear layer to mask")
        self.weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        buffers = dict(module.named_buffers())
        # The part of a bias that comes from a folded batch norm, which no mask removes: see seam.models.folding.
        self.shifts: dict[str, torch.Tensor] = {}
        for name, weight in self.weights.items():
            if name.endswith("bias") and (place := f"{name[:-4]}batch_norm_shift") in buffers:
                self.shifts[name] = buffers[place]
                weight.sub_(buffers[place])
        self.values = {name: torch.ones_like(w, dtype=torch.float32) for name, w in self.weights.items()}
        self.count = sum(value.numel() for value in self.values.values())
        self.prices: Mapping[str, float] | None = None  # of a mask of each parameter in the penalty; None: 1
        # A CPU updates each parameter alone, in its cache. A GPU updates several, so that it launches few kernels.
        self.update_bytes = GPU_UPDATE_BYTES if next(iter(self.values.values())).is_cuda else 0

    @torch.no_grad()
    def apply(self) -> None:
        """Set the module's weights to the source's where the mask is above zero, and to zero elsewhere."""
        self._apply(self.parameters)

    def _apply(self, names: Collection[str]) -> None:
        parameters = [self.parameters[name].data for name in names]
        weights, values = ([tensors[name] for name in names] for tensors in (self.weights, self.values))
        if self.update_bytes:
            kept = torch._foreach_sign(values)
            torch._foreach_clamp_min_(kept, 0)
            torch._foreach_mul_(kept, weights)
            torch._foreach_copy_(parameters, kept)
        else:
            for parameter, weight, value in zip(parameters, weights, values, strict=True):
                torch.mul(weight, value > 0, out=parameter)
        if shifted := [name for name in names if name in self.shifts]:
            shifts = [self.shifts[name] for name in shifted]
            torch._foreach_add_([self.parameters[name].data for name in shifted], shifts)

    @torch.no_grad()
    def order_by_magnitude(self, low: float = 0.25, high: float = 1.75) -> None:
        """Set the masks to values from `low` to `high`, in the order of the weights' magnitudes in each parameter.

        Masks that all begin at 1 and hardly matter to the loss fall at the same pace. They cross zero in the same
        step, and the network breaks down. With this order they cross one after the other, the smallest weights first.
        """
        for name, value in self.values.items():
            rank = self.weights[name].abs().flatten().argsort(stable=True).argsort()
            value.copy_((low + (high - low) * rank / max(rank.numel() - 1, 1)).view(self.weights[name].shape))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the masks themselves, not copies."""
        return self.values

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Set the masks to those of `state`, and apply them."""
        for name, value in self.values.items():
            value.copy_(state[name])
        self.apply()

    @torch.no_grad()
    def backward(self, alpha: float | torch.Tensor) -> None:
        """Turn the gradient of the module's weights into the gradient of the masks.

        The loss is cross entropy + alpha * retention. The straight-through estimator (Bengio et al., 2013) with the
        hard tanh of the published code passes the gradient g * w, clipped to [-1, 1]. The penalty adds the constant
        alpha / number of masks, times the parameter's price if there are `prices`.
        """
        self._backward(self.parameters, alpha)

    def _backward(self, names: Collection[str], alpha: float | torch.Tensor) -> None:
        gradients = [self._take_gradient(self.parameters[name]) for name in names]
        weights = [self.weights[name] for name in names]
        if self.update_bytes:
            torch._foreach_mul_(gradients, weights)
            torch._foreach_clamp_min_(gradients, -1)
            torch._foreach_clamp_max_(gradients, 1)
            if self.prices is None:
                torch._foreach_add_(gradients, alpha / self.count)
        else:
            for gradient, weight in zip(gradients, weights, strict=True):
                gradient.mul_(weight).clamp_(-1, 1)
                if self.prices is None:
                    gradient.add_(alpha / self.count)
        for name, gradient in zip(names, gradients, strict=True):
            if self.prices is not None:
                gradient.add_(alpha / self.count * self.prices[name])
            self.values[name].grad = gradient

    @staticmethod
    def _take_gradient(parameter: torch.Tensor) -> torch.Tensor:
        gradient, parameter.grad = parameter.grad, None
        return torch.zeros_like(parameter) if gradient is None else gradient  # None: the forward pass did not use it

    @contextlib.contextmanager
    def updated(self, optimizer: Optimizer, alpha: float | torch.Tensor) -> Iterator[None]:
        """Update the masks during the backward pass that runs in this context.

        The result is that of `backward`, a step of `optimizer` and `apply` after the pass. But each parameter is
        updated (on a GPU: several at once) as soon as its gradient is there, and the gradient is then freed. One
        gradient exists at a time instead of all, and the search of VGG16-BN takes 0.78 of the memory.
        """
        waiting = set(self.parameters)
        ready: dict[str, int] = {}  # bytes of the gradients to update with, by name
        for parameter in self.parameters.values():
            parameter.grad = None  # of a pass that failed

        @torch.no_grad()
        def update() -> None:
            self._backward(ready, alpha)
            optimizer.update([self.values[name] for name in ready])
            self._apply(ready)
            ready.clear()

        def note(name: str, _: torch.Tensor | None = None) -> None:
            waiting.remove(name)
            ready[name] = self.values[name].nbytes
            if sum(ready.values()) > self.update_bytes:
                update()

        hooks = [p.register_post_accumulate_grad_hook(partial(note, name)) for name, p in self.parameters.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for name in sorted(waiting):  # the loss does not depend on these: the penalty alone moves their masks
            note(name)
        if ready:
            update()

    def train(self, enabled: bool = True) -> None:
        """Let the backward pass compute the gradients that the masks need, or not."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(enabled)

    @torch.no_grad()
    def retention(self, epoch: int) -> float:
        """Return kept weights / all weights. Raises UserError if no weight is kept after this `epoch`."""
        return self.share(torch.stack([(value > 0).count_nonzero() for value in self.values.values()]).sum(), epoch)

    def share(self, kept: torch.Tensor, epoch: int) -> float:
        """Return `kept` weights / all weights. Raises UserError if `kept` is zero."""
        if not kept:
            raise UserError(f"No weight was left in epoch {epoch}: lower alpha or lr_mask.")
        return kept.item() / self.count

    def bits(self) -> dict[str, torch.Tensor]:
        """Return {name: boolean mask} on the CPU, True where the weight is kept."""
        return {name: (value > 0).cpu() for name, value in self.values.items()}
