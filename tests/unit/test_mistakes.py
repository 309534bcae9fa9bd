"""Mistakes that people make: each ends a job with one sentence, and no earlier result is lost."""

import hashlib
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from colours import ARCHITECTURE
from mistakes import Harm, bound_by_permissions, hashes, photograph, truncated
from PIL import Image
from safetensors.torch import save_file
from small import build
from workflows import ROOT, change, small_config

from seam.config.plan import dataset_entry, students, target_problems, validate
from seam.config.startup import check_places
from seam.data.kinds.registry import prepare_dataset
from seam.data.preparation import save_array
from seam.data.storage import open_dataset
from seam.download import fetch
from seam.errors import UserError
from seam.files import atomic_write, load_tensors, read_json, save_tensors, write_json
from seam.log import job_log
from seam.models.architectures import build_model
from seam.models.published import fetch_weights

SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
NORMALIZATION = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def earlier(tmp_path, dataset_folder):
    """The folder of results made before."""
    results = tmp_path / "results"
    images = open_dataset(dataset_folder)
    save_array(results / "datasets/colours/arrays/train_labels.npy", images.train.labels)
    write_json(results / "datasets/colours/dataset.json", read_json(dataset_folder / "dataset.json"))
    save_tensors(results / "models/small/source.safetensors", build(4).state_dict(), {"classes": list("abcd")})
    save_tensors(results / "models/mine/source.safetensors", build(4).state_dict(), {"classes": list("abcd")})
    return results


@pytest.fixture
def said(tmp_path, earlier, capfd):
    """A function that does what a job does and gives the sentence in which it ends."""

    def run(act):
        before = hashes(earlier)
        log = tmp_path / "logs" / "job.log"
        capfd.readouterr()
        with pytest.raises(SystemExit) as end, job_log(log):
            act()
        shown = capfd.readouterr()
        assert end.value.code == 1
        assert hashes(earlier) == before
        written = log.read_text()
        assert "Traceback (most recent call last)" in written
        error = shown.err.strip()
        assert shown.out == "" and error.startswith("Error: ") and "\n" not in error
        sentence = error.removeprefix("Error: ")
        assert sentence.endswith((".", "?")) and "not expected" not in sentence and "Traceback" not in sentence
        assert sentence in written
        return sentence

    return run


# ------------------------------------------------------------------ the config

BINARY = {"model": "small", "problem": "binary", "targets": ["red"]}
STUDENTS = {"model": "small", "datasets": ["digits"]}
WORKING = {"architecture": "resnet20", "dataset": "digits", "weights": "train"}

