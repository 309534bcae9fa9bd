"""How close a search comes to what the machine can do: `make bench`. docs/benchmarks.md says what each number means.

What is compared is timed in turn (A, B, A, B, ...) within one run; given is the median of the pairs' ratios with its
quartiles, so that the numbers hold on a noisy machine.
"""

import argparse
import contextlib
import copy
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from seam.data.batches import batches
from seam.data.kinds.registry import prepare_dataset
from seam.data.storage import Split, open_dataset
from seam.device import select_device
from seam.errors import UserError
from seam.evaluation import predict
from seam.files import write_json, write_text
from seam.masks.bits import pack_bits
from seam.masks.layers import maskable
from seam.masks.masks import Masks
from seam.memory import keep_memory
from seam.models.architectures import build_model
from seam.models.folding import fold
from seam.models.surgery import copy_state, set_training_mode, with_head
from seam.models.weights import Source, save_source
from seam.precision import forward
from seam.search.search import mask_step, search
from seam.search.stacked import Stack, stack_batches
from seam.settings import SearchSettings
from seam.training.adam import Adam
from seam.training.checkpoint import Checkpoint
from seam.training.graphs import WARM, beside, captured, graphed, stream
from seam.training.run import Run

BATCH, SIZE, CLASSES = 64, 32, 10
NORMALIZATION = (0.5,) * 3, (0.25,) * 3
TRAIN, HOLDOUT = 8000, 2000  # images of an epoch: a binary problem of CIFAR-10, a fifth of it held out
MOST = 60.0  # seconds of a comparison, once each side was timed three times
UNITS = {"seconds", "megabytes", "searches"}
STEP_GOALS = {"resnet20": 1.08, "vgg16_bn": 1.12}
KINDS = {  # of operations, by how the profiler calls them; the first that fits
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


# How it is measured


def in_turn(functions, device, repeats, most=MOST):
    """{name: seconds of each call} of {name: function}, called in turn; the first round does not count.

    On a GPU the seconds are its own, of as many calls in one as take 20 ms, once steps are graphs.
    """
    calls = dict.fromkeys(functions, 1)
    for name, function in functions.items():
        seconds(function, device, WARM + 1 if device.type == "cuda" else 1)
        if device.type == "cuda":
            calls[name] = max(1, round(0.02 / seconds(function, device, 3)))
    found, start = {name: [] for name in functions}, time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - start > most:
            break
        for name, function in functions.items():
            found[name].append(seconds(function, device, calls[name]))
    return found


def seconds(function, device, calls=1):
    """What a call takes."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "mps":
        torch.mps.synchronize()
    return (time.perf_counter() - start) / calls


def row(item, what, of, values, goal=None, **more):
    """A line of the result: the median of `values` with its quartiles. `what` is measured `of` what, and should be at
    most `goal`."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"item": item, "what": what, "of": of, "value": middle, "low": low, "high": high, "goal": goal, **more}


def ratios(times, name, other, factor=1.0):
    return [factor * a / b for a, b in zip(times[name], times[other], strict=True)]


def medians(times):
    return {"seconds": {name: statistics.median(values) for name, values in times.items()}}


class Bench:
    """What is searched: a source model with a head, its masks and their optimizer, as `seam.search.search` has them.

    step: a step of masks and head on a batch that lies on the device. bare: forward and backward pass of an equal
    network with the same frozen layers, without masks. On a GPU both are CUDA graphs, and step_eager and bare_eager are
    launched kernel by kernel. folded: whether the bare pass has its batch norm folded into the convolutions too, as
    that of what is searched is.
    """

    def __init__(self, architecture, device, memory_format=torch.channels_last, folded=False):
        torch.manual_seed(0)
        self.architecture, self.device = architecture, device
        network = build_model(architecture, CLASSES).eval().to(device, memory_format=memory_format)
        twin = copy.deepcopy(network)
        self.twin = with_head((fold(twin) if folded else twin).requires_grad_(False), CLASSES, 2).to(device)
        self.model = with_head(fold(network).requires_grad_(False), CLASSES, 2).to(device)
        self.model.head.load_state_dict(self.twin.head.state_dict())
        self.images = torch.randn(BATCH, 3, SIZE, SIZE).to(device, memory_format=memory_format)
        self.labels = torch.randint(2, (BATCH,)).to(device)
        for parameter in maskable(self.twin.source).values():
            parameter.requires_grad_(True)
        self.masks = Masks(network)
        self.masks.train()
        groups = (self.masks.values.values(), 1e-4), (self.model.head.parameters(), 0.1)
        self.optimizer = Adam(groups)
        self.step_on_eager = mask_step(self.model, self.model.head, self.masks, self.optimizer, alpha=1.0)
        self.step_on = graphed(self.step_on_eager, [self.masks, self.model.head, self.optimizer], device)
        set_training_mode(self.model)
        set_training_mode(self.twin)
        self.bare = as_graph(self.bare_eager) if device.type == "cuda" else self.bare_eager

    def step(self):
        return self.step_on(self.images, self.labels)

    def step_eager(self):
        return self.step_on_eager(self.images, self.labels)

    def bare_eager(self):
        self.twin.zero_grad()
        cross_entropy(forward(self.twin, self.images), self.labels).backward()

    def loader(self, count, **options):
        """Batches of random images of CIFAR's size."""
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        labels = random.integers(0, 2, count)
        split = Split(labels, (SIZE, SIZE), images)
        common = {"normalization": NORMALIZATION, "device": self.device} | options
        return batches(split, np.arange(count), labels, BATCH, **common)

    def training_loader(self, count):
        generator = torch.Generator().manual_seed(0)
        return self.loader(count, augmentation=("crop", "flip"), generator=generator, shuffle=True)


def as_graph(function):
    """The function as a CUDA graph."""
    with beside(stream()):
        for _ in range(WARM):
            function()
    return captured(function)[1]


def thread_numbers(device):
    """Of torch: those of a job, and all cores. On a GPU they don't matter."""
    return [1] if device.type != "cpu" else sorted({1, min(2, os.cpu_count() or 1)})


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on(architecture, number, device):
    return f"{architecture}, {number} thread{'s'[: number != 1]}" if device.type == "cpu" else architecture


# What is measured


def step(options):
    """A step of the search against the bare pass."""
    for architecture in options.architectures:
        for number in thread_numbers(options.device):
            with threads(number):
                bench = Bench(architecture, options.device)
                folded = Bench(architecture, options.device, folded=True)
                functions = {"step": bench.step, "bare": bench.bare, "bare, folded": folded.bare}
                if options.device.type == "cuda":
                    functions |= {"step, no graph": bench.step_eager, "bare, no graph": bench.bare_eager}
                times = in_turn(functions, options.device, options.repeats)
            of, goal = on(architecture, number, options.device), STEP_GOALS.get(architecture)
            yield row("step", "a step / the bare pass", of, ratios(times, "step", "bare"), goal, **medians(times))
            what = "a step / the bare pass with batch norm folded, as in the step"
            yield row("step", what, of, ratios(times, "step", "bare, folded"), goal, **medians(times))
            if options.device.type == "cuda":
                eager = ratios(times, "step, no graph", "bare, no graph")
                yield row("step", "a step / the bare pass, neither as a graph", of, eager, **medians(times))
                gain = ratios(times, "step", "step, no graph")
                yield row("step", "a step / the same without a graph", of, gain, 1.0, **medians(times))
                yield row("step", "synchronisations in a step", of, [synchronisations(bench.step_eager)], 0)


def synchronisations(function):
    """How often the host waits for the GPU in a call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in found)


def yardstick(options):
    """The bare pass against the machine's rate of matrix products, and where its time goes."""
    device = options.device
    for architecture in options.architectures:
        with threads(1):
            bench = Bench(architecture, device)
            layers = products(bench)
            multiply_adds = sum(layer["multiply_adds"] for layer in layers)
            side = 8192 if device.type == "cuda" else 1536
            square = torch.randn(side, side, device=device)
            square = square.to(product_type(bench))
            functions = {"bare": bench.bare, "product": lambda square=square: square @ square}
            if device.type == "cpu":
                functions["NCHW"] = Bench(architecture, device, torch.contiguous_format).bare
            times = in_turn(functions, device, options.repeats)
            share = ratios(times, "product", "bare", multiply_adds / side**3)
            of = on(architecture, 1, device)
            what = f"multiply-adds a second of the bare pass / of a product of {side} x {side} matrices"
            yield row("yardstick", what, of, share, multiply_adds=multiply_adds, **medians(times))
            if device.type == "cpu":
                yield row("yardstick", "the bare pass in NCHW / in channels last", of, ratios(times, "NCHW", "bare"))
            title = f"The bare pass of {of}, by kind of operation"
            yield {"item": "yardstick", "title": title, "table": kinds(bench)}
            if device.type == "cpu":  # a GPU's are over before the next is launched
                title = f"Layers of {of} and matrix products of their sizes, forward and backward"
                yield {"item": "yardstick", "title": title, "table": compared(layers, bench, options.repeats)}


def product_type(bench):
    """What the network's products are computed in."""
    seen = []
    layer = next(iter(bench.twin.source.children()))
    while list(layer.children()):
        layer = next(iter(layer.children()))
    hook = layer.register_forward_hook(lambda *found: seen.append(found[2].dtype))
    forward(bench.twin, bench.images)
    hook.remove()
    return seen[0]


def products(bench):
    """Its convolutions and linear layers: names, shapes and multiply-adds of the bare pass, equal layers as one.

    Of the backward pass, too: once for the gradient of the weights, once for that of the layer's input, which the
    first layer does not need.
    """
    found = {}
    network = bench.twin.source
    names = {module: name for name, module in network.named_modules()}

    def note(layer, inputs, output):
        x = inputs[0]
        passes = 3 if x.requires_grad else 2
        key = (tuple(x.shape), tuple(layer.weight.shape), tuple(output.shape), passes)
        one = passes * output.numel() * layer.weight[0].numel()
        entry = found.setdefault(key, {"layer": layer, "input": x.detach(), "passes": passes, "names": []})
        entry["names"].append(names[layer])
        entry["multiply_adds"] = entry.get("multiply_adds", 0) + one

    wanted = torch.nn.Conv2d, torch.nn.Linear
    hooks = [layer.register_forward_hook(note) for layer in names if isinstance(layer, wanted)]
    forward(bench.twin, bench.images)
    for hook in hooks:
        hook.remove()
    return list(found.values())


def compared(layers, bench, repeats):
    """[{name: value}] for each distinct layer: its time, alone, and that of products with as many multiply-adds."""
    table = []
    for entry in layers:
        layer, x = entry["layer"], entry["input"].clone().requires_grad_(entry["passes"] == 3)
        output = forward(layer, x)
        gradient = torch.randn_like(output)
        wanted = [*([x] if x.requires_grad else []), *(p for p in layer.parameters() if p.requires_grad)]
        columns = layer.weight[0].numel()
        rows = output.numel() // layer.weight.shape[0]
        kind = product_type(bench)
        a = torch.randn(rows, columns, device=bench.device, dtype=kind)
        b = torch.randn(columns, layer.weight.shape[0], device=bench.device, dtype=kind)
        c = torch.randn(rows, layer.weight.shape[0], device=bench.device, dtype=kind)

        def alone(layer=layer, x=x, wanted=wanted, gradient=gradient):
            torch.autograd.grad(forward(layer, x), wanted, gradient)

        def equal(a=a, b=b, c=c, passes=entry["passes"]):
            a @ b, a.T @ c
            if passes == 3:
                c @ b.T

        times = in_turn({"layer": alone, "products": equal}, bench.device, min(repeats, 7), most=10)
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


def kinds(bench, passes=3):
    """[{"operation", "ms", "%"}] of the bare pass, as torch's profiler has it."""
    from torch.profiler import ProfilerActivity, profile

    gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    bench.bare_eager()
    with quiet(), profile(activities=activities) as profiled:
        for _ in range(passes):
            bench.bare_eager()
    spent = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in profiled.key_averages():
        if gpu and not event.key.startswith("aten::"):  # its kernels, which belong to operations
            continue
        name = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "the rest")
        spent[name] += event.self_device_time_total if gpu else event.self_cpu_time_total
    total = sum(spent.values()) or 1.0
    ordered = sorted(((name, value) for name, value in spent.items() if value), key=lambda item: -item[1])
    return [{"operation": name, "ms": value / 1e3 / passes, "%": 100 * value / total} for name, value in ordered]


