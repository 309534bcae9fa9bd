"""Item `yardstick`: the bare pass against the machine's rate of matrix products, and where its time goes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from seam.bench.network import Bench, quiet
from seam.bench.timing import Options, Row, in_turn, medians, ratios, row, subject_name, threads
from seam.precision import forward

OPERATIONS = {  # parts of the profiler's names of operations; the first entry that fits an operation counts
    "convolution, backward": ("convolution_backward",),
    "convolution": ("convolution",),
    "batch norm, backward": ("batch_norm_backward",),
    "batch norm": ("batch_norm",),
    "ReLU, both passes": ("threshold", "clamp_min", "relu"),
    "pooling, both passes": ("pool", "mean"),
    "linear layers, both passes": ("mm",),
    "additions": ("add",),
    "copies and zeros": ("copy", "fill", "zero", "clone"),
}


def yardstick(options: Options) -> Iterator[Row]:
    """Compare the bare pass with the machine's rate of matrix products, and show where its time goes."""
    device = options.device
    for architecture in options.architectures:
        with threads(1):
            bench = Bench(architecture, device)
            layers = products(bench)
            multiply_adds = sum(layer["multiply_adds"] for layer in layers)
            side = 8192 if device.type == "cuda" else 1536
            square = torch.randn(side, side, device=device).to(product_type(bench))
            functions = {"bare": bench.bare, "product": lambda square=square: square @ square}
            if device.type == "cpu":
                functions["NCHW"] = Bench(architecture, device, torch.contiguous_format).bare
            times = in_turn(functions, device, options.repeats)
            share = ratios(times, "product", "bare", multiply_adds / side**3)
            subject = subject_name(architecture, 1, device)
            quantity = f"multiply-adds a second of the bare pass / of a product of {side} x {side} matrices"
            yield row("yardstick", quantity, subject, share, multiply_adds=multiply_adds, **medians(times))
            if device.type == "cpu":
                quantity = "the bare pass in NCHW / in channels last"
                yield row("yardstick", quantity, subject, ratios(times, "NCHW", "bare"))
            title = f"The bare pass of {subject}, by kind of operation"
            yield {"item": "yardstick", "title": title, "table": operations(bench)}
            if device.type == "cpu":  # a GPU finishes a layer before the next is launched
                title = f"Layers of {subject} and matrix products of their sizes, forward and backward"
                yield {"item": "yardstick", "title": title, "table": compare_layers(layers, bench, options.repeats)}


def product_type(bench: Bench) -> torch.dtype:
    """Return the type in which the network's products are computed."""
    dtypes = []
    layer = next(iter(bench.twin.source.children()))
    while list(layer.children()):
        layer = next(iter(layer.children()))
    hook = layer.register_forward_hook(lambda layer, inputs, output: dtypes.append(output.dtype))
    forward(bench.twin, bench.images)
    hook.remove()
    return dtypes[0]


def products(bench: Bench) -> list[dict[str, Any]]:
    """Return the network's convolutions and linear layers, equal layers as one entry.

    "multiply_adds" counts forward and backward pass: the backward pass computes one product for the gradient of the
    weights and one for the gradient of the layer's input, which the first layer does not need.
    """
    entries: dict[tuple, dict[str, Any]] = {}
    names = {module: name for name, module in bench.twin.source.named_modules()}

    def note(layer, inputs, output):
        x = inputs[0]
        passes = 3 if x.requires_grad else 2
        key = (tuple(x.shape), tuple(layer.weight.shape), tuple(output.shape), passes)
        new = {"layer": layer, "input": x.detach(), "passes": passes, "names": [], "multiply_adds": 0}
        entry = entries.setdefault(key, new)
        entry["names"].append(names[layer])
        entry["multiply_adds"] += passes * output.numel() * layer.weight[0].numel()

    layers = [layer for layer in names if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    forward(bench.twin, bench.images)
    for hook in hooks:
        hook.remove()
    return list(entries.values())


def compare_layers(layers: list[dict[str, Any]], bench: Bench, repeats: int) -> list[dict[str, Any]]:
    """Return a table with the time of each distinct layer, and of matrix products with as many multiply-adds."""
    table = []
    for entry in layers:
        layer, x = entry["layer"], entry["input"].clone().requires_grad_(entry["passes"] == 3)
        output = forward(layer, x)
        gradient = torch.randn_like(output)
        trained = [*([x] if x.requires_grad else []), *(p for p in layer.parameters() if p.requires_grad)]
        columns, channels = layer.weight[0].numel(), layer.weight.shape[0]
        rows = output.numel() // channels
        options = {"device": bench.device, "dtype": product_type(bench)}
        a, b = torch.randn(rows, columns, **options), torch.randn(columns, channels, **options)
        c = torch.randn(rows, channels, **options)

        def run_layer(layer=layer, x=x, trained=trained, gradient=gradient):
            torch.autograd.grad(forward(layer, x), trained, gradient)

        def run_products(a=a, b=b, c=c, passes=entry["passes"]):
            torch.mm(a, b)
            torch.mm(a.T, c)
            if passes == 3:
                torch.mm(c, b.T)

        functions = {"layer": run_layer, "products": run_products}
        times = in_turn(functions, bench.device, min(repeats, 7), limit=10)
        count = len(entry["names"])
        table.append(
            {
                "layer": entry["names"][0] + (f" and {count - 1} more" if count > 1 else ""),
                "weight": "x".join(map(str, layer.weight.shape)),
                "output": "x".join(map(str, output.shape[2:])) or "1",
                "million multiply-adds": round(entry["multiply_adds"] / 1e6),
                "ms": count * 1e3 * statistics.median(times["layer"]),
                "ms of products": count * 1e3 * statistics.median(times["products"]),
            }
        )
    return table


def operations(bench: Bench, passes: int = 3) -> list[dict[str, Any]]:
    """Return a table of the bare pass by kind of operation, from torch's profiler: milliseconds and percent."""
    from torch.profiler import ProfilerActivity, profile

    gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    bench.bare_eager()
    with quiet(), profile(activities=activities) as profiled:
        for _ in range(passes):
            bench.bare_eager()
    spent = dict.fromkeys([*OPERATIONS, "the rest"], 0.0)
    for event in profiled.key_averages():
        if gpu and not event.key.startswith("aten::"):  # a kernel, whose time its operation has too
            continue
        name = next((kind for kind, parts in OPERATIONS.items() if any(p in event.key for p in parts)), "the rest")
        spent[name] += event.self_device_time_total if gpu else event.self_cpu_time_total
    total = sum(spent.values()) or 1.0
    ordered = sorted(((name, value) for name, value in spent.items() if value), key=lambda entry: -entry[1])
    return [{"operation": name, "ms": value / 1e3 / passes, "%": 100 * value / total} for name, value in ordered]
