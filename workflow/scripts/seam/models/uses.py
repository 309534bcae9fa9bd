"""How often a model uses each weight for one image."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from seam.models.surgery import evaluating

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def weight_names(module: nn.Module) -> dict[torch.Tensor, str]:
    """Return {parameter: name} of all parameters of a model.

    A parameter of a convolution, linear or attention layer is named after the first such layer that has it, as its mask
    is, although another module may own it as well.
    """
    names: dict[torch.Tensor, str] = {}
    for layer_name, layer in module.named_modules():
        if isinstance(layer, (_ConvNd, nn.Linear, nn.MultiheadAttention)):
            for name, parameter in layer.named_parameters(recurse=False):
                names.setdefault(parameter, f"{layer_name}.{name}" if layer_name else name)
    return {parameter: name for name, parameter in module.named_parameters()} | names


def count_uses(module: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Return {name: uses} of the weights of all convolutions and linear operations, for one of `images` [B, 3, H, W].

    A use is a multiply-accumulate: a convolution uses each weight once for each place of its output (of its input, if
    it is transposed), a linear layer once for each input vector, an attention layer once for each token of the query,
    key or value that it projects. If one matrix projects all three, its weights have the mean of their uses. Uses add
    up if the model uses a weight several times, or if several layers share it. It has the name that `weight_names`
    gives it. A weight that the model does not use has none, nor has one from which the model computes
    another. The module stays as it is.
    """
    return dict(sum((Counter(uses) for uses in count_uses_by_kind(module, images).values()), Counter()))


def count_uses_by_kind(module: nn.Module, images: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return {"convolution": {name: uses}, "linear": {name: uses}}, the uses that `count_uses` adds up."""
    counter = _UseCounter(module, len(images))
    with counter:
        _run(module, images)
    return counter.uses


class _UseCounter(TorchFunctionMode):
    """Count the uses of each parameter as the weight of an operation, whichever layer or function calls it.

    While it is active, torch does not take its fused path through attention, which would hide the operations.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        """count: the number of images on which the module runs."""
        super().__init__()
        self.names = weight_names(module)
        self.count = count
        self.uses: dict[str, dict[str, float]] = {"convolution": {}, "linear": {}}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            self._add_attention(inspect.signature(func).bind(*args, **kwargs).arguments)
        elif func in CONVOLUTIONS or func in TRANSPOSED or func is functional.linear:
            inputs = args[0] if args else kwargs["input"]
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if func is functional.linear:
                self._add("linear", weight, math.prod(inputs.shape[:-1]))
            else:
                places = inputs if func in TRANSPOSED else output
                self._add("convolution", weight, places.numel() // places.shape[1 - weight.dim()])
        return output

    def _add_attention(self, arguments: dict[str, Any]) -> None:
        query, key, value = (math.prod(arguments[name].shape[:-1]) for name in ("query", "key", "value"))
        if arguments.get("use_separate_proj_weight"):
            for name, tokens in (("q", query), ("k", key), ("v", value)):
                self._add("linear", arguments[f"{name}_proj_weight"], tokens)
        else:
            self._add("linear", arguments["in_proj_weight"], (query + key + value) / 3)
        self._add("linear", arguments["out_proj_weight"], query)

    def _add(self, kind: str, weight: torch.Tensor, times: float) -> None:
        parameter = weight if weight in self.names or weight._base is None else weight._base  # a part is a view
        if name := self.names.get(parameter):
            uses = self.uses[kind]
            uses[name] = uses.get(name, 0.0) + times * weight.numel() / parameter.numel() / self.count


def calls_of(module: nn.Module, images: torch.Tensor) -> list[str]:
    """Return the names of the weights of convolutions and linear layers, in the order in which the model calls them.

    A weight that layers share has the name that `weight_names` gives it. Attention layers are left out.
    """
    names: list[str] = []
    known = weight_names(module)

    def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(layer, nn.MultiheadAttention):
            assert isinstance(layer.weight, torch.Tensor)
            names.append(known[layer.weight])

    _run_with_hooks(module, images, note)
    return names


def input_shapes(module: nn.Module, images: torch.Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Return {layer: the shape of its input in each call, without the images} of convolutions and linear layers."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(layer, nn.MultiheadAttention):
            shapes.setdefault(name, []).append(tuple(inputs[0].shape[1:]))

    _run_with_hooks(module, images, note)
    return shapes


def given(inputs: tuple[Any, ...], by_name: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a layer is called with, from the arguments of a forward hook, if it is called by position or name."""
    return inputs or tuple(by_name.values())


def _run_with_hooks(module: nn.Module, images: torch.Tensor, note: Callable[..., None]) -> None:
    """Run the module, and call `note` with the name, layer, inputs and outputs of each call of a layer."""

    def called(name: str, layer: nn.Module, inputs: Any, by_name: dict[str, Any], output: Any) -> None:
        note(name, layer, given(inputs, by_name), output)

    hooks = [
        layer.register_forward_hook(partial(called, name), with_kwargs=True)
        for name, layer in module.named_modules()
        if isinstance(layer, (_ConvNd, nn.Linear, nn.MultiheadAttention))
    ]
    try:
        _run(module, images)
    finally:
        for handle in hooks:
            handle.remove()


def _run(module: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad(), evaluating(module):
        module(images)
