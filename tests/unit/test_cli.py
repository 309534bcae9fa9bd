"""The command `seam`."""

import functools
import hashlib
from typing import Any

import pytest

import seam
from seam.cli.main import main
from seam.errors import UserError
from seam.files import write_json


@pytest.fixture
def target(tmp_path):
    """Return the folder of a re-engineered model, without the model itself."""
    folder = tmp_path / "red"
    metrics = {
        **{"model": "small", "dataset": "colours", "problem": "binary", "target": "red", "classes": ["red", "rest"]},
        **{"accuracy": {"source": 0.9, "reengineered": 0.95}, "retention": 0.25, "weights": 4000, "kept": 1000},
    }
    write_json(folder / "metrics.json", metrics)
    (folder / "masks.safetensors").touch()
    return folder


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"seam {seam.__version__}\n"


def test_a_target_problem_is_shown_with_the_costs_that_are_there(target, capsys):
    assert main(["show", str(target)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "re-engineered model",
        "binary red: red, rest",
        "0.9500 (source model: 0.9000)",
        "1,000 of 4,000 (25.00%)",
    ):
        assert text in shown
    assert "MACs" not in shown and " ms" not in shown
    write_json(target / "macs.json", {"source": {"total": 5000}, "reengineered": {"total": 2000}})
    times = {"source": {"mean_ms": 3.0, "median_ms": 2.0}, "reengineered": {"mean_ms": 3.0, "median_ms": 1.0}}
    latency = {
        "engine": "onnxruntime-int8",
        "version": "1.32.0",
        "gains_from_zeros": False,
        "statistic": "median",
        "measurements": [{"batch_size": 16, "threads": 1, **times}],
    }
    write_json(target / "latency_onnxruntime-int8.json", latency)
    accuracies = {"engine": "onnxruntime-int8", "accuracy": {"reengineered": 0.875, "source": 0.75}}
    write_json(target / "accuracy_onnxruntime-int8.json", accuracies)
    main(["show", str(target)])
    shown = capsys.readouterr().out
    assert "2,000 (source model: 5,000)" in shown and "1.00 ms (source model: 2.00 ms, 2.00 times as fast" in shown
    assert "16 images, 1 thread; version 1.32.0, gains from zeros: no)" in shown
    assert "0.8750 (source model: 0.7500)" in shown and "earlier model" not in shown


def test_costs_of_an_earlier_model_are_not_shown(target, capsys):
    (target / "model.onnx").write_bytes(b"this one")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in (("new", b"this one"), ("old", b"other"))}
    times = {name: {"mean_ms": 3.0} for name in ("source", "reengineered")}
    measured = {"version": "1", "gains_from_zeros": True, "statistic": "mean"}
    measured["measurements"] = [{"batch_size": 1, "threads": 1, **times}]
    for name, digest in digests.items():
        model = {"engine": name, "model_digests": {"reengineered": digest}}
        write_json(target / f"latency_{name}.json", model | measured)
        accuracies = {"accuracy": {"reengineered": 0.875, "source": 0.75}}
        write_json(target / f"accuracy_{name}.json", model | accuracies)
    macs = {"source": {"total": 5000}, "reengineered": {"total": 2000}, "masks_digest": digests["old"]}
    write_json(target / "macs.json", macs)
    main(["show", str(target)])
    shown = {line.strip().partition("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("old", "accuracy old", "MACs"):
        assert "measured on an earlier model: run the workflow again" in shown[name]
    assert "3.00 ms" in shown["new"] and "0.8750" in shown["accuracy new"]
    write_json(target / "macs.json", macs | {"masks_digest": hashlib.sha256(b"").hexdigest()})
    main(["show", str(target)])
    assert "2,000 (source model: 5,000)" in capsys.readouterr().out


def test_a_student_and_a_source_model_are_shown(tmp_path, capsys):
    student, source = tmp_path / "student", tmp_path / "source"
    training = {"model": "small", "dataset": "two", "student": "seam", "threshold": 0.5, "weights": 8, "kept": 4}
    write_json(student / "training.json", training | {"retention": 0.5})
    write_json(student / "metrics.json", {"accuracy": 0.5, "inherited": 3, "right": 12})
    (student / "student.safetensors").touch()
    write_json(source / "metrics.json", {"dataset": "colours", "accuracy": 0.75, "images": 80})
    (source / "source.safetensors").touch()
    assert main(["show", str(student)]) == main(["show", str(source)]) == 0
    shown = capsys.readouterr().out
    assert "seam, 0.5 of the weights removed" in shown and "3 of 12" in shown and "0.7500 on 80 test images" in shown


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nowhere", "There is no folder"), ("red", "metrics.json is missing"), (".", "holds no result: give a folder")],
)
def test_another_folder_is_a_sentence(name, sentence, target, capsys):
    (target / "metrics.json").unlink()
    assert main(["show", str(target.parent / name)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and sentence in error


@pytest.mark.parametrize(
    "metrics",
    [
        *({}, [], {"accuracy": 1}, {"accuracy": {"source": "x", "reengineered": None}}, None),
        {"model": "m", "dataset": "d", "problem": "p", "target": "t", "classes": [], "weights": 1, "kept": 1}
        | {"retention": 1, "accuracy": {"source": 10**400, "reengineered": 1}},
    ],
)
def test_a_malformed_result_of_somebody_else_is_a_sentence(metrics, tmp_path, capsys):
    (tmp_path / "masks.safetensors").touch()
    write_json(tmp_path / "metrics.json", metrics)
    assert main(["show", str(tmp_path)]) == 1
    assert "holds no result of this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card["size"].update(weights=0),
        lambda card: card["accuracy"].update(source=10**400),
        lambda card: card.update(settings=functools.reduce(lambda inner, _: {"a": inner}, range(490), {})),
    ],
    ids=["no weights", "a large number", "nested settings"],
)
def test_a_card_of_a_stranger_is_a_sentence(change, tmp_path, capsys):
    card: dict[str, Any] = {
        **{"format": "seam-delivery", "preprocessing": {"crop": 32, "resize": 32, "mean": [0], "std": [1]}},
        **{"name": "n", "classes": ["a", "b"], "problem": {"sentence": "s"}, "latency": [], "settings": {}},
        **{"accuracy": {"source": 0.5, "reengineered": 0.5, "per_class": {}}, "files": {}, "limits": [], "seed": 0},
        **{"size": {"kept": 1, "weights": 1, "bytes": {"model.onnx": 1}}, "data": {"name": "n", "licence": "l"}},
        **{"source": {"architecture": "a", "weights": "w", "sha256": "x", "licence": "l"}, "versions": {}},
        **{"images": {"train": 1, "holdout": 1, "test": 1}, "selected_epoch": 1, "epochs": 1, "selection": "last"},
    }
    (tmp_path / "model.safetensors").touch()
    write_json(tmp_path / "card.json", card | {"name": "\ud800 \u202ex\u2066"})
    assert main(["show", str(tmp_path)]) == 0
    assert "# \\ud800 \\u202ex\\u2066" in capsys.readouterr().out
    change(card)
    write_json(tmp_path / "card.json", card)
    assert main(["show", str(tmp_path)]) == 1
    assert "holds no result of this version" in capsys.readouterr().err


def test_names_from_a_file_give_the_terminal_no_commands(tmp_path, capsys):
    (tmp_path / "source.safetensors").touch()
    metrics = {"dataset": "\x1b]0;owned\x07\x1b[2J", "accuracy": 0.5, "images": 3}
    write_json(tmp_path / "metrics.json", metrics)
    assert main(["show", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07\\x1b[2J" in printed and "\x1b" not in printed
    assert str(UserError("the file \x1b[1mx is bad\r")) == "the file \\x1b[1mx is bad\\x0d"
