"""Write a delivered folder from a result folder: every form of the model, its card, and a program for each runtime."""

from __future__ import annotations

import importlib.metadata
import io
import platform
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seam import __version__
from seam.cost.export import TOLERANCE, export, onnx_metadata
from seam.cost.latency import is_disturbed
from seam.cost.macs import count_macs
from seam.data.decoding import stored_size
from seam.delivery.card import Card, limits, listed, render_card
from seam.delivery.replacing import replaced
from seam.delivery.snippets import SNIPPETS
from seam.errors import UserError, one_line, printable
from seam.files import atomic_write, read_json, save_tensors, sha256, write_json, write_text
from seam.log import log
from seam.models.weights import open_source
from seam.precision import torch_defaults
from seam.report.measured import is_of_the_model, read_metrics
from seam.reuse.cards import CARD, FORMAT, NETWORK, WEIGHTS
from seam.reuse.delivered import OnnxModule
from seam.reuse.load import load_reengineered

INT8 = "model-int8.onnx"
INT8_TOLERANCE = 0.5  # of the largest output, on images with half of the usual contrast; some 4 % are usual
C_FILES = ("model.c", "model.h", "main.c", "Makefile")  # as `seam.engine.emit` writes a model of the name `model`
MEANINGS = {
    NETWORK: "the network for ONNX Runtime and other engines (`use_onnxruntime.py`)",
    INT8: "the same with weights and activations of 8 bits",
    "model.c": "the same as C code without dependencies: `make`, then `./model images.bin`; `model.h` says how to call "
    "it, and `main.c` is an example",
    "model.pt2": "the same as a program of torch.export, without anybody's Python code (`use_torch.py`). "
    "`torch.export.load` can run code that a stranger put into such a file, so load only one that you trust",
    WEIGHTS: "the weights; `seam.load(folder)` runs no code from the folder (`use_seam.py`)",
    "labels.txt": "the names of the outputs, in order",
    CARD: "this card for programs",
}
GIVEN_NOWHERE = "not given; ask its owner before you ship"


def write_package(
    result_folder: str | Path,
    dataset_folder: str | Path,
    out: str | Path,
    *,
    source_folder: str | Path | None = None,
    architecture: str | None = None,
    about: Mapping[str, Any] | None = None,
    with_c: bool = False,
) -> Card:
    """Write the delivered folder `out` of the re-engineered model in `result_folder`; return its card.

    dataset_folder: that of the prepared data set. source_folder, architecture: as in `load_reengineered`. about: what
    the results do not say, such as `weights`, `licence`, `data` and `data_licence`. Files that are in the result folder
    (model.onnx, model-int8.onnx, macs.json, latency_*.json) are taken from there, and so is the C code if it is this
    program's own (`with_c`): nothing says whether that of somebody else's folder does what the model does. An earlier
    delivery in `out` is replaced, or moves to a folder beside it if its model is another one (`replaced`).
    """
    with replaced(Path(out), (NETWORK, WEIGHTS, INT8, *C_FILES), (*MEANINGS, *SNIPPETS, "card.md")) as staging:
        words = {name: printable(value) if isinstance(value, str) else value for name, value in (about or {}).items()}
        return _write_files(
            Path(result_folder), Path(dataset_folder), staging, source_folder, architecture, words, with_c
        )


