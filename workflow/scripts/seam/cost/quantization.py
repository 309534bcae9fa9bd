"""Static quantization to int8 by ONNX Runtime, and the accuracy that it leaves."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seam.cost.packing import pack_columns, pad_images
from seam.errors import UserError, first_line
from seam.files import atomic_write, check_onnx_seal, seal_onnx
from seam.log import log


def quantize(source: str | os.PathLike[str], target: str | os.PathLike[str], batches: Iterable[np.ndarray]) -> None:
    """Write the ONNX model `source` with int8 weights and activations to `target`. Atomic.

    batches: normalised images, float32 [n, 3, H, W], from which the ranges of the activations are measured: the least
    and the largest value of each. The model gets pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime and
    OpenVINO both run in int8. Weights have a scale per output channel and 7 bits: on processors with AVX2 that lack
    the instructions for int8 (VNNI), the sum of two products of 8 bits can overflow. A zero stays zero. Layers of few
    channels get other shapes, `seam.cost.packing`, in which they are faster.

    Raises UserError if ONNX Runtime cannot quantize the model.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    check_onnx_seal(source)
    model = onnx.load(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key != "sha256"}
    name, iterator = model.graph.input[0].name, iter(batches)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            images = next(iterator, None)
            return None if images is None else {name: images}

    with atomic_write(target) as temporary, tempfile.TemporaryDirectory() as folder, _without_warnings():
        plain = Path(folder) / "model.onnx"  # without the digest, which would be that of another file
        del model.metadata_props[:]
        pack_columns(model)
        pad_images(model)
        onnx.save(model, plain)
        try:
            quantize_static(
                plain,
                temporary,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        except Exception as error:  # its errors have no common class
            raise UserError(
                f"ONNX Runtime cannot quantize {source} ({first_line(error)}): take the engines with int8 out of "
                "engines in the config."
            ) from error
        model = onnx.load(temporary)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, temporary)
        seal_onnx(temporary)
    log.info("%s: %d bytes, of %d in float32", target, os.path.getsize(target), os.path.getsize(source))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep ONNX Runtime's advice to do what the export has done out of the log; it goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of an ONNX file, as `seam.cost.export` wrote it: `classes`, `mean` and `std` of its images.

    Raises UserError if one of them is missing.
    """
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    try:
        return {name: json.loads(properties[name]) for name in ("classes", "mean", "std")}
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} does not say its classes and the normalisation of its images: delete it and run the workflow "
            "again."
        ) from error
