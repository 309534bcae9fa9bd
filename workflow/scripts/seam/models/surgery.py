"""Changes to a model: its last layer, its features, a new head, its training mode."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from seam.errors import UserError
from seam.log import log


def set_training_mode(model: nn.Module, *, batch_norm: bool = False) -> None:
    """Set train mode, so that dropout is active.

    A layer that is marked by `_has_statistics` (`outputs_in_training`) is treated as batch norm.
    batch_norm: whether that of batch norm, too, so that its statistics follow the batches. Otherwise it keeps those
    that the source model has.
    """
    model.train()
    if batch_norm:
        return
    for module in model.modules():
        # Instance norm can have statistics, too.
        if isinstance(module, nn.modules.batchnorm._NormBase) or getattr(module, "_has_statistics", False):
            module.eval()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, in which it draws no random numbers, and each layer back into its own mode."""
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@torch.no_grad()
def outputs_in_training(network: nn.Module, images: torch.Tensor) -> Any:
    """Return what a network returns in training mode, and let its modes, its buffers and the random numbers be.

    Layers that are no batch norm, but change their buffers as that does, are marked: `set_training_mode` lets them be
    in eval mode. Returns None if the network cannot be run in training mode.
    """
    buffers = [
        (name, layer, key, value, value.clone())
        for name, layer in network.named_modules()
        for key, value in layer._buffers.items()
        if value is not None
    ]
    with evaluating(network), torch.random.fork_rng([images.device] if images.is_cuda else []):
        set_training_mode(network)
        try:
            return network(images)
        except Exception:  # of the model's own code
            return None
        finally:
            for name, layer, key, value, before in buffers:
                after = layer._buffers[key]
                if after is None or not torch.equal(after, before):
                    log.info("%s keeps statistics of its batches (%s): it stays in eval mode", name or "the model", key)
                    layer._has_statistics = True  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
                    layer._buffers[key] = value.copy_(before)


def to_channels_last(module: nn.Module, device: torch.device, size: Sequence[int]) -> nn.Module:
    """Move the module to the device, its weights with channels last in memory; return the module.

    A module whose code needs the usual order, such as one that calls `view`, keeps it, and images are brought into it.
    size: (height, width) of an image.
    """
    source = getattr(module, "source", module) if isinstance(module, nn.Sequential) else module  # see `with_head`
    if _in_usual_order in source._forward_pre_hooks.values():
        return module.to(device)
    module = module.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    image = torch.zeros(1, 3, *size, device=device)
    if not _runs(module, image.contiguous(memory_format=torch.channels_last)):
        module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        if _runs(module, image):
            source.register_forward_pre_hook(_in_usual_order)
        else:  # what the model lacks is said elsewhere
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return module


def _in_usual_order(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.contiguous() if isinstance(value, torch.Tensor) else value for value in inputs)


def _runs(module: nn.Module, images: torch.Tensor) -> bool:
    with torch.no_grad(), evaluating(module):
        try:
            module(images)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
    return True


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy of a module, of what its code keeps of its last pass as well.

    `copy.deepcopy` refuses tensors with a history, such as the weight that `torch.nn.utils.weight_norm` computes.
    """
    kept = [tensor for layer in module.modules() for tensor in _tensors_in(list(vars(layer).values()))]
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(each)


def copy_state(module: Any) -> dict[str, torch.Tensor]:
    """Return a copy on the CPU of the state dictionary of a module, or of anything that has one of tensors."""
    state = module.state_dict()
    return with_versions({name: value.detach().cpu().clone() for name, value in state.items()}, state)


def with_versions(state: Mapping[str, torch.Tensor], expected: Any) -> dict[str, torch.Tensor]:
    """Return a state dictionary with the versions of its layers, which a few need to load it.

    expected: the state dictionary of the module that it is for.
    """
    versioned: Any = OrderedDict(state)
    if (versions := getattr(expected, "_metadata", None)) is not None:
        versioned._metadata = versions
    return versioned


def replace_module(module: nn.Module, name: str, new: nn.Module) -> None:
    """Let `new` stand in place of the layer `name` of `module`, under all names that the layer has there."""
    layer = module.get_submodule(name)
    for other, each in list(module.named_modules(remove_duplicate=False)):
        if each is layer:
            module.set_submodule(other, new)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Let attention be the operations that it consists of: neither ONNX nor fvcore has torch's fused operation."""
    is_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fused)