def _write_files(
    folder: Path,
    dataset_folder: Path,
    out: Path,
    source_folder: str | Path | None,
    architecture: str | None,
    about: dict[str, Any],
    with_c: bool,
) -> Card:
    """Write all files of a delivery into the empty folder `out`, and return its card. See `write_package`."""
    manifest = read_json(dataset_folder / "dataset.json")
    size = int(manifest["size"][0])
    shape = (3, size, size)
    model = _measured_model(folder, source_folder, architecture, shape)
    metrics = read_metrics(folder, model.recovered)
    source = open_source(source_folder or _source_of(folder), architecture=architecture)
    if (folder / NETWORK).is_file():
        shutil.copyfile(folder / NETWORK, out / NETWORK)
    else:
        export(model, out / NETWORK, shape, metadata=onnx_metadata(model.classes, model.normalization))
    for name in C_FILES if with_c else ():
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    _copy_int8(folder / INT8, out / INT8, model, shape)
    save_tensors(
        out / WEIGHTS,
        model.state_dict(),
        {
            "architecture": source.architecture,
            "source_classes": len(source.classes),
            "classes": model.classes,
            "normalization": model.normalization,
            "size": size,
        },
    )
    write_program(model, out / "model.pt2", shape)
    write_text(out / "labels.txt", "".join(f"{name}\n" for name in model.classes))
    for name, text in SNIPPETS.items():
        if name != "use_torch.py" or (out / "model.pt2").is_file():
            write_text(out / name, text)

    accuracy, balanced = metrics["accuracy"], metrics["balanced_accuracy"]
    decided_by, settings = metrics["decided_by"], metrics["settings"]
    granularity = settings.get("granularity", "weight")
    source_file = Path(source_folder or _source_of(folder)) / NETWORK
    card: Card = {
        "format": FORMAT,
        "format_version": 1,
        "name": about.get("name") or f"{metrics['model']}-{metrics['target']}",
        "classes": model.classes,
        "problem": {
            "kind": metrics["problem"],
            "target": metrics["target"],
            "sentence": _sentence(metrics, model.recovered),
            **({"members": metrics["members"]} if "members" in metrics else {}),
        },
        # Of a group, the source model has to choose among the same classes: the fair comparison.
        "accuracy": {
            "source": accuracy.get("source_restricted", accuracy["source"]),
            "reengineered": accuracy["reengineered"],
            "balanced": {
                "source": balanced.get("source_restricted", balanced["source"]),
                "reengineered": balanced["reengineered"],
            },
            # Of the balanced accuracy where that decides.
            "before_recovery": metrics["recovery"][decided_by]["before"] if model.recovered else None,
            "decided_by": decided_by,
            "per_class": _per_class(metrics),
            "confusion": metrics["confusion"],
            "int8": _int8_accuracy(folder) if (out / INT8).is_file() else None,
        },
        "images": metrics["images"],
        "selection": metrics["settings"]["selection"],
        "granularity": granularity,
        "size": {
            "weights": metrics["weights"],
            "kept": metrics["kept"],
            "parameters": {
                name: sum(value.numel() for value in module.parameters())
                for name, module in (("source", source.module), ("reengineered", model))
            },
            "source_onnx_bytes": source_file.stat().st_size if source_file.is_file() else None,
            "bytes": {path.name: path.stat().st_size for path in sorted(out.glob("model*"))},
        },
        "budget": metrics.get("budget"),
        "macs": _macs(folder, source.module, model, shape),
        "latency": _latency(folder),
        "preprocessing": {
            "resize": stored_size(size),
            "crop": size,
            "mean": list(model.normalization[0]),
            "std": list(model.normalization[1]),
        },
        "source": {
            "architecture": source.architecture.rpartition("/")[2],
            "classes": len(source.classes),
            "weights": str(about.get("weights") or "not recorded"),
            "sha256": sha256(source_file.with_name("source.safetensors")),
            "licence": about.get("licence") or GIVEN_NOWHERE,
        },
        "data": {
            "name": str(about.get("data") or metrics["dataset"]),
            "classes": manifest["classes"],
            "digest": sha256(dataset_folder / "dataset.json"),
            "split_here": (dataset_folder / "split.csv").is_file(),
            "licence": about.get("data_licence") or GIVEN_NOWHERE,
        },
        "settings": settings,
        "recovery": metrics["recovery"]["settings"] if model.recovered else None,
        "seed": metrics["seed"],
        "epochs": metrics["epochs"],
        "selected_epoch": metrics["selected_epoch"],
        "versions": _versions(metrics),
    }
    card["limits"] = limits(card)
    card["files"] = {name: meaning for name, meaning in MEANINGS.items() if name == CARD or (out / name).is_file()}
    card["sha256"] = {path.name: sha256(path) for path in sorted(out.iterdir()) if path.name != "card.md"}
    write_text(out / "card.md", render_card(card))
    write_json(out / CARD, card)
    return card


def _measured_model(
    folder: Path, source_folder: str | Path | None, architecture: str | None, shape: tuple[int, ...]
) -> Any:
    """Return the model of a result folder, after its recovery or before it: the one whose model.onnx the folder holds.

    A recovery that is no longer wanted leaves its weights behind, and what was measured since then is without it.
    Raises UserError if model.onnx is neither of the two.
    """
    model, path = load_reengineered(folder, source_folder, architecture), folder / NETWORK
    if not path.is_file():
        return model
    file, images = OnnxModule(path), torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    while not _agree(file(images), model(images)):
        if not model.recovered:
            raise UserError(f"{path} is not the model of the masks beside it: run the workflow again to make it.")
        model = load_reengineered(folder, source_folder, architecture, recovered=False)
        log.info("%s is the model before its recovery, and so is all that is delivered", path)
    return model


def _copy_int8(path: Path, target: Path, model: Any, shape: tuple[int, ...]) -> None:
    """Copy a quantized model, if there is one that gives nearly the outputs of `model`; otherwise warn.

    A folder from a stranger can hold, or link to, any file under that name, and an earlier search can have left one.
    """
    if not path.is_file():
        return
    shutil.copyfile(path, target)
    images = 0.5 * torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    try:
        outputs, expected = OnnxModule(target)(images), model(images)
        is_same = outputs.shape == expected.shape and bool(
            (outputs - expected).abs().max() <= INT8_TOLERANCE * expected.abs().max()
        )
    except UserError as error:
        log.warning("%s", error)
        is_same = False
    if not is_same:
        target.unlink()
        log.warning("no %s: %s is not this model in int8; remove it, and run the workflow again to make it", INT8, path)


