"""`seam evaluate`: which label an image has, and what the terminal shows of a folder that a stranger sent."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from colours import ARCHITECTURE, small_world
from PIL import Image

from seam.cli.main import main
from seam.delivery.evaluating import _labelled
from seam.delivery.package import write_package
from seam.errors import UserError
from seam.files import load_tensors, read_json, save_tensors, write_json
from seam.reuse.direct import reengineer

SETTINGS = {"epochs": 2, "batch_size": 16, "lr_mask": 0.05, "few_images": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of images of four colours, and a function that returns the delivered folder of a kind of problem."""
    root = tmp_path_factory.mktemp("evaluating")
    small_world(root)

    def delivered(problem, target, members):
        folder = root / problem
        reengineer(
            folder=folder / "result", model_folder=root / "small", dataset_folder=root / "data", model="small",
            dataset="colours", problem=problem, target=target, members=members, settings=SETTINGS, seed=0,
            device="cpu", checkpoint=folder / "x.pt", architecture=ARCHITECTURE,
        )  # fmt: skip
        write_package(folder / "result", root / "data", folder / "out", source_folder=root / "small",
                      architecture=ARCHITECTURE)  # fmt: skip
        return folder

    return root, delivered


def evaluated(capsys, folder, data, *options):
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", str(data), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_images_of_the_members_of_a_group_have_its_label(world, capsys):
    root, delivered = world
    folder = delivered("group", "warm", ["red", "yellow"])
    own = ["--size", "16", "--architecture", ARCHITECTURE]
    for place, options in ((folder / "out", []), (folder / "result", own)):
        found = evaluated(capsys, place, root / "colours", *options)
        assert found["classes"] == ["warm", "rest"] and [sum(row) for row in found["confusion"]] == [40, 40]
    card = read_json(folder / "out/card.json")
    assert card["problem"]["members"] == ["red", "yellow"]
    assert found["accuracy"] == pytest.approx(card["accuracy"]["reengineered"])

    shutil.copytree(folder / "out", folder / "older")
    del card["problem"]["members"]  # as earlier versions delivered it
    write_json(folder / "older/card.json", card)
    assert main(["evaluate", str(folder / "older"), "--data", str(root / "colours")]) == 1
    assert "does not say which classes are in its group warm" in capsys.readouterr().err
    for name in ("warm", "cold"):
        shutil.copytree(root / "colours/test/red", root / f"two/{name}")
    assert [sum(row) for row in evaluated(capsys, folder / "older", root / "two")["confusion"]] == [20, 20]


def test_other_classes_are_the_rest_if_there_is_one_and_are_left_out_aloud_if_not(world, capsys):
    root, delivered = world
    folder = delivered("multiclass_rest", "warm", ["red", "yellow"])
    assert [sum(row) for row in evaluated(capsys, folder / "out", root / "colours")["confusion"]] == [20, 20, 40]
    folder = delivered("multiclass", "warm", ["red", "yellow"])
    assert evaluated(capsys, folder / "out", root / "colours")["left_out"] == ["blue", "green"]
    assert main(["evaluate", str(folder / "out"), "--data", str(root / "colours")]) == 0
    assert "left out           blue and green: the model does not know them" in capsys.readouterr().out


def test_classes_whose_names_differ_in_case_alone_are_two(tmp_path):
    plain = np.zeros((8, 8, 3), np.uint8)
    for name in ("A", "a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(plain).save(tmp_path / name / "x.png")
    files, labels, left = _labelled(str(tmp_path), ["A", "a"], "multiclass", [])
    assert [Path(file).parent.name for file in files] == ["A", "a"] and labels.tolist() == [0, 1] and left == ["b"]
    files, labels, _ = _labelled(str(tmp_path), ["A", "rest"], "binary", [])
    assert {Path(file).parent.name: label for file, label in zip(files, labels, strict=True)} == {
        "A": 0,
        "a": 1,
        "b": 1,
    }
    assert _labelled(str(tmp_path), ["B", "rest"], "binary", [])[1].tolist() == [1, 1, 0]


def test_images_without_test_images_are_refused(tmp_path):
    plain = np.zeros((8, 8, 3), np.uint8)
    for place in ("train/cat", "train/dog", "testing/cat"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        Image.fromarray(plain).save(tmp_path / "photos" / place / "x.png")
    with pytest.raises(UserError, match="photos has a folder train and none called test: give the folder that holds"):
        _labelled(str(tmp_path / "photos"), ["cat", "rest"], "binary", [])
    # A model with a class that is called train knows the folder.
    (tmp_path / "tracks/train").mkdir(parents=True)
    Image.fromarray(plain).save(tmp_path / "tracks/train/x.png")
    assert _labelled(str(tmp_path / "tracks"), ["train", "rest"], "binary", [])[1].tolist() == [0]
    table = tmp_path / "photos.csv"
    table.write_text("path,label,split\nphotos/train/cat/x.png,cat,train\nphotos/testing/cat/x.png,cat,eval\n")
    with pytest.raises(UserError, match="photos.csv has no split called test, but train, eval: name the split"):
        _labelled(str(table), ["cat", "rest"], "binary", [])
    table.write_text("path,label\nphotos/train/cat/x.png,cat\nphotos/testing/cat/x.png,cat\n")
    assert len(_labelled(str(table), ["cat", "rest"], "binary", [])[0]) == 2


def test_a_home_that_the_shell_does_not_expand(world, capsys, monkeypatch):
    root, delivered = world
    monkeypatch.setenv("HOME", str(root))
    folder = delivered("binary", "blue", ["blue"])
    assert evaluated(capsys, folder / "out", "~/colours")["images"] == 80


def test_names_of_a_stranger_do_nothing_to_the_terminal(world, capsys):
    root, delivered = world
    folder = delivered("binary", "red", ["red"])
    path = folder / "out/model.safetensors"
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "classes": ["red\x1b]0;owned\x07", "rest"]})
    assert main(["evaluate", str(folder / "out"), "--data", str(root / "colours")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and r"red\x1b]0;owned\x07" in shown
