"""Adam (Kingma and Ba, 2015), by the fused kernel that torch.optim.Adam uses, to the same bits.

An own class because the first use of torch.optim imports torch's compiler: 1.6 s of a job's start, of 2.5 s for torch.
All that changes from step to step, the rates too, lies on the device, so that a CUDA graph can repeat a step.
"""

import torch


class Adam:
    """groups: (parameters, learning rate) pairs.

    factor: from the number of steps done so far, a floating-point tensor [], to the rates' factor, another.
    """

    def __init__(self, groups, factor=None, betas=(0.9, 0.999), eps=1e-8):
        self.groups = [(list(parameters), lr) for parameters, lr in groups]
        self.factor, self.betas, self.eps = factor, betas, eps
        self.first, self.second = ([[torch.zeros_like(p) for p in group] for group, _ in self.groups] for _ in range(2))
        self.places = {id(p): (g, i) for g, (group, _) in enumerate(self.groups) for i, p in enumerate(group)}
        device = self.groups[0][0][0].device
        self.counter = torch.ones((), device=device)  # the step at hand
        where = {"dtype": torch.float32, "device": device} if device.type == "cuda" else {"dtype": torch.float64}
        self.rates = [torch.tensor(lr, **where) for _, lr in self.groups]  # where and as what the kernels take them
        self._follow_factor()

    def zero_grad(self):
        for parameters, _ in self.groups:
            for parameter in parameters:
                parameter.grad = None

    def step(self):
        """Update the parameters that have a gradient."""
        for group, (parameters, _) in enumerate(self.groups):
            self._update(group, [index for index, p in enumerate(parameters) if p.grad is not None])
        self.counter += 1
        self._follow_factor()

    def update(self, parameters):
        """Update these of a group now, a part of the step that the next call of `step` ends; free their gradients."""
        (group,) = {self.places[id(parameter)][0] for parameter in parameters}
        self._update(group, [self.places[id(parameter)][1] for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None

    @torch.no_grad()
    def _follow_factor(self):
        if self.factor is None:
            return
        factor = self.factor((self.counter - 1).to(self.rates[0]))
        for rate, (_, lr) in zip(self.rates, self.groups, strict=True):
            torch.mul(factor, lr, out=rate)

    @torch.no_grad()
    def _update(self, group, chosen):
        if not chosen:
            return
        whole, rate = self.groups[group][0], self.rates[group]
        parameters, first, second = (
            [tensors[index] for index in chosen] for tensors in (whole, self.first[group], self.second[group])
        )
        torch._fused_adam_(
            parameters, [p.grad for p in parameters], first, second, [], [self.counter] * len(chosen),
            lr=rate if rate.is_cuda else rate.item(), beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0,
            eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state_dict(self):
        return {"steps": int(self.counter) - 1, "first": self.first, "second": self.second}

    @torch.no_grad()
    def load_state_dict(self, state):
        self.counter.fill_(state["steps"] + 1)
        self._follow_factor()
        for mine, stored in ((self.first, state["first"]), (self.second, state["second"])):
            for group, values in zip(mine, stored, strict=True):
                for moment, value in zip(group, values, strict=True):
                    moment.copy_(value)
