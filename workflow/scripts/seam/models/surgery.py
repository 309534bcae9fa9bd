"""Changes to a model: its last layer, its features, a new head, its training mode."""

from collections import OrderedDict

import torch
from torch import nn

from seam.errors import UserError


def set_training_mode(model):
    """Train mode, so that dropout is active, but batch norm stays as the source model has it."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def copy_state(module):
    """A copy of the module's state dictionary on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def find_last_layer(module, outputs, shape, name=None):
    """The name of the layer that gives the `outputs` logits: the last linear layer, or convolution, with so many.

    shape: (3, H, W) of an image; name: the layer, where the config names it. Raises UserError where there is none
    or where the model's outputs are not those of the layer, so that it must be named.
    """
    layers = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    if name is not None:
        if name not in layers:
            last = ", ".join(list(layers)[-3:])
            raise UserError(f"last_layer: the model has no linear layer or convolution {name}: its last are {last}.")
        return name
    width = {n: m.out_features if isinstance(m, nn.Linear) else m.out_channels for n, m in layers.items()}
    found = [n for n in layers if width[n] == outputs]
    linear = [n for n in found if isinstance(layers[n], nn.Linear)]
    if not found:
        raise UserError(f"The model has no layer with {outputs} outputs: give its entry last_layer, the layer's name.")
    name, seen = (linear or found)[-1], []
    if linear:  # what comes after a convolution may pool its outputs
        hook = layers[name].register_forward_hook(lambda *found: seen.append(found[2]))
        with torch.inference_mode():
            given = module.eval()(torch.zeros(1, *shape, device=next(module.parameters()).device))
        hook.remove()
        if not seen or not torch.equal(seen[-1].flatten(), given.flatten()):
            raise UserError(
                f"The model's outputs are not those of its layer {name}: give its entry last_layer, the layer's name."
            )
    return name


def replace_last_layer(module, name, outputs):
    """The module, its layer `name` replaced by a new one with `outputs` outputs, initialised at random."""
    old = module.get_submodule(name)
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, outputs, bias)
    else:
        new = nn.Conv2d(old.in_channels, outputs, old.kernel_size, old.stride, old.padding, old.dilation, bias=bias)
    module.set_submodule(name, new)
    return module


def feature_extractor(module, name):
    """The module without its layer `name`, flattened: it maps images to that layer's inputs, features [B, F]."""
    module.set_submodule(name, nn.Identity())
    return nn.Sequential(module, nn.Flatten())


def with_head(module, inputs, classes):
    """`module` -> ReLU -> Linear(inputs, classes): the re-engineered model's shape, its head new."""
    return nn.Sequential(OrderedDict(source=module, relu=nn.ReLU(), head=nn.Linear(inputs, classes)))
