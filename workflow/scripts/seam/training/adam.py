"""Adam (Kingma and Ba, 2015) by the fused kernel that torch.optim.Adam calls, with the same results to the bit.

We implement Adam ourselves because the first use of torch.optim imports torch's compiler: 1.6 s of a job's start, where
torch itself takes 2.5 s. Everything that changes from step to step lies on the device, the rates too, so that a CUDA
graph can replay a step.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch

RateFactor = Callable[[torch.Tensor], torch.Tensor]  # the number of steps done [] -> the factor on the rates []


class Adam:
    """Adam over groups of parameters, each with its own learning rate."""

    def __init__(
        self,
        groups: Iterable[tuple[Iterable[torch.Tensor], float]],
        factor: RateFactor | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """groups: (parameters, learning rate) pairs. factor: multiplies all rates, from step to step."""
        self.groups = [(list(parameters), lr) for parameters, lr in groups]
        self.factor, self.betas, self.eps = factor, betas, eps
        self.first, self.second = ([[torch.zeros_like(p) for p in group] for group, _ in self.groups] for _ in range(2))
        self.places = {id(p): (g, i) for g, (group, _) in enumerate(self.groups) for i, p in enumerate(group)}
        device = self.groups[0][0][0].device
        self.counter = torch.ones((), device=device)  # the number of the current step
        # The device and type in which the fused kernels take the rates.
        dtype, place = (torch.float32, device) if device.type == "cuda" else (torch.float64, None)
        self.rates = [torch.tensor(lr, dtype=dtype, device=place) for _, lr in self.groups]
        self._set_rates()

    def zero_grad(self) -> None:
        """Free the gradients of all parameters."""
        for parameters, _ in self.groups:
            for parameter in parameters:
                parameter.grad = None

    def step(self) -> None:
        """Update all parameters that have a gradient, and go to the next step."""
        for group, (parameters, _) in enumerate(self.groups):
            self._update(group, [index for index, p in enumerate(parameters) if p.grad is not None])
        self.counter += 1
        self._set_rates()

    def update(self, parameters: Collection[torch.Tensor]) -> None:
        """Update some parameters of one group now, as part of the step that `step` ends, and free their gradients."""
        (group,) = {self.places[id(parameter)][0] for parameter in parameters}
        self._update(group, [self.places[id(parameter)][1] for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None

    @torch.no_grad()
    def _set_rates(self) -> None:
        if self.factor is None:
            return
        factor = self.factor((self.counter - 1).to(self.rates[0]))
        for rate, (_, lr) in zip(self.rates, self.groups, strict=True):
            torch.mul(factor, lr, out=rate)

    @torch.no_grad()
    def _update(self, group: int, indices: list[int]) -> None:
        if not indices:
            return
        rate = self.rates[group]
        parameters, first, second = (
            [tensors[index] for index in indices]
            for tensors in (self.groups[group][0], self.first[group], self.second[group])
        )
        gradients: Any = [parameter.grad for parameter in parameters]
        lr: Any = rate if rate.is_cuda else rate.item()
        torch._fused_adam_(
            parameters, gradients, first, second, [], [self.counter] * len(indices), lr=lr,
            beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps done, and the moments themselves, not copies."""
        return {"steps": int(self.counter) - 1, "first": self.first, "second": self.second}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises RuntimeError or ValueError if it is of other parameters."""
        self.counter.fill_(state["steps"] + 1)
        self._set_rates()
        for moments, stored in ((self.first, state["first"]), (self.second, state["second"])):
            for group, values in zip(moments, stored, strict=True):
                for moment, value in zip(group, values, strict=True):
                    moment.copy_(value)
