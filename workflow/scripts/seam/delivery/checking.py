"""`seam check`: what a model can and cannot do, in seconds, before anything is searched."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seam.cost.export import export
from seam.delivery.card import counted, percent
from seam.errors import UserError, one_line
from seam.masks.layers import maskable, unused_parameters
from seam.models.architectures import require_classifier
from seam.models.surgery import copy_module

ENGINE_IMAGES = 2  # that an engine computes


@dataclass
class Check:
    """What was found. findings: {step: sentence}; failed: the steps of which something fails later.

    layers: {layer: what is the matter, in a sentence}. engines: {engine: largest difference from torch as a share of
    the largest output, or why it cannot run the model}.
    """

    findings: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    engines: dict[str, float | str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def fail(self, step: str, sentence: str) -> None:
        """Record that a step fails."""
        self.findings[step] = sentence
        self.failed.append(step)


def check_network(module: nn.Module, outputs: int, size: int, export_model: bool = True) -> Check:
    """Return what a model can do on images of `size` px: masks, MACs, removal of channels, export, engines."""
    check, module = Check(), copy_module(module).cpu().eval()
    try:
        require_classifier(module, outputs, (size, size), "The model")
    except UserError as error:
        check.fail("runs", str(error))
        return check
    check.findings["runs"] = f"on images of {size} x {size} px, {outputs} outputs"
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    _check_masks(check, module, images)
    _check_macs(check, module, (3, size, size))
    _check_channels(check, module, images)
    if export_model:
        _check_engines(check, module, (3, size, size))
    return check


def _check_masks(check: Check, module: nn.Module, images: torch.Tensor) -> None:
    try:
        unused = unused_parameters(module, images)
        parameters = {name: value for name, value in maskable(module).items() if name not in unused}
    except UserError as error:
        check.fail("masks", str(error))
        return
    except Exception as error:  # a backward pass that fails
        check.fail("masks", f"gradients cannot be computed ({one_line(error)[:200]}): the search needs them.")
        return
    total = sum(value.numel() for value in module.parameters())
    share = sum(value.numel() for value in parameters.values()) / total
    check.numbers |= {"parameters": total, "maskable": share}
    check.findings["masks"] = f"{percent(share)} of {total:,} parameters can be masked"
    masked = {id(value) for value in parameters.values()}
    for name, layer in module.named_modules():
        unmasked = [(key, value) for key, value in layer.named_parameters(recurse=False) if id(value) not in masked]
        if not unmasked or isinstance(layer, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
            continue
        count = sum(value.numel() for _, value in unmasked)
        names = ", ".join(key for key, _ in unmasked)
        full = [f"{name}.{key}" if name else key for key, _ in unmasked]
        if all(key in unused for key in full):
            why = "the outputs do not depend on it"
        elif isinstance(layer, nn.RNNBase):
            why = "recurrent layers get no masks"
        elif isinstance(layer, nn.Embedding):
            why = "embeddings get no masks"
        else:
            why = "only convolutions, linear layers and attention get masks"
        check.layers[name or "the model itself"] = (
            f"{names} of {type(layer).__name__} ({counted(count, 'number')}, {percent(count / total)}) stays whole: "
            f"{why}."
        )
    if share < 0.5:
        check.fail("masks", f"only {percent(share)} of {total:,} parameters can be masked: the rest stays whole.")


def _check_macs(check: Check, module: nn.Module, shape: tuple[int, ...]) -> None:
    from seam.cost.macs import count_macs

    try:
        macs = count_macs(module, shape)
        empty = copy_module(module)
        with torch.no_grad():
            for value in maskable(empty).values():
                value.zero_()
        least = count_macs(empty, shape)["sparse"]["total"]
    except ImportError as error:
        check.findings["MACs"] = f"not counted: {one_line(error)}"
        return
    except Exception as error:
        check.findings["MACs"] = f"cannot be counted ({one_line(error)[:200]})"
        return
    total = macs["dense"]["total"]
    share = 1 - least / total if total else 0.0
    check.numbers |= {"macs": total, "maskable_macs": share}
    check.findings["MACs"] = f"{total / 1e6:,.1f} M for one image, of which masks can save up to {percent(share)}"


def _check_channels(check: Check, module: nn.Module, images: torch.Tensor) -> None:
    from seam.masks.channels import NEEDED, find_groups

    try:
        groups = find_groups(module, images)
    except Exception as error:
        check.findings["channels"] = f"none can be removed ({one_line(error)[:200]})"
        check.numbers["channels"] = 0
        return
    count, branches = groups.count - len(groups.branches), len(groups.branches)
    check.numbers |= {"channels": count, "branches": branches}
    sets, within = counted(count, "set"), counted(len(groups.sizes) - branches, "group")
    can = f"{sets} of channels in {within} can be removed"
    more = f", and {counted(branches, 'residual branch', 'residual branches')}" if branches else ""
    check.findings["channels"] = can + more
    for name, reason in groups.reasons.items():
        check.layers.setdefault(f"{name} (channels)", f"channels stay: {reason}.")
    for name in groups.staying:
        check.layers.setdefault(f"{name} (branch)", f"it stays: {NEEDED}.")


def _check_engines(check: Check, module: nn.Module, shape: tuple[int, ...]) -> None:
    from seam.cost.export import OPSET

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            export(module, path, shape, batch_size=ENGINE_IMAGES)
        except UserError as error:
            check.fail("export", str(error).replace(f"model of {path}", "model").replace(f"{path}", "the model"))
            return
        except ImportError as error:
            check.findings["export"] = f"not checked: {one_line(error)}"
            return
        check.findings["export"] = f"ONNX of opset {OPSET}, {path.stat().st_size / 1e6:.1f} MB"
        images = torch.randn(ENGINE_IMAGES, *shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = module(images).numpy()
        for engine, run in ENGINES.items():
            try:
                outputs = run(path, images.numpy())
            except ImportError:
                continue  # the engine is not installed
            except Exception as error:
                check.engines[engine] = _engine_reason(error, path)
                continue
            difference = float(np.abs(outputs - expected).max() / max(float(np.abs(expected).max()), 1e-12))
            check.engines[engine] = difference


def _engine_reason(error: Exception, path: Path) -> str:
    """Return why an engine does not run the model in the file `path`, in at most 200 characters."""
    from seam.engine.errors import EngineError

    reason = str(error) if isinstance(error, EngineError) else one_line(error)
    return reason.replace(f"{path}", "the model")[:200]


def _onnxruntime(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def _seam(path: Path, images: np.ndarray) -> np.ndarray:
    from seam.engine.engine import load

    return load(str(path), threads=1, fallback=False)(images)


def _openvino(path: Path, images: np.ndarray) -> np.ndarray:
    openvino = importlib.import_module("openvino")  # no requirement
    return np.asarray(openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images])[0])


ENGINES: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {
    "onnxruntime": _onnxruntime,
    "seam": _seam,
    "openvino": _openvino,
}
