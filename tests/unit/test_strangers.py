"""Files and folders of strangers, names that no terminal can show, and runs that meet: one sentence, nothing lost."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import Counter

import pytest
import torch
from colours import ARCHITECTURE, small_world
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from seam.cli import progress as shown
from seam.cli.main import main
from seam.cost.export import export, onnx_metadata
from seam.cost.quantization import quantize
from seam.data.decoding import read_image
from seam.data.kinds import imagefolder
from seam.data.kinds.registry import prepare_dataset
from seam.delivery import fetching
from seam.delivery.building import build_from_options
from seam.delivery.card import render_card
from seam.delivery.choices import make_choices
from seam.delivery.evaluating import evaluate_folder
from seam.delivery.package import write_package
from seam.delivery.replacing import STAGING, alone, replaced
from seam.delivery.snippets import SNIPPETS
from seam.errors import UserError
from seam.files import json_digest, read_json, write_json
from seam.models.cifar import resnet20
from seam.models.classes import find_names, match_classes
from seam.models.unpickling import read_checkpoint
from seam.reuse.cards import CARD, WEIGHTS
from seam.reuse.delivered import load_delivered
from seam.reuse.direct import reengineer
from seam.reuse.load import load_reengineered

SETTINGS = {"epochs": 2, "batch_size": 16, "lr_mask": 0.05, "few_images": 0}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Results as a run leaves them: the folder of a re-engineered model, of which the others are found."""
    root = tmp_path_factory.mktemp("strangers")
    small_world(root, "datasets/colours", "models/small")
    folder = root / "direct/small/binary/red"
    reengineer(
        folder=folder, model_folder=root / "models/small", dataset_folder=root / "datasets/colours", model="small",
        dataset="colours", problem="binary", target="red", members=["red"], settings=SETTINGS, seed=0, device="cpu",
        checkpoint=root / "x.pt", architecture=ARCHITECTURE,
    )  # fmt: skip
    return folder


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    out = tmp_path / "out"
    with replaced(out, (WEIGHTS,), ()) as staging:
        (staging / WEIGHTS).write_text("one")
        with pytest.raises(UserError, match="Another run writes its model into .*out now: wait"), replaced(out, (), ()):
            pass
        (staging / CARD).write_text("card")
    assert {path.name for path in out.iterdir()} == {WEIGHTS, CARD}
    with replaced(out, (WEIGHTS,), ()) as staging:  # the lock is free again
        (staging / WEIGHTS).write_text("two")
    assert (out / WEIGHTS).read_text() == "two" and (tmp_path / "out.1" / WEIGHTS).read_text() == "one"
    assert not (out / STAGING).exists()


def test_two_runs_do_not_share_a_working_folder(tmp_path, capsys):
    for name in ("cat", "dog"):
        for split in ("train", "test"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / split / name / "0.png")
    save_file(resnet20(2).state_dict(), tmp_path / "x.safetensors")
    (tmp_path / "out.work").mkdir()
    command = ["shrink", "resnet20", "--weights", str(tmp_path / "x.safetensors"), "--data", str(tmp_path / "photos")]
    with alone(tmp_path / "out.work", "works in"):
        assert main([*command, "--keep", "cat", "--out", str(tmp_path / "out")]) == 1
    assert "Another run works in" in capsys.readouterr().err and not list((tmp_path / "out.work").iterdir())


def test_only_the_model_itself_in_int8_is_delivered(result, tmp_path, caplog):
    """A folder can hold, or link to, anything under that name."""
    folder = tmp_path / "direct/small/binary/red"
    shutil.copytree(result.parents[3], tmp_path, dirs_exist_ok=True)
    data = tmp_path / "datasets/colours"
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    (folder / "model-int8.onnx").symlink_to(secret)
    card = write_package(folder, data, tmp_path / "linked", architecture=ARCHITECTURE)
    assert "model-int8.onnx" not in card["files"] and not (tmp_path / "linked/model-int8.onnx").exists()
    assert "model-int8.onnx is not this model in int8" in caplog.text
    (folder / "model-int8.onnx").unlink()
    size = read_json(data / "dataset.json")["size"][0]
    other = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    export(other, folder / "model-int8.onnx", (3, size, size))
    assert "model-int8.onnx" not in write_package(folder, data, tmp_path / "other", architecture=ARCHITECTURE)["files"]
    (folder / "model-int8.onnx").unlink()
    model = load_reengineered(folder, architecture=ARCHITECTURE)
    export(model, folder / "model.onnx", (3, size, size), metadata=onnx_metadata(model.classes, model.normalization))
    quantize(folder / "model.onnx", folder / "model-int8.onnx", [torch.randn(16, 3, size, size).numpy()])
    assert "model-int8.onnx" in write_package(folder, data, tmp_path / "same", architecture=ARCHITECTURE)["files"]


