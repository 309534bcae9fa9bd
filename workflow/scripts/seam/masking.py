"""A mask on any model: one real number per weight, which is kept where the number is above zero.

The masked network is the module itself. Before each step its weights become `w * [m > 0]`, with the
source's weights `w` kept aside; the gradient of those effective weights becomes that of the masks, each as
soon as the backward pass has it. So no architecture is rewritten, autograd never sees a mask, and what the
search ends with is a plain module whose unneeded weights are zero.
"""

import contextlib
from functools import partial

import numpy as np
import torch
from torch import nn

from seam.files import UserError
from seam.progress import log

MASKED_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
AT_ONCE = 16 << 20  # bytes of gradients that are updated together on a GPU, where each launch of a kernel costs


def maskable(module, exclude=()):
    """name: parameter for the weights and biases of all convolutions and linear layers.

    A parameter that several layers share appears once. `exclude` names layers, or parameters, to leave out. Raises
    UserError where a layer's weight is not a parameter of its own but computed from others.
    """
    found, seen = {}, set()
    for layer, child in module.named_modules():
        if not isinstance(child, MASKED_LAYERS) or layer in exclude:
            continue
        if not isinstance(child, nn.MultiheadAttention) and child._parameters.get("weight") is None:
            raise UserError(
                f"The weight of layer {layer} is computed from others and cannot be masked: let the architecture have "
                "a plain one, without weight_norm, spectral_norm or pruning."
            )
        for name, parameter in child.named_parameters(recurse=False):
            full = f"{layer}.{name}" if layer else name
            if id(parameter) not in seen and full not in exclude:
                found[full] = parameter
            seen.add(id(parameter))
    return found


def unused(module, images, exclude=()):
    """Names of the maskable parameters on which the outputs for `images` [B, 3, H, W] do not depend.

    Such as those of a head that only training needs: masked, they would count as weights that were found irrelevant.
    Raises UserError where there is no maskable parameter on which they depend.
    """
    parameters = maskable(module, exclude)
    before = {name: p.requires_grad for name, p in parameters.items()}
    mode = {child: child.training for child in module.modules()}
    module.eval()  # no random number is drawn
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        total, wanted = module(images).sum(), list(parameters.values())
        depends = parameters and total.grad_fn is not None
        found = torch.autograd.grad(total, wanted, allow_unused=True) if depends else [None] * len(wanted)
    for name, parameter in parameters.items():
        parameter.requires_grad_(before[name])
    for child, training in mode.items():
        child.training = training
    names = {name for name, gradient in zip(parameters, found, strict=True) if gradient is None}
    if len(names) == len(parameters):
        raise UserError(
            "The model's outputs depend on no weight of a convolution or linear layer that could be masked: correct "
            "its architecture (a forward pass without gradients, say)."
        )
    if names:
        log.warning(
            "no masks for %s (parameters: %d, numbers: %d): the model's outputs do not depend on them",
            ", ".join(sorted(names)[:3]) + ", ..." * (len(names) > 3), len(names),
            sum(parameters[name].numel() for name in names),
        )  # fmt: skip
    return names


