"""What a search of channels trains: masks on channels, the weights below them, and the head.

A channel's mask is a running mean of how much the loss depends on it: the square of the straight-through gradient of a
gate on the channel, which is the sum of gradient x weight over the weights that the gate multiplies (Molchanov et al.,
"Importance Estimation for Neural Network Pruning", CVPR 2019). Channels with the lowest mask for what they cost leave
first. They leave a few at a time, each by a gate that falls from 1 to 0, and the weights of those that stay train
along, so that the network follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam.masks.channels import ChannelGroups, Gate, gated_parameters
from seam.models.surgery import set_training_mode
from seam.precision import forward
from seam.training.adam import Adam
from seam.training.distillation import Teacher
from seam.training.losses import Loss
from seam.training.run import Stateful, Step
from seam.training.schedules import warm_cosine

DECAY = 0.99  # of the running mean, per step


class ChannelMasks:
    """The masks on the channels of a module, and which of them are kept; all at first.

    worth: float32 [units], on the module's device. kept: bool [units], on the CPU. gates: float32 [units], 1 for units
    that are kept, falling to 0 for those that leave. weights: the parameters that the gates multiply, as they are
    without them.
    """

    def __init__(self, module: nn.Module, groups: ChannelGroups, fade: int = 1) -> None:
        """fade: the number of steps in which the gate of a channel that leaves falls to 0."""
        parameters = dict(module.named_parameters())
        self.groups, device = groups, next(module.parameters()).device
        gated = gated_parameters(module, groups)
        self.gated = {name: Gate(gate.axis, gate.units.to(device), gate.branches) for name, gate in gated.items()}
        self.parameters = {name: parameters[name] for name in self.gated}
        self.weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.worth = torch.zeros(groups.count, device=device)
        self.kept = torch.ones(groups.count, dtype=torch.bool)
        self.gates, self.fade = torch.ones_like(self.worth), fade

    def is_settled(self) -> bool:
        """Return whether the gates of all channels that leave are 0."""
        return not self.gates[~self.kept.to(self.gates.device)].any()

    def step(self) -> None:
        """Let the gates of channels that leave fall by a step."""
        leaving = ~self.kept.to(self.gates.device)
        self.gates.sub_(leaving.float() / self.fade).mul_(self.gates > 0.5 / self.fade)

    def _gates(self) -> dict[str, torch.Tensor]:
        return {name: gate.of(self.gates, self.weights[name].dim()) for name, gate in self.gated.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Set the module's weights: zero for channels that are removed."""
        for name, gate in self._gates().items():
            torch.mul(self.weights[name], gate, out=self.parameters[name])

    @torch.no_grad()
    def restore(self) -> None:
        """Turn the gradients of a backward pass into those of the masks and of the weights without gates.

        The module has its weights without gates until `apply`, so that an optimizer can train them.
        """
        gradient = torch.zeros_like(self.worth)
        for name, gate in self._gates().items():
            axis, units, branches = self.gated[name].axis, self.gated[name].units, self.gated[name].branches
            parameter, weight = self.parameters[name], self.weights[name]
            if parameter.grad is not None:
                sums = (parameter.grad * weight).movedim(axis, 0).reshape(len(units), -1).sum(1)
                gradient.index_add_(0, units[units >= 0], sums[units >= 0])
                for branch in branches:
                    gradient[branch] += sums.sum()
                parameter.grad.mul_(gate)
            parameter.copy_(weight)
        self.worth.lerp_(gradient.square(), 1 - DECAY)

    @torch.no_grad()
    def store(self) -> None:
        """Take the module's weights as those without gates, and apply the gates."""
        for name, weight in self.weights.items():
            weight.copy_(self.parameters[name])
        self.apply()

    def bits(self) -> dict[str, torch.Tensor]:
        """Return {group: bool [units]}, True for the channels that are kept."""
        return {name: bits.clone() for name, bits in self.groups.split(self.kept).items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, what is kept, and the weights without gates."""
        return {"worth": self.worth, "kept": self.kept, "gates": self.gates, "weights": self.weights}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.worth.copy_(state["worth"])
        self.gates.copy_(state["gates"])
        self.kept = state["kept"].clone()
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        self.apply()


class ChannelTraining:
    """Masks on the channels of a model, its weights and its head, ready to be trained.

    parts: {name: what a checkpoint holds}.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: ChannelMasks,
        teacher: Teacher | None,
        *,
        lr: float,
        lr_head: float,
        steps: int,
        train_weights: bool,
        after_step: Callable[[int], None],
        loss: Loss = cross_entropy,
    ) -> None:
        """lr, lr_head: Adam's rates for the weights and the head, which fall to zero along a cosine over `steps`.

        after_step: is called with the number of steps done, before the gates are applied.

        With SGD, whose step is as large as the gradient, the distillation loss of large logits destroyed a ResNet20
        within an epoch at rates of 0.02 and 0.002, before any channel had left.
        """
        self.model, self.masks, self.teacher = model, masks, teacher
        self.after_step, self.loss = after_step, loss
        groups = [(list(model.get_submodule("head").parameters()), lr_head)]
        if train_weights:
            groups.append((list(model.get_submodule("source").parameters()), lr))
        self.optimizer = Adam(groups, warm_cosine(steps))
        self.parts: dict[str, Stateful] = {"model": model, "masks": masks, "adam": self.optimizer}

    def begin_epoch(self) -> Step:
        """Put the model into training mode; return its step."""
        set_training_mode(self.model)  # a problem's own images would change the statistics of batch norm
        self.model.requires_grad_(True)  # the masks need the gradients of all that they multiply
        return self.step

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on a batch; return its logits and its mean cross entropy."""
        features = forward(self.model.get_submodule("source"), images)
        logits = self.model.get_submodule("head")(self.model.get_submodule("relu")(features))
        loss = self.loss(logits, labels)
        total = loss if self.teacher is None else loss + self.teacher.loss(features, images)
        self.model.zero_grad()
        total.backward()
        self.masks.restore()
        self.optimizer.step()
        self.after_step(int(self.optimizer.counter) - 1)
        self.masks.step()
        self.masks.store()
        return logits, loss