def test_a_network_with_other_outputs_than_classes_is_refused(result, tmp_path):
    write_package(result, result.parents[3] / "datasets/colours", tmp_path / "out", architecture=ARCHITECTURE)
    size = load_delivered(tmp_path / "out").size
    other = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    export(other, tmp_path / "out/model.onnx", (3, size, size))
    with pytest.raises(UserError, match="model.onnx has 5 outputs, and the folder names 2 classes"):
        load_delivered(tmp_path / "out")


def test_a_deep_key_of_a_weights_file_ends_in_a_sentence(tmp_path):
    """Python's hash of nested tuples calls itself in C, and ends the process."""
    content = b"\x80\x02}X\x01\x00\x00\x00a" + b"\x85" * 200_000 + b"K\x01s."
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", content)
    with pytest.raises(UserError, match="nests the tuples of a key too deep: save the state_dict"):
        build_from_options("resnet20", str(tmp_path / "x.pth"))


def test_the_work_for_a_storage_of_an_old_file_is_the_same_for_each(tmp_path):
    """The sizes of all storages before it were added up again for each."""
    counts = []
    for number in (500, 1000):
        tensors = {str(key): torch.zeros(1) for key in range(number)}
        torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
        calls = Counter()
        sys.setprofile(lambda frame, event, argument, calls=calls: calls.update((event,)))
        try:
            content = read_checkpoint(tmp_path / "x.pth")[0]
        finally:
            sys.setprofile(None)
        assert len(content) == number
        counts.append(calls.total())
    assert counts[1] < 2.5 * counts[0]


