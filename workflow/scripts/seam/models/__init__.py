"""Source models: a registry of architectures, and where their weights come from.

An architecture is a registered name (`resnet20`, `vgg16_bn`), `torchvision:NAME`, or
`path/to/file.py:factory`, a function of your own that takes the number of classes and returns a module.
"""

import importlib.util
import pickle
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from seam.files import UserError, fetch, in_one_line, load_tensors, save_tensors, sha256

ARCHITECTURES = ("resnet20", "vgg16_bn")
WEIGHT_FILES = (".safetensors", ".pt", ".pth")

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
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception


@dataclass
class Source:
    """A trained model: `module` maps normalised images [B, 3, H, W] to logits [B, len(classes)]."""

    module: object
    classes: list
    normalization: tuple
    architecture: str


def is_file(weights):
    """Whether a config entry's `weights` is a file of one's own, not `train`, `hub` or torchvision's name of some."""
    return weights.endswith(WEIGHT_FILES)


def weights_origin(weights):
    """A config entry's `weights` as the tables have it: `file` for a file of one's own."""
    return "file" if is_file(weights) else weights


def build(architecture, classes):
    """A new module of this architecture with `classes` outputs, randomly initialised."""
    if architecture in ARCHITECTURES:
        from seam.models import cifar

        return getattr(cifar, architecture)(classes)
    if architecture.startswith("torchvision:"):
        return _torchvision(architecture, num_classes=classes)
    path, _, factory = architecture.rpartition(":")
    if not path.endswith(".py"):
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{architecture} is no known architecture: write {known}, torchvision:NAME or file.py:factory.")
    if not Path(path).is_file():
        raise UserError(f"{path}, the file of architecture {architecture}, does not exist: put it back there.")
    from torch import nn

    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    file = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent))  # the file may import what lies beside it
    try:
        spec.loader.exec_module(file)
        if not callable(getattr(file, factory, None)):
            raise UserError(f"{path} has no function {factory}, which architecture {architecture} names.")
        module = getattr(file, factory)(classes)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        said = in_one_line(error)
        raise UserError(f"{path}, the file of architecture {architecture}, fails ({said}): correct it.") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise UserError(f"{architecture} gives an object of type {kind}: let it return a torch.nn.Module.")
    return module


def require_classifier(module, outputs, size, what):
    """Raises UserError unless `module` maps images [B, 3, *size] to logits [B, outputs], and has parameters.

    It is left in eval mode. what: whose it is, for the sentence: "The model mine".
    """
    import torch

    parameter = next(module.parameters(), None)
    if parameter is None:
        raise UserError(f"{what} has no parameters: let its architecture have layers to train.")
    height, width = size
    try:
        with torch.no_grad():
            found = module.eval()(torch.zeros(2, 3, height, width, device=parameter.device))
    except Exception as error:  # whatever the user's own code raises
        said = in_one_line(error)
        raise UserError(
            f"{what} does not run on images of {height} x {width} px ({said}): correct its architecture, or the size "
            "of its data set."
        ) from error
    if not isinstance(found, torch.Tensor):
        kind = type(found).__name__
        raise UserError(f"{what} gives an object of type {kind}: let it give the logits alone, a tensor.")
    if found.shape != (2, outputs):
        raise UserError(
            f"{what} gives outputs of shape {tuple(found.shape)} for two images, not {(2, outputs)}, one of each "
            "class: correct its architecture, whose function is given the number of classes."
        )


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
    elif architecture.startswith("torchvision:") and not is_file(weights):
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
        module = build(architecture, len(classes))
        problem = load_state(module, state, weights)
        if problem is None:
            return save(path, Source(module, classes, normalization, architecture))
    raise UserError(problem)


def architecture_file(architecture):
    """The SHA-256 of the file of an architecture of one's own, which can change what a model computes; else None."""
    path = architecture.rpartition(":")[0]
    return sha256(path) if path.endswith(".py") else None


def described(architecture):
    """What a file keeps of the architecture: of one's own file the absolute path, and the digest, so that all that is
    made of the model depends on it."""
    path, _, factory = architecture.rpartition(":")
    name = f"{Path(path).resolve()}:{factory}" if path.endswith(".py") else architecture
    return {"architecture": name, "architecture_sha256": architecture_file(architecture)}


def found(folder, about):
    """The architecture, from what `described` gave, kept in `folder`.

    One's own file that is no longer where it was is looked for above the folder, in the places that its path allows and
    by its digest: a project can be moved.
    """
    path, _, factory = about["architecture"].rpartition(":")
    if path.endswith(".py") and not Path(path).is_file():
        parts = Path(path).parts
        for above in Path(folder).resolve().parents:
            for number in range(1, len(parts)):
                place = above.joinpath(*parts[-number:])
                if place.is_file() and sha256(place) == about.get("architecture_sha256"):
                    return f"{place}:{factory}"
    return about["architecture"]