def _agree(outputs: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(outputs, expected, rtol=0.0, atol=TOLERANCE * float(expected.abs().max()))


def write_program(model: Any, path: Path, shape: tuple[int, ...]) -> None:
    """Write the model as a program of torch.export, checked by running it; nothing, and a warning, if it cannot be.

    The batch size is free.
    """
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch_defaults():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
            content = io.BytesIO()  # torch would end the process if it found the disk full
            torch.export.save(program, content)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content.getbuffer())
            outputs = torch.export.load(str(path)).module()(images[:1])
            expected = model(images[:1])
    except UserError:
        raise
    except Exception as error:  # torch.export raises many kinds
        path.unlink(missing_ok=True)
        log.warning("no model.pt2: torch.export cannot express the model (%s)", one_line(error)[:200])
        return
    if not _agree(outputs, expected):
        path.unlink()
        log.warning("no model.pt2: its outputs differ from the model's")


def _source_of(folder: Path) -> Path:
    from seam.files import load_tensors

    return folder / str(load_tensors(folder / "masks.safetensors")[1]["source"])


def _sentence(metrics: dict[str, Any], recovered: bool) -> str:
    classes, name = metrics["classes"], metrics["model"]
    answers = f"It tells {listed(classes)} apart."
    if metrics["problem"] == "binary":
        answers = f"It tells images of class {classes[0]} from all others."
    elif metrics["problem"] == "group":
        answers = f"It tells the group {classes[0]} ({', '.join(metrics['members'])}) from all other images."
    channels = metrics["settings"].get("channels")
    if channels:
        trained = ", and the others are trained further" if channels["train_weights"] or recovered else ""
        units = "channels and residual branches" if metrics.get("branches_removed") else "channels"
        return f"{answers} It is the network {name} without the {units} that are not needed{trained}."
    trained = ", trained further" if recovered else ""
    return f"{answers} It is a part of the network {name}{trained}: weights that are not needed are zero."


def _per_class(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return {class: its test images, and the shares of them that the source model and the result get right}."""
    before, after = (metrics["per_class"][name] for name in ("source", "reengineered"))
    return {
        name: {"accuracy": after[name]["recall"], "source": before[name]["recall"], "images": images}
        for name, images in metrics["test_images"].items()
        if images
    }


def _current(path: Path) -> dict[str, Any] | None:
    """Return the measurement in a file; None if there is none, or, with a warning, if it is of an earlier model."""
    if not path.is_file():
        return None
    measured = read_json(path)
    if is_of_the_model(measured, path.parent):
        return measured
    log.warning("%s is of an earlier model than the one beside it: it is left out", path)
    return None


def _macs(folder: Path, source: Any, model: Any, shape: tuple[int, ...]) -> dict[str, int] | None:
    if macs := _current(folder / "macs.json"):
        return {name: macs[name]["total"] for name in ("source", "reengineered")}
    try:
        return {
            "source": count_macs(source, shape)["dense"]["total"],
            "reengineered": count_macs(model, shape)["sparse"]["total"],
        }
    except ImportError:
        return None


def _int8_accuracy(folder: Path) -> float | None:
    """Return the accuracy of the quantized model, if it was measured."""
    measured = _current(folder / "accuracy_onnxruntime-int8.json")
    return measured["accuracy"]["reengineered"] if measured else None


def _latency(folder: Path) -> list[dict[str, Any]]:
    entries = []
    for path in sorted(folder.glob("latency_*.json")):
        if (times := _current(path)) is None:
            continue
        common = {name: times.get(name) for name in ("engine", "version", "cpu", "gains_from_zeros", "statistic")}
        common["fallback"] = next(map(fallback_words, times.get("fallback", {}).values()), None)
        for measured in times["measurements"]:
            entry = {**common, "batch_size": measured["batch_size"], "threads": measured["threads"]}
            names = ("source", "reengineered")
            entry["disturbed"] = any(is_disturbed(measured[name]) for name in names)
            for name in names:
                entry[f"{name}_ms"] = measured[name][f"{times['statistic']}_ms"]
            entries.append(entry)
    return entries


def fallback_words(reason: str) -> str:
    """Return why ONNX Runtime ran a model instead of seam.engine, without the paths of this machine.

    >>> fallback_words("The engine does not run /home/me/model.onnx, because it has Erf.")
    'The engine does not run this model, because it has Erf.'
    """
    if match := re.match(r"The engine does not run .*model\.onnx, (because .*)", reason, re.DOTALL):
        return f"The engine does not run this model, {match[1]}"
    return "The kernels of the engine could not be made on this machine." if "/" in reason else reason


def _versions(metrics: dict[str, Any]) -> dict[str, str]:
    versions = {"seam": __version__, "python": platform.python_version(), "torch": str(metrics.get("torch"))}
    for package in ("torchvision", "onnx", "onnxruntime", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