@contextlib.contextmanager
def quiet():
    """Without what libraries below Python say on the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def inputs(options):
    """Preparing a batch against the step that it is for."""
    for architecture in options.architectures:
        with threads(1):
            bench = Bench(architecture, options.device)
            loader = bench.training_loader(16 * BATCH)

            def epoch(loader=loader):
                for _ in loader:
                    pass

            times = in_turn({"batches": epoch, "step": bench.step}, options.device, options.repeats)
        times["batches"] = [value / len(loader) for value in times["batches"]]
        of = on(architecture, 1, options.device)
        share = ratios(times, "batches", "step")
        yield row("input", "making a batch (crop, flip, normalise) / a step", of, share, 0.03, **medians(times))


def epoch(options):
    """Evaluation and checkpoints as a share of an epoch; on a CPU extrapolated from a few batches of each."""
    images = (2 * BATCH, 2 * BATCH) if options.device.type == "cpu" else (TRAIN, HOLDOUT)
    for architecture in options.architectures:
        with threads(1), tempfile.TemporaryDirectory() as folder:
            bench = Bench(architecture, options.device)
            train, select = bench.training_loader(images[0]), bench.loader(images[1])
            head_only = Adam([(bench.model.head.parameters(), 0.1)])
            parts = {"masks": bench.masks, "head": bench.model.head, "head_only": head_only, "both": bench.optimizer}
            with Run(train, parts, Checkpoint(Path(folder) / "checkpoint.pt", {})) as run:

                def evaluation(bench=bench, run=run, select=select):
                    predict(bench.model, run.watched(select))

                def end(bench=bench, run=run):
                    bench.masks.retention(run.epoch)
                    best = {"bits": pack_bits(bench.masks.bits()), "head": copy_state(bench.model.head)}
                    run.history.clear()
                    run.end_epoch({}, best, save=True)  # as after an epoch of usual length

                def training(bench=bench, run=run):
                    run.batch = 0  # however often it is called before an epoch's end
                    run.one_epoch(bench.step_on)

                functions = {
                    "training": training,
                    "evaluation": evaluation,
                    "checkpoint": end,
                }
                times = in_turn(functions, options.device, options.repeats)
        scale = {"training": TRAIN / images[0], "evaluation": HOLDOUT / images[1], "checkpoint": 1}
        times = {name: [scale[name] * value for value in values] for name, values in times.items()}
        of, more = on(architecture, 1, options.device), medians(times)
        for every, said in ((1, ""), (2, ", with evaluate_every: 2")):
            share = [
                (evaluated / every + kept) / (trained + evaluated / every + kept)
                for trained, evaluated, kept in zip(*times.values(), strict=True)
            ]
            what = f"evaluation and checkpoint / an epoch of {TRAIN} images and {HOLDOUT} held out{said}"
            yield row("epoch", what, of, share, 0.05, **more)


def start(options):
    """Seconds from the start of a `reengineer` job's process to its first step."""
    architecture = options.architectures[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (arguments,) = searches(folder, architecture, [3])
        (folder / "arguments.json").write_text(json.dumps(arguments | {"device": options.asked}), encoding="utf-8")
        found = [started(folder / "arguments.json") for _ in range(options.repeats_of_start + 1)][1:]
    parts = {name: statistics.median(spent[name] for spent in found) for name in found[0]}
    beyond = [
        sum(value for name, value in spent.items() if name not in ("import torch", "first step")) for spent in found
    ]
    what = "seconds from the start of a job to its first step, less those of importing torch"
    yield row("start", what, f"{architecture}, digits", beyond, 1.0)
    table = [{"part": name, "s": value} for name, value in parts.items()]
    yield {"item": "start", "title": "Start of a job, its parts in order (medians)", "table": table}


def started(arguments):
    """{part: seconds} of the start of one job."""
    script = Path(__file__).with_name("bench_start.py")
    return json.loads(job_says(script, repr(time.time()), arguments).splitlines()[-1])


def job_says(*arguments):
    """What a process of Python with these arguments prints; the library is on its path."""
    command, environment = (
        [sys.executable, *map(str, arguments)],
        os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"The job that bench started fails ({done.stderr.strip().rpartition(chr(10))[2]}).")
    return done.stdout


def vectorised(options):
    """A step of several searches in one pass against a step of each."""
    count = 4 if options.device.type == "cpu" else 20
    for architecture in options.architectures:
        bench = Bench(architecture, options.device)
        stack = Stack([copy.deepcopy(bench.model)] * count, SearchSettings(lr_mask=1e-4), 1)
        set_training_mode(stack.model)
        stack.masks.train()
        images, labels = stack_batches([(bench.images, bench.labels)] * count)
        functions = {
            "in one pass": lambda step=stack.steps["masks"]: step(images, labels),  # noqa: B023
            "each": lambda: [bench.step() for _ in range(count)],  # noqa: B023
        }
        try:
            with threads(1):
                times = in_turn(functions, options.device, options.repeats)
        except RuntimeError as error:
            print(f"  {architecture} left out: {str(error).partition('. ')[0]}", file=sys.stderr)
            continue
        goal = None if options.device.type == "cpu" else 1.0  # on a CPU searches go one after the other
        what = f"a step of {count} searches in one pass / {count} steps"
        yield row("vectorised", what, architecture, ratios(times, "in one pass", "each"), goal, **medians(times))


def targets(options):
    """Searches in one job against a job for each."""
    architecture, count, kind = options.architectures[0], 3, "digits"
    if options.device.type == "cuda":
        count, kind = 10, "noise"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        planned = searches(folder, architecture, range(count), kind)
        # Fewer epochs than that would say more of the start than of a search.
        for one in planned:
            one["settings"] = {"schedule": "fast", "epochs": 12, "lr_mask": 0.1, "alpha": 3.0}
        (folder / "planned.json").write_text(json.dumps(planned), encoding="utf-8")
        times = {"together": [], "alone": []}
        for _ in range(options.repeats_of_start):
            for name, most in (("together", count), ("alone", 1)):
                begun = time.perf_counter()
                for number in range(count):
                    searched(folder / "planned.json", number, most, options.asked)
                times[name].append(time.perf_counter() - begun)
                shutil.rmtree(folder / "direct")
    what = f"seconds of {count} searches of 12 epochs in one job, and of the jobs that take them / of a job for each"
    each = {name: [3600 * count / value for value in values] for name, values in times.items()}
    more = {f"an hour, {name}": statistics.median(values) for name, values in each.items()}
    yield row("targets", what, f"{architecture}, {kind}", ratios(times, "together", "alone"), 1.0, searches=more)


def searches(folder, architecture, targets, kind="digits"):
    """Arguments of `seam.reengineer.reengineer` for problems of the digits, or of `noise`, where all have as many
    images, as one pass needs it; the source model is not trained."""
    settings = {"kind": "digits", "size": SIZE}
    if kind == "noise":
        settings = {"kind": "imagefolder", "size": SIZE, "root": str(noise(folder / "images"))}
    prepare_dataset(settings, folder / "images-prepared")
    images = open_dataset(folder / "images-prepared")
    torch.manual_seed(0)
    module = build_model(architecture, len(images.classes))
    source = Source(module, images.classes, (images.mean, images.std), architecture)
    save_source(folder / "source.safetensors", source)
    return [
        {
            "folder": str(folder / "direct" / str(target)), "model_folder": str(folder),
            "dataset_folder": str(folder / "images-prepared"), "checkpoint": str(folder / f"{target}.pt"),
            "model": "bench", "dataset": kind, "problem": "binary", "target": str(target), "members": [str(target)],
            "settings": {}, "seed": 0,
        }
        for target in targets
    ]  # fmt: skip


def noise(folder, classes=10, train=500, test=50):
    """The folder, with images of classes 0, 1, ...: a binary problem of them has as many as one of CIFAR-100."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for name in range(classes):
            (folder / part / str(name)).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / str(name) / f"{number}.png")
    return folder


def searched(planned, number, most, device):
    """Run the job of a planned search, as the workflow's script does."""
    command = (
        "import json, sys, snakemake.script; from seam import together;"
        " planned, number, most, device = sys.argv[1:];"
        " own = json.load(open(planned))[int(number)];"
        " together.Targets(planned, device, [together.__file__]).search(own, int(most))"
    )
    job_says("-c", command, planned, number, most, device)


def memory(options):
    """Peak of a search against what it has to hold."""
    if options.device.type == "mps" or (options.device.type == "cpu" and sys.platform != "linux"):
        print("  left out: this system does not tell the peak of a process", file=sys.stderr)
        return
    context = multiprocessing.get_context("spawn")  # a process of its own, whose peak is that of this search
    ways = [("", 1.5, {}), (" without checkpoints", None, {"kept": False})]  # what is added to `of`, goal, arguments
    if options.device.type == "cpu":
        ways.append((", tensors alone", 1.5, {"tensors": True}))
    else:
        ways.append((", with what torch has reserved", None, {"reserved": True}))
    for architecture in options.architectures:
        for way, goal, arguments in ways:
            # What the allocator leaves unused is another share each time.
            always_same = options.device.type == "cuda" or "tensors" in arguments
            peaks = []
            for _ in range(1 if always_same else min(options.repeats, 5)):
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    peak, held = pool.submit(peak_of_search, architecture, options.asked, **arguments).result()
                peaks.append(peak)
            sizes = {"peak": statistics.median(peaks), **held}
            shares = [peak / sum(held.values()) for peak in peaks]
            what, megabytes = "peak / (network + masks + Adam + activations)", {k: v / 1e6 for k, v in sizes.items()}
            yield row("memory", what, architecture + way, shares, goal, megabytes=megabytes)


def peak_of_search(architecture, asked, kept=True, tensors=False, reserved=False):
    """(bytes that a search takes at most, {what: bytes} that it has to hold), in a process of its own.

    kept: whether it writes checkpoints. tensors: count its tensors, not what the process takes for them. reserved: on a
    GPU, where tensors are counted, count what torch has taken for them.
    """
    torch.set_num_threads(1)
    keep_memory()
    device = select_device(asked)
    # What a first convolution and a first product load is not the search's.
    warm = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 2)).to(device)
    forward(warm, torch.randn(2, 3, 8, 8, device=device)).sum().backward()
    bench = Bench(architecture, device)
    held = {
        "network": size_of([*bench.model.parameters(), *bench.model.buffers()]),
        "masks": size_of(bench.masks.values.values()),
        "adam": 2 * size_of([*bench.masks.values.values(), *bench.model.head.parameters()]),
        "activations": saved(bench),
    }
    train, select_on = bench.training_loader(4 * BATCH), bench.loader(4 * BATCH)
    del bench, warm

    def searched(folder):
        torch.manual_seed(0)
        network = build_model(architecture, CLASSES).eval().to(device, memory_format=torch.channels_last)
        model = with_head(fold(network), CLASSES, 2).to(device)
        checkpoint = Checkpoint(Path(folder) / "checkpoint.pt", {}) if kept else None
        search(model, train, select_on, 0.5, SearchSettings(epochs=3), checkpoint)

    with tempfile.TemporaryDirectory() as folder:
        if tensors:
            return most_at_once(lambda: searched(folder)), held
        before, code = peak(device, reserved, reset=True), pages_of_files()
        searched(folder)
        # The libraries' code that it is the first to use is no memory of its own: all processes share it.
        return peak(device, reserved) - before - (pages_of_files() - code if device.type == "cpu" else 0), held