def read_state(path):
    """The state dictionary (name: tensor) in a safetensors file or a torch checkpoint.

    Code in a pickle is never run (`weights_only`). Raises UserError for any other content.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    damaged = (OSError, RuntimeError, EOFError, ValueError, LookupError, SafetensorError)
    ending, start = Path(path).suffix, b""
    try:
        with Path(path).open("rb") as file:
            start = file.read(2)
        if ending == ".safetensors":  # noqa: SIM108 (too long for a line)
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"The weights file {path} does not exist.") from error
    except PermissionError as error:
        raise UserError(f"The weights file {path} cannot be read ({error.strerror}): mend its permissions.") from error
    except (*damaged, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        saved = start == b"PK" or start.startswith(b"\x80")  # by torch, or a pickle: not any other file
        if (isinstance(error, pickle.UnpicklingError) and saved) or "TorchScript" in str(error):
            raise UserError(
                f"{path} holds more than tensors, which is refused since unpickling could run code: "
                "save its state_dict() instead, best as safetensors."
            ) from error
        raise UserError(
            f"{path} is not a whole weights file of the kind that its name says ({ending}): copy or download it again."
        ) from error
    for key in ("state_dict", "model", "net"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(map(_is_tensor, state.items())):
        raise UserError(f"{path} holds no state dictionary (names and tensors): save the model's state_dict().")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _is_tensor(item):
    import torch

    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def load_state(module, state, origin):
    """Put `state` into `module`; None if it fits, else the sentence that says how it does not."""
    own = module.state_dict()
    # Checkpoints older than torch 0.4.1 lack this counter, which inference does not use.
    state = {n: t for n, t in own.items() if n.endswith("num_batches_tracked")} | state
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing:
        return f"{origin} does not fit the architecture: {missing[0]} is missing in it ({len(missing)} such)."
    if unknown:
        return f"{origin} does not fit the architecture, which has no {unknown[0]} ({len(unknown)} such)."
    if shapes:
        name, found, wanted = shapes[0], tuple(state[shapes[0]].shape), tuple(own[shapes[0]].shape)
        return f"{origin} does not fit the architecture and the classes: {name} is {found}, not {wanted}."
    module.load_state_dict(state)
    return None


def save(path, source):
    metadata = {
        **described(source.architecture),
        "classes": source.classes,
        "normalization": source.normalization,
    }
    save_tensors(path, source.module.state_dict(), metadata)


def open(folder, checksum=None):
    """The source model that the workflow keeps in `folder`/source.safetensors, in eval mode.

    Raises UserError if `checksum`, a SHA-256, is given and the file has another.
    """
    path = Path(folder) / "source.safetensors"
    state, about = load_tensors(path)
    if "architecture" not in about:
        raise UserError(f"{path} was not written by this workflow: delete it, and it is made again.")
    if checksum is not None and sha256(path) != checksum:
        raise UserError(
            f"{path} is not the source model that the masks were searched for: give its folder, or run again."
        )
    architecture = found(folder, about)
    module = build(architecture, len(about["classes"]))
    problem = load_state(module, state, path)
    if problem:
        raise UserError(problem)
    return Source(module.eval(), about["classes"], tuple(map(tuple, about["normalization"])), architecture)


def training_mode(model):
    """Train mode, so that dropout is active, but batch norm stays as the source model has it."""
    from torch import nn

    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def copied(module):
    """A copy of the module's state dictionary on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def last_layer(module, outputs, shape, name=None):
    """The name of the layer that gives the `outputs` logits: the last linear layer, or convolution, with so many.

    shape: (3, H, W) of an image; name: the layer, where the config names it. Raises UserError where there is none
    or where the model's outputs are not those of the layer, so that it must be named.
    """
    import torch
    from torch import nn

    layers = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    if name is not None:
        if name not in layers:
            last = ", ".join(list(layers)[-3:])
            raise UserError(f"last_layer: the model has no linear layer or convolution {name}: its last are {last}.")
        return name
    width = {n: m.out_features if isinstance(m, nn.Linear) else m.out_channels for n, m in layers.items()}
    found = [n for n in layers if width[n] == outputs]
    linear = [n for n in found if isinstance(layers[n], nn.Linear)]
    if not found:
        raise UserError(f"The model has no layer with {outputs} outputs: give its entry last_layer, the layer's name.")
    name, seen = (linear or found)[-1], []
    if linear:  # what comes after a convolution may pool its outputs
        hook = layers[name].register_forward_hook(lambda *found: seen.append(found[2]))
        with torch.inference_mode():
            given = module.eval()(torch.zeros(1, *shape, device=next(module.parameters()).device))
        hook.remove()
        if not seen or not torch.equal(seen[-1].flatten(), given.flatten()):
            raise UserError(
                f"The model's outputs are not those of its layer {name}: give its entry last_layer, the layer's name."
            )
    return name


def with_last_layer(module, name, outputs):
    """The module, its layer `name` replaced by a new one with `outputs` outputs, initialised at random."""
    from torch import nn

    old = module.get_submodule(name)
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, outputs, bias)
    else:
        new = nn.Conv2d(old.in_channels, outputs, old.kernel_size, old.stride, old.padding, old.dilation, bias=bias)
    module.set_submodule(name, new)
    return module


def features(module, name):
    """The module without its layer `name`, flattened: it maps images to that layer's inputs, features [B, F]."""
    from torch import nn

    module.set_submodule(name, nn.Identity())
    return nn.Sequential(module, nn.Flatten())


def _torchvision(architecture, **options):
    import torchvision

    name = architecture.removeprefix("torchvision:")
    try:
        module = torchvision.models.get_model(name, weights=None, **options)
    except ValueError as error:
        raise UserError(f"torchvision has no model called {name}.") from error
    if hasattr(module, "aux_logits"):  # GoogLeNet, Inception: one output in training, too, and inputs as their weights'
        module.aux_logits, module.transform_input = False, True
        for name in AUXILIARY:  # the heads that only training needs
            if hasattr(module, name):
                setattr(module, name, None)
    return module


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
