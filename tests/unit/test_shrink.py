"""`seam shrink` and its kin: from a model and images to a folder that works anywhere."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from colours import ARCHITECTURE, small_world
from mistakes import hashes
from PIL import Image

import seam
from seam.cli.main import main
from seam.cli.progress import Progress, describe, hide_log, show_log
from seam.cli.shrink import judge, summary
from seam.config import plan
from seam.cost.export import export
from seam.cost.macs import count_macs
from seam.data.kinds.registry import prepare_dataset
from seam.data.storage import Dataset, Split, open_dataset
from seam.delivery import choices as command
from seam.delivery import fetching
from seam.delivery.card import limits, milliseconds, render_card
from seam.delivery.choices import find_kept, parse_budget, recovery_choice, resolve_architecture, search_choice
from seam.delivery.package import fallback_words
from seam.delivery.replacing import replaced
from seam.delivery.shrinking import Shrinking, choose_fit
from seam.engine.emit import require_operations
from seam.engine.errors import EngineError
from seam.errors import UserError
from seam.files import load_tensors, read_json, save_tensors, seal_onnx, sha256, write_json
from seam.models import unallocated
from seam.models.architectures import build_model
from seam.models.classes import read_class_file
from seam.models.published import fetch_weights
from seam.models.surgery import with_head
from seam.models.weights import open_source
from seam.progress import progress
from seam.reuse.cards import MOST_PIXELS
from seam.reuse.delivered import OnnxModule
from seam.reuse.load import remove_recovery

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
CHANNELS = ["--search", "channels.multiple=2", "--search", "channels.lr=0.01", "--search", "batch_size=16"]
COMMON = [
    "--budget",
    "25%",
    "--size",
    "16",
    "--epochs",
    "12",
    "--time",
    "none",
    "--augmentation",
    "none",
    "--search",
    "lr_mask=0.05",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images of four colours, and the weights of a small network that knows them, in a file as people have it."""
    root = tmp_path_factory.mktemp("world")
    small_world(root)
    source = open_source(root / "small", architecture=ARCHITECTURE)
    torch.save({"state_dict": source.module.state_dict(), "epoch": 4}, root / "mine.ckpt")
    mean, std = (",".join(map(str, values)) for values in source.normalization)
    return root, f"{mean}/{std}"


@pytest.fixture(scope="module")
def shrunk(world):
    """The folder of one run of the command, its working folder, and its exit code."""
    root, normalization = world
    code = main(
        ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"), "--keep", "Red",
         "--normalization", normalization, "--out", str(root / "red"), "--licence", "MIT", "--quiet", *COMMON]
    )  # fmt: skip
    return root / "red", root / "red.work", code


def configured(root, normalization, entry):
    """Return a config of the workflow with one entry of direct reuse."""
    mean, std = ([float(value) for value in part.split(",")] for part in normalization.split("/"))
    raw = {
        "datasets": {"colours": {"kind": "imagefolder", "root": str(root / "colours"), "size": 16, "augmentation": []}},
        "models": {
            "small": {
                "architecture": ARCHITECTURE, "dataset": "colours", "weights": str(root / "mine.ckpt"),
                "normalization": {"mean": mean, "std": std},
            }
        },
        "direct_reuse": [entry],
    }  # fmt: skip
    return yaml.safe_load(yaml.safe_dump(raw))


def test_the_command_gives_the_bytes_of_the_workflow(world, shrunk, tmp_path, monkeypatch):
    root, normalization = world
    _, work, _ = shrunk
    entry = {"model": "small", "problem": "binary", "targets": ["red"],
             "search": {"budget": {"weights": 0.25, "epochs": 12, "lr_mask": 0.05}}}  # fmt: skip
    config = plan.validate(configured(root, normalization, entry), ROOT / "workflow/schemas/config.schema.yaml")
    (problem,) = plan.target_problems(config)
    results = tmp_path / "results"
    prepare_dataset(plan.dataset_entry(config, "colours"), results / "datasets/colours")
    source = results / "models/small/source.safetensors"
    source.parent.mkdir(parents=True)
    fetch_weights(path=source, **plan.source_weights(config, "small"))
    from seam.reuse.direct import reengineer

    folder = results / "direct/small/binary/red"
    reengineer(
        folder=folder, model_folder=source.parent, dataset_folder=results / "datasets/colours", model="small",
        dataset="colours", problem="binary", target="red", members=problem.classes, settings=problem.settings, seed=0,
        device="cpu", checkpoint=tmp_path / "checkpoint.pt", architecture=ARCHITECTURE,
    )  # fmt: skip
    assert sha256(folder / "masks.safetensors") == sha256(work / "direct/small/binary/red/masks.safetensors")


def test_the_folder_works_anywhere_without_the_source_model_and_its_code(shrunk, world, tmp_path, monkeypatch):
    folder, work, code = shrunk
    assert code in (0, 3)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    model = seam.load(work / "direct/small/binary/red", work / "models/small", architecture=ARCHITECTURE)
    monkeypatch.setattr("seam.models.architectures.exec", lambda *_: pytest.fail("code ran"), raising=False)
    delivered = seam.load(moved)
    assert isinstance(delivered, OnnxModule)  # the architecture is a file, whose code must not run
    assert delivered.classes == model.classes == ["red", "rest"] and delivered.size == 16
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(delivered(images), model(images), rtol=1e-4, atol=1e-4)
    program = torch.export.load(str(moved / "model.pt2")).module()
    torch.testing.assert_close(program(images[:1]), model(images[:1]), rtol=1e-4, atol=1e-4)
    tensors, metadata = load_tensors(moved / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys() and metadata["classes"] == ["red", "rest"]
    assert (moved / "labels.txt").read_text() == "red\nrest\n"
    assert str(world[0]) not in (moved / "card.json").read_text()  # no path of the machine that made it


def onnx_file(operation, domain="", logits=None, **tensors):
    """Return the bytes of an ONNX file with one operation, on images or on tensors. logits: of another type."""
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 16, 16])
    logits = logits or helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    node = helper.make_node(operation, list(tensors) or ["images"], ["logits"], domain=domain)
    graph = helper.make_graph([node], "graph", [images], [logits], list(tensors.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()


def outside():
    """Return a tensor whose numbers are those of a file elsewhere."""
    from onnx import TensorProto

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../../../etc/hostname")
    return tensor


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", onnx_file("Evil", "evil"), onnx_file("Identity", w=outside())],
    ids=["empty", "junk", "unknown operation", "a file elsewhere"],
)
def test_a_delivered_folder_of_a_stranger_is_a_sentence(shrunk, tmp_path, content):
    """Its digests are right: whoever writes the folder can write them, too."""
    folder = shutil.copytree(shrunk[0], tmp_path / "elsewhere")
    (folder / "model.onnx").write_bytes(content)
    seal_onnx(folder / "model.onnx")
    with pytest.raises(UserError, match="ONNX Runtime cannot run .*model.onnx .*: ask for the folder once more"):
        seam.load(folder)


def test_a_model_whose_output_is_not_numbers_is_a_sentence(tmp_path):
    from onnx import TensorProto, helper

    names = helper.make_tensor("w", TensorProto.STRING, [1], [b"red"])
    text = helper.make_tensor_value_info("logits", TensorProto.STRING, [1])
    sequence = helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, None)
    for content in (onnx_file("Identity", logits=text, w=names), onnx_file("SequenceConstruct", logits=sequence)):
        (tmp_path / "model.onnx").write_bytes(content)
        seal_onnx(tmp_path / "model.onnx")
        with pytest.raises(UserError, match="is not a model with images as its input and logits as its output"):
            OnnxModule(tmp_path / "model.onnx")


@pytest.mark.parametrize("crop", [0, -(10**12), 1025, 10**9, 16.0, None])
def test_a_card_with_an_impossible_size_is_a_sentence(shrunk, tmp_path, crop):
    folder = shutil.copytree(shrunk[0], tmp_path / "elsewhere")
    card = read_json(folder / "card.json")
    card["preprocessing"]["crop"] = crop
    write_json(folder / "card.json", card)
    with pytest.raises(UserError, match="card.json is not the card of a model that seam delivered"):
        seam.load(folder)