@pytest.mark.parametrize("size", ("abc", [-3, 3], [1900, 900], ["a"], []))
def test_a_size_that_is_none_is_told(result, tmp_path, size):
    shutil.copytree(result.parents[3], tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "datasets/colours/dataset.json"
    write_json(manifest, {**read_json(manifest), "size": size})
    folder = tmp_path / "direct/small/binary/red"
    with pytest.raises(UserError, match="dataset.json has no size of images from 1 to 1024: give it by --size"):
        evaluate_folder(folder, str(tmp_path), architecture=ARCHITECTURE)
    (folder / "metrics.json").write_text("[1]")
    with pytest.raises(UserError):
        evaluate_folder(folder, str(tmp_path), architecture=ARCHITECTURE)


def test_an_export_stays_in_its_place_and_takes_no_code_along(result, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    metrics, planted = read_json(result / "metrics.json"), tmp_path / "planted"
    for name in ("Makefile", "main.c", "model.c", "model.h"):
        (result / name).write_text("evil")
    try:
        write_json(result / "metrics.json", {**metrics, "model": f"{planted}/x"})
        assert main(["export", str(result), "--architecture", ARCHITECTURE]) == 0
        assert not planted.exists()
        (out,) = (tmp_path / "shrunk").iterdir()
        assert (out / "model.onnx").is_file() and not {"Makefile", "main.c"} & {path.name for path in out.iterdir()}
        for malformed in ({name: value for name, value in metrics.items() if name != "dataset"}, [1]):
            write_json(result / "metrics.json", malformed)
            assert main(["export", str(result), "--architecture", ARCHITECTURE]) == 1
            assert "holds no result of this version" in capsys.readouterr().err
    finally:
        write_json(result / "metrics.json", metrics)
        for name in ("Makefile", "main.c", "model.c", "model.h"):
            (result / name).unlink()


def test_names_on_the_card_cannot_forge_it(result, tmp_path):
    root = result.parents[3]
    card = write_package(
        result, root / "datasets/colours", tmp_path / "out", source_folder=root / "models/small",
        architecture=ARCHITECTURE, about={"weights": "mod\udce8le.pth"},
    )  # fmt: skip
    assert r"mod\udce8le.pth" in (tmp_path / "out/card.md").read_text(encoding="utf-8")
    name = "cat | 9999 | 99.99 % |<img src=x onerror=alert(1)>\n\n# Best"
    card["accuracy"]["per_class"] = {name: next(iter(card["accuracy"]["per_class"].values()))}
    text = render_card(card)
    assert r"| cat \| 9999 \| 99.99 % \|&lt;img src=x onerror=alert(1)>  # Best |" in text
    assert "<img" not in text and "\n# Best" not in text


def test_an_image_a_pixel_wide_does_not_fill_the_memory(tmp_path):
    Image.new("RGB", (1, 8000)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"sides differ too much \(1 x 8000 pixels\): crop or remove it"):
        read_image(tmp_path / "x.png", 256)
    assert read_image(tmp_path / "x.png", 8).shape == (8, 8, 3)


def test_a_file_of_many_digests_is_read_at_once(tmp_path):
    data = {f"{number:x}": f"{number:064x}" for number in range(20_000)}
    (tmp_path / "card.json").write_text(json.dumps({**data, "digest": json_digest(data)}))
    assert read_json(tmp_path / "card.json") == data  # which took hours
    (tmp_path / "card.json").write_text(json.dumps({**data, "dige{t": json_digest(data)}))  # one bit flipped
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "card.json")


def test_a_small_file_makes_no_large_model(tmp_path):
    state = resnet20(10).state_dict()
    for name in ("fc.weight", "fc.bias"):
        state[name] = torch.zeros(1).expand(10**9, *state[name].shape[1:])
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth"):
        build_from_options("resnet20", str(tmp_path / "x.pth"))
    for name in ("fc.weight", "fc.bias"):
        state[name] = torch.zeros(100_001, *state[name].shape[1:])
    torch.save(state, tmp_path / "y.pth")
    with pytest.raises(UserError, match="100001 outputs, more than the 100,000 that seam takes"):
        build_from_options("resnet20", str(tmp_path / "y.pth"))


def test_names_in_a_weights_file_are_searched_in_time():
    names = ["x"] * 200_000
    names[-1] = 1
    nested = inner = {}
    for _ in range(199):
        inner |= dict.fromkeys(("classes", "labels", "categories", "class_names"), names) | {"next": {}}
        inner = inner["next"]
    assert find_names(nested) is None
    outputs = [[f"class {number}"] for number in range(50_000)]
    assert match_classes(outputs, ["class 7"], "The classes")[7] == "class 7"


def test_programs_of_a_delivered_folder_start_no_others(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"preprocessing": {"resize": 8, "crop": 8}}))
    (tmp_path / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n")
    for name in ("use_onnxruntime.py", "use_torch.py"):
        (tmp_path / name).write_text(SNIPPETS[name])
        done = subprocess.run([sys.executable, name, "photo.jpg"], cwd=tmp_path, capture_output=True, text=True)
        assert "UnidentifiedImageError" in done.stderr


def test_an_image_whose_name_is_not_in_utf8_is_named(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    os.rename(tmp_path / "dog/a.png", os.fsencode(tmp_path / "dog") + b"/caf\xe9.png")
    with pytest.raises(UserError, match=r"caf\\udce9.png has a name that is not in UTF-8: rename it"):
        prepare_dataset({"kind": "imagefolder", "root": str(tmp_path), "size": 8}, tmp_path / "out")


def test_messages_are_no_commands_to_the_terminal(tmp_path, capsys, caplog):
    from collections import Counter

    imagefolder.warn_of_ignored(tmp_path, Counter({".\x1b]0;x\x07": 1}))
    assert "\x1b" not in caplog.text and r".\x1b]0;x\x07" in caplog.text
    handler = shown.Progress()
    handler.emit(logging.LogRecord("seam", logging.WARNING, "", 0, "name \x1b[2K", None, None))
    assert r"name \x1b[2K" in capsys.readouterr().err


def test_output_in_an_encoding_without_the_letters(result, tmp_path):
    shutil.copytree(result, tmp_path / "result")
    metrics = read_json(result / "metrics.json")
    write_json(tmp_path / "result/metrics.json", {**metrics, "classes": ["猫", "rest"]})
    code = "import sys; from seam.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONIOENCODING": "iso-8859-1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "show", str(tmp_path / "result")]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and rb"\u732b, rest" in done.stdout, done.stderr


def test_a_log_on_a_full_disk_hides_no_error(tmp_path, capsys):
    shown.show_log(str(tmp_path / "log.txt"), quiet=True)
    file = next(handler for handler in logging.getLogger("seam").handlers if isinstance(handler, logging.FileHandler))

    def full(*_):
        raise OSError(28, "No space left on device")

    file.stream.close()
    file.stream = type("Full", (), {"write": full, "flush": full, "close": full})()
    logging.getLogger("seam").info("message")
    shown.hide_log()
    assert "Logging error" not in capsys.readouterr().err


def test_a_full_disk_is_no_fault_of_the_network(tmp_path, monkeypatch):
    class Full(Image.Image):
        def convert(self, mode):
            return self

        def save(self, path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_torchvision", lambda name, cache: {"train": [(Full(), "cat")]})
    with pytest.raises(UserError, match="No space left on device.: free some space"):
        fetching.image_folder("torchvision:Pets", tmp_path)


def test_long_names_of_classes_give_short_folders(tmp_path):
    for name in ("c" * 240, "d" * 240, "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
    torch.save(resnet20(3).state_dict(), tmp_path / "w.pth")
    arguments = {"weights": str(tmp_path / "w.pth")}
    targets = [
        make_choices("resnet20", str(tmp_path), keep, **arguments).target
        for keep in (["c" * 240], ["d" * 240], ["c" * 240, "d" * 240], ["dog"])
    ]
    assert targets[3] == "dog" and len(set(targets)) == 4 and all(len(target) < 90 for target in targets)


def test_threads_can_deliver_side_by_side(tmp_path):
    def deliver(number):
        with replaced(tmp_path / f"out{number}", (WEIGHTS,), ()) as staging:
            (staging / WEIGHTS).write_text(str(number))

    threads = [threading.Thread(target=deliver, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / f"out{number}" / WEIGHTS).read_text() for number in range(4)] == list("0123")