# Where it is in the config; its value as YAML; what the sentence names; what it says is to be done.
CONFIG = [
    # keys that there are not
    (["serach"], "{epochs: 3}", "serach is not a known key", "did you mean search?"),
    (["search", "lr_msk"], "0.1", "search.lr_msk is not a known key", "did you mean lr_mask?"),
    (["lr_mask"], "0.1", "lr_mask is not a known key", "it belongs in search."),
    (
        ["direct_reuse", 0, "overrides"],
        "{blue: {alfa: 1}}",
        "direct_reuse[0].overrides.blue.alfa is not",
        "mean alpha?",
    ),
    (["indirect_reuse", 0, "transfer"], "{finetun: {}}", "indirect_reuse[0].transfer.finetun is not", "mean finetune?"),
    (["attack", "epsilon"], "0.1", "attack.epsilon is not a known key", "did you mean eps?"),
    # values of another type
    (["search", "epochs"], "'30'", "search.epochs is '30'", "write 30 in a config file"),
    (["search", "lr_mask"], "1e-3", "search.lr_mask is '1e-3'", "write 0.001 in a config file"),
    (["direct_reuse"], "{model: small}", "direct_reuse is keys with values (model)", "must be a list"),
    (["indirect_reuse", 0], "small", "indirect_reuse[0] is 'small'", "must be keys with values"),
    (["transfer"], "null", "transfer is empty", "give it a value or leave it out"),
    (["attack"], "[0.1]", "attack is the list [0.1]", "must be keys with values"),
    (["direct_reuse", 0, "targets"], "[yes]", "direct_reuse[0].targets[0] is true", "put quotes around"),
    # out of range
    (["seed"], "-1", "seed is -1", "at least 0"),
    (["search", "epochs"], "0", "search.epochs is 0", "at least 1"),
    (["search", "alpha"], ".inf", "search.alpha is inf", "must be a finite number"),
    (["transfer", "holdout"], "0.9", "transfer.holdout is 0.9", "at most 0.5"),
    (["indirect_reuse", 0, "thresholds"], "[1.0]", "indirect_reuse[0].thresholds[0] is 1.0", "less than 1"),
    (["indirect_reuse", 0, "compare_at"], "[0.5]", "compare_at names 0.5", "must be among thresholds: [0.6]"),
    (["attack", "clip"], "[1, 1]", "attack.clip is the list [1.0, 1.0]", "must be less than its second"),
    # twice
    (["direct_reuse", 0, "targets"], "[red, red]", "direct_reuse[0].targets names 'red' twice", "once is enough"),
    (["direct_reuse", 1], str(BINARY), "direct_reuse[1].targets names 'red'", "leave one out"),
    (["indirect_reuse", 0, "datasets"], "[digits, digits]", "datasets names 'digits' twice", "once is enough"),
    (["indirect_reuse", 1], str(STUDENTS), "indirect_reuse[1].datasets names 'digits'", "leave one out"),
    # names that cannot be a folder's
    (["models", "small/er"], str(WORKING), "models has the name 'small/er'", "can only have letters"),
    (["models", "../up"], str(WORKING), "models has the name '../up'", "can only have letters"),
    (["models", "modèle"], str(WORKING), "models has the name 'modèle'", "can only have letters"),
    (["models", "line\n"], str(WORKING), "models has the name 'line\\n'", "can only have letters"),
    (["datasets", "my digits"], "{kind: digits}", "datasets has the name 'my digits'", "can only have letters"),
    (["datasets", "数字"], "{kind: digits}", "datasets has the name '数字'", "can only have letters"),
    (["direct_reuse", 1, "targets"], "{a/b: [red, blue]}", "targets has the name 'a/b'", "can only have letters"),
    (["direct_reuse", 1, "targets"], "{a b: [red, blue]}", "targets has the name 'a b'", "can only have letters"),
    # nothing where something is needed
    ([], "{}", "datasets is missing", "docs/configuration.md says"),
    (["models"], "{}", "direct_reuse[0].model names 'small'", "there is none"),
    (["datasets", "colours", "classes"], "[]", "datasets.colours.classes has 0 values", "needs at least 2"),
    (["direct_reuse", 0, "targets"], "[]", "direct_reuse[0].targets has 0 values", "needs at least 1"),
    (["direct_reuse", 1, "targets"], "{warm: []}", "direct_reuse[1].targets.warm has 0 values", "needs at least 2"),
    (["indirect_reuse", 0, "datasets"], "[]", "indirect_reuse[0].datasets has 0 values", "needs at least 1"),
    (["indirect_reuse", 0, "students"], "[]", "indirect_reuse[0].students has 0 values", "needs at least 1"),
    (["indirect_reuse", 0, "thresholds"], "[]", "indirect_reuse[0].thresholds has 0 values", "needs at least 1"),
    (["indirect_reuse", 0, "compare_at"], "[]", "indirect_reuse[0].compare_at has 0 values", "needs at least 1"),
    (["attack", "clip"], "[]", "attack.clip has 0 values", "needs exactly 2"),
    # names of nothing
    (["direct_reuse", 0, "model"], "smal", "direct_reuse[0].model names 'smal'", "did you mean small?"),
    (
        ["direct_reuse", 0, "targets"],
        "[rad]",
        "direct_reuse[0].targets names 'rad'",
        "known are blue, green, red, yellow",
    ),
    (["indirect_reuse", 0, "datasets"], "[digit]", "datasets names 'digit'", "did you mean digits?"),
    (["indirect_reuse", 0, "overrides"], "{digit: {}}", "overrides names 'digit'", "did you mean digits?"),
    (["datasets", "colours", "root"], "/nowhere", "datasets.colours.root is '/nowhere'", "there is no such folder"),
    (["models", "small", "weights"], "no.pt", "models.small.weights is 'no.pt'", "there is no such file"),
]