@pytest.mark.parametrize("program", ["use_onnxruntime.py", "use_torch.py", "use_seam.py"])
def test_the_programs_in_the_folder_run_alone_and_agree(shrunk, world, tmp_path, program):
    folder = shutil.copytree(shrunk[0], tmp_path / "elsewhere")
    photo = next((world[0] / "colours/test/red").iterdir())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if program == "use_seam.py":
        environment["PYTHONPATH"] = str(SCRIPTS)
    output = subprocess.run(
        [sys.executable, folder / program, photo], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    scores = dict(line.split(": ") for line in output.stdout.splitlines())
    model = seam.load(folder)
    expected = model(seam.image(photo, 16, model.normalization)).softmax(1)[0].tolist()
    assert list(scores) == ["red", "rest"]
    np.testing.assert_allclose([float(score) for score in scores.values()], expected, atol=2e-3)


def test_the_programs_read_photos_as_the_package_does(shrunk, tmp_path):
    """A phone's photo that lies on its side, and one of 16 bits."""
    random = np.random.default_rng(0)
    lying = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    lying.save(tmp_path / "lying.png", exif=exif)
    Image.fromarray(random.integers(0, 65536, (40, 40)).astype(np.uint16)).save(tmp_path / "grey.png")
    model = seam.load(shrunk[0])
    for photo in ("lying.png", "grey.png"):
        program = [sys.executable, shrunk[0] / "use_onnxruntime.py", tmp_path / photo]
        shown = subprocess.check_output(program, cwd=tmp_path, text=True)
        scores = [float(line.split(": ")[1]) for line in shown.splitlines()]
        expected = model(seam.image(tmp_path / photo, 16, model.normalization)).softmax(1)[0].tolist()
        np.testing.assert_allclose(scores, expected, atol=2e-3)


def test_the_card_says_what_the_model_is(shrunk):
    card = json.loads((shrunk[0] / "card.json").read_text())
    assert card["source"]["licence"] == "MIT" and card["data"]["licence"].startswith("not given")
    assert card["preprocessing"]["resize"] == card["preprocessing"]["crop"] == 16
    assert card["budget"]["name"] == "weights: 0.25" and card["settings"]["schedule"] == "budget"
    assert set(card["accuracy"]["per_class"]) == {"red", "rest"}
    mean = np.mean([value["accuracy"] for value in card["accuracy"]["per_class"].values()])
    assert card["accuracy"]["reengineered"] == pytest.approx(mean)  # as many test images of each
    for name, digest in card["sha256"].items():
        assert sha256(shrunk[0] / name) == digest
    text = (shrunk[0] / "card.md").read_text()
    for part in (
        "Licence of the source model: MIT",
        "## Limits",
        "95 % interval",
        "`model.onnx`",
        "only one that you trust",
    ):
        assert part in text


def test_a_damaged_folder_is_one_sentence(shrunk, tmp_path):
    for name in ("model.onnx", "model.safetensors"):
        moved = shutil.copytree(shrunk[0], tmp_path / name)
        content = bytearray((moved / name).read_bytes())
        content[len(content) // 2] ^= 1
        (moved / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} (is damaged|is not a whole)"):
            seam.load(moved)


def test_the_same_command_does_nothing_again_but_another_does(world, shrunk, capsys):
    root, normalization = world
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(root / "red"), *COMMON]  # fmt: skip
    main(arguments)
    assert f"{root}/red holds a finished model: it moves to {root}/red.1 if this" in capsys.readouterr().err
    masks = root / "red.work/direct/small/binary/red/masks.safetensors"
    before = masks.stat().st_mtime_ns
    main([*arguments, "--json", "--int8", "--time", "onnxruntime,onnxruntime-int8"])
    card = json.loads(capsys.readouterr().out)
    assert {entry["engine"] for entry in card["latency"]} == {"onnxruntime", "onnxruntime-int8"}
    assert "model-int8.onnx" in card["files"] and 0 <= card["accuracy"]["int8"] <= 1
    assert card["classes"] == ["red", "rest"] and card["folder"] == str(root / "red")
    assert masks.stat().st_mtime_ns == before and not (root / "red.1").exists()
    lines = summary(card, [], root / "red", root / "red.work")
    assert any(line.startswith("model-int8.onnx") and line.endswith(" kB") for line in lines)
    assert any(line.startswith("onnxruntime-int8, 1 image ") and line.endswith(" ms") for line in lines)
    assert any(line.startswith("onnxruntime-int8 and onnxruntime gain nothing from") for line in lines)
    main([*arguments, "--search", "batch_size=16", "--quiet"])
    assert masks.stat().st_mtime_ns != before and (root / "red.1/model-int8.onnx").is_file()


def test_a_search_that_is_interrupted_resumes(world, tmp_path):
    root, normalization = world
    command = [
        sys.executable, "-m", "seam.cli", "shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data",
        str(root / "colours"), "--keep", "green,blue", "--normalization", normalization, "--out", str(tmp_path / "two"),
        *COMMON[:2], "--time", "none", "--epochs", "60", "--size", "64", "--recovery", "none",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait() == 75 and rest.count("resume") == 1 and "run again to resume from there" in rest
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode in (0, 3), again.stderr
    assert "resumes from the checkpoint" in again.stderr and "epoch 1/" not in again.stderr
    assert (tmp_path / "two/card.json").is_file()


def test_ctrl_c_at_any_time_is_one_sentence_and_the_same_command_resumes(world, tmp_path):
    root, _ = world
    command = [
        sys.executable, "-m", "seam.cli", "shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data",
        str(root / "colours"), "--keep", "red,blue", "--out", str(tmp_path / "two"), *COMMON,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    for beginning in ("preparing the images", "writing the folder"):
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith(beginning))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        rest = process.stderr.read()
        assert process.wait() == 75 and rest.endswith("\nStopped; the same command resumes.\n"), rest
        assert "Traceback" not in rest and not (tmp_path / "two/card.json").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode in (0, 3) and "epoch 1" not in again.stderr, again.stderr
    assert read_json(tmp_path / "two/card.json")["classes"] == ["red", "blue"]


def test_a_step_that_is_interrupted_before_it_is_noted_counts_for_no_command(world, tmp_path, monkeypatch, capsys):
    root, normalization = world
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(tmp_path / "out"), "--quiet",
                 *COMMON]  # fmt: skip
    assert main(arguments) in (0, 3)
    before, masks = sha256(tmp_path / "out/model.onnx"), tmp_path / "out.work/direct/small/binary/red/masks.safetensors"
    digest, note = sha256(masks), Shrinking._note

    def interrupted(shrinking, step, key, **more):
        if step == "search":
            raise KeyboardInterrupt
        note(shrinking, step, key, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Shrinking, "_note", interrupted)
        assert main([*arguments, "--budget", "60%"]) == 75
    assert capsys.readouterr().err.endswith("\nStopped; the same command resumes.\n") and sha256(masks) != digest
    assert main(arguments) in (0, 3)  # not with the masks of the other search
    assert sha256(masks) == digest and sha256(tmp_path / "out/model.onnx") == before


def test_the_exit_code_after_ctrl_c_is_75_wherever_it_came(tmp_path):
    code = "import sys; from seam.cli import main, show; show.run = lambda _: exec('raise KeyboardInterrupt')\n"
    (tmp_path / "command.py").write_text(f"{code}sys.exit(main.main(['show', '.']))")
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPTS}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-m", "command"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "\nStopped.\n")


def test_ctrl_c_in_a_finalizer_is_not_lost(tmp_path):
    code = """
import signal, sys, time
from seam.cli import main, show

class Finalizer:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def run(_):
    Finalizer()
    time.sleep(60)
    print("not stopped")

show.run = run
sys.exit(main.main(["show", "."]))
"""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "\nStopped.\n")


def test_a_delivery_that_is_interrupted_leaves_the_earlier_one(tmp_path):
    write_json(tmp_path / "out/card.json", {"number": 1})
    (tmp_path / "out/model.safetensors").write_bytes(b"1")
    for error in (KeyboardInterrupt, UserError):
        with pytest.raises(error), replaced(tmp_path / "out", ["model.safetensors"], []) as staging:
            (staging / "model.safetensors").write_bytes(b"2")
            raise error
    assert read_json(tmp_path / "out/card.json") == {"number": 1}
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["card.json", "model.safetensors", "out"]


def test_only_the_images_of_the_target_are_needed_and_the_normalization_is_found(world, tmp_path, capsys):
    root, _ = world
    for split in ("train", "test"):
        for name in ("red", "blue"):
            shutil.copytree(root / "colours" / split / name, tmp_path / "photos" / split / name.upper())
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(tmp_path / "photos"),
                 "--keep", "blue,red", "--out", str(tmp_path / "out"), *COMMON]  # fmt: skip
    assert main(arguments) == 1  # four outputs, two folders
    sentence = "mine.ckpt has 4 outputs, but the images show 2 classes: name the outputs in order by --classes (cifar10"
    assert sentence in capsys.readouterr().err
    assert main([*arguments, "--classes", "blue,green,red"]) == 1
    assert "mine.ckpt has 4 outputs, but 3 are named: name the outputs in order by --classes" in capsys.readouterr().err
    assert main([*arguments, "--classes", "blue,green,red,yellow"]) in (0, 3)
    shown = capsys.readouterr()
    assert "found by fit on 80 training images" in shown.err and "of the weights kept" in shown.err
    assert "are within one point, and of these its loss is the least" in shown.err
    assert "source model  result" in shown.out and "copy it anywhere" in shown.out
    assert open_dataset(tmp_path / "out.work/datasets/photos").classes == ["BLUE", "RED"]


@pytest.mark.parametrize(("size", "advice"), [([], "images of 224 px, as nothing says otherwise: --size sets it"),
                                               (["--size", "16"], "")])  # fmt: skip
def test_a_model_of_the_users_own_says_its_size_if_it_was_not_given(world, size, advice):
    root, _ = world
    choices = command.make_choices(ARCHITECTURE, str(root / "colours"), ["red"], weights=str(root / "mine.ckpt"),
                                   size=int(size[1]) if size else None)  # fmt: skip
    assert ([advice] if advice else []) == choices.notes and choices.entry["size"] == (16 if size else 224)


def prepared(world, work, normalization, wrong=False):
    """Return the steps of a problem up to its prepared images, with the right source model or a wrong one."""
    root, _ = world
    names = "red,blue,yellow,green" if wrong else "blue,green,red,yellow"
    choices = command.make_choices(ARCHITECTURE, str(root / "colours"), ["red"], weights=str(root / "mine.ckpt"),
                                   size=16, classes=names, normalization=normalization)  # fmt: skip
    shrinking = Shrinking(choices, work, "cpu")
    return shrinking, shrinking.prepare_data()


