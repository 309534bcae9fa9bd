"""Load a re-engineered model or a student from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.errors import UserError
from seam.files import is_sha256, load_tensors, sha256
from seam.log import log
from seam.masks.biases import add_shifts
from seam.masks.bits import bake, unpack_bits, unpack_groups
from seam.masks.channels import find_groups, require_channels
from seam.masks.layers import maskable
from seam.masks.shrink import shrink
from seam.models.architectures import trusted_architecture
from seam.models.surgery import replace_last_layer, with_head
from seam.models.unallocated import build_unallocated, unallocated
from seam.models.weights import MOST_OUTPUTS, load_state, open_source, read_classes, read_normalization
from seam.reuse.cards import RECOVERED, RECOVERY_FILES, is_delivered, is_side, require_result
from seam.reuse.delivered import load_delivered


def load_reengineered(
    folder: str | Path,
    source: str | Path | None = None,
    architecture: str | None = None,
    recovered: bool | None = None,
) -> Any:
    """Return the re-engineered model in `folder`: a plain module for inference, without gradients.

    Its removed weights are zero; removed channels are gone. It maps images [B, 3, H, W] to logits [B, n] over its
    attribute `classes`. The images are normalised by its attribute `normalization` (mean and standard deviation per
    channel). Its attribute `recovered` says whether its weights are those after recovery.

    source: the folder of the source model, if that has moved. architecture: `path.py:factory` if the source model's
    architecture is a file, whose code then runs. recovered: whether to load the weights after recovery (True) or those
    before it (False); by default those after it, if there are any of these masks. Nothing in the folder makes code run.
    Raises UserError if a file is missing, damaged or of another kind, or if the architecture is not the one that the
    source model was made with.

    >>> model = load_reengineered("results/direct/resnet20-cifar10/binary/cat")      # doctest: +SKIP
    >>> model(images).argmax(1)
    """
    folder = Path(folder)
    if is_delivered(folder):
        return load_delivered(folder)
    for name, function in (
        ("student.safetensors", "seam.load_student"),
        ("source.safetensors", "seam.models.weights.open_source"),
    ):
        if (folder / name).is_file():
            raise UserError(f"{folder} holds {name} and no re-engineered model: open it by {function}.")
    path = folder / "masks.safetensors"
    require_result(folder, path.name)
    tensors, metadata = load_tensors(path)
    place, checksum = metadata.get("source"), metadata.get("source_sha256")
    if not isinstance(place, str) or "\0" in place or not is_sha256(checksum):
        raise UserError(f"{path} does not say which source model it belongs to: run the workflow again to make it.")
    classes = read_classes(metadata, path)
    origin = open_source(source or folder / place, checksum, architecture)
    groups = _by_kind(tensors)
    with unallocated():
        model = with_head(origin.module, len(origin.classes), len(classes))
    try:
        by_channel = "channels" in groups or "size" in metadata  # no mask of channels is stored if all branches stay
        masks, others = ("channels", {"weight"}) if by_channel else ("mask", {"weight", "shift"})
        if unknown := {kind for kind in groups if groups[kind]} - others - {masks, "head"}:
            raise ValueError(f"it has {min(unknown)} beside {masks} and head")
        if by_channel:
            _remove_channels(origin.module, groups, metadata)
        else:
            unmasked = metadata.get("unmasked")  # on which no output depends
            if not isinstance(unmasked, list) or not all(isinstance(name, str) for name in unmasked):
                raise ValueError("it does not say which parameters have no mask")
            if missing := maskable(origin.module).keys() - groups["mask"].keys() - set(unmasked):
                raise ValueError(f"the mask of {min(missing)} is missing")
            bake(origin.module, unpack_bits(groups["mask"], origin.module))
            add_shifts(origin.module, groups["shift"])
    except ValueError as error:
        raise UserError(
            f"{path} does not fit its source model ({error}): run the workflow again to make it."
        ) from error
    if problem := load_state(model.get_submodule("head"), groups["head"], f"The head in {path}"):
        raise UserError(problem)
    if groups["weight"] and (problem := load_state(origin.module, groups["weight"], f"The weights in {path}")):
        raise UserError(problem)
    loaded: Any = _for_inference(model, classes, origin.normalization)
    loaded.recovered = _load_recovered(model, folder, recovered)
    return loaded


def _by_kind(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return {kind: {name: tensor}} of tensors that are called kind/name."""
    groups: dict[str, dict[str, torch.Tensor]] = {"mask": {}, "head": {}, "weight": {}, "shift": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        groups.setdefault(kind, {})[name] = tensor
    return groups


def _remove_channels(module: nn.Module, groups: dict[str, dict[str, torch.Tensor]], metadata: dict[str, Any]) -> None:
    """Remove the channels of a model that its masks do not keep. Raises ValueError if they do not fit it."""
    size = metadata.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(map(is_side, size)) or groups["mask"]:
        raise ValueError("it does not say for which size of images its channels were found")
    try:
        channels = find_groups(module, torch.zeros(1, 3, *size))
    except UserError:
        raise
    except Exception as error:  # the model's code can raise anything for a size that it is not made for
        raise ValueError(f"the model does not run on images of {size[0]} x {size[1]} px") from error
    kept = channels.completed(unpack_groups(groups.get("channels", {}), channels.sizes))
    require_channels(channels, kept)
    shrink(module, channels, channels.joined(kept))


def _load_recovered(model: nn.Module, folder: Path, wanted: bool | None) -> bool:
    """Load the weights after recovery into `model`, if they are wanted and, by default, if there are any.

    Returns whether it did so.
    """
    path = folder / RECOVERED
    if wanted is False or (wanted is None and not path.is_file()):
        return False
    tensors, metadata = load_tensors(path)
    if metadata.get("masks_sha256") != sha256(folder / "masks.safetensors"):
        if wanted is None:
            log.warning("%s belongs to other masks: the model is that before recovery", path)
            return False
        raise UserError(f"{path} does not belong to the masks beside it: run the workflow again to make it.")
    if problem := load_state(model, tensors, path):
        raise UserError(problem)
    return True


def remove_recovery(folder: str | Path) -> None:
    """Remove the files of a recovery that is no longer wanted, so that everything opens the model before it."""
    for name in RECOVERY_FILES:
        path = Path(folder) / name
        if path.is_file():
            log.info("%s is of a recovery that the config no longer has: it is removed", path)
            path.unlink()


def kept_weights(folder: str | Path, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return {parameter: boolean mask} of a search of single weights; empty if channels were searched.

    module: the source model. Raises ValueError if the masks do not fit it.
    """
    tensors, _ = load_tensors(Path(folder) / "masks.safetensors")
    return unpack_bits(_by_kind(tensors)["mask"], module)


def load_student(folder: str | Path, architecture: str | None = None) -> Any:
    """Return the student in `folder`: a plain module for inference, without gradients.

    It maps images [B, 3, H, W] to logits [B, n] over its attribute `classes`. The images are normalised by its
    attribute `normalization` (mean and standard deviation per channel). architecture: as in `load_reengineered`. Raises
    UserError if the file is missing or damaged, or if the architecture is not the one that it was made with.
    """
    path = Path(folder) / "student.safetensors"
    state, metadata = load_tensors(path)
    outputs, last_layer = metadata.get("source_classes"), metadata.get("last_layer")
    if type(outputs) is not int or not 0 < outputs <= MOST_OUTPUTS or not isinstance(last_layer, str):
        raise UserError(f"{path} was not written by this workflow: delete it and run the workflow again.")
    classes, normalization = read_classes(metadata, path), read_normalization(metadata, path)
    trusted, digest = trusted_architecture(path, metadata, architecture)
    module = build_unallocated(trusted, outputs, digest)
    if not isinstance(dict(module.named_modules()).get(last_layer), (nn.Linear, nn.Conv2d)):
        raise UserError(f"{path} does not fit its architecture, which has no layer {last_layer}: run again.")
    with unallocated():
        replace_last_layer(module, last_layer, len(classes))
    if problem := load_state(module, state, path):
        raise UserError(problem)
    return _for_inference(module, classes, normalization)


def _for_inference(module: Any, classes: list[str], normalization: Any) -> Any:
    module.classes, module.normalization = classes, normalization
    return module.eval().requires_grad_(False)