def most_at_once(function):
    """The most bytes that the tensors which a call makes on the CPU take at once."""
    from torch.profiler import ProfilerActivity, profile

    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved(bench):
    """Bytes that a step's forward pass keeps for its backward pass, weights aside; a storage counts once."""
    found = {}
    weights = {p.untyped_storage().data_ptr() for p in bench.model.parameters()}

    def note(tensor):
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            found[place.data_ptr()] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = cross_entropy(forward(bench.model, bench.images), bench.labels)
    size = sum(found.values())
    del loss
    return size


def peak(device, reserved=False, reset=False):
    """The most bytes that this process held (on a GPU: its tensors, or what is reserved for them); reset: from now
    on."""
    if device.type == "cuda":
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_reserved(device) if reserved else torch.cuda.max_memory_allocated(device)
    if reset:
        release()
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmHWM")


def pages_of_files():
    """Bytes of files, such as libraries, that lie in this process's memory."""
    return status("RssFile")


def status(name):
    """An entry of this process's status, in bytes."""
    entries = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(entries[name].split()[0])


def release():
    """Give what was freed back to the system, so that it does not hide what is taken next."""
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


ITEMS = {
    "step": step, "yardstick": yardstick, "input": inputs, "epoch": epoch, "start": start, "targets": targets,
    "vectorised": vectorised, "memory": memory,
}  # fmt: skip


