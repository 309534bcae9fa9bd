"""A module as an ONNX file that DeepSparse and ONNX Runtime both run."""

import copy
import json
import warnings

import torch

from seam.errors import UserError
from seam.files import atomic_write
from seam.log import log

OPSET = 13  # the newest that DeepSparse 1.8.0 knows all of
TOLERANCE = 1e-3  # of the largest output; a right export of a deep network differs by some 1e-6


def export(module, path, image_shape, batch_size=16, about=None):
    """Write `module` in eval mode to `path`, and check that ONNX Runtime computes from it what torch does.

    image_shape: (channels, height, width). The file's input is `images` [batch, *image_shape], float32, its
    output `logits`. The batch is a free dimension, so that the file serves for one image as well: both
    engines fix it to the size that they are asked for when they load a model, and are then as fast as with
    a fixed one. Weights are stored as they are: zeros stay zeros. `module` is left as it is.
    about: {name: what JSON can hold}, the file's metadata, each value as JSON.

    Raises UserError where the module cannot be expressed in ONNX or the file computes something else; there
    is no file then.
    """
    module = copy.deepcopy(module).cpu().eval()
    with atomic_write(path) as temporary:
        images = _images(batch_size, image_shape)
        try:
            _write(module, images, temporary, about or {})
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .")
            raise UserError(
                f"Cannot export the model of {path} to ONNX ({reason}): rewrite that operation in the model's code."
            ) from error
        for size in {batch_size, 1}:
            _check(module, temporary, _images(size, image_shape), path)


def onnx_metadata(classes, normalization):
    """The metadata of a classifier's file: its outputs' names; mean and std per channel that images in 0..1 take."""
    return {"classes": list(classes), **dict(zip(("mean", "std"), map(list, normalization), strict=True))}


def _write(module, images, path, about):
    import onnx

    with warnings.catch_warnings(), torch.no_grad():
        # dynamo=False asks for the TorchScript exporter, as the newer one's models are beyond DeepSparse.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
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
    if about:
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
        onnx.save(model, path)


def _check(module, path, images, name):
    import numpy as np
    import onnxruntime

    try:
        with torch.no_grad():
            expected = module(images).numpy()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # by itself it takes all cores
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = session.run(["logits"], {"images": images.numpy()})[0]
    except Exception as error:  # onnxruntime's own errors have no common class
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .")
        raise UserError(
            f"ONNX Runtime cannot run the model of {name} for {len(images)} image(s) ({reason}): "
            "rewrite that part of the model's code so that it works for any number of images."
        ) from error
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    log.info("%s: ONNX Runtime differs from torch by %.1e of the largest output", name, difference)
    if not difference <= TOLERANCE:  # a NaN is no agreement either
        raise UserError(
            f"The ONNX file of {name} does not compute what the model does (its outputs differ by {difference:.1e} of "
            "the largest): look for random or data-dependent steps in the model's code."
        )


def _images(batch_size, shape):
    return torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
