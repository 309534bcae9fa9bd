"""The masks, heads and optimizers of several searches of one source model, in tensors of all of them.

Masked weights, masks, Adam's moments and heads have one more dimension before their own: the search. `torch.func.vmap`
runs the network over it, with its convolutions as grouped ones. So each kernel works for all searches. The results are
those that each search has alone, except for the order in which a convolution sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from seam.masks.masks import Masks
from seam.search.training import prepare_training
from seam.settings import SearchSettings
from seam.training.run import Batch, Stateful

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class Stack:
    """Several searches, ready to be trained in one pass.

    model: all networks as one module, [B, T, 3, H, W] -> [B, T, n] for T searches. head: the heads of all, as one
    layer. training: the masks, optimizers and steps of all.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        settings: SearchSettings,
        batches: int,
        exclude: Collection[str] = (),
        class_weights: Sequence[float] | None = None,
    ) -> None:
        """models: one of each search, by `with_head`, with equal source networks. batches: the number in an epoch.

        exclude: the parameters without masks. class_weights: as in `seam.search.plain.search`, the same for all.
        """
        self.models, self.settings, self.batches, self.exclude = models, settings, batches, exclude
        self.class_weights = class_weights
        source = models[0].get_submodule("source").requires_grad_(False)
        heads = [model.get_submodule("head") for model in models]
        for layer in (*source.modules(), heads[0]):
            if isinstance(layer, LAYERS) and round_output not in layer._forward_hooks.values():
                layer.register_forward_hook(round_output)
        self.masks = StackedMasks(source, len(models), exclude)
        width, classes = heads[0].get_parameter("weight").shape[::-1]
        self.head = nn.Linear(width, classes, device=heads[0].get_parameter("weight").device)
        for name in ("weight", "bias"):
            values = torch.stack([head.get_parameter(name).detach() for head in heads])
            setattr(self.head, name, nn.Parameter(values))
        self.model = nn.Sequential()
        self.model.add_module("source", StackedModule(source, self.masks.parameters))
        self.model.add_module("relu", models[0].get_submodule("relu"))
        self.model.add_module("head", StackedModule(heads[0], dict(self.head.named_parameters())))
        weight = None if class_weights is None else torch.tensor(class_weights, device=self.head.weight.device)
        loss = partial(losses, weight=weight)
        self.training = prepare_training(self.model, self.head, self.masks, settings, batches, loss)

    def slices(self, number: int) -> dict[str, Stateful]:
        """Return the parts of one search, for its checkpoint, with states as if it trained alone."""
        return {name: StackSlice(part, number) for name, part in self.training.parts.items()}

    def head_of(self, number: int) -> dict[str, torch.Tensor]:
        """Return the state of one search's head, on the CPU."""
        return {name: value[number].detach().cpu().clone() for name, value in self.head.state_dict().items()}

    def subset(self, numbers: Sequence[int]) -> Stack:
        """Return a new stack of some of the searches, in their present state."""
        models = [self.models[number] for number in numbers]
        stack = Stack(models, self.settings, self.batches, self.exclude, self.class_weights)
        for new, old in enumerate(numbers):
            for part, other in zip(stack.slices(new).values(), self.slices(old).values(), strict=True):
                part.load_state_dict(other.state_dict())
        return stack


class StackedModule(nn.Module):
    """A module with different parameters for each search: inputs [B, T, ...] -> outputs [B, T, ...].

    parameters: {name: tensor [T, ...]} of those that differ.
    """

    def __init__(self, module: nn.Module, parameters: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.module, self.stacked = module, parameters

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the module for each search on its own inputs, with its own parameters."""
        return torch.func.vmap(self._run, in_dims=(0, 1), out_dims=1)(self.stacked, inputs)

    def _run(self, parameters: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.module, parameters, (inputs,))


class StackedMasks(Masks):
    """The masks of several searches: the source's weights are stored once, all else has the search in front."""

    def __init__(self, module: nn.Module, searches: int, exclude: Collection[str] = ()) -> None:
        super().__init__(module, exclude)
        self.parameters = {name: repeat(parameter, searches) for name, parameter in self.parameters.items()}
        self.values = {name: torch.ones_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.update_bytes = 0  # each kernel has enough to do, and the weights have one dimension less than the masks

    def kept(self) -> torch.Tensor:
        """Return the number of weights that each search keeps [T], on the CPU."""
        return torch.stack([(value > 0).flatten(1).sum(1) for value in self.values.values()]).sum(0).cpu()

    def bits_of(self, number: int) -> dict[str, torch.Tensor]:
        """Return {name: boolean mask} of one search, on the CPU."""
        return {name: (value[number] > 0).cpu() for name, value in self.values.items()}


class StackSlice:
    """One search's share of a part that the stack trains."""

    def __init__(self, stacked: Stateful, number: int) -> None:
        self.stacked, self.number = stacked, number

    def state_dict(self) -> dict[str, Any]:
        """Return copies of this search's share of each tensor, and all other values as they are."""
        state = dict(self.stacked.state_dict())
        return tree_map(lambda value: value[self.number].clone() if torch.is_tensor(value) else value, state)

    def load_state_dict(self, state: Any, /) -> None:
        """Set this search's share, and leave the others' as they are."""

        def insert(stacked: Any, value: Any) -> Any:
            if not torch.is_tensor(stacked):
                return value
            stacked = stacked.clone()
            stacked[self.number] = value
            return stacked

        self.stacked.load_state_dict(tree_map(insert, dict(self.stacked.state_dict()), dict(state)))


def stack_batches(batches: Iterable[Batch]) -> Batch:
    """Return images [B, T, 3, H, W] and labels [B, T] from each search's images [B, 3, H, W] and labels [B]."""
    images, labels = zip(*batches, strict=True)
    # The grouped convolution gets T * 3 channels, last in memory.
    stacked = torch.cat(images, 1).contiguous(memory_format=torch.channels_last)
    return stacked.unflatten(1, (len(labels), -1)), torch.stack(labels, 1)


def repeat(parameter: torch.Tensor, searches: int) -> torch.Tensor:
    """Return a copy of a parameter for each search [T, ...]; the channels of a convolution's stay last in memory."""
    value = parameter.detach()
    if value.dim() == 4:
        value = value.permute(0, 2, 3, 1)
    value = value.expand(searches, *value.shape).contiguous()
    return value.permute(0, 1, 4, 2, 3) if parameter.dim() == 4 else value


def round_output(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Return a layer's output in the precision of autocast on a GPU: vmap adds the bias afterwards, in float32."""
    lower = output.device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return output.to(torch.get_autocast_dtype("cuda")) if lower else output


def losses(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return the cross entropy of each search [T], from logits [B, T, n], labels [B, T] and classes' weights [n]."""
    return cross_entropy(logits.transpose(1, 2), labels, weight, reduction="none").mean(0)
