"""The names of a model's outputs, matched with the classes of a data set."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from small import build

from seam.errors import UserError
from seam.models import published
from seam.models.architectures import build_model
from seam.models.classes import match_classes, names_in, read_class_file
from seam.models.published import fetch_weights
from seam.models.weights import open_source

NORMALIZATION = ((0.5,) * 3, (0.25,) * 3)


def outputs(*names):
    return [[name] for name in names]


def test_classes_are_found_by_name_without_regard_to_case_and_dashes():
    names = match_classes(outputs("tench", "Golden Retriever", "cat"), ["golden_retriever", "Cat"], "The weights")
    assert names == ["tench", "golden_retriever", "Cat"]


def test_an_output_is_found_by_any_of_its_names_and_keeps_the_first_otherwise():
    known = [["tench", "n01440764"], ["crane", "n02012849"], ["crane", "n03126707"]]
    assert match_classes(known, ["n03126707", "n01440764"], "W") == ["n01440764", "crane", "n03126707"]
    with pytest.raises(UserError, match=r"more than one class crane \(crane/n02012849 or crane/n03126707\)"):
        match_classes(known, ["crane"], "The weights")


def test_the_names_of_outputs_stay_different():
    assert match_classes([["crane", "a"], ["crane", "b"]], [], "W") == ["crane", "crane (output 1)"]


def test_classes_in_any_script():
    assert match_classes(outputs("猫", "СОБАКА", "café"), ["собака", "cafe\u0301", "猫"], "W") == [
        "猫",
        "собака",
        "cafe\u0301",
    ]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [(["dog"], "The weights know no class dog, but cat, ox: rename"), (["cat", "Cat"], "cat and Cat are the same")],
)
def test_classes_that_cannot_be_matched(wanted, sentence):
    with pytest.raises(UserError, match=sentence):
        match_classes(outputs("cat", "ox"), wanted, "The weights")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["a", "b"], ["a", "b"]), ({"1": "b", "0": "a"}, ["a", "b"]), ({1: "b", 0: "a"}, ["a", "b"]),
        ({"b": 1, "a": 0}, ["a", "b"]), ({"a": 1, "b": 2}, None), ([1, 2], None), ({}, None), ("ab", None),
    ],
)  # fmt: skip
def test_the_forms_of_a_list_of_names(value, names):
    assert names_in(value) == names


def test_files_of_names(tmp_path):
    (tmp_path / "a.txt").write_text("cat\n\n  Grand piano \n")
    (tmp_path / "a.json").write_text(json.dumps({"1": "dog", "0": "cat"}))
    assert read_class_file(tmp_path / "a.txt") == ["cat", "Grand piano"]
    assert read_class_file(tmp_path / "a.json") == ["cat", "dog"]
    deep = "[" * 100_000 + "]" * 100_000
    for name, content in (
        *(("twice.txt", "a\na\n"), ("empty.txt", ""), ("b.json", '{"a": 5}'), ("c.json", "{"), ("deep.json", deep)),
        ("d.json", '{"cat": Infinity}'),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=name):
            read_class_file(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="pipe.txt is a pipe"):
        read_class_file(tmp_path / "pipe.txt")


def fetched(tmp_path, weights, class_lists, **options):
    torch.manual_seed(0)
    path = tmp_path / "source.safetensors"
    fetch_weights(f"{build.__code__.co_filename}:build", str(weights), "imagefolder", class_lists, path,
                  NORMALIZATION, **options)  # fmt: skip
    return open_source(tmp_path, architecture=f"{build.__code__.co_filename}:build")


def test_weights_of_more_classes_than_the_data_set(tmp_path):
    torch.save(build(4).state_dict(), tmp_path / "mine.pt")
    source = fetched(tmp_path, tmp_path / "mine.pt", [["DOG", "cat"]], outputs=outputs("cat", "cow", "dog", "ox"))
    assert source.classes == ["cat", "cow", "DOG", "ox"]


def test_weights_that_bring_their_names(tmp_path):
    names = {"cat": 0, "cow": 1, "dog": 2, "ox": 3}
    torch.save({"model": build(4).state_dict(), "config": {"class_to_idx": names}}, tmp_path / "mine.pt")
    assert fetched(tmp_path, tmp_path / "mine.pt", [["dog"]], outputs="weights").classes == list(names)
    save_file(build(4).state_dict(), tmp_path / "mine.safetensors", {"id2label": json.dumps(dict(enumerate(names)))})
    assert fetched(tmp_path, tmp_path / "mine.safetensors", [["dog"]], outputs="weights").classes == list(names)
    torch.save(build(4).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt does not bring the names of its classes"):
        fetched(tmp_path, tmp_path / "other.pt", [["dog"]], outputs="weights")


def test_published_weights_are_found_by_label_or_wnid(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "fetch", lambda *_, **__: tmp_path / "nothing")
    monkeypatch.setattr(published, "read_state", lambda _: build_model("torchvision:squeezenet1_1", 1000).state_dict())
    wnids = [f"n{place:08}" for place in range(1000)]
    fetch_weights("torchvision:squeezenet1_1", "IMAGENET1K_V1", "imagefolder", [["tabby", "n00000001"], wnids],
                  tmp_path / "source.safetensors", outputs="weights")  # fmt: skip
    classes = open_source(tmp_path).classes
    assert classes[281] == "tabby" and classes[1] == "n00000001" and classes[0] == "tench"
    assert len(set(classes)) == 1000  # ImageNet's labels have two cranes and two maillots


@pytest.mark.parametrize(
    "code",
    ["build(num_classes=1000, width=8)", "build(width=8, *, num_labels)", "build(c)", "build(*sizes)",
     "build(pretrained=False, n_classes=3)"],
)  # fmt: skip
def test_a_factory_gets_the_number_of_classes_as_it_takes_it(tmp_path, code):
    parameters = ("num_classes", "num_labels", "n_classes", "sizes", "c")
    name = next(name for name in parameters if name in code.removeprefix("build"))
    name = "sizes[0]" if name == "sizes" else name
    (tmp_path / "mine.py").write_text(f"from torch import nn\ndef {code}:\n    return nn.Linear(2, {name})\n")
    assert build_model(f"{tmp_path}/mine.py:build", 7).out_features == 7


@pytest.mark.parametrize("code", ["build()", "build(pretrained=False)", "build(**options)"])
def test_a_factory_may_take_no_number_of_classes(tmp_path, code):
    (tmp_path / "mine.py").write_text(f"from torch import nn\ndef {code}:\n    return nn.Linear(2, 4)\n")
    assert build_model(f"{tmp_path}/mine.py:build", 7).out_features == 4