# What is written


def machine(device):
    found = {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "batch_size": BATCH,
        "pixels": SIZE,
    }
    if hasattr(os, "getloadavg"):
        found["load_before"] = round(os.getloadavg()[0], 2)
    return found


def processor():
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def render(found):
    """The whole result as text."""
    about = found["machine"]
    load = f", load {about['load_before']} before it began" if "load_before" in about else ""
    parts = [
        f"On {about['name']} ({about['device']}), {about['cores']} cores, {about['instructions']}{load}; "
        f"torch {about['torch']}, batches of {about['batch_size']} images of {about['pixels']} px.\n"
        "Medians of pairs timed in turn, and their quartiles. A goal is what the median should be at most."
    ]
    for (item, what), entries in itertools.groupby(found["rows"], key=lambda entry: (entry["item"], entry["what"])):
        lines = []
        for entry in entries:
            goal = entry["goal"]
            line = {
                "of": entry["of"],
                "median": f"{entry['value']:.3f}",
                "quartiles": f"{entry['low']:.3f} to {entry['high']:.3f}",
                "goal": "" if goal is None else f"{goal:g}: {'yes' if entry['value'] <= goal else 'NO'}",
            }
            for unit in UNITS.intersection(entry):
                line[unit] = ", ".join(f"{name} {value:.3g}" for name, value in entry[unit].items())
            lines.append(line)
        parts.append(f"{item}: {what}\n\n{block(lines)}")
    for entry in found["tables"]:
        parts.append(f"{entry['title']}\n\n{block(entry['table'])}")
    return "\n\n".join(parts) + "\n"