def find_last_layer(module: nn.Module, outputs: int, shape: tuple[int, ...], name: str | None = None) -> str:
    """Return the name of the layer that gives the logits: the last linear layer, else convolution, with `outputs`.

    shape: (3, H, W) of an image; name: the layer, if the config names it. Raises UserError if there is no such layer,
    or if the model's outputs are not the outputs of the layer, so that the config must name it.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    if name is not None:
        if name not in layers:
            last = ", ".join(list(layers)[-3:])
            raise UserError(f"last_layer: the model has no linear layer or convolution {name}: its last are {last}.")
        return name
    candidates = [name for name, layer in layers.items() if _width(layer) == outputs]
    linear = [name for name in candidates if isinstance(layers[name], nn.Linear)]
    if not candidates:
        raise UserError(f"The model has no layer with {outputs} outputs: give its entry last_layer, the layer's name.")
    name = (linear or candidates)[-1]
    if linear:  # layers after a convolution may pool its outputs
        seen: list[torch.Tensor] = []

        def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
            seen.append(output)

        hook = layers[name].register_forward_hook(keep)
        with torch.inference_mode():
            logits = module.eval()(torch.zeros(1, *shape, device=next(module.parameters()).device))
        hook.remove()
        if not seen or not torch.equal(seen[-1].flatten(), logits.flatten()):
            raise UserError(
                f"The model's outputs are not those of its layer {name}: give its entry last_layer, the layer's name."
            )
    return name


def _width(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def replace_last_layer(module: nn.Module, name: str, outputs: int) -> nn.Module:
    """Replace the module's layer `name` by a new one with `outputs` outputs, randomly initialised. Returns the module.

    The layer is linear or a convolution.
    """
    old = module.get_submodule(name)
    assert isinstance(old, (nn.Linear, nn.Conv2d))
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, outputs, bias)
    else:
        geometry = (old.kernel_size, old.stride, old.padding, old.dilation)
        new = nn.Conv2d(old.in_channels, outputs, *geometry, bias=bias)  # pyright: ignore[reportArgumentType]
    replace_module(module, name, new)
    return module


def feature_extractor(module: nn.Module, name: str) -> nn.Module:
    """Return the module without its layer `name`: it maps images to that layer's inputs, flattened to [B, F]."""
    replace_module(module, name, nn.Identity())
    return nn.Sequential(module, nn.Flatten())


@torch.no_grad()
def initialise_head(head: nn.Linear, outputs: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Let a head begin with the answers of the source model.

    Each output is the sum of the source model's outputs that stand for it. A rest of many classes would always win so:
    a sum is scaled to be on average as large as its largest part, on the output's own images, and the rest, the last
    output, gets the bias with which images of both sides are equally far from the boundary.

    outputs: for each input of the head, the output that it stands for, or -1 for none; int64 [K]. logits, labels: of
    the source model for some images [N, K], and the head's output that is right for them [N].
    """
    head.weight.zero_()
    head.bias.zero_()
    activations, last = logits.relu(), head.out_features - 1
    for output in range(head.out_features):
        parts = (outputs == output).nonzero().flatten().to(head.weight.device)
        strengths = activations[labels == output][:, parts.cpu()]
        strengths = strengths[strengths.sum(1) > 0]
        head.weight[output, parts] = float((strengths.amax(1) / strengths.sum(1)).mean()) if len(strengths) else 1.0
    is_last = labels == last
    if int((outputs == last).sum()) > 1 and is_last.any() and not is_last.all():
        scores = activations @ head.weight.cpu().T
        margin = scores[:, last] - scores[:, :last].amax(1)
        head.bias[last] = -float(margin[is_last].mean() + margin[~is_last].mean()) / 2


def with_head(module: nn.Module, inputs: int, classes: int) -> nn.Sequential:
    """Return `module` -> ReLU -> Linear(inputs, classes), the form of a re-engineered model, with a new head.

    The head computes in the precision of the module, whatever torch's default is, and where the module does. Its
    weights are drawn on the CPU.
    """
    head = nn.Linear(inputs, classes)
    if (first := next(module.parameters(), None)) is not None:
        head = head.to(first.dtype)
        if not (first.is_meta or head.weight.is_meta):
            head = head.to(first.device)
    return nn.Sequential(OrderedDict(source=module, relu=nn.ReLU(), head=head))
