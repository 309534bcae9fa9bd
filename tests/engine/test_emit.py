"""`seam compile`: the C code computes what the engine computes. SEAM_ENGINE_EMITTED: how many random models."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import INSTRUCTIONS, images, needs_compiler, reference
from random_models import RandomModel

from seam.cli.main import main
from seam.engine import EngineError, load, native
from seam.engine.compiler import find_compiler
from seam.engine.emit import c_name, emit, kernel_shapes

MODELS = int(os.environ.get("SEAM_ENGINE_EMITTED", 6))
SECONDS = 900  # of a compilation; the first one for aarch64 compiles a C library, too


@pytest.fixture
def model(tmp_path):
    """A model's file with the metadata that the workflow writes; names in it try to leave their C strings."""
    path = tmp_path / "model.onnx"
    path.write_bytes(RandomModel(5, largest=17).draw(5))
    return path


def note(path, **metadata):
    """Note metadata in a file, as text."""
    file = onnx.load(path)
    onnx.helper.set_model_props(file, metadata)
    onnx.save(file, path)


def describe(path, **metadata):
    """Note metadata in a file."""
    note(path, **{key: json.dumps(value) for key, value in metadata.items()})


def make(folder, **variables):
    """Build the example."""
    command = ["make", "-s", "-C", str(folder), *(f"{key}={value}" for key, value in variables.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(folder, made, batch, *before):
    """Run the example on images and return its outputs and what it prints."""
    batch.tofile(folder / "images.bin")
    command = [*before, f"./{made.name}", "images.bin", "logits.bin"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.fromfile(folder / "logits.bin", np.float32).reshape(len(batch), -1), done.stdout


def caches(name):
    """Return the caches that the engine sees on this machine, so that it and the C code have the same plan."""
    machine = native.library(name).machine
    return machine.cache, machine.second_cache


def assert_close(path, actual, batch, tolerance=1e-5):
    """Check outputs against ONNX Runtime's."""
    expected = reference(path)(batch).reshape(len(batch), -1)
    scale = np.abs(expected).max(initial=1e-6)
    assert np.abs(actual - expected).max(initial=0) / scale <= tolerance


def test_the_kernels_are_those_of_the_library():
    if not INSTRUCTIONS:
        pytest.skip("the engine's kernels need a C compiler")
    assert kernel_shapes() == native.library(INSTRUCTIONS[0]).machine.shapes


@needs_compiler
@pytest.mark.parametrize("seed", range(MODELS))
def test_random_models_give_the_engine_s_bits(seed, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(RandomModel(1000 + seed).draw(1 + seed % 6))
    instructions = INSTRUCTIONS[seed % len(INSTRUCTIONS)]
    batch_size = (1, 4, 3)[seed % 3]
    made = emit(path, tmp_path / "out", "net", batch_size, instructions, caches(instructions))
    make(tmp_path / "out")
    engine = load(path, fallback=False, instructions=instructions)
    batch = images(2 * batch_size, engine.input_shape, seed)
    actual, _ = run(tmp_path / "out", made, batch)
    assert_close(path, actual, batch)
    if batch_size == 1:  # the engine plans for 1, 2, 4 ... images at once, and calls of two images have their own plan
        expected = np.concatenate([engine(batch[i : i + 1]).reshape(1, -1) for i in range(len(batch))])
        assert np.array_equal(actual, expected)
    elif batch_size == 4 and len(engine._run.chunks(4)) == 1:
        expected = np.concatenate([engine(batch[i : i + 4]).reshape(4, -1) for i in (0, 4)])
        assert np.array_equal(actual, expected)


@needs_compiler
def test_the_code_is_clean_allocates_nothing_and_needs_no_library(model, tmp_path):
    folder = tmp_path / "out"
    made = emit(model, folder, "net", instructions="portable")
    flags = "-std=gnu11 -O3 -ffp-contract=fast -Wall -Wextra -Werror"
    assert make(folder, CFLAGS=flags) == ""
    command = [*find_compiler(), *flags.split(), "-c", "net.c"]
    subprocess.run(command, cwd=folder, check=True)
    if not shutil.which("nm"):
        pytest.skip("there is no nm")
    symbols = subprocess.run(["nm", "net.o"], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^ +U (\w+)", symbols, re.M)) <= {"memcpy", "memset"}
    assert set(re.findall(r" [TDR] (\w+)", symbols)) == {"net_run", "net_run_in", "net_class"}
    (size,) = re.findall(r"NET_WORKSPACE (\d+)L", (folder / "net.h").read_text())
    assert int(size) == made.workspace


@needs_compiler
def test_the_code_is_clean_under_sanitizers(model, tmp_path):
    made = emit(model, tmp_path / "out", "net", 3)
    flags = "-std=gnu11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    try:
        make(tmp_path / "out", CFLAGS=flags)
    except AssertionError as error:
        pytest.skip(f"the compiler has no sanitizers: {error}"[:200])
    batch = images(7, load(model, fallback=False).input_shape)
    actual, _ = run(tmp_path / "out", made, batch)
    assert_close(model, actual, batch)


@needs_compiler
def test_classes_and_preprocessing(model, tmp_path):
    engine = load(model, fallback=False)
    channels, height, width = engine.input_shape
    outputs = engine(images(1, engine.input_shape)).size
    labels = ['"); evil(); //', "naïve */ ??/ %d \\", *(f"class {i}" for i in range(outputs))][:outputs]
    mean, std = [0.1 * (1 + c) for c in range(channels)], [0.2 + 0.1 * c for c in range(channels)]
    describe(model, classes=labels, mean=mean, std=std)
    folder = tmp_path / "out"
    made = emit(model, folder, "net")
    make(folder)
    batch = images(5, engine.input_shape)
    actual, shown = run(folder, made, batch)
    assert shown.splitlines() == [f"{i}: {labels[best]}" for i, best in enumerate(actual.argmax(1))]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    (folder / "prepare.c").write_text(
        '#include "net.h"\n#include <stdio.h>\nstatic unsigned char pixels[NET_INPUTS]; static float image[NET_INPUTS];'
        "int main(void) { if (fread(pixels, 1, NET_INPUTS, stdin) != NET_INPUTS) return 1; net_prepare(pixels, image);"
        "return fwrite(image, 4, NET_INPUTS, stdout) != NET_INPUTS; }\n"
    )
    subprocess.run([*find_compiler(), "-O1", "prepare.c", "net.c", "-o", "prepare"], cwd=folder, check=True)
    done = subprocess.run(["./prepare"], cwd=folder, input=pixels.tobytes(), stdout=subprocess.PIPE, check=True)
    expected = (pixels / 255 - mean) / std
    assert np.allclose(np.frombuffer(done.stdout, np.float32).reshape(engine.input_shape), expected.transpose(2, 0, 1))


def test_metadata_that_are_no_classes(model, tmp_path):
    for classes in ("{", "[1]", 100_000 * "["):
        note(model, classes=classes)
        emit(model, tmp_path / "out", "net")
        assert "net_classes" not in (tmp_path / "out/net.h").read_text()


@needs_compiler
def test_the_command(model, tmp_path, capsys):
    folder = tmp_path / "Oak tree"
    folder.mkdir()
    shutil.copy(model, folder)
    assert main(["compile", str(folder), "-o", str(tmp_path / "out"), "--batch", "2"]) == 0
    shown = capsys.readouterr().out
    assert "oak_tree.c, oak_tree.h, main.c, Makefile" in shown and "weights are not zero" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Makefile",
        "main.c",
        "oak_tree.c",
        "oak_tree.h",
    ]
    first = (tmp_path / "out/oak_tree.c").read_bytes()
    main(["compile", str(folder), "-o", str(tmp_path / "out"), "--batch", "2"])
    assert (tmp_path / "out/oak_tree.c").read_bytes() == first


@pytest.mark.parametrize("name", ("Makefile", "main.c"))
def test_files_of_the_users_stay(tmp_path, model, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("all: mine\n")
    with pytest.raises(EngineError, match=f"out/{name} is there already, and not of this program: give another folder"):
        emit(model, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "all: mine\n" and len(list((tmp_path / "out").iterdir())) == 1
    (tmp_path / "out" / name).unlink()
    for _ in range(2):  # its own are replaced
        emit(model, tmp_path / "out")


def test_errors(tmp_path, model, capsys):
    assert main(["compile", str(tmp_path / "nothing"), "-o", str(tmp_path)]) == 1
    assert "Cannot read" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for wanted, arguments, options in (
        ("holds no model.onnx", [tmp_path / "empty"], {}),
        ("no name in C", [model], {"name": "a-b"}),
        ("no name in C", [model], {"name": "int"}),
        ("from 1 to 1024 images", [model], {"batch": 0}),
        ("no instructions 'mmx'", [model], {"instructions": "mmx"}),
        ("caches must have", [model], {"caches": (1, 1)}),
    ):
        with pytest.raises(EngineError, match=wanted):
            emit(*arguments, tmp_path / "out", **options)
    for mean in ('["a"]', f"[1{400 * '0'}]", 100_000 * "["):
        note(model, mean=mean, std="[1]")
        with pytest.raises(EngineError, match="mean and std of .* are not numbers"):
            emit(model, tmp_path / "out")
    describe(model, mean=[0.5] * 99, std=[1] * 99)
    with pytest.raises(EngineError, match="are not those of"):
        emit(model, tmp_path / "out")
    graph = onnx.load(model)
    graph.graph.node[0].op_type = "Tanh"
    onnx.save(graph, model)
    with pytest.raises(EngineError, match="Cannot compile .*, because it has the operation Tanh"):
        emit(model, tmp_path / "out")


def test_names(tmp_path):
    assert c_name(None, tmp_path / "Oak tree" / "model.onnx") == "oak_tree"
    assert c_name(None, tmp_path / "7 nets.onnx") == "model_7_nets"
    assert c_name(None, tmp_path / "int.onnx") == "model_int"
    assert c_name(None, tmp_path / "…" / "model.onnx") == "model"


def emulator():
    """Return the command that runs programs for aarch64, or None."""
    return next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="the package ziglang is not installed")
@pytest.mark.skipif(emulator() is None, reason="qemu-user is not installed")
@pytest.mark.parametrize("instructions", ["neon", "portable"])
@pytest.mark.parametrize("seed", range(3))
def test_aarch64(instructions, seed, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(RandomModel(2000 + seed).draw(3 + seed))
    made = emit(path, tmp_path / "out", "net", 1 + 2 * seed, instructions)
    compiler = f"{sys.executable} -m ziglang cc -target aarch64-linux-musl -static"
    make(tmp_path / "out", CC=compiler)
    _, *shape = (d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim)
    batch = images(4, tuple(shape), seed)
    actual, _ = run(tmp_path / "out", made, batch, emulator())
    assert_close(path, actual, batch)