def test_a_given_normalization_that_is_far_behind_another_one_is_doubted_each_time(world, tmp_path, caplog):
    far = "1,1,1/0.1,0.1,0.1"
    for _ in range(2):  # the second time, nothing is computed
        caplog.clear()
        shrinking, images = prepared(world, tmp_path / "far", far)
        assert shrinking.fetch_source(images) == "as given"
        (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
        wrong, right = (float(value) for value in re.findall(r"([0-9.]+) %", warning))
        assert wrong < right - 5 and right > 80 and "of 160 training images right" in warning
    kept = open_source(tmp_path / "far/models/small", architecture=ARCHITECTURE).normalization
    assert [list(part) for part in kept] == [[1.0] * 3, [0.1] * 3]
    caplog.clear()
    shrinking, images = prepared(world, tmp_path / "near", world[1])
    shrinking.fetch_source(images)
    assert "given --normalization" not in caplog.text


def test_a_source_model_that_hardly_beats_guessing_is_said_with_its_size(world, tmp_path, caplog):
    sentence = r"of 160 training images right at 16 px, hardly more than by guessing: check --size, .*--classes"
    shrinking, images = prepared(world, tmp_path / "found", None, wrong=True)
    with pytest.raises(UserError, match=sentence):
        shrinking.fetch_source(images)
    shrinking, images = prepared(world, tmp_path / "given", world[1], wrong=True)
    shrinking.fetch_source(images)  # whoever gives one may have a reason
    assert re.search(sentence, caplog.text)


def test_another_size_or_other_images_mean_another_fit_of_the_normalization(world, tmp_path, caplog):
    root, normalization = world
    words = {}
    for size in (16, 8):
        choices = command.make_choices(ARCHITECTURE, str(root / "colours"), ["red"], weights=str(root / "mine.ckpt"),
                                       size=size, classes="blue,green,red,yellow")  # fmt: skip
        shrinking = Shrinking(choices, tmp_path / "work", "cpu")
        with contextlib.suppress(UserError):  # at 8 px it may be hardly better than guessing
            words[size] = shrinking.fetch_source(shrinking.prepare_data())
    assert words.get(8) != words[16]


def test_a_recovery_that_is_no_longer_wanted_is_removed_and_the_model_before_it_is_loaded(narrow, tmp_path):
    folder = shutil.copytree(narrow[1], tmp_path / "work") / "direct/small/binary/red"
    assert seam.load(folder, architecture=ARCHITECTURE).recovered
    remove_recovery(folder)
    assert not seam.load(folder, architecture=ARCHITECTURE).recovered and not list(folder.glob("recover*"))
    remove_recovery(folder)  # nothing is left


@pytest.fixture(scope="module")
def narrow(world):
    """The folder of a search of channels with a recovery, with C code, and its working folder."""
    root, normalization = world
    code = main(
        ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"), "--keep", "red",
         "--normalization", normalization, "--out", str(root / "narrow"), "--quiet", "--granularity", "channel",
         "--budget", "60% macs", "--size", "16", "--epochs", "20", "--time", "onnxruntime", "--augmentation", "none",
         *CHANNELS, "--recovery", "epochs=2,fresh_negatives=true", "--c"]
    )  # fmt: skip
    assert code in (0, 3)
    return root / "narrow", root / "narrow.work"


def test_a_result_with_fewer_channels_is_smaller_everywhere_and_its_card_is_true(narrow, shrunk, world, tmp_path):
    folder, work = narrow
    card = json.loads((folder / "card.json").read_text())
    source = open_source(work / "models/small", architecture=ARCHITECTURE).module
    model = seam.load(work / "direct/small/binary/red", architecture=ARCHITECTURE)
    assert card["granularity"] == "channel" and card["budget"]["name"] == "macs: 0.6" and model.recovered
    numbers = [sum(value.numel() for value in module.parameters()) for module in (source, model)]
    assert list(card["size"]["parameters"].values()) == numbers and numbers[1] < 0.9 * numbers[0]
    assert (
        card["size"]["weights"]
        > card["size"]["kept"]
        == sum(value.numel() for name, value in model.source.named_parameters() if name.split(".")[0] in "038")
    )
    recovery = json.loads((work / "direct/small/binary/red/recovery.json").read_text())
    assert card["accuracy"]["before_recovery"] == recovery["accuracy"]["before"]
    assert "before recovery" in "\n".join(summary(card, [], folder, work))
    after = card["accuracy"]["reengineered"]
    for before, worse, equal in ((0.0, False, False), (after, False, True), (1.1, True, False)):
        changed = {**card, "accuracy": {**card["accuracy"], "before_recovery": before}}
        lines = summary(changed, [], folder, work)
        assert any("recovery did not help" in line for line in lines) == equal
        sentence = f"! The recovery made the result worse: 110.00 % before it, {100 * after:.2f} % after it. The same"
        assert lines[0].startswith(sentence) == worse
        assert not worse or "with --recovery none delivers the model before it" in lines[0]
    sizes = {name: (folder / name).stat().st_size for name in card["size"]["bytes"]}
    assert sizes == card["size"]["bytes"] and sizes["model.onnx"] < card["size"]["source_onnx_bytes"]
    assert sizes["model.onnx"] < 0.9 * (shrunk[0] / "model.onnx").stat().st_size
    macs = [count_macs(module, (3, 16, 16))["dense"]["total"] for module in (source, model)]
    assert list(card["macs"].values()) == macs and macs[1] < 0.7 * macs[0]
    recovery = json.loads((work / "direct/small/binary/red/recovery.json").read_text())
    assert card["recovery"]["epochs"] == 2 and card["accuracy"]["reengineered"] == recovery["accuracy"]["after"]
    shares = [value["accuracy"] for value in card["accuracy"]["per_class"].values()]
    assert np.mean(shares) == pytest.approx(recovery["accuracy"]["after"])
    text = (folder / "card.md").read_text()
    assert "without the channels that are not needed, and the others are trained further" in text
    assert "| weights |" in text and "zero" not in text.partition("## Use")[0] and "`model.c`" in text


def test_a_folder_with_fewer_channels_is_loaded_measured_and_shown(narrow, world, capsys):
    folder, work = narrow
    model, delivered = seam.load(work / "direct/small/binary/red", architecture=ARCHITECTURE), seam.load(folder)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(delivered(images), model(images), rtol=1e-4, atol=1e-4)
    program = torch.export.load(str(folder / "model.pt2")).module()
    torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-4)
    card = json.loads((folder / "card.json").read_text())
    assert main(["evaluate", str(folder), "--data", str(world[0] / "colours/test"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)  # on all images of the rest, of which the card has as many as of red
    assert measured["per_class"]["red"]["accuracy"] == card["accuracy"]["per_class"]["red"]["accuracy"]
    for place in (folder, work / "direct/small/binary/red"):
        assert main(["show", str(place)]) == 0
    shown = capsys.readouterr().out
    assert "whole channels: the model is smaller" in shown and "recovery" in shown
    accuracy = card["accuracy"]["reengineered"]
    assert f"{accuracy:.4f} (source model: " in shown and f"{accuracy:.2%}" in shown


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="there is no C compiler")
def test_the_c_code_in_the_folder_is_compiled_and_agrees(narrow, tmp_path):
    folder = shutil.copytree(narrow[0], tmp_path / "elsewhere")
    subprocess.run(["make", "-C", folder], check=True, capture_output=True)
    model, images = seam.load(folder), torch.randn(5, 3, 16, 16)
    images.numpy().tofile(tmp_path / "images.bin")
    done = subprocess.run(
        [folder / "model", tmp_path / "images.bin", tmp_path / "logits.bin"], capture_output=True, text=True, check=True
    )
    logits = torch.from_numpy(np.fromfile(tmp_path / "logits.bin", np.float32)).view(5, 2)
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-4)
    answers = [model.classes[place] for place in logits.argmax(1)]
    assert done.stdout.splitlines() == [f"{number}: {answer}" for number, answer in enumerate(answers)]


def test_channels_and_recovery_have_the_bytes_of_the_workflow(world, narrow, tmp_path):
    from seam.reuse.direct import reengineer
    from seam.reuse.recovery import recover

    root, normalization = world
    _, work = narrow
    entry = {
        "model": "small", "problem": "binary", "targets": ["red"],
        "search": {"granularity": "channel", "channels": {"multiple": 2, "lr": 0.01},
                   "budget": {"macs": 0.6, "epochs": 20, "batch_size": 16}},
        "recovery": {"epochs": 2, "fresh_negatives": True},
    }  # fmt: skip
    config = plan.validate(configured(root, normalization, entry), ROOT / "workflow/schemas/config.schema.yaml")
    (problem,) = plan.target_problems(config)
    folder, names = tmp_path / "direct/small/binary/red", {"model": "small", "dataset": "colours"}
    common = {
        **names, "problem": "binary", "target": "red", "members": problem.classes, "seed": 0, "device": "cpu",
        "model_folder": work / "models/small", "dataset_folder": work / "datasets/colours", "folder": folder,
        "architecture": ARCHITECTURE, "checkpoint": tmp_path / "checkpoint.pt",
    }  # fmt: skip
    shutil.copytree(work / "models/small", tmp_path / "models/small")
    common["model_folder"] = tmp_path / "models/small"
    reengineer(settings=problem.settings, **common)
    recover(settings=problem.recovery, masks_folder=folder, **common)
    for name in ("masks.safetensors", "recovered.safetensors"):
        assert sha256(folder / name) == sha256(work / "direct/small/binary/red" / name), name


def test_another_choice_leaves_nothing_of_the_last_one_behind(world, narrow, tmp_path, capsys):
    root, normalization = world
    folder, work = (shutil.copytree(path, tmp_path / path.name) for path in narrow)
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(folder), "--json", "--granularity",
                 "channel", "--budget", "60% macs", "--size", "16", "--epochs", "20", "--time", "none",
                 "--augmentation", "none", *CHANNELS]  # fmt: skip
    result = work / "direct/small/binary/red"
    before, after = sha256(folder / "model.onnx"), json.loads((result / "recovery.json").read_text())["accuracy"]
    masks = (result / "masks.safetensors").stat().st_mtime_ns
    (folder / "model").touch()  # of `make`
    earlier = hashes(folder)
    main(arguments)
    shown = capsys.readouterr()
    card = json.loads(shown.out)
    assert hashes(tmp_path / "narrow.1") == earlier and not (folder / "model").exists()  # nothing is lost
    assert f"{folder} held another model, which is in {folder}.1 now" in shown.err
    (folder / "notes.txt").touch()
    files = hashes(folder).keys()
    main([*arguments[:-1], CHANNELS[-1], "--licence", "MIT"])  # the same model
    assert hashes(folder).keys() == files and not (tmp_path / "narrow.2").exists()
    assert json.loads(capsys.readouterr().out)["source"]["licence"] == "MIT"
    assert (result / "masks.safetensors").stat().st_mtime_ns == masks  # the search is kept
    assert sha256(folder / "model.onnx") != before and card["accuracy"]["reengineered"] == after["before"]
    assert not {"model.c", "model.h", "main.c", "Makefile"} & {path.name for path in folder.iterdir()}
    assert card["recovery"] is None and card["latency"] == [] and "model.c" not in card["files"]