def config_of(images):
    config = small_config(images)
    return config | {"datasets": config["datasets"] | {"digits": {"kind": "digits"}}, "indirect_reuse": [STUDENTS]}


@pytest.mark.parametrize(("path", "text", "names", "to_do"), CONFIG, ids=[str(case[:2]) for case in CONFIG])
def test_a_mistake_in_the_config(path, text, names, to_do, colours, said):
    raw = change(config_of(colours), path, yaml.safe_load(text))
    if path == ["models", "small", "weights"]:
        del raw["models"]["small"]["training"]
    sentence = said(lambda: validate(raw, SCHEMA))
    assert names in sentence and to_do in sentence


def test_without_a_mistake_the_config_is_accepted(colours):
    config = validate(config_of(colours), SCHEMA)
    assert len(target_problems(config)) == 3 and len(students(config)) == 5


# ------------------------------------------------------------------ images


PETS = ["train/cat/a", "train/cat/b", "train/dog/a", "train/dog/b", "test/cat/a", "test/dog/a"]


@pytest.fixture
def pets(tmp_path):
    """Two classes with two training images and one test image each."""
    root = tmp_path / "pets"
    for number, name in enumerate(
        ["train/cat/a", "train/cat/b", "train/dog/a", "train/dog/b", "test/cat/a", "test/dog/a"]
    ):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 10, 20)).save(path)
    return root


def emptied(folder):
    for path in folder.iterdir():
        path.unlink()


def forbidden(path):
    path.chmod(0)


