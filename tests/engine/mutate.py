"""Damages ONNX files, to see that the engine ends each in a result or in a sentence.

    python tests/engine/mutate.py 10000

Each file is loaded in a process whose memory is limited and whose time is watched; a crash, a hang or another exception
than EngineError ends the run with the file that caused it.
"""

import faulthandler
import resource
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "helpers"), str(TESTS.parent / "workflow/scripts")]

from random_models import ComputedModel, RandomGraph, RandomModel  # noqa: E402

SECONDS = 30  # of processor time for one file, so that a busy machine is no failure
MEMORY = 8 << 30  # bytes of address space beyond what the process begins with; reserved, not used
USED = 2 << 30  # bytes that the process may really use more
SPECIAL = [
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    256,
    65535,
    65536,
    1 << 20,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
    (1 << 63) - 1,
    -(1 << 63),
]


def damage_bytes(data: bytes, random: np.random.Generator) -> bytes:
    """Return the file with some bytes changed, inserted, removed or repeated, or cut short."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        if not changed:
            break
        at, kind = int(random.integers(len(changed))), random.integers(6)
        length = int(random.integers(1, 20))
        if kind == 0:
            changed[at] = int(random.integers(256))
        elif kind == 1:
            changed[at] ^= 1 << int(random.integers(8))
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = random.integers(0, 256, length, np.uint8).tobytes()
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        elif random.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def damage_fields(data: bytes, random: np.random.Generator) -> bytes:
    """Return the file with some numbers, names or operations replaced, so that it still parses."""
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    for _ in range(int(random.integers(1, 4))):
        number = int(random.choice(SPECIAL)) if random.random() < 0.7 else int(random.integers(-4, 40))
        node = graph.node[int(random.integers(len(graph.node)))]
        kind = random.integers(9)
        if kind <= 2 and node.attribute:
            attribute = node.attribute[int(random.integers(len(node.attribute)))]
            if attribute.ints:
                attribute.ints[int(random.integers(len(attribute.ints)))] = number
            elif attribute.HasField("i"):
                attribute.i = number
            else:
                attribute.f = float(random.choice([0, -1, np.inf, np.nan, 1e38]))
        elif kind == 3 and graph.initializer:
            tensor = graph.initializer[int(random.integers(len(graph.initializer)))]
            if tensor.dims:
                tensor.dims[int(random.integers(len(tensor.dims)))] = number
        elif kind == 4:
            size = graph.input[0].type.tensor_type.shape.dim[int(random.integers(4))]
            size.dim_value = number
        elif kind == 5:
            other = graph.node[int(random.integers(len(graph.node)))]
            node.op_type = other.op_type
        elif kind == 6 and node.input and graph.initializer:
            names = [t.name for t in graph.initializer] + [o for n in graph.node for o in n.output] + ["images", ""]
            node.input[int(random.integers(len(node.input)))] = str(random.choice(names))
        elif kind == 7:
            names = [o for n in graph.node for o in n.output]
            graph.output[0].name = str(random.choice(names))
        elif kind == 8 and graph.initializer:
            tensor = graph.initializer[int(random.integers(len(graph.initializer)))]
            if tensor.raw_data:
                values = bytearray(tensor.raw_data)
                values[int(random.integers(len(values)))] = int(random.integers(256))
                tensor.raw_data = bytes(values)
    return model.SerializeToString()


def check(first: int, last: int) -> dict[str, int]:
    """Load and run damaged files `first` to `last`, and count how each ends."""
    from seam.engine import EngineError, load

    ends = {"result": 0, "sentence": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        current = Path(tempfile.gettempdir()) / f"mutate-{first}.txt"  # which file it was, after a crash
        for index in range(first, last):
            random = np.random.default_rng(index)
            kind = (*(RandomModel,) * 4, *(RandomGraph,) * 2, *(ComputedModel,) * 2)[index % 8]
            data = kind(index % 200, largest=17).draw(1 + index % 4)
            data = (damage_bytes if index % 2 else damage_fields)(data, random)
            path.write_bytes(data)
            current.write_text(f"{index}\n")
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                engine = load(path, fallback=False)
                if np.prod(engine.input_shape, dtype=float) <= 1e7:
                    for count in (1, 3):
                        engine(random.standard_normal((count, *engine.input_shape)).astype(np.float32))
                ends["result"] += 1
            except EngineError as error:
                assert str(error).strip() and "\n" not in str(error), f"file {index}: no sentence: {error!r}"
                ends["sentence"] += 1
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        current.unlink()
    return ends


def limit_memory() -> None:
    """Limit what this process may reserve, so that an absurd request fails at once."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # shows where it hangs, then ends the process
    import onnx  # noqa: F401 (before memory is limited)

    limit_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    totals = check(first, first + count)
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    ends = f"{totals['result']} ran, {totals['sentence']} ended in a sentence"
    print(f"{count} damaged files: {ends}; {used >> 20} MiB used")
    sys.exit(used > USED)