def test_a_recovery_may_mend_a_search_that_ends_in_one_answer(world, tmp_path, monkeypatch, capsys):
    from seam import evaluation
    from seam.delivery import shrinking
    from seam.reuse import direct

    load = direct.load_reengineered

    def constant(*paths, **options):
        model = load(*paths, **options)
        model.get_submodule("head").bias[1] += 1e6
        return model

    monkeypatch.setattr(direct, "load_reengineered", constant)
    for module in (evaluation, shrinking):
        monkeypatch.setattr(module, "FEWEST_OTHERS", 5)
    root, normalization = world
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(tmp_path / "out"), "--granularity",
                 "channel", "--budget", "60% macs", "--size", "16", "--epochs", "4", "--time", "none",
                 "--augmentation", "none", *CHANNELS]  # fmt: skip
    assert main([*arguments, "--recovery", "2"]) in (0, 3)
    assert "says rest for each of the 40 test images" in capsys.readouterr().err
    assert main([*arguments, "--recovery", "0"]) == 1  # the same search, of which nothing comes now
    error = capsys.readouterr().err
    assert "says rest for each of the 40 test images" in error and "a larger budget or more epochs" in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--granularity", "channel", "--budget", "none"], "a search of channels needs one"),
        (["--search", "channels.multiple=16"], "has no effect without channels: add --granularity channel"),
        (["--granularity", "channel", "--search", "channels.width=3"], "channels.width=3 is no setting of a search"),
        (["--granularity", "channel", "--search", "channels.multiple=0"], "whole number of at least 1, such as 8"),
        (["--search", "foo=1"], "foo=1 is no setting of a search: known are epochs, batch_size, lr_mask, "),
        (["--search", "lr_mask=much"], "--search lr_mask=much does not fit: this setting takes a number"),
        (["--recovery", "lr=0.1"], "must say how many epochs"),
        (["--recovery", "epochs=few"], "--recovery epochs=few does not fit"),
        (
            ["--recovery", "8,cutmix=2"],
            "cutmix=2 does not fit: this setting takes a number of at least 0 and at most 1",
        ),
        (["--recovery", "8,rate=1"], "rate=1 is no setting of a recovery"),
        (["--recovery", "3,foo=3"], "foo=3 is no setting of a recovery: known are epochs, batch_size, lr, "),
        (["--recovery", "-1"], "-1 does not fit: this setting takes a whole number of at least 1, such as 45"),
        (
            ["--recovery", "2,batch_size=0"],
            "batch_size=0 does not fit: this setting takes a whole number of at least 2",
        ),
        (["--recovery", "2,temperature=0"], "temperature=0 does not fit: this setting takes a number above 0, such as"),
        (["--search", "holdout=0"], "this setting takes a number above 0 and at most 0.5, such as 0.2"),
        (["--search", "holdout=1"], "this setting takes a number above 0 and at most 0.5, such as 0.2"),
    ],
)
def test_mistakes_in_settings_are_told_before_anything_is_done(world, tmp_path, capsys, arguments, sentence):
    root, _ = world
    code = main(["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--out", str(tmp_path / "out"), *arguments])  # fmt: skip
    assert code == 1 and sentence in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "engine"), [([], "seam"), (["--granularity", "channel", *CHANNELS[:2]], "onnxruntime")]
)
def test_a_budget_in_milliseconds_measures_the_layers_first(world, tmp_path, capsys, more, engine):
    root, normalization = world
    code = main(["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(tmp_path / "out"), "--size", "16",
                 "--epochs", "4", "--time", engine, "--augmentation", "none", "--budget", "0.5 ms", "--json",
                 *more])  # fmt: skip
    card = json.loads(capsys.readouterr().out)
    assert code in (0, 3) and card["budget"]["name"] == "latency_ms: 0.5"
    (table,) = (tmp_path / "out.work/models/small").glob("*_costs.json")
    assert json.loads(table.read_text())["engine"] == engine
    (taken,) = (each["reengineered_ms"] for each in card["latency"])
    assert any("0.5 ms" in sentence for sentence in judge(card, 100)) == (taken > 0.525)
    card["latency"][0]["reengineered_ms"] = 0.9
    assert f"takes 0.9 ms in {engine}, and the budget is 0.5 ms" in judge(card, 100)[0]


