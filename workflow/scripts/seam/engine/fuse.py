"""Rewrites a network so that it has fewer layers and computes the same.

Batch normalisation and other arithmetic per channel go into the convolution before them, padding into the one after
them, and a residual addition and an activation into the layer before them, which then works on sums in registers.
"""

from collections.abc import Callable

import numpy as np

from seam.engine.layers import Activation, Layer, Network, Window, copied


def fuse(network: Network) -> Network:
    """Return a network that computes the same with as few layers as possible."""
    layers = [_without_idle_taps(layer, network) for layer in network.layers]
    for rule in (_gate, _scale, _pad, _residual, _activation):
        layers = _apply(rule, layers, network)
    return Network(layers, network.shapes, network.input, network.output, network.output_rank)


def is_affine(layer: Layer) -> bool:
    """Whether a layer is y = scale * x + shift per channel, and nothing else."""
    alone = layer.kind == "convolution" and layer.window == Window() and layer.activation.identity
    return alone and layer.weight.shape == (layer.groups, 1, 1, 1) and layer.residual is None


class _State:
    """Layers during a rewrite: who computes a tensor, and how often it is read."""

    def __init__(self, layers: list[Layer], network: Network):
        self.network = network
        self.position = {layer.output: i for i, layer in enumerate(layers)}
        self.layers: list[Layer | None] = list(layers)
        self.uses: dict[str, int] = {network.output: 1}
        for layer in layers:
            for name in reads(layer):
                self.uses[name] = self.uses.get(name, 0) + 1

    def producer(self, name: str) -> Layer | None:
        """Return the layer that computes a tensor, unless others read it, too, or it is the network's input."""
        if self.uses.get(name) != 1 or name not in self.position:
            return None
        return self.layers[self.position[name]]

    def merge(self, first: Layer, second: Layer, merged: Layer) -> None:
        """Put `merged` in the place of the second layer, and remove the first."""
        self.layers[self.position.pop(first.output)] = None
        self.layers[self.position[second.output]] = merged


def reads(layer: Layer) -> list[str]:
    """Return the names of all tensors that a layer reads."""
    return layer.inputs + ([layer.residual] if layer.residual else [])


def _apply(rule: Callable[[_State, Layer], bool], layers: list[Layer], network: Network) -> list[Layer]:
    """Apply a rule at every layer until it changes nothing, and drop layers whose output nobody reads."""
    changed = True
    while changed:
        state = _State(layers, network)
        changed = False
        for index in range(len(state.layers)):
            layer = state.layers[index]
            if layer is not None and rule(state, layer):
                changed = True
        layers = [layer for layer in state.layers if layer is not None]
        used = {network.output}
        kept = []
        for layer in reversed(layers):
            if layer.output in used:
                used.update(reads(layer))
                kept.append(layer)
        layers = kept[::-1]
    return layers


def _without_idle_taps(layer: Layer, network: Network) -> Layer:
    """On a map of one pixel only one tap of a convolution meets it: keep that one."""
    if layer.kind != "convolution" or {network.shapes[n][1:] for n in (layer.inputs[0], layer.output)} != {(1, 1)}:
        return layer
    weight = layer.weight
    for axis in (0, 1):
        tap, rest = divmod(layer.window.before[axis], layer.window.dilation[axis])
        if rest or tap >= layer.window.kernel[axis]:
            weight = np.zeros_like(weight)
            tap = 0
        weight = weight.take([tap], axis=2 + axis)
    return copied(layer, window=Window(), weight=weight)


def _gate(state: _State, layer: Layer) -> bool:
    """x * sigmoid(x) is SiLU, and x * hard_sigmoid(x) is hard swish."""
    names = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}
    if layer.kind != "multiply":
        return False
    for value, gate in (layer.inputs, layer.inputs[::-1]):
        producer = state.producer(gate)
        if producer and producer.kind == "activation" and producer.inputs == [value]:
            old = producer.activation
            if old.name in names:
                activation = Activation(names[old.name], alpha=old.alpha, beta=old.beta)
                merged = copied(layer, kind="activation", inputs=[value], activation=activation)
                state.merge(producer, layer, merged)
                state.uses[value] -= 1
                return True
    return False


def _scale(state: _State, layer: Layer) -> bool:
    """Arithmetic per channel after a convolution goes into its weights and bias."""
    producer = state.producer(layer.inputs[0]) if is_affine(layer) else None
    if not producer or producer.kind != "convolution" or producer.residual or not producer.activation.identity:
        return False
    scale = layer.weight.reshape(-1).astype(np.float64)
    with np.errstate(all="ignore"):
        weight = (producer.weight * scale[:, None, None, None]).astype(np.float32)
        bias = (producer.bias * scale + layer.bias).astype(np.float32)
    state.merge(producer, layer, copied(producer, output=layer.output, weight=weight, bias=bias))
    return True


def _pad(state: _State, layer: Layer) -> bool:
    """Zeros around a map go into the padding of the convolution that reads it."""
    producer = state.producer(layer.inputs[0]) if layer.kind == "convolution" else None
    if not producer or not is_affine(copied(producer, window=Window())):
        return False
    pad = producer.window
    if pad != Window(before=pad.before, after=pad.after) or np.any(producer.weight != 1) or np.any(producer.bias):
        return False
    old = layer.window
    before = (old.before[0] + pad.before[0], old.before[1] + pad.before[1])
    after = (old.after[0] + pad.after[0], old.after[1] + pad.after[1])
    window = Window(old.kernel, old.stride, old.dilation, before, after)
    state.merge(producer, layer, copied(layer, inputs=producer.inputs, window=window))
    return True


def _residual(state: _State, layer: Layer) -> bool:
    """An addition goes into the later one of two layers whose outputs it adds, if that is a convolution."""
    shapes = state.network.shapes
    if layer.kind != "add" or shapes[layer.inputs[0]] != shapes[layer.inputs[1]]:
        return False
    when = [state.position.get(name, -1) for name in layer.inputs]
    late, early = layer.inputs if when[0] > when[1] else layer.inputs[::-1]
    producer = state.producer(late)
    if not producer or producer.kind != "convolution" or producer.residual or not producer.activation.identity:
        return False
    state.merge(producer, layer, copied(producer, output=layer.output, residual=early, activation=layer.activation))
    return True


def _activation(state: _State, layer: Layer) -> bool:
    """An activation goes into the layer before it."""
    producer = state.producer(layer.inputs[0]) if layer.kind == "activation" else None
    if not producer or producer.kind == "concatenate" or not producer.activation.identity:
        return False
    state.merge(producer, layer, copied(producer, output=layer.output, activation=layer.activation))
    return True
