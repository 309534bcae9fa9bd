"""Published weights: where they are, and how they become a source model."""

import re
from pathlib import Path

from seam.download import fetch
from seam.errors import UserError
from seam.models.architectures import AUXILIARY, build_model
from seam.models.weights import Source, is_weights_file, load_state, read_state, save_source

HUB = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/"
HUB_FILES = {  # (architecture, kind of data set): file, whose name ends with the first 8 digits of its SHA-256
    ("resnet20", "cifar10"): "resnet/cifar10_resnet20-4118986f.pt",
    ("resnet20", "cifar100"): "resnet/cifar100_resnet20-23dac2f1.pt",
    ("vgg16_bn", "cifar10"): "vgg/cifar10_vgg16_bn-6ee7ea24.pt",
    ("vgg16_bn", "cifar100"): "vgg/cifar100_vgg16_bn-7d8c4031.pt",
}
HUB_NORMALIZATION = {  # (mean, standard deviation) per channel that the checkpoints were trained with
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


def fetch_weights(architecture, weights, kind, class_lists, path, normalization=None, cache="data/weights"):
    """Write the trained model of a config entry to `path`, from a hub, torchvision or a local file.

    `kind` is the kind of its data set; `class_lists` are the lists of class names that its outputs may
    stand for; the first of fitting length is taken.
    """
    if weights == "hub":
        if (architecture, kind) not in HUB_FILES:
            known = "; ".join(f"{a} on {k}" for a, k in HUB_FILES)
            raise UserError(f"weights: hub has no {architecture} for data of kind {kind}, only {known}.")
        name = HUB_FILES[architecture, kind]
        file = fetch(HUB + name, Path(cache) / Path(name).name, checksum=re.search(r"-(\w{8})\.pt", name)[1])
        state, usual = read_state(file), HUB_NORMALIZATION[kind]
    elif architecture.startswith("torchvision:") and not is_weights_file(weights):
        state, usual = _torchvision_state(architecture, weights, cache)
    else:
        state, usual = read_state(weights), None
    if architecture.startswith("torchvision:"):
        state = {name: value for name, value in state.items() if name.partition(".")[0] not in AUXILIARY}
    normalization = normalization or usual
    if normalization is None:
        raise UserError(f"{weights} does not say how its images were normalised: give the model a normalization.")
    problem = None
    for classes in class_lists:
        module = build_model(architecture, len(classes))
        problem = load_state(module, state, weights)
        if problem is None:
            return save_source(path, Source(module, classes, normalization, architecture))
    raise UserError(problem)


def _torchvision_state(architecture, weights, cache):
    """(state dictionary, normalization) of published weights."""
    import torchvision

    enum = torchvision.models.get_model_weights(architecture.removeprefix("torchvision:"))
    if weights not in enum.__members__:
        raise UserError(f"torchvision has no weights {weights} for {architecture}, only {', '.join(enum.__members__)}.")
    url = enum[weights].url
    name = url.rsplit("/", 1)[-1]
    state = read_state(fetch(url, Path(cache) / name, checksum=re.search(r"-([0-9a-f]{8,})\.pth", name)[1]))
    transforms = enum[weights].transforms()
    normalization = tuple(tuple(getattr(transforms, name)) for name in ("mean", "std"))
    # DenseNet's files have names of torch 0.3: "denselayer1.norm.1.weight" is norm1 now.
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d\.)", r"\1", key): value for key, value in state.items()}
    return state, normalization