def test_evaluate_show_and_export(world, shrunk, tmp_path, capsys, caplog):
    root, _ = world
    folder, work, _ = shrunk
    assert main(["evaluate", str(folder), "--data", str(root / "colours"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["images"] == 80 and np.sum(results["confusion"], 1).tolist() == [20, 60]
    right = np.trace(results["confusion"])
    assert results["accuracy"] == pytest.approx(right / 80) and results["interval"][0] < right / 80
    assert main(["evaluate", str(folder), "--data", str(root / "colours/test")]) == 0
    assert "balanced accuracy" in capsys.readouterr().out
    assert main(["show", str(folder)]) == 0
    assert "## Limits" in capsys.readouterr().out
    result = work / "direct/small/binary/red"
    assert main(["export", str(result), "--out", str(tmp_path / "again"), "--architecture", ARCHITECTURE]) == 0
    assert sha256(tmp_path / "again/model.safetensors") == sha256(folder / "model.safetensors")
    times = dict.fromkeys(("source", "reengineered"), {"mean_ms": 3.0, "minimum_ms": 3.0})
    measured = {"statistic": "mean", "measurements": [{"batch_size": 1, "threads": 1, **times}]}
    for engine, digest in (("current", sha256(result / "model.onnx")), ("left", "0")):  # left by an earlier config
        digests = {"source": "0", "reengineered": digest}
        write_json(result / f"latency_{engine}.json", {"engine": engine, "model_digests": digests, **measured})
    assert main(["export", str(result), "--out", str(tmp_path / "timed"), "--architecture", ARCHITECTURE]) == 0
    assert [entry["engine"] for entry in read_json(tmp_path / "timed/card.json")["latency"]] == ["current"]
    assert "latency_left.json is of an earlier model than the one beside it: it is left out" in caplog.text
    for path in result.glob("latency_*.json"):
        path.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    assert main(["export", str(result), "--out", str(tmp_path / "other"), "--architecture", ARCHITECTURE]) == 1
    assert "holds other files" in capsys.readouterr().err


def test_folders_are_compared_in_a_table(narrow, tmp_path, capsys):
    folder, card = narrow[0], read_json(narrow[0] / "card.json")
    assert main(["show", str(folder), str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    heads, *rows = shown[-3:]
    assert "!" not in "".join(shown) and rows[0] == rows[1] and rows[0].startswith(f"{folder}  40 ")
    assert f"{100 * card['accuracy']['reengineered']:.2f} %" in rows[0]
    for entry in card["latency"]:  # a cell stands below its head
        place = heads.index(f"{entry['engine']}, {entry['batch_size']} image")
        assert rows[0][place:].startswith(f"{milliseconds(entry['reengineered_ms'])} (")

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    changed = read_json(other / "card.json")
    changed["seed"], changed["source"]["sha256"] = 1, "0"
    for entry in changed["latency"]:
        entry["cpu"] = "another"
    write_json(other / "card.json", changed)
    assert main(["show", str(folder), str(other)]) == 0
    shown = capsys.readouterr().out
    for sentence in ("tested on different images", "different source models", "measured on different processors"):
        assert sentence in shown
    entry = changed["latency"][0]
    changed["latency"].append({**entry, "threads": 8, "reengineered_ms": 40.0, "source_ms": 40.0})
    write_json(other / "card.json", changed)
    assert main(["show", str(other), str(other)]) == 0
    shown = capsys.readouterr().out
    heads, row, _ = shown.splitlines()[-3:]
    assert "!" not in shown and f"{milliseconds(entry['reengineered_ms'])} (" in row
    place = heads.index(f"{entry['engine']}, {entry['batch_size']} image, 8 threads")
    assert row[place:].startswith("40.00 ms (1.00 times")
    changed["classes"] = ["blue", "rest"]
    write_json(other / "card.json", changed)
    assert main(["show", str(folder), str(other)]) == 0
    assert "! The models answer different questions" in capsys.readouterr().out

    for path, sentence in (
        (tmp_path / "nope", "There is no folder"),
        (tmp_path, "holds no result"),
        (narrow[1] / "direct/small/binary/red", "cannot be compared: give folders that seam shrink or seam export"),
    ):
        assert main(["show", str(folder), str(path)]) == 1
        assert sentence in capsys.readouterr().err
    del changed["size"]
    write_json(other / "card.json", changed)
    assert main(["show", str(folder), str(other)]) == 1
    assert "One of the folders was not delivered by this version (KeyError: 'size')" in capsys.readouterr().err


@pytest.mark.parametrize("act", [["show"], ["evaluate", "--data", "photos"], ["export"]], ids=lambda act: act[0])
def test_a_folder_that_is_not_there_or_the_working_folder_is_named(shrunk, tmp_path, monkeypatch, capsys, act):
    monkeypatch.chdir(shrunk[1])
    for folder, sentence in (
        (tmp_path / "nope", f"There is no folder {tmp_path}/nope: correct its path."),
        (shrunk[1], f"{shrunk[1]} is the working folder of seam shrink: give {shrunk[0]}, which holds the model."),
        (Path("."), f". is the working folder of seam shrink: give {shrunk[0]}, which holds the model."),
        (tmp_path, f"{tmp_path} holds no result: give a folder that seam shrink wrote, or one of the workflow"),
    ):
        assert main([act[0], str(folder), *act[1:]]) == 1
        assert sentence in capsys.readouterr().err
    if act == ["export"]:
        assert main(["export", str(shrunk[0])]) == 1
        assert "is a folder to ship already: copy it." in capsys.readouterr().err


def test_an_architecture_of_the_package_is_a_torch_module_again(tmp_path):
    model = with_head(build_model("resnet20", 4), 4, 2).eval()
    metadata = {
        "architecture": "resnet20",
        "source_classes": 4,
        "classes": ["a", "b"],
        "normalization": [[0.5] * 3] * 2,
    }
    save_tensors(tmp_path / "model.safetensors", model.state_dict(), metadata)
    write_json(tmp_path / "card.json", {"format": "seam-delivery", "preprocessing": {"crop": 32}})
    delivered, images = seam.load(tmp_path), torch.randn(2, 3, 32, 32)
    assert type(delivered).__name__ == "Sequential" and delivered.size == 32
    torch.testing.assert_close(delivered(images), model(images))


@pytest.mark.parametrize(
    ("architecture", "outputs", "changes", "sentence"),
    [
        ("resnet20", 10, {"source.conv1.weight": torch.zeros(0)}, "The model in .* does not run on images of 32 x 32"),
        ("resnet20", 10, {"source.conv1.weight": torch.zeros(10**6, 1, 1, 1)}, "model.onnx is missing"),
        ("resnet20", 10, {"source.conv1.weight": torch.zeros(16, 3, 1, 1)}, "model.onnx is missing"),
        ("resnet20", 10, {"source.fc.weight": torch.zeros(10, 64, dtype=torch.int64)}, "model.onnx is missing"),
        ("torchvision:vgg16", 100_000, {}, "model.onnx is missing"),
        ("torchvision:vgg16", 10**12, {}, "model.onnx is missing"),
        ("torchvision:regnet_y_128gf", 10, {}, "model.onnx is missing"),
    ],
)
def test_shapes_of_a_stranger_allocate_nothing(tmp_path, monkeypatch, architecture, outputs, changes, sentence):
    def allocate(*_):
        assert sentence != "model.onnx is missing", "a file that does not fit got memory"
        real_allocate(*_)

    real_allocate = unallocated.allocate
    monkeypatch.setattr(unallocated, "allocate", allocate)
    built, build = [], unallocated.build_unallocated
    monkeypatch.setattr(
        "seam.reuse.delivered.build_unallocated", lambda *given: built.append(build(*given)) or built[0]
    )
    state = with_head(build_model("resnet20", 10), 10, 2).state_dict() | changes
    metadata = {"architecture": architecture, "source_classes": outputs, "classes": ["a", "b"]}
    save_tensors(tmp_path / "model.safetensors", state, {**metadata, "normalization": [[0.5] * 3] * 2})
    write_json(tmp_path / "card.json", {"format": "seam-delivery", "preprocessing": {"crop": 32}})
    with pytest.raises(UserError, match=sentence):
        seam.load(tmp_path)
    if sentence == "model.onnx is missing":
        assert all(parameter.is_meta for module in built for parameter in module.parameters())


def test_the_largest_image_is_that_of_the_config():
    schema = (ROOT / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8")
    sizes = yaml.safe_load(schema)["$defs"]["dataset"]["properties"]["size"]
    assert sizes["maximum"] == MOST_PIXELS


def test_models_of_timm_are_built_by_name_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not
    with pytest.raises(UserError, match="needs the package timm"):
        resolve_architecture("timm:resnet10t")
    calls = []

    def create_model(name, pretrained, num_classes):
        calls.append((name, pretrained, num_classes))
        return build_model("resnet20", num_classes)

    class Timm:
        list_models = staticmethod(lambda: ["tiny"])
        get_pretrained_cfg = staticmethod(lambda name: SimpleNamespace(input_size=(3, 40, 40)))

    Timm.create_model = staticmethod(create_model)
    monkeypatch.setitem(sys.modules, "timm", Timm)
    assert resolve_architecture("timm:tiny") == "timm:tiny" and command.default_size("timm:tiny", "w.pt") == 40
    for name in ("timm:large", "timm:hf_hub:somebody/model"):  # the latter would be downloaded
        with pytest.raises(UserError, match="timm has no model called"):
            build_model(name, 3)
    model = with_head(build_model("timm:tiny", 4), 4, 2).eval()
    assert calls == [("tiny", False, 4)]
    metadata = {"architecture": "timm:tiny", "source_classes": 4, "classes": ["a", "b"]}
    save_tensors(tmp_path / "model.safetensors", model.state_dict(), {**metadata, "normalization": [[0.5] * 3] * 2})
    write_json(tmp_path / "card.json", {"format": "seam-delivery", "preprocessing": {"crop": 32}})
    export(model, tmp_path / "model.onnx", (3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    for installed, kind in ((Timm, "Sequential"), (None, "OnnxModule")):
        monkeypatch.setitem(sys.modules, "timm", installed)
        delivered = seam.load(tmp_path)
        assert type(delivered).__name__ == kind
        torch.testing.assert_close(delivered(images), model(images), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- seam check


def test_check_says_what_a_model_can_do(capsys):
    assert main(["check", ARCHITECTURE, "--outputs", "4", "--size", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == [] and 0.9 < found["maskable"] <= 1 and found["macs"] > 0
    assert found["engines"]["onnxruntime"] < 1e-4 and found["channels"] > 0
    assert main(["check", ARCHITECTURE, "--outputs", "4", "--size", "16"]) == 0
    assert "can be masked" in capsys.readouterr().out


def test_check_finds_the_number_of_outputs_in_any_file_of_weights(tmp_path, capsys):
    (tmp_path / "models.py").write_text(MODELS)
    build = build_model(f"{tmp_path}/models.py:Late", 3)
    save_tensors(tmp_path / "sorted.safetensors", {f"module.{name}": v for name, v in build.state_dict().items()})
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nox\r\n")  # as Windows saves it
    assert read_class_file(tmp_path / "names.txt") == ["cat", "dog", "ox"]
    arguments = ["check", f"{tmp_path}/models.py:Late", "--size", "16", "--weights"]
    main([*arguments, str(tmp_path / "sorted.safetensors"), "--json"])
    assert "3 outputs" in json.loads(capsys.readouterr().out)["findings"]["runs"]
    assert main([*arguments, str(tmp_path / "sorted.safetensors"), "--outputs", "4"]) == 1
    assert "sorted.safetensors has 3 outputs, not 4: correct --outputs or --classes." in capsys.readouterr().err
    assert main(["check", ARCHITECTURE, "--outputs", "4", "--classes", "a,b"]) == 1
    assert "--outputs is 4, but --classes names 2: leave one of them out." in capsys.readouterr().err
    for classes in ("weights", str(tmp_path / "names.txt")):
        main([*arguments, str(tmp_path / "sorted.safetensors"), "--classes", classes, "--json"])
        assert "3 outputs" in json.loads(capsys.readouterr().out)["findings"]["runs"]
    assert main([*arguments, str(tmp_path / "sorted.safetensors"), "--classes", "nosuch.txt"]) == 1
    assert "--classes is nosuch.txt, but there is no such file" in capsys.readouterr().err
    torch.save(build.state_dict() | {"stem.weight": torch.zeros(9, 3, 3, 3)}, tmp_path / "other.pt")
    assert main([*arguments, str(tmp_path / "other.pt")]) == 1
    error = capsys.readouterr().err
    assert "fc.weight is (3, 8), not (10, 8)" in error
    assert "The model was built with 10 outputs: --outputs sets another number." in error


MODELS = """
from torch import nn
import torch
class Recurrent(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.lstm, self.scale = nn.LSTM(48, 32, batch_first=True), nn.Parameter(torch.ones(32))
        self.fc = nn.Linear(32, classes)
    def forward(self, x):
        return self.fc(self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1] * self.scale)
class Late(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc, self.stem = nn.Linear(8, classes), nn.Conv2d(3, 8, 3)
    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))
class Broken(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(7, classes)
    def forward(self, x):
        return self.fc(x.flatten(1))
class Fast(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, classes)
    def forward(self, x):
        return self.fc(torch.fft.fft2(self.conv(x)).abs().mean((2, 3)))
"""


def test_check_names_what_is_the_matter(tmp_path, capfd):
    (tmp_path / "models.py").write_text(MODELS)

    def check(name):
        code = main(["check", f"{tmp_path}/models.py:{name}", "--outputs", "4", "--size", "16"])
        shown = capfd.readouterr()
        assert shown.err == ""
        return code, shown.out

    code, shown = check("Recurrent")
    assert code == 3 and "stays whole: recurrent layers get no masks" in shown and "can be masked: the rest" in shown
    assert "scale of Recurrent (32 numbers" in shown
    code, shown = check("Broken")
    assert code == 3 and "! runs" in shown and "does not run on images of 16 x 16 px" in shown
    code, shown = check("Fast")
    assert code == 3 and "! export    Cannot export the model to ONNX (Exporting the operator 'aten::fft" in shown
    assert len(shown.splitlines()) < 12  # without the graph that torch prints


# ---------------------------------------------------------------------- the words of the command line


@pytest.mark.parametrize(
    ("text", "budget"),
    [("25%", {"weights": 0.25}), ("0.1", {"weights": 0.1}), ("25% macs", {"macs": 0.25}), ("10Mmacs", {"macs": 1e7}),
     ("5 ms", {"latency_ms": 5.0}), ("30%:macs", {"macs": 0.3}), ("40% time", {"latency": 0.4})],
)  # fmt: skip
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "advice"),
    [("", "25%, or"), ("much", "25%, or"), ("-5%", "25%, or"), ("25% bytes", "25%, or"),
     ("200%", "must be more than 0 % and at most 100 %: 25%, say"), ("0%", "must be more than 0 % and at most 100 %"),
     ("200% macs", "at most 100 %: 25% macs, say"), ("0 macs", "must be more than 0: 25% macs, say"),
     ("0 ms", "must be more than 0: 5 ms, say"), ("5% ms", "ms take a plain number: 5 ms, say")],
)  # fmt: skip
def test_wrong_budgets_are_one_sentence(text, advice):
    with pytest.raises(UserError, match="--budget is ") as error:
        parse_budget(text)
    assert advice in str(error.value)


def test_of_normalizations_that_fit_alike_the_surest_is_taken():
    accuracies = {"imagenet": 0.998, "cifar10": 0.996, "half": 0.9, "none": 0.7}
    losses = {"imagenet": 0.02, "cifar10": 0.01, "half": 0.001, "none": 0.0}
    assert choose_fit(accuracies, losses) == "cifar10"
    assert choose_fit({"imagenet": 0.9, "cifar10": 0.8}, {"imagenet": 2.0, "cifar10": 1.0}) == "imagenet"


def test_a_line_of_progress_says_what_the_budget_is_of():
    row = {"accuracy": 0.9, "retention": 0.6, "cost": 0.48}
    assert (
        describe(2, 30, row, None)
        == "epoch 2/30: 90.0 % of the held-out images right, 48.0 % of the source model's cost left"
    )
    assert "60.0 % of the weights kept" in describe(2, 30, {**row, "cost": 0.6}, None)


@pytest.mark.parametrize(
    ("budget", "advice"),
    [({"met": True, "limit": 0.25}, "A larger --budget or more --epochs can help"),
     ({"met": True, "limit": 1.0}, ". More --epochs can help"), (None, ". A smaller --search alpha or more --epochs")],
)  # fmt: skip
def test_advice_fits_the_budget(shrunk, budget, advice):
    card = json.loads((shrunk[0] / "card.json").read_text())
    accuracy = {**card["accuracy"], "source": 1.0, "reengineered": 0.9, "decided_by": "accuracy"}
    changed = {**card, "accuracy": accuracy, "budget": budget, "images": {**card["images"], "test": 1}}
    changed["settings"] = {**card["settings"], "initial_head": "random"}
    (sentence,) = judge(changed, 2.0)
    assert advice in sentence and "10.0 points less accurate than the source model on 1 test image (95 %" in sentence


def test_times_of_seam_that_onnx_runtime_took_are_said(shrunk):
    folder, work, _ = shrunk
    card = json.loads((folder / "card.json").read_text())
    entry = {"batch_size": 1, "threads": 1, "source_ms": 2.0, "reengineered_ms": 1.0, "gains_from_zeros": False}
    reason = "The engine does not run /home/me/x, because/model.onnx, because it has Erf."
    timed = {**card, "latency": [{**entry, "engine": "seam", "fallback": fallback_words(reason)}]}
    lines = summary(timed, [], folder, work)
    why = "The engine does not run this model, because it has Erf."
    assert f"{why} ONNX Runtime ran it instead, which does not skip zeros." in lines
    assert any(line.startswith("seam (run by ONNX Runtime), 1 image ") for line in lines)
    assert not any("seam gains nothing" in line for line in lines)
    assert "| seam (run by ONNX Runtime), 1 image, 1 thread |" in render_card(timed)
    lines = summary({**card, "latency": [{**entry, "engine": "onnxruntime", "fallback": None}]}, [], folder, work)
    assert any("onnxruntime gains nothing from weights that are zero" in line for line in lines)


def test_disturbed_times_are_said(shrunk):
    folder, work, _ = shrunk
    card = json.loads((folder / "card.json").read_text())
    entry = {"engine": "onnxruntime", "batch_size": 16, "threads": 1, "source_ms": 2.0, "reengineered_ms": 1.0}
    for disturbed in (True, False):
        timed = {**card, "latency": [{**entry, "gains_from_zeros": False, "disturbed": disturbed}]}
        shown = "\n".join(summary(timed, [], folder, work))
        assert ("disturbed the timing" in shown) == disturbed and "onnxruntime, 16 images" in shown
        assert any("disturbed the timing" in line for line in limits(timed)) == disturbed


@pytest.mark.parametrize(
    ("options", "epochs"),
    [(["--search", "few_images=0"], 45), (["--search", "few_images=0", "--recovery", "0"], None), ([], None)],
    ids=["a budget", "a budget and no recovery", "few images"],
)
def test_a_recovery_follows_a_search_with_a_budget_unless_images_are_few(world, tmp_path, options, epochs):
    root, normalization = world
    main(
        ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"), "--keep", "red",
         "--normalization", normalization, "--out", str(tmp_path / "red"), "--quiet", *COMMON, "--epochs", "2",
         *options]
    )  # fmt: skip
    recovery = json.loads((tmp_path / "red/card.json").read_text())["recovery"]
    if epochs is None:
        assert recovery is None
    else:
        assert (recovery["epochs"], recovery["fresh_negatives"], recovery["cutmix"]) == (epochs, True, 0.5)


def test_few_images_get_small_batches():
    sizes = [search_choice(images, None, None, [])["batch_size"] for images in (10_000, 800, 400, 40)]
    assert sizes == [64, 32, 16, 8]
    assert search_choice(100, {"macs": 0.5}, None, ["selection=test"])["selection"] == "test"
    budget = search_choice(100, {"macs": 0.5}, 7, ["lr_mask=0.02"])
    assert (budget["lr_mask"], budget["epochs"], budget["budget"]["macs"]) == (0.02, 7, 0.5)
    assert recovery_choice("none") == recovery_choice("0") == {} and recovery_choice("epochs=3")["epochs"] == 3
    with pytest.raises(UserError, match="alpha=2 has no effect with a budget"):
        search_choice(100, {"macs": 0.5}, None, ["alpha=2"])
    with pytest.raises(UserError, match=r"alhpa=2 is no setting of a search: did you mean alpha\?"):
        search_choice(100, None, None, ["alhpa=2"])
    for epochs, given, words in (
        (5, ["epochs=7"], "epochs is given twice .--epochs is the same"),
        (None, ["alpha=1"] * 2, "alpha"),
    ):
        with pytest.raises(UserError, match=f"--search {words}"):
            search_choice(100, None, epochs, given)
    with pytest.raises(UserError, match="--recovery epochs=3,epochs=9 gives epochs twice: leave one out"):
        recovery_choice("epochs=3,epochs=9")


def test_few_images_have_no_budget_unless_one_is_given(world, tmp_path, capsys):
    root, normalization = world
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(tmp_path / "out"), "--size", "16",
                 "--time", "none", "--augmentation", "none"]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "the smallest class has 40 training images, too few for a budget" in shown.err
    assert "searching binary red: 60 epochs of about 64 images" in shown.err and "epoch 60/60: " in shown.err
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["budget"] is None and card["settings"]["initial_head"] == "source" and card["selection"] == "last"
    assert card["accuracy"]["reengineered"] >= card["accuracy"]["source"] - 0.02
    for option in (["--epochs", "5"], ["--search", "lr_mask=0.1"], ["--search", "alpha=3"]):
        assert main([*arguments, "--budget", "none", *option]) == 1
        assert f"{' '.join(option)} has no effect with so few images" in capsys.readouterr().err


def test_a_penalty_of_time_has_its_table(world, tmp_path):
    root, normalization = world
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(tmp_path / "out"), "--size", "16",
                 "--time", "none", "--epochs", "2", "--recovery", "none", "--budget", "50%"]  # fmt: skip
    assert main([*arguments, "--search", "penalty=latency", "--search", "few_images=0"]) in (0, 3)
    (table,) = (tmp_path / "out.work/models").glob("*/layer_costs.json")
    assert json.loads(table.read_text())["engine"] == "seam"
    assert json.loads((tmp_path / "out/card.json").read_text())["settings"]["penalty"] == "latency"


def test_images_that_are_larger_than_a_card_allows_are_refused(world, monkeypatch, capsys):
    root, _ = world
    monkeypatch.setattr(command, "default_size", lambda *_: MOST_PIXELS + 1)
    assert main(["shrink", "resnet18", "--data", str(root / "colours"), "--keep", "red"]) == 1
    assert f"resnet18 takes images of {MOST_PIXELS + 1} px: give --size, at most" in capsys.readouterr().err


def test_few_images_are_those_that_the_search_says(world, tmp_path, capsys):
    root, normalization = world
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red,blue", "--normalization", normalization, "--out", str(tmp_path / "out"), "--size", "16",
                 "--time", "none", "--problem", "multiclass_rest", "--epochs", "2", "--recovery", "none"]  # fmt: skip
    assert main([*arguments, "--budget", "90%", "--search", "few_images=0", "--search", "holdout=0.5"]) in (0, 3)
    shown = capsys.readouterr().err
    assert "searching multiclass_rest red-blue: 2 epochs of about 60 images" in shown
    assert "the smallest class" not in shown


def test_the_images_of_a_problem_are_counted():
    labels = np.repeat([0, 1, 2], [30, 5, 9])
    split = Split(labels, (8, 8), files=[""] * len(labels))
    images = Dataset("imagefolder", ["a", "b", "c"], (8, 8), (0.5,) * 3, (0.5,) * 3, (), split, split)
    counts = {}
    for problem, keep in (("multiclass_rest", ["b", "c"]), ("binary", ["b"]), ("multiclass", ["a", "c"])):
        choices = SimpleNamespace(dataset="d", problem=problem, target="x", keep=keep, seed=0)
        counts[problem] = Shrinking.class_sizes(SimpleNamespace(choices=choices), images)
    assert counts == {"multiclass_rest": [5, 9, 7], "binary": [5, 5], "multiclass": [30, 9]}


def test_models_by_name():
    assert resolve_architecture("ResNet18") == "torchvision:resnet18"
    assert resolve_architecture("a.py:build") == "a.py:build"
    with pytest.raises(UserError, match=r"MODEL is resnet_50, but .* \(did you mean resnet50\?\)"):
        resolve_architecture("resnet_50")
    with pytest.raises(UserError, match="must name a function in the file"):
        resolve_architecture("a.py")


def test_classes_to_keep():
    assert find_kept(["golden retriever", "CAT"], ["cat", "Golden_Retriever"]) == ["Golden_Retriever", "cat"]
    with pytest.raises(UserError, match="--keep names rabit, which is no class of the data: did you mean rabbit?"):
        find_kept(["rabit"], ["cat", "rabbit"])


def test_classes_that_are_not_needed_may_have_too_few_images(world, tmp_path, capsys):
    root, normalization = world
    shutil.copytree(root / "colours/train", tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos/blue")
    (tmp_path / "photos/blue").mkdir()
    (tmp_path / "photos/blue/a.heic").touch()
    for path in sorted((tmp_path / "photos/green").iterdir())[1:]:
        path.unlink()
    (tmp_path / "photos/red/a.heic").touch()
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(tmp_path / "photos"),
                 "--normalization", normalization, *COMMON, "--epochs", "2", "--budget", "none", "--search",
                 "few_images=0"]  # fmt: skip
    assert main([*arguments, "--keep", "red", "--out", str(tmp_path / "out")]) in (0, 3)
    shown = capsys.readouterr().err
    assert "classes of the data that have too few images are left out: blue, green" in shown
    assert shown.count(f"Warning: {tmp_path}/photos: 1 file is ignored for its ending (.heic)") == 1
    assert open_dataset(tmp_path / "out.work/datasets/photos").classes == ["red", "yellow"]
    source = open_source(tmp_path / "out.work/models/small", architecture=ARCHITECTURE)
    assert source.classes == ["blue", "green", "red", "yellow"]  # all of its outputs
    for name, sentence in (
        ("blue", f"--data: {tmp_path}/photos/blue has no images in it (.bmp"),
        ("green", "--data: class green has a single image, which cannot be split"),
    ):
        assert main([*arguments, "--keep", f"red,{name}", "--out", str(tmp_path / name)]) == 1
        assert sentence in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "out"), "--data", str(tmp_path / "photos")]) == 1
    assert f"--data: {tmp_path}/photos/blue has no images in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--weights", "no.pt"], "--weights is 'no.pt', but there is no such file"),
        (["--data", "nowhere"], "--data is 'nowhere', but there is no such folder"),
        (["--keep", "purple"], "--keep names purple"),
        (["--problem", "binary", "--keep", "red,blue"], "--problem binary takes one class"),
        (["--problem", "group", "--keep", "red,blue,green,yellow"], "--problem group needs images of other classes"),
        (["--normalization", "best"], "--normalization is best, but must be imagenet"),
        (["--classes", "green,blue"], "The model's classes (--classes) know no class red"),
        (["--epochs", "1"], "--epochs is 1"),
        (["--device", "gpu"], "The device gpu is not known: choose auto"),
        (["--epochs", "1"], "--epochs is 1, but must be from 2 to 100,000"),
        (["--size", "100000"], "--size is 100000, but must be from 8 to 1,024"),
        (["--size", "-3"], "--size is -3"),
        (["--size", "0"], "--size is 0"),
        (["--seed", "-1"], "--seed is -1, but must be from 0 to 4,294,967,295"),
        (["--test-share", "0"], "--test-share is 0.0, but must be from 0.01 to 0.5"),
        (["--test-share", "nan"], "--test-share is nan"),
        (["--threads", "0"], "--threads is 0"),
        (["--lose", "nan"], "--lose is nan"),
        (["--keep", " , "], "--keep names no class"),
        (["--budget", ""], "--budget is "),
        (["--time", ""], "--time  is no engine"),
        (["--out", "DATA/train/new"], "train/new, which lies among the folders of the images: name another one."),
        (["--time", "onnxruntime-int8"], "--time onnxruntime-int8 needs a model in int8: add --int8"),
    ],
)
def test_mistakes_are_in_the_words_of_the_command_line(world, tmp_path, capsys, change, sentence):
    root, _ = world
    change = [text.replace("DATA", str(root / "colours")) for text in change]
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--out", str(tmp_path / "out"), *change]  # fmt: skip
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and sentence in error and error.count("\n") == 1
    assert "datasets.data" not in error and "models.data" not in error
    assert not list(tmp_path.iterdir())