def float_image(path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(path)


DATA = {
    "an empty class folder": (
        lambda root: emptied(root / "train/cat"), "train/cat has no images in it", "add some or remove the folder",
    ),
    "text named .jpg": (
        lambda root: (root / "train/cat/c.jpg").write_text("a cat"),
        "train/cat/c.jpg cannot be read as an image", "replace it or remove it",
    ),
    "a web page named .png": (
        lambda root: (root / "train/dog/c.png").write_text("<html><body>404</body></html>"),
        "train/dog/c.png cannot be read as an image", "replace it or remove it",
    ),
    "an empty file": (
        lambda root: (root / "train/cat/c.png").write_bytes(b""),
        "train/cat/c.png cannot be read as an image", "replace it or remove it",
    ),
    "a truncated JPEG": (
        lambda root: truncated(photograph(root / "test/dog/c.jpg")),
        "test/dog/c.jpg cannot be read as an image (image file is truncated", "replace it or remove it",
    ),
    "an image of fractions": (
        lambda root: float_image(root / "test/dog/c.tif"),
        "test/dog/c.tif cannot be read as an image (its pixels are fractions", "save it with 8 or 16 bits",
    ),
    "a link to a folder above": (
        lambda root: (root / "train/cat/more").symlink_to(root / "train"),
        "train/cat/more is a link back to a folder that it is in", "remove the link",
    ),
    "a link to its own folder": (
        lambda root: (root / "train/cat/more").symlink_to("."),
        "train/cat/more is a link back to a folder that it is in", "remove the link",
    ),
    "two folders that link to each other": (
        lambda root: [
            (root / f"{one}/{name}").symlink_to(root / f"{other}")
            for one, other, name in (("train/cat", "train/dog", "dogs"), ("train/dog", "train/cat", "cats"))
        ],
        "train/cat/dogs/cats is a link back to a folder that it is in", "remove the link",
    ),
    "an image that links to itself": (
        lambda root: (root / "train/cat/c.png").symlink_to("c.png"), "train/cat/c.png cannot be read", "remove it",
    ),
    "an image that links to nothing": (
        lambda root: (root / "train/cat/c.png").symlink_to("gone.png"), "train/cat/c.png cannot be read", "remove it",
    ),
    "a class that links to itself": (
        lambda root: (root / "train/eel").symlink_to("eel"),
        "train/eel cannot be read (Too many levels of symbolic links)", "remove it",
    ),
    "an unreadable image": (
        lambda root: forbidden(root / "train/cat/a.png"), "train/cat/a.png cannot be read", "replace it or remove it",
    ),
    "an unreadable class": (
        lambda root: forbidden(root / "train/cat"), "train/cat cannot be read (Permission denied)", "permissions",
    ),
    "an unreadable split": (
        lambda root: forbidden(root / "test"), "test cannot be read (Permission denied)", "its permissions",
    ),
    "an unreadable root": (lambda root: forbidden(root), "pets", "permissions"),
    "a class in train alone": (
        lambda root: (root / "train/eel").mkdir(), "has train/eel but no test/eel", "add the one or remove the other",
    ),
    "a class in test alone": (
        lambda root: (root / "test/eel").mkdir(), "has test/eel but no train/eel", "add the one or remove the other",
    ),
    "no folder test": (
        lambda root: (root / "test").rename(root / "exam"), "there is no folder", "give the folder that holds train/",
    ),
    "a file in place of train": (
        lambda root: ((root / "train").rename(root / "old"), (root / "train").write_text("")),
        "there is no folder", "give the folder that holds train/ and test/",
    ),
    "no classes": (
        lambda root: [shutil.rmtree(folder) for split in ("train", "test") for folder in (root / split).iterdir()],
        "train has no folders in it", "put the images of each class into one of their own",
    ),
    "a class whose name is no text": (
        lambda root: [os.mkdir(os.fsencode(root / split) + b"/\xff") for split in ("train", "test")],
        "train has a folder '\\udcff'", "rename it",
    ),
    "a class of two lines": (
        lambda root: [(root / split / "a\nb").mkdir() for split in ("train", "test")],
        "train has a folder 'a\\nb'", "rename it",
    ),
}  # fmt: skip


def prepare(root, folder, **options):
    """What the workflow does with a data set of its config; gives it."""
    config = validate(
        {"datasets": {"pets": {"kind": "imagefolder", "root": str(root), "size": 8, **options}}, "models": {}}, SCHEMA
    )
    prepare_dataset(dataset_entry(config, "pets"), folder, workers=1)
    return open_dataset(folder)


@pytest.mark.parametrize(("spoil", "names", "to_do"), DATA.values(), ids=DATA)
def test_a_mistake_in_the_images(spoil, names, to_do, pets, tmp_path, said):
    spoil(pets)
    try:
        with bound_by_permissions():
            sentence = said(lambda: prepare(pets, tmp_path / "new"))
    finally:
        for path in (pets, pets / "test", pets / "train/cat"):
            if path.is_dir():
                path.chmod(0o755)
    assert names in sentence and to_do in sentence
    assert not (tmp_path / "new" / "dataset.json").exists()


def palette(image):
    return image.convert("P", palette=Image.Palette.ADAPTIVE)


RED = (200, 40, 40)


@pytest.mark.parametrize(
    ("name", "image", "expected", "within"),
    [
        ("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0), 3),
        ("cmyk.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0), 3),
        ("grey16.png", Image.fromarray(np.full((8, 8), 0x8080, np.uint16)), (128, 128, 128), 0),
        ("grey16.tif", Image.fromarray(np.full((8, 8), 0x8080, np.uint16)), (128, 128, 128), 0),
        ("grey.png", Image.new("L", (8, 8), 77), (77, 77, 77), 0),
        ("grey_transparent.png", Image.new("LA", (8, 8), (77, 100)), (77, 77, 77), 0),
        ("palette.png", palette(Image.new("RGB", (8, 8), RED)), RED, 0),
        ("palette.gif", palette(Image.new("RGB", (8, 8), RED)), RED, 0),
        ("rgba.png", Image.new("RGBA", (8, 8), (*RED, 128)), RED, 0),
        ("one_bit.png", Image.new("1", (8, 8), 1), (255, 255, 255), 0),
        ("one_pixel.png", Image.new("RGB", (1, 1), RED), RED, 0),
        ("one_row.png", Image.new("RGB", (900, 1), RED), RED, 0),
        ("upper_case.PNG", Image.new("RGB", (8, 8), RED), RED, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusual_images_are_read_as_they_look(name, image, expected, within, pets, tmp_path):
    emptied(pets / "train/cat")
    image.save(pets / "train/cat" / name)
    found = prepare(pets, tmp_path / "new")
    assert found.train.images.shape == (3, 8, 8, 3) and found.train.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.train.images[0].astype(int), np.broadcast_to(expected, (8, 8, 3)), atol=within)


def test_names_of_classes_may_be_in_any_script(pets, tmp_path):
    for split in ("train", "test"):
        (pets / split / "cat").rename(pets / split / "kočka domácí")
        (pets / split / "dog").rename(pets / split / "犬")
    assert prepare(pets, tmp_path / "new").classes == ["kočka domácí", "犬"]


def test_a_link_to_another_folder_of_images_is_followed(pets, tmp_path):
    (tmp_path / "more").mkdir()
    photograph(tmp_path / "more" / "c.png")
    (pets / "train/cat/more").symlink_to(tmp_path / "more")
    assert prepare(pets, tmp_path / "new").train.labels.tolist() == [0, 0, 0, 1, 1]


def test_a_read_only_data_folder_is_enough(pets, tmp_path):
    places = [pets, *pets.rglob("*")]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with bound_by_permissions():
            assert len(prepare(pets, tmp_path / "new").train) == 4
    finally:
        for path in places:
            path.chmod(0o755)


# ------------------------------------------------------------------ weights


def without(name):
    return {key: value for key, value in build(4).state_dict().items() if key != name}


def cut(path, left, save=torch.save):
    save(build(4).state_dict(), path)
    truncated(path, left)


def script(path):
    module = torch.jit.trace(build(4).eval(), torch.zeros(1, 3, 16, 16))
    torch.jit.save(module, path)


DAMAGED = "copy or download it again"
MISFIT = "Name the architecture that it was saved from, or give another file"
HARMFUL = "save its state_dict() instead"
WEIGHTS = {
    "the shapes of another network": (
        "pt", lambda path: torch.save(build(4).state_dict() | {"3.weight": torch.zeros(9, 8, 3, 3)}, path),
        "mine.pt does not fit the architecture and the classes: 3.weight is (9, 8, 3, 3), not (16, 8, 3, 3)", MISFIT,
    ),
    "another number of classes": (
        "pt", lambda path: torch.save(build(7).state_dict(), path),
        "mine.pt has 7 outputs, but the images show 4 classes: name the outputs in order under classes", "",
    ),
    "missing keys": (
        "pt", lambda path: torch.save(without("8.bias"), path), "the architecture: 8.bias is missing", MISFIT,
    ),
    "keys that are too many": (
        "safetensors", lambda path: save_file(build(4).state_dict() | {"fc.bias": torch.zeros(1)}, path),
        "does not fit the architecture, which has no fc.bias", MISFIT,
    ),
    "numbers as keys": (
        "pt", lambda path: torch.save({1: torch.zeros(2)}, path), "mine.pt holds no state dictionary", "state_dict()",
    ),
    "no tensors": (
        "pt", lambda path: torch.save({"epoch": 3}, path), "mine.pt holds no state dictionary", "state_dict()",
    ),
    "a file without tensors": (
        "safetensors", lambda path: save_file({}, path), "holds no state dictionary", "state_dict()",
    ),
    "a web page named .pt": (
        "pt", lambda path: path.write_text("<html>404</html>"), "is not a whole weights file of the kind", DAMAGED,
    ),
    "the pointer of a large file": (
        "pth", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is not a whole weights file of the kind that its name says (.pth)", DAMAGED,
    ),
    "a picture named .safetensors": (
        "safetensors", lambda path: photograph(path, format="png"), "is not a whole weights file of the kind", DAMAGED,
    ),
    "a checkpoint named .safetensors": (
        "safetensors", lambda path: torch.save(build(4).state_dict(), path), "is not a whole weights file", DAMAGED,
    ),
    "safetensors named .pt": (
        "pt", lambda path: save_file(build(4).state_dict(), path), "is not a whole weights file", DAMAGED,
    ),
    "half a checkpoint": ("pt", lambda path: cut(path, 0.5), "is not a whole weights file", DAMAGED),
    "a checkpoint but for its end": ("pt", lambda path: cut(path, 0.999), "is not a whole weights file", DAMAGED),
    "half a file of safetensors": (
        "safetensors", lambda path: cut(path, 0.5, save_file), "is not a whole weights file", DAMAGED,
    ),
    "half an old checkpoint": (
        "pt", lambda path: cut(path, 0.1, lambda *file: torch.save(*file, _use_new_zipfile_serialization=False)),
        "is not a whole weights file", DAMAGED,
    ),
    "an empty file": ("pt", lambda path: path.write_bytes(b""), "is not a whole weights file", DAMAGED),
    "a pickle with code in it": (
        "pt", lambda path: path.write_bytes(pickle.dumps(Harm(), protocol=2)), "could run code", HARMFUL,
    ),
    "a checkpoint with code in it": (
        "pt", lambda path: torch.save({"a": Harm()}, path), "holds no state dictionary", "state_dict()",
    ),
    "another module": ("pt", lambda path: torch.save(build(7), path), "has 7 outputs, but the images show 4", ""),
    "TorchScript": ("pt", script, "is TorchScript", HARMFUL),
    "an unreadable file": (
        "pt", lambda path: (torch.save(build(4).state_dict(), path), forbidden(path)),
        "The weights file", "its permissions",
    ),
    "no file": ("pt", lambda path: None, "does not exist", "correct its path"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("suffix", "write", "names", "to_do"), WEIGHTS.values(), ids=WEIGHTS)
def test_a_mistake_in_the_weights(suffix, write, names, to_do, tmp_path, earlier, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"mine.{suffix}"
    write(path)
    target = earlier / "models/mine/source.safetensors"  # of a run before: it stays
    classes = list("abcd")
    with bound_by_permissions():
        sentence = said(lambda: fetch_weights(ARCHITECTURE, str(path), "imagefolder", [classes], target, NORMALIZATION))
    assert str(path) in sentence and names in sentence and to_do in sentence
    assert not (tmp_path / "harmed").exists()


ARCHITECTURES = {
    "imports what is not there": ("import nowhere\ndef build(classes): ...\n", "No module named 'nowhere'", "correct"),
    "fails": ("def build(classes):\n    raise KeyError('width')\n", "KeyError: 'width'", "correct it"),
    "takes two arguments": ("def build(a, b):\n    ...\n", "missing 1 required positional argument", "correct it"),
    "leaves": ("import sys\nsys.exit()\ndef build(classes): ...\n", "SystemExit", "correct it"),
    "gives nothing": ("def build(classes):\n    ...\n", "an object of type NoneType", "return a torch.nn.Module"),
}


@pytest.mark.parametrize(("code", "names", "to_do"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_mistake_in_the_code_of_an_architecture(code, names, to_do, tmp_path, said):
    path = tmp_path / "mine.py"
    path.write_text(code)
    sentence = said(lambda: build_model(f"{path}:build", 4))
    assert str(path) in sentence and names in sentence and to_do in sentence


# ------------------------------------------------------------------ the machine


def test_a_folder_that_must_not_be_written(earlier, tmp_path, said):
    folder = earlier / "datasets/colours"
    folder.chmod(0o555)
    try:
        with bound_by_permissions():
            sentence = said(lambda: write_json(folder / "dataset.json", {}))
    finally:
        folder.chmod(0o755)
    assert f"Cannot write {folder}/dataset.json (Permission denied)" in sentence and "its permissions" in sentence


def test_a_data_set_where_nothing_must_be_written(pets, tmp_path, said):
    (tmp_path / "new").mkdir(0o555)
    with bound_by_permissions():
        sentence = said(lambda: prepare(pets, tmp_path / "new"))
    assert "Cannot write" in sentence and "(Permission denied)" in sentence and "its permissions" in sentence


def test_a_result_that_must_not_be_read(earlier):
    for name, read in (("datasets/colours/dataset.json", read_json), ("models/mine/source.safetensors", load_tensors)):
        path = earlier / name
        before = path.read_bytes()
        with pytest.raises(UserError, match="Cannot read .*Permission denied.*its permissions"):
            forbidden(path)
            try:
                with bound_by_permissions():
                    read(path)
            finally:
                path.chmod(0o644)
        assert path.read_bytes() == before


def test_a_download_to_a_read_only_cache(tmp_path, said):
    (tmp_path / "cache").mkdir(0o555)
    with bound_by_permissions():
        sentence = said(lambda: fetch("http://127.0.0.1:9/w.pt", tmp_path / "cache/w.pt", "0" * 64))
    assert "Cannot write" in sentence and "w.pt (Permission denied)" in sentence


def test_a_file_that_lies_in_a_read_only_cache_is_taken(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/w.pt").write_bytes(b"weights")
    (tmp_path / "cache").chmod(0o555)
    with bound_by_permissions():
        fetch("http://127.0.0.1:9/w.pt", tmp_path / "cache/w.pt", hashlib.sha256(b"weights").hexdigest())


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path, capfd):
    (tmp_path / "logs").mkdir(0o555)
    with bound_by_permissions(), pytest.raises(SystemExit) as end, job_log(tmp_path / "logs/job.log"):
        raise AssertionError("the job must not begin")
    error = capfd.readouterr().err.strip()
    assert end.value.code == 1
    assert error.startswith(f"Error: Cannot write the log {tmp_path}/logs/job.log (Permission denied)")
    assert error.endswith("its permissions.")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is not everywhere")
def test_a_log_on_a_full_disk_does_not_hide_the_sentence(tmp_path, capfd):
    (tmp_path / "job.log").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as end, job_log(tmp_path / "job.log"):
        logging.getLogger("seam").info("said before")
        with atomic_write(tmp_path / "table.csv") as temporary, open("/dev/full", "w") as full:
            temporary.touch()
            full.write("more than there is room for")
    assert end.value.code == 1
    error = capfd.readouterr().err.strip()
    assert error.startswith("Error: Cannot write ") and "No space left on device" in error and "\n" not in error


def test_a_name_that_is_no_text_does_not_break_the_log(tmp_path, capfd):
    with pytest.raises(SystemExit), job_log(tmp_path / "job.log"):
        raise UserError("c\udcff.png cannot be read.")
    assert "Traceback" not in capfd.readouterr().err
    assert "c\\udcff.png cannot be read." in (tmp_path / "job.log").read_text()


def test_what_nobody_thought_of_is_a_line_that_names_the_log(tmp_path, capfd):
    with pytest.raises(SystemExit) as end, job_log(tmp_path / "job.log"):
        raise ZeroDivisionError("one by none")
    error = capfd.readouterr().err.strip()
    assert end.value.code == 1 and "\n" not in error
    assert error.startswith("Error: ZeroDivisionError: one by none") and str(tmp_path / "job.log") in error
    assert "Traceback" in (tmp_path / "job.log").read_text()


@pytest.mark.parametrize(
    ("python", "work", "sentence"),
    [
        ("/my env/bin/python", "work", "Snakemake cannot start jobs with /my env/bin/python, which has a space"),
        ("/bin/python", "a{b}", "a{b} has a brace in its path, a wildcard to Snakemake: rename it."),
        ("/bin/python", "link", "link/results is neither a folder nor a link to one: remove it."),
        ("/bin/python", "part", "part/results/direct is a link: link the whole folder results instead."),
    ],
)
def test_a_place_in_which_nothing_can_run(tmp_path, python, work, sentence):
    for name in ("work", "a{b}", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "link/results").symlink_to(tmp_path / "nowhere")
    (tmp_path / "part/results").mkdir(parents=True)
    (tmp_path / "part/results/direct").symlink_to(tmp_path / "work")
    check_places("/bin/python", tmp_path / "clone", tmp_path / "work")
    with pytest.raises(UserError) as error:
        check_places(python, tmp_path / "clone", tmp_path / work)
    assert sentence in str(error.value)