def block(lines):
    """Lines, {column: value}, under the names of the columns; numbers to the right."""
    columns = list(lines[0])
    cells = [columns] + [[text(line[column]) for column in columns] for line in lines]
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [not isinstance(value, str) for value in lines[0].values()]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, width, right, strict=True)).rstrip()
        for line in cells
    )


def text(value):
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def run(options):
    """The whole result: {"machine", "rows", "tables"}. Says on the terminal what it is at."""
    found = {"machine": machine(options.device), "rows": [], "tables": []}
    for name in options.items:
        print(f"{name}: {ITEMS[name].__doc__.strip()}", file=sys.stderr, flush=True)
        for entry in ITEMS[name](options):
            found["tables" if "table" in entry else "rows"].append(entry)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__).strip())
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps; of cuda a precision, as cuda/float32")
    parser.add_argument("--items", nargs="+", choices=ITEMS, default=list(ITEMS), metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--architectures", nargs="+", default=["resnet20", "vgg16_bn"], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of each comparison")
    parser.add_argument("--output", default="results/benchmarks/bench.json", type=Path)
    options = parser.parse_args(arguments)
    options.asked, options.repeats_of_start = options.device, max(1, options.repeats // 3)
    try:
        options.device = select_device(options.asked)
        found = run(options)
        write_json(options.output, found)
        write_text(options.output.with_suffix(".txt"), render(found))
    except UserError as error:
        sys.exit(f"Error: {error}")
    print(render(found), end="")


if __name__ == "__main__":
    keep_memory()  # as the jobs
    main()
