"""Load a re-engineered model or a student from its folder."""

from pathlib import Path

from seam.errors import UserError
from seam.files import load_tensors
from seam.masks.bits import bake, unpack_bits
from seam.models.architectures import build_model, locate_architecture
from seam.models.surgery import replace_last_layer, with_head
from seam.models.weights import load_state, open_source


def load_reengineered(folder, source=None):
    """The re-engineered model in `folder`: a plain module for inference, its unneeded weights zero, without gradients.

    It maps images [B, 3, H, W], normalised by its attribute `normalization` (mean, standard deviation per
    channel), to logits [B, n] over its attribute `classes`. `source` is the folder of the source model,
    if that is no longer where it was. Raises UserError where a file is missing, damaged or another one.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that it lies in.")
    for name, function in (
        ("student.safetensors", "seam.load_student"),
        ("source.safetensors", "seam.models.weights.open_source"),
    ):
        if (folder / name).is_file():
            raise UserError(f"{folder} holds {name} and no re-engineered model: open it by {function}.")
    tensors, about = load_tensors(folder / "masks.safetensors")
    if not {"source", "source_sha256", "classes"} <= about.keys():
        raise UserError(f"{folder}/masks.safetensors was not written by a search: run the workflow again.")
    origin = open_source(source or folder / about["source"], about["source_sha256"])
    parts = {"mask": {}, "head": {}}
    for name, tensor in tensors.items():
        kind, _, name = name.partition("/")
        parts[kind][name] = tensor
    try:
        bake(origin.module, unpack_bits(parts["mask"], origin.module))
        model = with_head(origin.module, len(origin.classes), len(about["classes"]))
        model.head.load_state_dict(parts["head"])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/masks.safetensors does not fit its source model ({error}).") from error
    model.classes, model.normalization = about["classes"], origin.normalization
    return model.eval().requires_grad_(False)


def load_student(folder):
    """The student in `folder`: a plain module for inference, without gradients, with `classes` and `normalization`.

    It maps images [B, 3, H, W], normalised by that mean and standard deviation, to logits over its classes. Raises
    UserError where a file is damaged.
    """
    path = Path(folder) / "student.safetensors"
    state, about = load_tensors(path)
    if "source_classes" not in about:
        raise UserError(f"{path} was not written by this workflow: delete it, and it is made again.")
    module = build_model(locate_architecture(folder, about), about["source_classes"])
    replace_last_layer(module, about["last_layer"], len(about["classes"]))
    if problem := load_state(module, state, path):
        raise UserError(problem)
    module.classes, module.normalization = about["classes"], tuple(map(tuple, about["normalization"]))
    return module.eval().requires_grad_(False)
