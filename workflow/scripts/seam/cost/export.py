"""A module as an ONNX file that DeepSparse and ONNX Runtime both run."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from seam.cost.branches import drop_zero_branches, has_removed_branches
from seam.errors import UserError, first_line
from seam.files import atomic_write, seal_onnx
from seam.log import log
from seam.models.surgery import copy_module, plain_attention

OPSET = 13  # the newest that DeepSparse 1.8.0 supports completely
MOST_BYTES = 2_100_000_000  # of weights in a file: Protocol Buffers end at 2 GiB
TOLERANCE = 1e-3  # of the largest output; a correct export of a deep network differs by some 1e-6


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    image_shape: tuple[int, ...],
    batch_size: int = 16,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write `module` in eval mode to `path`, and check that ONNX Runtime computes the same from it. Atomic.

    image_shape: (channels, height, width). The file's input is `images` [batch, *image_shape], float32, and its output
    `logits`. The batch size is free: both engines fix it when they load a model, and are then as fast as with a fixed
    one. Weights are stored as they are, zeros included. The module stays as it is.
    metadata: {name: value}, written into the file with each value as JSON. The digest of all this ends the file.

    Raises UserError if ONNX cannot express the module or if the file computes something else.
    """
    module = copy_module(module.module if isinstance(module, nn.DataParallel) else module).cpu().eval()
    if dtypes := {str(tensor.dtype) for tensor in module.parameters() if tensor.dtype != torch.float32}:
        raise UserError(f"The weights of the model of {path} are {', '.join(sorted(dtypes))}: export module.float().")
    if (size := sum(4 * tensor.numel() for tensor in (*module.parameters(), *module.buffers()))) > MOST_BYTES:
        raise UserError(
            f"Cannot export the model of {path} to ONNX: its weights take {size / 1e9:.1f} GB, and an ONNX file holds "
            f"at most {MOST_BYTES / 1e9:.1f} GB: choose a smaller model."
        )
    with atomic_write(path) as temporary:
        images = _random_images(batch_size, image_shape)
        try:
            _write(module, images, temporary, metadata or {})
        except OSError:  # of the disk
            raise
        except Exception as error:  # of the exporter, or of the model's own code
            raise UserError(
                f"Cannot export the model of {path} to ONNX ({_export_reason(error)}): rewrite that operation in the "
                "model's code."
            ) from error
        for size in {batch_size, 1}:  # other images than those of the trace, so that no number of theirs stays
            _check(module, temporary, -_random_images(size, image_shape), path)
        seal_onnx(temporary)


def onnx_metadata(classes: Sequence[str], normalization: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the metadata of a classifier's file: the names of its outputs, and mean and std for images in 0..1."""
    return {"classes": list(classes), **dict(zip(("mean", "std"), map(list, normalization), strict=True))}


def _write(module: nn.Module, images: torch.Tensor, path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    from seam.cost.symbolics import register_symbolics

    register_symbolics(OPSET)
    with warnings.catch_warnings(), torch.no_grad(), plain_attention(), _without_dump():
        # dynamo=False selects the TorchScript exporter, because DeepSparse cannot run the newer one's models.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)  # `_check` says whether one was right
        torch.onnx.export(
            module,
            (images,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    removed = has_removed_branches(module)
    if metadata or removed:
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
        if removed:
            drop_zero_branches(model)
        onnx.save(model, path)


@contextlib.contextmanager
def _without_dump() -> Iterator[None]:
    """Keep the whole graph of a model that cannot be exported off the terminal: torch prints it, with no way out."""
    log_graph = getattr(torch._C, "_jit_onnx_log", None)
    if log_graph is None:
        yield
        return
    torch._C._jit_onnx_log = lambda *values: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log_graph


def _check(module: nn.Module, path: Path, images: torch.Tensor, name: str | os.PathLike[str]) -> None:
    """Raise UserError unless ONNX Runtime and torch compute the same. `name` is the file's name in the sentence."""
    import numpy as np
    import onnxruntime

    try:
        with torch.no_grad():
            logits = module(images)
        if not isinstance(logits, torch.Tensor):
            raise UserError(
                f"The model of {name} returns a {type(logits).__name__}: it must return its logits, one tensor, alone."
            )
        expected = logits.numpy()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # its default is all cores
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        outputs = np.asarray(session.run(["logits"], {"images": images.numpy()})[0])
    except UserError:
        raise
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(
            f"ONNX Runtime cannot run the model of {name} for {len(images)} image(s) ({first_line(error)}): "
            "rewrite that part of the model's code so that it works for any number of images."
        ) from error
    difference = float(np.abs(outputs - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    log.info("%s: ONNX Runtime differs from torch by %.1e of the largest output", name, difference)
    if not difference <= TOLERANCE:  # also for NaN
        raise UserError(
            f"The ONNX file of {name} does not compute what the model does (its outputs differ by {difference:.1e} of "
            "the largest): look for random or data-dependent steps in the model's code."
        )


def _export_reason(error: Exception) -> str:
    """Return why torch cannot export a model, without its request to report that, and without its graph."""
    reason = " ".join(str(error).split()) or type(error).__name__
    for end in ("Please feel free", "[Caused by the value", "Inputs:"):
        reason = reason.partition(end)[0]
    return reason.removeprefix("Unsupported: ").rstrip(" .")[:300]


def _random_images(batch_size: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
