"""Measure and draw how much faster seam.engine is than ONNX Runtime, against the share of zeros, layer shape by shape.

    make figure-engine ARGS="--json engine_zeros.json"

Each network is a chain of four equal layers with ReLU and random zeros. Both engines take turns in one thread.
A point is the median over rounds of the ratio of their processor times, so that other work on the machine counts less.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LAYERS = 4
ZEROS = (0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
SECONDS = 0.3  # of processor time, per point
LEAST_ROUNDS = 15


@dataclass(frozen=True)
class Shape:
    """A convolution from `channels` to as many channels, with a square kernel and map."""

    kernel: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel}, {self.channels} channels, {self.size}x{self.size}"


SHAPES = (
    Shape(3, 16, 32),
    Shape(3, 32, 16),
    Shape(3, 64, 8),
    Shape(3, 64, 56),
    Shape(3, 256, 14),
    Shape(3, 512, 2),
    Shape(1, 128, 28),
    Shape(1, 512, 7),
)


def model(shape: Shape, zeros: float) -> bytes:
    """Return an ONNX file of LAYERS equal layers."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, constants, name = [], [], "images"
    for layer in range(LAYERS):
        weight = random.standard_normal((shape.channels, shape.channels, shape.kernel, shape.kernel))
        weight *= (random.random(weight.shape) >= zeros) * np.sqrt(2 / (weight[0].size * (1 - zeros)))
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        pads = [shape.kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [f"c{layer}"], pads=pads))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        name = f"r{layer}"
    sizes = ["batch", shape.channels, shape.size, shape.size]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, sizes)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def measure(shape: Shape, zeros: float, images: int, seconds: float) -> dict:
    """Return the ratio of ONNX Runtime's time to the engine's, and both medians in milliseconds."""
    import onnxruntime

    from seam.engine import load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model(shape, zeros))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        engine = load(path, fallback=False)
    batch = np.random.default_rng(1).standard_normal((images, shape.channels, shape.size, shape.size))
    batch = batch.astype(np.float32)
    runs = (lambda: session.run(None, {"images": batch}), lambda: engine(batch))
    times: list[list[float]] = [[], []]
    for run in runs * 2:
        run()
    end = time.thread_time() + seconds
    while time.thread_time() < end or len(times[1]) < LEAST_ROUNDS:
        for run, taken in zip(runs, times, strict=True):
            begin = time.thread_time()
            run()
            taken.append(time.thread_time() - begin)
    ratio = float(np.median(np.array(times[0]) / np.array(times[1])))
    row = {"layer": str(shape), "zeros": zeros, "images": images, "rounds": len(times[0]), "speed_up": round(ratio, 3)}
    return row | {"onnxruntime_ms": 1e3 * float(np.median(times[0])), "seam_ms": 1e3 * float(np.median(times[1]))}


def draw(rows: list[dict], path: Path) -> None:
    """Draw a panel per batch: a line per layer, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator

    batches = sorted({row["images"] for row in rows})
    figure, panels = pyplot.subplots(1, len(batches), figsize=(5 * len(batches), 4.2), sharey=True, squeeze=False)
    for panel, images in zip(panels[0], batches, strict=True):
        for layer in dict.fromkeys(row["layer"] for row in rows):
            points = [row for row in rows if (row["layer"], row["images"]) == (layer, images)]
            zeros, speed = [100 * row["zeros"] for row in points], [row["speed_up"] for row in points]
            panel.plot(zeros, speed, marker="o", markersize=3, linewidth=1.2, label=layer)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20]))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set(xlabel="zeros among the weights, %", title=f"{images} image{'s' if images > 1 else ''}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("times as fast as ONNX Runtime")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Parse the options, measure (or read) the points, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("engine_zeros.json"), help="points; read if it exists")
    parser.add_argument("--png", type=Path, default=Path("docs/images/engine_zeros.png"))
    parser.add_argument("--images", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per point")
    options = parser.parse_args()
    if not options.json.exists():
        rows = []
        for images in options.images:
            for shape in SHAPES:
                for zeros in ZEROS:
                    rows.append(measure(shape, zeros, images, options.seconds))
                    print(rows[-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    draw(json.loads(options.json.read_text()), options.png)


if __name__ == "__main__":
    main()