class Masks:
    """Masks on `module`, all ones at first.

    values: the masks, float32 whatever the network runs in, since the penalty's gradient is as small
        as 1e-8 per mask; give them to an optimizer.
    """

    def __init__(self, module, exclude=()):
        self.parameters = maskable(module, exclude)
        if not self.parameters:
            raise ValueError("the model has no convolution or linear layer to mask")
        self.weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        buffers = dict(module.named_buffers())
        self.shifts = {}  # what a folded batch norm adds to a bias and no mask removes: see seam.folding
        for name, weight in self.weights.items():
            if name.endswith("bias") and (place := f"{name[:-4]}batch_norm_shift") in buffers:
                self.shifts[name] = buffers[place]
                weight.sub_(buffers[place])
        self.values = {name: torch.ones_like(w, dtype=torch.float32) for name, w in self.weights.items()}
        self.count = sum(value.numel() for value in self.values.values())
        # Updated alone, a parameter's numbers are in the CPU's cache; updated together, few kernels are launched.
        self.at_once = AT_ONCE if next(iter(self.values.values())).is_cuda else 0

    @torch.no_grad()
    def apply(self):
        """Set the module's weights to the source's where the mask is above zero, else to zero."""
        self._apply(self.parameters)

    def _apply(self, names):
        parameters = [self.parameters[name].data for name in names]
        weights, values = ([tensors[name] for name in names] for tensors in (self.weights, self.values))
        if self.at_once:
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
    def begin_by_magnitude(self, low=0.25, high=1.75):
        """Let the masks begin between `low` and `high`, in the order of their weights' magnitudes within a parameter.

        Masks that all begin at 1 and hardly matter to the loss fall at the same pace and cross zero in the same step,
        and the network breaks down; so they cross one after the other, the smallest weights first.
        """
        for name, value in self.values.items():
            rank = self.weights[name].abs().flatten().argsort(stable=True).argsort()
            value.copy_((low + (high - low) * rank / max(rank.numel() - 1, 1)).view(self.weights[name].shape))

    def state_dict(self):
        return self.values

    @torch.no_grad()
    def load_state_dict(self, state):
        for name, value in self.values.items():
            value.copy_(state[name])
        self.apply()

    @torch.no_grad()
    def backward(self, alpha):
        """Turn the gradient of the module's weights into that of the masks.

        The loss is cross entropy + alpha * retention rate. The straight-through estimator (Bengio et al.,
        2013) with the hard tanh of the published code passes the gradient g * w, clipped to [-1, 1];
        the penalty's gradient is the constant alpha / number of masks.
        """
        self._backward(self.parameters, alpha)

    def _backward(self, names, alpha):
        gradients, weights = [self._taken(self.parameters[name]) for name in names], [self.weights[n] for n in names]
        if self.at_once:
            torch._foreach_mul_(gradients, weights)
            torch._foreach_clamp_min_(gradients, -1)
            torch._foreach_clamp_max_(gradients, 1)
            torch._foreach_add_(gradients, alpha / self.count)
        else:
            for gradient, weight in zip(gradients, weights, strict=True):
                gradient.mul_(weight).clamp_(-1, 1).add_(alpha / self.count)
        for name, gradient in zip(names, gradients, strict=True):
            self.values[name].grad = gradient

    def _taken(self, parameter):
        gradient, parameter.grad = parameter.grad, None
        return torch.zeros_like(parameter) if gradient is None else gradient  # none: not used by the forward pass

    @contextlib.contextmanager
    def updated(self, optimizer, alpha):
        """Within this context the backward pass updates the masks: the same as `backward`, a step of `optimizer` and
        `apply` after it, but each parameter on its own (on a GPU: some at a time), as soon as its gradient is there,
        which is then freed.

        So one gradient is held at a time, not all: VGG16-BN's search takes 0.78 of the memory.
        """
        waiting, ready = set(self.parameters), {}  # names; bytes of their gradients by name
        for parameter in self.parameters.values():
            parameter.grad = None  # of a pass that failed

        @torch.no_grad()
        def update():
            self._backward(ready, alpha)
            optimizer.update([self.values[name] for name in ready])
            self._apply(ready)
            ready.clear()

        def note(name, _=None):
            waiting.remove(name)
            ready[name] = self.values[name].nbytes
            if sum(ready.values()) > self.at_once:
                update()

        hooks = [p.register_post_accumulate_grad_hook(partial(note, name)) for name, p in self.parameters.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for name in sorted(waiting):  # what the loss does not depend on
            note(name)
        if ready:
            update()

    def train(self, on=True):
        """Whether the backward pass computes the gradients that the masks need."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(on)

    @torch.no_grad()
    def retention(self, epoch):
        """The share of weights that are kept. Raises UserError if none is left in this `epoch`."""
        return self.share(torch.stack([(value > 0).count_nonzero() for value in self.values.values()]).sum(), epoch)

    def share(self, kept, epoch):
        """The share that `kept` weights are, a tensor. Raises UserError if it is none."""
        if not kept:
            raise UserError(f"No weight was left in epoch {epoch}: lower alpha or lr_mask.")
        return kept.item() / self.count

    def bits(self):
        """name: boolean mask on the CPU, True where the weight is kept."""
        return {name: (value > 0).cpu() for name, value in self.values.items()}


def magnitude_bits(module, bits):
    """Masks for comparison: of each parameter as many weights kept as in `bits`, the largest by magnitude."""
    return {name: _kept(maskable(module)[name].detach().abs(), bit) for name, bit in bits.items()}


def random_bits(bits, generator):
    """Masks for comparison: of each parameter as many weights kept as in `bits`, drawn at random."""
    return {name: _kept(torch.rand(bit.shape, generator=generator), bit) for name, bit in bits.items()}


def _kept(score, bit):
    """As many weights as `bit` keeps, those of the highest score; the first of equal ones."""
    order = score.cpu().flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(bit.numel(), dtype=torch.bool)
    kept[order[: int(bit.sum())]] = True
    return kept.view(bit.shape)


@torch.no_grad()
def bake(module, bits):
    """Set to zero, for good, the weights of `module` whose bit is False."""
    parameters = maskable(module)
    for name, bit in bits.items():
        if name not in parameters or parameters[name].shape != bit.shape:
            raise ValueError(f"mask {name} of shape {tuple(bit.shape)} does not fit the model")
        parameters[name].masked_fill_(~bit.to(parameters[name].device), 0.0)
    return module


def pack(bits):
    """name: uint8 tensor, eight masks a byte (row-major, the first in the highest bit)."""
    return {name: torch.from_numpy(np.packbits(bit.contiguous().numpy())) for name, bit in bits.items()}


def unpack(packed, module):
    """The inverse of `pack`, with the shapes of `module`'s parameters."""
    shapes = {name: parameter.shape for name, parameter in maskable(module).items()}
    bits = {}
    for name, data in packed.items():
        if name not in shapes or data.numel() != -(-shapes[name].numel() // 8):
            raise ValueError(f"mask {name} does not fit the model")
        flat = np.unpackbits(data.numpy(), count=shapes[name].numel())
        bits[name] = torch.from_numpy(flat.astype(bool)).reshape(shapes[name])
    return bits
