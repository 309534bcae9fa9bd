"""Load a delivered folder: a re-engineered model that needs neither its source model nor anybody's code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.errors import UserError, one_line
from seam.files import check_onnx_seal, load_tensors
from seam.masks.shrink import resize
from seam.models.architectures import ARCHITECTURES, require_classifier
from seam.models.surgery import with_head
from seam.models.unallocated import build_unallocated, unallocated
from seam.models.weights import MOST_OUTPUTS, load_state, read_classes, read_normalization
from seam.reuse.cards import NETWORK, WEIGHTS, read_card


def load_delivered(folder: str | Path) -> Any:
    """Return the model of a delivered folder: a module for inference that maps images [B, 3, H, W] to logits [B, n].

    Its attributes are `classes`, `normalization` and `size` (pixels). If the architecture is one of the package's or of
    torchvision, it is a plain torch module. Otherwise it runs model.onnx in ONNX Runtime, on the CPU and without
    gradients. Nothing in the folder makes code run. Raises UserError if a file is missing or damaged.
    """
    folder = Path(folder)
    card = read_card(folder)
    tensors, metadata = load_tensors(folder / WEIGHTS)
    classes, normalization = read_classes(metadata, folder / WEIGHTS), read_normalization(metadata, folder / WEIGHTS)
    module: Any = _torch_module(metadata, tensors, len(classes), folder) or _onnx_module(folder, len(classes))
    module.classes, module.normalization = classes, normalization
    module.size = side = card["preprocessing"]["crop"]
    if not isinstance(module, OnnxModule):
        advice = "ask for the folder once more"
        require_classifier(module, len(classes), (side, side), f"The model in {folder}", advice)
    return module.eval().requires_grad_(False)


def _torch_module(
    metadata: dict[str, Any], tensors: dict[str, torch.Tensor], outputs: int, folder: Path
) -> nn.Module | None:
    """Return the module if its architecture is known to the package and the weights fit it; else None."""
    architecture, width = metadata.get("architecture"), metadata.get("source_classes")
    if not isinstance(architecture, str) or type(width) is not int or not 0 < width <= MOST_OUTPUTS:
        return None
    if architecture not in ARCHITECTURES and not architecture.startswith(("torchvision:", "timm:")):
        return None
    try:
        network = build_unallocated(architecture, width)
    except UserError:  # timm is not installed
        return None
    with unallocated():
        module = with_head(network, width, outputs)
    resize(module, tensors)
    return module if load_state(module, tensors, folder / WEIGHTS) is None else None


def _onnx_module(folder: Path, classes: int) -> OnnxModule:
    """Return model.onnx as a module. Raises UserError if it has another number of outputs than the folder classes."""
    module = OnnxModule(folder / NETWORK)
    if module.outputs not in (None, classes):
        raise UserError(
            f"{folder / NETWORK} has {module.outputs} outputs, and the folder names {classes} classes: ask for the "
            "folder once more."
        )
    return module


class OnnxModule(nn.Module):
    """An ONNX file as a module for inference on the CPU, by ONNX Runtime."""

    def __init__(self, path: str | Path) -> None:
        """Raises UserError if the file is missing or damaged, or if ONNX Runtime is not installed."""
        super().__init__()
        check_onnx_seal(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path} needs ONNX Runtime: install it with pip install onnxruntime.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # its log would quote names from the file to the terminal
        self.path = path
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise self._cannot_run(error) from error
        outputs = [output.type for output in self.session.get_outputs()]
        shapes = [output.shape for output in self.session.get_outputs()]
        number = shapes[0][-1] if len(shapes) == 1 and len(shapes[0]) == 2 else None
        self.outputs = number if isinstance(number, int) else None  # None: the file does not say it
        if len(self.session.get_inputs()) != 1 or outputs != ["tensor(float)"]:
            raise UserError(
                f"{path} is not a model with images as its input and logits as its output: ask for another."
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, n] for normalised images [B, 3, H, W]."""
        values = images.detach().cpu().float().contiguous().numpy()
        wanted = self.session.get_inputs()[0].shape[1:]
        if list(values.shape[1:]) != wanted:
            raise UserError(
                f"{self.path} takes images of the shape [N, {', '.join(map(str, wanted))}], and these have "
                f"{list(values.shape)}: seam.image prepares them."
            )
        try:
            logits = self.session.run(None, {self.session.get_inputs()[0].name: values})[0]
        except Exception as error:
            raise self._cannot_run(error) from error
        return torch.from_numpy(logits).to(images.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        return copy.copy(self)  # a session has no state

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        OnnxModule.__init__(self, state["path"])
        self.__dict__.update(state)

    def _cannot_run(self, error: Exception) -> UserError:
        return UserError(
            f"ONNX Runtime cannot run {self.path} ({one_line(error)[:300]}): ask for the folder once more."
        )