def test_check_takes_only_numbers_of_outputs_that_can_be(capsys):
    assert main(["check", ARCHITECTURE, "--outputs", "0"]) == 1
    assert capsys.readouterr().err == "Error: --outputs is 0, but must be from 2 to 100,000: choose another.\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--out", "file"], "--out is file, a folder that cannot be written (Not a directory): name another one."),
        (["--out", "file/a"], "--out is file/a, a folder that cannot be written (Not a directory)"),
        (["--out", "a/b"], "--work is a/b.work, a folder that cannot be written (Not a directory)"),
        (["--out", "/proc/a"], "--out is /proc/a, a folder that cannot be written (No such file or directory)"),
        (["--out", "new", "--work", "new/work"], "--work is new/work, which lies in the folder to ship, new"),
        (["--out", "."], "holds other files: name a new folder by --out"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_done(
    world, shrunk, tmp_path, monkeypatch, capsys, change, sentence
):
    root, _ = world
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    for name in ("file", "a/b.work"):
        Path(name).touch()
    arguments = ["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", *change]  # fmt: skip
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and sentence in error and error.count("\n") == 1
    if change[0] == "--out" and len(change) == 2 and change[1] != "a/b":
        assert main(["export", str(shrunk[1] / "direct/small/binary/red"), *change]) == 1
        assert sentence in capsys.readouterr().err
    assert sorted(map(str, tmp_path.rglob("*"))) == [str(tmp_path / name) for name in ("a", "a/b.work", "file")]


def test_help_answers_without_torch(tmp_path):
    code = "import sys; from seam.cli.main import parser; parser(); print(*sys.modules.keys() & {'torch', 'pandas'})"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == ""


def test_a_data_set_by_name_becomes_a_folder_once(tmp_path, monkeypatch):
    import torchvision

    calls = []

    class Tiny(torchvision.datasets.FakeData):
        classes = ["cat", "a/b"]

        def __init__(self, root, train=True, download=False):
            calls.append((train, download))
            super().__init__(6 if train else 4, (3, 8, 8), 2)

    monkeypatch.setattr(torchvision.datasets, "Tiny", Tiny, raising=False)
    folder = Path(fetching.image_folder("torchvision:Tiny", tmp_path))
    assert len(list(folder.glob("train/*/*.png"))) == 6 and len(list(folder.glob("test/*/*.png"))) == 4
    assert {path.name for path in (folder / "train").iterdir()} <= {"cat", "a-b"}
    assert fetching.image_folder("torchvision:Tiny", tmp_path) == str(folder) and len(calls) == 2
    for name, sentence in (("torchvision:Nothing", "is no data set of torchvision"), ("hf:none", "--data hf:none")):
        with pytest.raises(UserError, match=sentence):
            fetching.image_folder(name, tmp_path)
    assert fetching.image_folder("photos", tmp_path) == "photos"


def test_images_of_a_data_set_by_name_are_stored_as_the_workflow_sees_them(tmp_path, monkeypatch):
    """Pillow clips 16 bits of grey to 255, and leaves photos as the camera was held."""
    import torchvision

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 6)).save(tmp_path / "held.jpg", exif=exif)
    grey = Image.fromarray(np.full((6, 9), 25600, np.uint16))

    class Odd:
        classes = ["a", "b"]

        def __init__(self, root, download=False):
            pass

        def __len__(self):
            return 2

        def __getitem__(self, place):
            return (grey, Image.open(tmp_path / "held.jpg"))[place], place

    monkeypatch.setattr(torchvision.datasets, "Odd", Odd, raising=False)
    folder = Path(fetching.image_folder("torchvision:Odd", tmp_path))
    first, second = (Image.open(folder / name) for name in ("a/000000.png", "b/000001.png"))
    assert first.getpixel((0, 0)) == (100, 100, 100) and second.size == (6, 9)
    monkeypatch.setattr(Odd, "classes", ["a/b", "a-b"])
    with pytest.raises(UserError, match="'a/b' and 'a-b' would share the folder a-b"):
        fetching.image_folder("torchvision:Odd", tmp_path / "other")


