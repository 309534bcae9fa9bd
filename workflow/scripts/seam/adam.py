"""Adam (Kingma and Ba, 2015), by the fused kernel that torch.optim.Adam uses, to the same bits.

An own class because the first use of torch.optim imports torch's compiler: 1.6 s of a job's start, of 2.5 s for torch.
"""

import torch


class Adam:
    """groups: (parameters, learning rate) pairs; factor: from the number of steps done so far to the rates' factor."""

    def __init__(self, groups, factor=None, betas=(0.9, 0.999), eps=1e-8):
        self.groups = [(list(parameters), lr) for parameters, lr in groups]
        self.factor, self.betas, self.eps = factor, betas, eps
        self.first, self.second = ([[torch.zeros_like(p) for p in group] for group, _ in self.groups] for _ in range(2))
        self.places = {id(p): (g, i) for g, (group, _) in enumerate(self.groups) for i, p in enumerate(group)}
        self.steps = 0  # done
        self.counter = torch.ones((), device=self.groups[0][0][0].device)  # the step at hand, where the kernel reads it

    def zero_grad(self):
        for parameters, _ in self.groups:
            for parameter in parameters:
                parameter.grad = None

    def step(self):
        """Update the parameters that have a gradient."""
        for group, (parameters, _) in enumerate(self.groups):
            self._update(group, [index for index, p in enumerate(parameters) if p.grad is not None])
        self.steps += 1
        self.counter += 1

    def update(self, parameter):
        """Update this one now, as a part of the step that the next call of `step` ends, and free its gradient."""
        group, index = self.places[id(parameter)]
        self._update(group, [index])
        parameter.grad = None

    @torch.no_grad()
    def _update(self, group, chosen):
        if not chosen:
            return
        whole, lr = self.groups[group]
        parameters, first, second = (
            [tensors[index] for index in chosen] for tensors in (whole, self.first[group], self.second[group])
        )
        scale = 1.0 if self.factor is None else self.factor(self.steps)
        torch._fused_adam_(
            parameters, [p.grad for p in parameters], first, second, [], [self.counter] * len(chosen),
            lr=lr * scale, beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0, eps=self.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def state_dict(self):
        return {"steps": self.steps, "first": self.first, "second": self.second}

    @torch.no_grad()
    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.counter.fill_(self.steps + 1)
        for mine, stored in ((self.first, state["first"]), (self.second, state["second"])):
            for group, values in zip(mine, stored, strict=True):
                for moment, value in zip(group, values, strict=True):
                    moment.copy_(value)
