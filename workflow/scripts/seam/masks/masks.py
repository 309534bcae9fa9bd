"""A mask on any model: one real number per weight, which is kept where the number is above zero.

The masked network is the module itself. Before each step its weights become `w * [m > 0]`, with the
source's weights `w` kept aside; the gradient of those effective weights becomes that of the masks, each as
soon as the backward pass has it. So no architecture is rewritten, autograd never sees a mask, and what the
search ends with is a plain module whose unneeded weights are zero.
"""

import contextlib
from functools import partial

import torch

from seam.errors import UserError
from seam.masks.layers import maskable

AT_ONCE = 16 << 20  # bytes of gradients that are updated together on a GPU, where each launch of a kernel costs


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