def test_data_sets_by_name_are_split_as_they_are_or_later(tmp_path, monkeypatch):
    import torchvision

    class Pets(torchvision.datasets.FakeData):
        classes = ["cat", "dog"]

        def __init__(self, root, split="trainval", download=False):
            if split not in ("trainval", "test"):
                raise ValueError(f"Unknown value {split!r}")
            super().__init__({"trainval": 6, "test": 4}[split], (3, 8, 8), 2)

    class Whole(torchvision.datasets.FakeData):
        classes = ["cat", "dog"]

        def __init__(self, root, download=False):
            super().__init__(10, (3, 8, 8), 2)

    for kind in (Pets, Whole):
        monkeypatch.setattr(torchvision.datasets, kind.__name__, kind, raising=False)
    folder = Path(fetching.image_folder("torchvision:Pets", tmp_path))
    assert [len(list(folder.glob(f"{split}/*/*.png"))) for split in ("train", "test")] == [6, 4]
    folder = Path(fetching.image_folder("torchvision:Whole", tmp_path))
    assert {path.name for path in folder.iterdir()} == {"cat", "dog", ".complete"}  # to be split, without overlap
    assert len(list(folder.glob("*/*.png"))) == 10


class HuggingFacePart:
    """As much of a data set of Hugging Face's `datasets` as is read here: rows, columns, and the types of columns."""

    features = {"picture": type("Image", (), {})(), "kind": type("ClassLabel", (), {"names": ("cat", "dog")})()}

    is_decoded, format = True, "PNG"

    def __init__(self, labels):
        self.labels = labels
        content = io.BytesIO()
        Image.new("L", (8, 8)).save(content, self.format)
        self.content = content.getvalue()

    def cast_column(self, column, kind):
        assert (column, kind) == ("picture", {"decode": False})
        part = HuggingFacePart(self.labels)
        part.is_decoded = False
        return part

    def __getitem__(self, column):
        return {"kind": self.labels}[column]

    def __iter__(self):
        assert not self.is_decoded
        return ({"picture": {"bytes": self.content, "path": None}, "kind": label} for label in self.labels)


@pytest.mark.parametrize(
    ("name", "parts", "files"),
    [
        ("a/b", {"train": [0, 1, 1], "test": [0]}, ["test/cat", "train/cat", "train/dog", "train/dog"]),
        ("a/b", {"train": [0, 1], "test": [-1, -1], "validation": [1]}, ["test/dog", "train/cat", "train/dog"]),
        ("a/b:small", {"train": [0, None, 1], "test": [-1, None]}, ["cat", "dog"]),
        ("a/b", {"all": [0, 1]}, ["cat", "dog"]),
    ],
)
def test_data_sets_of_hugging_face_are_read_without_images_that_have_no_label(
    tmp_path, monkeypatch, name, parts, files
):
    def load_dataset(name, configuration, cache_dir, trust_remote_code):
        assert (name, configuration, trust_remote_code) == ("a/b", asked, False)
        return {part: HuggingFacePart(labels) for part, labels in parts.items()}

    asked = name.partition(":")[2] or None
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, Image=dict))
    folder = Path(fetching.image_folder(f"hf:{name}", tmp_path))
    assert folder == tmp_path / ("hf-a-b-small" if asked else "hf-a-b")
    assert sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("*.png")) == files


def test_images_of_hugging_face_are_of_the_formats_that_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(HuggingFacePart, "format", "EPS")
    datasets = SimpleNamespace(
        load_dataset=lambda *_, trust_remote_code, **__: {"train": HuggingFacePart([0])}, Image=dict
    )
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(UserError, match="--data hf:a/b cannot be read .*cannot identify image file"):
        fetching.image_folder("hf:a/b", tmp_path)


@pytest.mark.parametrize(("version", "is_safe"), [("2.14.7", False), (None, False), ("4.0.0", True), ("10.1", True)])
def test_no_code_of_the_author_of_a_data_set_runs(tmp_path, monkeypatch, version, is_safe):
    """Versions of `datasets` before 2.16 run it, and those since 4 do not know it."""
    loaded = []

    def load_dataset(name, configuration=None, cache_dir=None, **options):
        loaded.append(options)
        return {"train": HuggingFacePart([0, 1])}

    package = SimpleNamespace(load_dataset=load_dataset, Image=dict, **({"__version__": version} if version else {}))
    monkeypatch.setitem(sys.modules, "datasets", package)
    if is_safe:
        fetching.image_folder("hf:a/b", tmp_path)
        assert loaded == [{}]
    else:
        with pytest.raises(
            UserError, match="needs a newer version of the package datasets than .*pip install -U datas"
        ):
            fetching.image_folder("hf:a/b", tmp_path)
        assert not loaded


def test_a_row_of_hugging_face_that_names_a_device_is_refused(tmp_path, monkeypatch):
    rows = [{"picture": {"bytes": None, "path": "/dev/zero"}, "kind": 0}]
    monkeypatch.setattr(HuggingFacePart, "__iter__", lambda self: iter(rows))
    datasets = SimpleNamespace(
        load_dataset=lambda *_, trust_remote_code, **__: {"train": HuggingFacePart([0])}, Image=dict
    )
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(UserError, match="/dev/zero is a pipe, a socket or a device"):
        fetching.image_folder("hf:a/b", tmp_path)


def test_a_data_set_of_hugging_face_without_training_images_is_refused(tmp_path, monkeypatch):
    parts = {"dev": HuggingFacePart([0]), "test": HuggingFacePart([1])}
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, trust_remote_code, **__: parts)
    )
    with pytest.raises(UserError, match="has no part called train, but dev, test: store it as a folder"):
        fetching.image_folder("hf:a/b", tmp_path)


def test_names_of_settings_are_those_of_the_search():
    assert set(command.KNOWN_NORMALIZATIONS) >= {"imagenet", "cifar10", "cifar100"}


# ---------------------------------------------------------------------- choices


@pytest.fixture
def photos(tmp_path):
    """Return a function that makes a folder of images of some classes; and a file that stands for weights."""
    (tmp_path / "w.pth").touch()

    def paint(*classes):
        for name in classes:
            (tmp_path / "photos" / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.png")
        return str(tmp_path / "photos"), {"weights": str(tmp_path / "w.pth")}

    return paint


def test_folders_that_the_model_does_not_know_are_left_out(photos):
    data, weights = photos("cat", "dog", "zebra")
    choices = command.make_choices("resnet20", data, ["cat"], **weights, classes="cifar10")
    assert choices.entry["classes"] == ["cat", "dog"]
    assert choices.notes == ["classes of the data that the model does not know are left out: zebra"]
    with pytest.raises(UserError, match=r"The model's classes \(--classes\) know no class zebra"):
        command.make_choices("resnet20", data, ["zebra"], **weights, classes="cifar10")


def test_two_folders_of_one_class_are_told_before_any_work(photos):
    data, weights = photos("cat", "dog", "Cat")
    with pytest.raises(UserError, match="The classes Cat and cat are the same for"):
        command.make_choices("resnet20", data, ["dog"], **weights, classes="cifar10")


def test_a_folder_that_two_outputs_have_the_name_of_is_no_unknown_one(photos):
    data, weights = photos("CAT", "dog", "ox")
    with pytest.raises(
        UserError, match=r"have more than one class CAT \(cat or Cat\): name the folder by the other name"
    ):
        command.make_choices("resnet20", data, ["dog"], **weights, classes="cat,Cat,dog,ox")


@pytest.mark.parametrize("options", [{"classes": "imagenet"}, {"weights": None}], ids=["a file", "published weights"])
def test_imagenets_classes_have_labels_and_wnids(photos, options):
    data, weights = photos("tabby", "n01440764", "gizmo")
    choices = command.make_choices("resnet18", data, ["tabby"], **weights | options)
    assert choices.entry["classes"] == ["n01440764", "tabby"]
    assert choices.notes == ["classes of the data that the model does not know are left out: gizmo"]
    if "classes" in options:
        assert choices.source["outputs"][0] == ["tench", "n01440764"] and len(choices.source["outputs"]) == 1000


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (
            "torchvision:resnet_50",
            {},
            "torchvision:resnet_50, but torchvision has no such classifier (did you mean res",
        ),
        ("resnet20", {"weights": "train"}, "--weights is 'train', but must be hub or a file that ends in"),
        ("resnet20", {"weights": "trian"}, "--weights is 'trian', but must be hub or a file that ends in"),
        (
            "resnet20",
            {"augmentation": ["crop", "foo"]},
            "--augmentation foo is unknown: give some of crop, flip",
        ),
        ("vgg16_bn", {"size": 64}, "which takes images of 32 px, but --size is 64"),
    ],
)
def test_a_mistake_in_the_options_is_said_in_their_words(photos, model, options, sentence):
    data, weights = photos("cat", "dog")
    with pytest.raises(UserError, match=re.escape(sentence)):
        command.make_choices(model, data, ["cat"], **weights | options)


def test_braces_in_a_path_are_no_matter_of_the_command(photos, tmp_path):
    data, _ = photos("cat", "dog")
    (tmp_path / "a{b}.pth").touch()
    assert command.make_choices("resnet20", data, ["cat"], weights=str(tmp_path / "a{b}.pth")).target == "cat"


def test_weights_that_cannot_be_read_are_one_sentence(photos, tmp_path, monkeypatch):
    data, weights = photos("cat", "dog")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("seam.delivery.shrinking.sha256", denied)
    shrinking = Shrinking(command.make_choices("resnet20", data, ["cat"], **weights), tmp_path / "work")
    with pytest.raises(UserError, match=r"Cannot read .*w.pth \(Permission denied\): fix its permissions"):
        shrinking.fetch_source(None)


def test_a_network_that_cannot_be_c_code_is_told_before_the_search(world, tmp_path, capsys, monkeypatch):
    root, normalization = world

    def refused(path):
        raise EngineError(f"Cannot compile {path}, because it has Erf.")

    monkeypatch.setattr("seam.engine.emit.require_operations", refused)
    monkeypatch.setattr(Shrinking, "search", lambda self: pytest.fail("it searched"))
    code = main(["shrink", ARCHITECTURE, "--weights", str(root / "mine.ckpt"), "--data", str(root / "colours"),
                 "--keep", "red", "--normalization", normalization, "--out", str(tmp_path / "out"), *COMMON,
                 "--c"])  # fmt: skip
    assert code == 1 and "because it has Erf: leave --c out." in capsys.readouterr().err


def test_the_engine_says_which_operations_it_lacks(tmp_path):
    class Error(torch.nn.Module):
        def forward(self, images):
            return torch.special.erf(images).flatten(1)

    export(Error(), tmp_path / "model.onnx", (3, 4, 4))
    with pytest.raises(EngineError, match="Cannot compile .*model.onnx, because it has the operation Erf"):
        require_operations(tmp_path / "model.onnx")


# ---------------------------------------------------------------------- the terminal


def test_a_line_of_progress_is_no_longer_than_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr("seam.cli.progress.terminal_width", lambda: 40)
    shown = Progress()
    shown.rewrites = True
    row = {"accuracy": 0.931, "images": "held-out", "source_accuracy": 0.95, "retention": 0.4}
    shown("", 2, 30, row, 600)
    assert capsys.readouterr().err == "\r\033[Kepoch 2/30: 93.1 % of the held-out imag"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_run_hides_the_bars_of_decoding(tmp_path, quiet):
    show_log(str(tmp_path / "log.txt"), quiet)
    assert progress.hides_bars is quiet
    hide_log()
    assert progress.hides_bars is False


UNWRITABLE = "Error: The output cannot be written (No space left on device): write it elsewhere.\n"


@pytest.mark.parametrize(
    ("command", "buffering", "code", "said"),
    [
        ("seam show FOLDER > /dev/full", "", 1, UNWRITABLE),
        ("seam show FOLDER > /dev/full", "1", 1, UNWRITABLE),
        ("seam --help > /dev/full", "", 1, UNWRITABLE),
        ("seam show FOLDER | true", "", 1, ""),
        ("seam show nowhere 2>&1 | true", "", 1, ""),
        ("seam show FOLDER >&-", "", 0, ""),
    ],
)
def test_an_output_that_nobody_takes_ends_in_a_sentence_or_in_none(shrunk, command, buffering, code, said):
    python = (
        f"{sys.executable} -c 'import sys, time; time.sleep(0.3); from seam.cli.main import main; sys.exit(main())'"
    )
    script = f"{command.replace('seam', python, 1).replace('FOLDER', str(shrunk[0]))}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONUNBUFFERED": buffering}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (code, said)
