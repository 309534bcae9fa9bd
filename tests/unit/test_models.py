import importlib.util
import os
import pickle
import py_compile
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from seam.errors import UserError
from seam.files import load_tensors, save_tensors, sha256
from seam.masks.layers import unused_parameters
from seam.models import published
from seam.models.architectures import build_model, require_classifier
from seam.models.published import HUB, HUB_NORMALIZATION, SHA256, fetch_weights, read_weights
from seam.models.surgery import (
    copy_module,
    copy_state,
    find_last_layer,
    initialise_head,
    replace_last_layer,
    to_channels_last,
    with_head,
)
from seam.models.unallocated import build_unallocated
from seam.models.weights import Source, load_state, open_source, save_source
from seam.reuse.load import load_student

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "weights"), [("resnet20", 272_474), ("vgg16_bn", 15_253_578)])
def test_architectures_have_the_published_size(name, weights):
    network = build_model(name, 10).eval()
    assert count(network) == weights  # as the public models: 0.27 and 15.25 million
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def public_names(name, classes=10):
    """The parameter names and shapes of the public checkpoints, as their published modules give them."""
    if name == "resnet20":
        state = {"conv1.weight": (16, 3, 3, 3)} | norm("bn1", 16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64), 1):
            for block in range(3):
                prefix = f"layer{stage}.{block}"
                state[f"{prefix}.conv1.weight"] = (width, inputs, 3, 3)
                state[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
                state |= norm(f"{prefix}.bn1", width) | norm(f"{prefix}.bn2", width)
                if inputs != width:
                    state[f"{prefix}.downsample.0.weight"] = (width, inputs, 1, 1)
                    state |= norm(f"{prefix}.downsample.1", width)
                inputs = width
        return state | {"fc.weight": (classes, 64), "fc.bias": (classes,)}
    state, inputs, position = {}, 3, 0
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            position += 1
            continue
        state |= {f"features.{position}.weight": (width, inputs, 3, 3), f"features.{position}.bias": (width,)}
        state |= norm(f"features.{position + 1}", width)
        inputs, position = width, position + 3
    for number, outputs in ((0, 512), (3, 512), (6, classes)):
        state |= {f"classifier.{number}.weight": (outputs, 512), f"classifier.{number}.bias": (outputs,)}
    return state


def norm(name, width):
    shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width,)) | {"num_batches_tracked": ()}
    return {f"{name}.{part}": shape for part, shape in shapes.items()}


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn"])
def test_public_checkpoints_load_unchanged(name):
    own = {key: tuple(value.shape) for key, value in build_model(name, 10).state_dict().items()}
    assert own == public_names(name)


def test_each_complete_digest_has_the_digits_in_its_files_name():
    for name, digest in SHA256.items():
        assert re.fullmatch("[0-9a-f]{64}", digest) and Path(name).stem.endswith("-" + digest[:8])


def test_a_published_checkpoint_is_fetched_verified_and_kept(tmp_path, monkeypatch):
    """The whole path of `weights: hub`, with a local file in the place of the download."""
    asked = []

    def fetch(url, path, checksum, most):
        asked.append((url, checksum))
        torch.save(build_model("resnet20", 10).state_dict(), tmp_path / "checkpoint.pt")
        return tmp_path / "checkpoint.pt"

    monkeypatch.setattr(published, "fetch", fetch)
    names = [str(i) for i in range(10)]
    fetch_weights("resnet20", "hub", "cifar10", [names], tmp_path / "source.safetensors")
    assert asked == [(HUB + "resnet/cifar10_resnet20-4118986f.pt", SHA256["cifar10_resnet20-4118986f.pt"])]
    source = open_source(tmp_path)
    assert source.classes == names and source.normalization == HUB_NORMALIZATION["cifar10"]
    assert not source.module.training


def test_the_list_of_classes_is_the_one_that_fits(tmp_path):
    torch.save(build_model("resnet20", 3).state_dict(), tmp_path / "mine.pt")
    lists, normalization = [list("abcde"), list("abc")], ((0.5,) * 3, (0.2,) * 3)
    arguments = ("resnet20", str(tmp_path / "mine.pt"), "imagefolder", lists, tmp_path / "source.safetensors")
    fetch_weights(*arguments, normalization)
    assert open_source(tmp_path).classes == ["a", "b", "c"]
    with pytest.raises(UserError, match="give the model a normalization"):
        fetch_weights(*arguments)


def test_torchvision_models_are_built_by_name():
    assert build_model("torchvision:resnet18", 7).fc.out_features == 7
    with pytest.raises(UserError, match="no model called resnet19"):
        build_model("torchvision:resnet19", 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.filterwarnings("ignore")
def test_models_with_auxiliary_classifiers_give_one_output_in_training(name):
    model = build_model(f"torchvision:{name}", 7).train()
    side = 96 if name == "inception_v3" else 64  # the smallest possible is 75
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 7) and model.transform_input
    assert find_last_layer(model, 7, (3, side, side)) == "fc"
    assert not unused_parameters(model, torch.zeros(2, 3, side, side))  # what only training needs is not there


@pytest.mark.filterwarnings("ignore")
def test_weights_with_auxiliary_classifiers_fit(tmp_path, monkeypatch):
    whole = torchvision.models.googlenet(weights=None, init_weights=False).state_dict()
    assert any(name.startswith("aux1.") for name in whole)
    monkeypatch.setattr(published, "fetch", lambda *_, **__: None)
    monkeypatch.setattr(published, "read_state", lambda _: whole)
    names = [f"{i:04}" for i in range(1000)]
    fetch_weights("torchvision:googlenet", "IMAGENET1K_V1", "imagenet", [names], tmp_path / "source.safetensors")
    assert torch.equal(open_source(tmp_path).module.fc.weight, whole["fc.weight"])


class Forward(nn.Module):
    """A layer, and what becomes of its outputs."""

    def __init__(self, then):
        super().__init__()
        self.layer, self.then = nn.Linear(3, 4), then

    def forward(self, images):
        return self.then(self.layer(images.mean((2, 3))))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Forward(lambda x: (x, x)), "gives an object of type tuple: let it give the logits alone"),
        (Forward(lambda x: x[:, :2]), r"gives outputs of shape \(2, 2\) for two images, not \(2, 4\)"),
        (Forward(lambda x: x[:, :, None]), r"gives outputs of shape \(2, 4, 1\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), "does not run on images of 8 x 6 px .RuntimeError: mat1"),
        (Forward(lambda x: x.unknown), "does not run on images of 8 x 6 px .AttributeError: .* no attribute 'unknown'"),
        (nn.Flatten(), "has no parameters"),
    ],
)
def test_what_is_no_classifier_is_said_in_a_sentence(module, said):
    with pytest.raises(UserError, match=f"The model mine {said}"):
        require_classifier(module, 4, (8, 6), "The model mine")
    require_classifier(Forward(lambda x: x), 4, (8, 6), "The model mine")


def test_a_project_or_its_results_can_be_moved(tmp_path, monkeypatch):
    project, weights = tmp_path / "project", "results/models/mine/source.safetensors"
    project.mkdir()
    (project / "mine.py").write_text("from torch import nn\ndef build(classes): return nn.Linear(3, classes)\n")
    monkeypatch.chdir(project)
    source = Source(build_model("mine.py:build", 2), ["a", "b"], ((0.5,) * 3, (0.2,) * 3), "mine.py:build")
    save_source(project / weights, source)
    shutil.copytree(project / "results", tmp_path / "elsewhere")
    found = open_source(tmp_path / "elsewhere/models/mine", architecture="mine.py:build")
    assert torch.equal(found.module.weight, source.module.weight)
    moved = project.rename(tmp_path / "moved")
    found = open_source((moved / weights).parent, architecture=f"{moved}/mine.py:build")
    assert torch.equal(found.module.weight, source.module.weight)
    assert found.architecture == f"{moved}/mine.py:build"
    (moved / "mine.py").unlink()
    with pytest.raises(UserError, match="does not exist: correct its path"):
        open_source((moved / weights).parent, architecture=f"{moved}/mine.py:build")


def test_another_architecture_is_another_source_model(tmp_path, monkeypatch):
    """Its weights may be the same: what hangs on the file's digest must notice."""
    monkeypatch.chdir(tmp_path)
    digests = set()
    for then in ("nn.ReLU()", "nn.Tanh()"):
        Path("mine.py").write_text(
            f"from torch import nn\ndef build(n): return nn.Sequential(nn.Linear(3, n), {then})\n"
        )
        torch.manual_seed(0)
        module = build_model("mine.py:build", 2)
        save_source("source.safetensors", Source(module, ["a", "b"], ((0.5,) * 3, (0.2,) * 3), "mine.py:build"))
        digests.add(sha256("source.safetensors"))
    assert len(digests) == 2


def test_densenets_weights_have_their_old_names_corrected(tmp_path, monkeypatch):
    own = build_model("torchvision:densenet121", 1000).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value for name, value in own.items()}
    assert old.keys() != own.keys()
    monkeypatch.setattr(published, "fetch", lambda *_, **__: None)
    monkeypatch.setattr(published, "read_state", lambda _: old)
    names = [f"{i:04}" for i in range(1000)]
    fetch_weights("torchvision:densenet121", "IMAGENET1K_V1", "imagenet", [names], tmp_path / "source.safetensors")
    found = open_source(tmp_path).module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in own.items())


def test_torchvision_weights_carry_their_checksum(tmp_path, monkeypatch):
    asked = {}

    def fetch(url, path, checksum, most):
        asked.update(url=url, checksum=checksum)
        return path

    monkeypatch.setattr(published, "fetch", fetch)
    monkeypatch.setattr(published, "read_state", lambda path: build_model("torchvision:resnet18", 1000).state_dict())
    names = [f"n{i:08}" for i in range(1000)]
    fetch_weights("torchvision:resnet18", "IMAGENET1K_V1", "imagenet", [names], tmp_path / "source.safetensors")
    name = "resnet18-f37072fd.pth"
    assert asked == {"url": f"https://download.pytorch.org/models/{name}", "checksum": SHA256[name]}
    assert open_source(tmp_path).normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    monkeypatch.setattr(published, "read_state", lambda path: {})
    _, normalization, _ = published._torchvision_state("torchvision:efficientnet_v2_l", "IMAGENET1K_V1", tmp_path)
    assert normalization == ((0.5,) * 3, (0.5,) * 3)  # unlike most
    with pytest.raises(UserError, match="no weights V9 .* only IMAGENET1K_V1"):
        fetch_weights("torchvision:resnet18", "V9", "imagenet", [names], tmp_path / "source.safetensors")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_local_files_are_read(tmp_path, wrap, suffix):
    state, path = build_model("resnet20", 4).state_dict(), tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(wrap(state), path)
    read = read_weights(path, "resnet20", build_model("resnet20", 4))
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_a_safetensors_file_may_say_more_about_itself(tmp_path):
    state = {f"module.{name}": value for name, value in build_model("resnet20", 4).state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors", {"format": "pt"})
    module = build_model("resnet20", 4)
    assert load_state(module, read_weights(tmp_path / "mine.safetensors", "resnet20", module), "mine") is None


def test_an_architecture_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text("WIDTH = 7\n")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom torch import nn\nfrom parts import WIDTH\n"
        "@dataclass\nclass Shape:\n    width: 'int' = WIDTH\n"
        "def build(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(Shape().width, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    source = Source(build_model("mine.py:build", 2), ["a", "b"], ((0.0,) * 3, (1.0,) * 3), "mine.py:build")
    save_source(tmp_path / "source.safetensors", source)
    monkeypatch.chdir("/")
    found = open_source(tmp_path, architecture=f"{tmp_path}/mine.py:build")
    assert found.module[1].in_features == 7  # found from another working directory
    assert str(tmp_path) not in sys.path and "mine" not in sys.modules


class Bomb:
    def __reduce__(self):
        import os

        return os.system, ("echo exploded > exploded",)


def garbage(path):
    path.write_bytes(b"not a checkpoint at all")


def truncated(path):
    torch.save(build_model("resnet20", 4).state_dict(), path)
    path.write_bytes(path.read_bytes()[:50_000])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: torch.save({"a": Bomb()}, path), "holds no state dictionary .* but a dictionary with a: save"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), "could run code|not a whole weights file"),
        (lambda path: torch.save(Bomb(), path), "holds no state dictionary .* but an object of posix.system"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no state dictionary"),
        (lambda path: torch.save([1, 2], path), "holds no state dictionary"),
        (garbage, "could run code|not a whole weights file"),
        (truncated, "not a whole weights file"),
        (lambda path: None, "does not exist"),
    ],
)
def test_other_files_are_refused_and_no_code_in_them_runs(tmp_path, monkeypatch, write, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.pt")
    with pytest.raises(UserError, match=sentence) as error:
        read_weights(tmp_path / "mine.pt", "resnet20", build_model("resnet20", 4))
    assert "mine.pt" in str(error.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("fc.bias"), "fc.bias is missing in it. Name the architecture"),
        (lambda s: [s.pop(f"fc.{name}") for name in ("bias", "weight")], "fc.bias and 1 more are missing in it. Name"),
        (lambda s: s.update(b=torch.zeros(1), a=torch.zeros(1)), "has no a, nor 1 more of its tensors. Name"),
        (lambda s: s.update(extra=torch.zeros(1)), "has no extra. Name"),
        (lambda s: s.update({"fc.weight": torch.zeros(9, 64)}), r"fc.weight is \(9, 64\), not \(4, 64\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, sentence):
    state = build_model("resnet20", 4).state_dict()
    change(state)
    assert sentence.replace("\\", "") in load_state(build_model("resnet20", 4), state, "mine.pt")


def test_another_source_file_than_the_one_searched_is_refused(tmp_path):
    save_source(
        tmp_path / "source.safetensors",
        Source(build_model("resnet20", 2), ["a", "b"], ((0,) * 3, (1,) * 3), "resnet20"),
    )
    with pytest.raises(UserError, match="not the source model that the masks were searched for"):
        open_source(tmp_path, checksum="0" * 64)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet21", "no known architecture"),
        ("missing.py:build", "missing.py, .* does not exist"),
        (f"{__file__}:nothing", "no function nothing"),
    ],
)
def test_unknown_architectures_are_refused(name, sentence):
    with pytest.raises(UserError, match=sentence):
        build_model(name, 2)


def state_with(change):
    """Write a state dictionary of a small ResNet20 with a change."""

    def write(path):
        state = {name: value.detach().clone() for name, value in build_model("resnet20", 4).state_dict().items()}
        torch.save(change(state), path)

    return write


def first(name, number):
    """Set the first number of a tensor."""

    def change(state):
        state[name].view(-1)[0] = number
        return state

    return change


def converted(name, function):
    return lambda state: {**state, name: function(state[name])}


def other(state):
    return {name: value + 1 for name, value in state.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (first("fc.weight", float("nan")), "fc.weight has values that are not finite"),
        (first("fc.weight", float("-inf")), "fc.weight has values that are not finite"),
        (first("bn1.running_mean", float("nan")), "bn1.running_mean has values that are not finite"),
        (first("bn1.running_var", -1.0), "bn1.running_var has negative variances"),
        (converted("fc.weight", lambda value: value.double() * 1e300), "not finite as float32"),
        (converted("fc.weight", lambda value: value.to(torch.complex64)), "type complex64"),
        (converted("fc.weight", lambda value: value.long()), "type int64"),
        (converted("fc.weight", lambda value: value > 0), "type bool"),
        (converted("fc.weight", lambda value: value.to_sparse()), "fc.weight as a sparse tensor"),
        (converted("fc.weight", lambda value: value.to_sparse_csr()), "fc.weight as a sparse tensor"),
        (converted("fc.weight", lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)), "as a quantized tensor"),
        (converted("fc.weight", lambda value: value.to("meta")), "fc.weight as a meta tensor"),
        (converted("fc.weight", lambda v: torch.nested.nested_tensor([v, v])), "fc.weight as a nested tensor"),
        (lambda state: {**state, "module.fc.bias": state["fc.bias"] + 1}, "both fc.bias and module.fc.bias"),
        (lambda state: {"state_dict": state, "model": other(state)}, "under state_dict and model: save one"),
        (lambda state: {**state, "model": other(state)}, "under model and beside it: save one"),
    ],
)
def test_weights_that_are_no_finite_floats_or_not_clear_are_refused(tmp_path, change, sentence):
    state_with(change)(tmp_path / "mine.pt")
    arguments = ("resnet20", str(tmp_path / "mine.pt"), "imagefolder", [list("abcd")], tmp_path / "source.safetensors")
    with pytest.raises(UserError, match=sentence) as error:
        fetch_weights(*arguments, ((0.5,) * 3, (0.2,) * 3))
    assert "mine.pt" in str(error.value)
    assert not (tmp_path / "source.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_converted(tmp_path, dtype):
    state_with(
        lambda state: {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    )(tmp_path / "mine.pt")
    module = build_model("resnet20", 4)
    assert load_state(module, read_weights(tmp_path / "mine.pt", "resnet20", module), "mine") is None


CODE = """from pathlib import Path
import torch
Path({marker!r}).touch()
def build(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, classes))
"""


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """A model whose architecture is a file, in a folder in which its code left the file `ran`, which is removed."""
    monkeypatch.chdir(tmp_path)
    Path("arch.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    module = build_model("arch.py:build", 2)
    save_source("source.safetensors", Source(module, ["a", "b"], ((0.5,) * 3, (0.2,) * 3), "arch.py:build"))
    (tmp_path / "ran").unlink()
    return tmp_path


def resent(folder, **changes):
    """Change the metadata of a model, as its sender could, with the right digest; None removes an entry."""
    tensors, metadata = load_tensors(folder / "source.safetensors")
    metadata = {key: value for key, value in (metadata | changes).items() if value is not ...}
    save_tensors(folder / "source.safetensors", tensors, metadata)


def test_a_model_whose_architecture_is_a_file_needs_it_from_the_caller(sent):
    with pytest.raises(
        UserError, match=r'arch.py:build \(SHA-256 [0-9a-f]{64}\).*architecture="path/to/arch.py:build"'
    ):
        open_source(sent)
    assert not (sent / "ran").exists()
    assert open_source(sent, architecture="arch.py:build").module[1].out_features == 2
    assert (sent / "ran").exists()


@pytest.mark.parametrize("name", ["arch.py:build", "other/arch.py:build", "./arch.py:build", "/dev/null.py:build"])
@pytest.mark.parametrize("digest", ["right", None, "", "0" * 64, 7, ...])
def test_metadata_make_no_code_run(sent, name, digest):
    (sent / "other").mkdir()
    shutil.copy(sent / "arch.py", sent / "other")
    resent(sent, architecture=name, architecture_sha256=sha256(sent / "arch.py") if digest == "right" else digest)
    with pytest.raises(UserError):
        open_source(sent)
    if digest != "right":
        with pytest.raises(UserError, match="no digest of its architecture|not the architecture that"):
            open_source(sent, architecture="arch.py:build")
    assert not (sent / "ran").exists()


@pytest.mark.parametrize(
    "name", ["arch:build", "os:system", "torchvision:../arch", "torchvision:fcn_resnet50", "", "a\nb"]
)
def test_an_architecture_in_metadata_that_is_no_known_one_is_refused(sent, name):
    resent(sent, architecture=name)
    with pytest.raises(UserError):
        open_source(sent)


def test_an_edited_architecture_is_refused_also_by_way_of_a_cache(sent):
    before, path = Path("arch.py").stat(), Path("arch.py")
    text = path.read_text()
    path.write_text(text.replace("Flatten()", "Softmax()"))  # as many characters
    py_compile.compile("arch.py", cfile=importlib.util.cache_from_source("arch.py"))
    with pytest.raises(UserError, match="not the architecture that .* was made with"):
        open_source(sent, architecture="arch.py:build")
    with pytest.raises(UserError, match="not the architecture that .* was made with"):
        open_source(sent, architecture="arch.py:other")
    os.utime("arch.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    py_compile.compile("arch.py", cfile=importlib.util.cache_from_source("arch.py"))
    path.write_text(text)
    os.utime("arch.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    module = open_source(sent, architecture="arch.py:build").module
    assert isinstance(module[0], nn.Flatten)  # of the text that was checked, not of the compiled file


@pytest.mark.parametrize("name", ["random", "json", "torch", "numpy", "seam"])
def test_an_architecture_named_like_a_module_replaces_nothing(tmp_path, name):
    """Nor does one that lies beside the architecture."""
    for file in (f"{name}.py", "mine.py"):
        (tmp_path / file).write_text("from torch import nn\ndef build(classes): return nn.Linear(3, classes)\n")
    (tmp_path / "mine.py").open("a").write(f"import {name}\nassert not hasattr({name}, 'build')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from seam.models.architectures import build_model\n"
        f"for file in ({name + '.py'!r}, 'mine.py'): build_model({str(tmp_path)!r} + f'/{{file}}:build', 2)\n"
        f"import {name}; assert not hasattr({name}, 'build'), {name}.__file__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": None}, {"classes": []}, {"classes": "ab"}, {"classes": [1, 2]}, {"classes": ...},
        {"normalization": None}, {"normalization": ...}, {"normalization": [[0, 0, 0], [1, 1]]}, {"normalization": 7},
        {"normalization": [[0, 0, 0], [1, 0, 1]]}, {"normalization": [["a"] * 3] * 2}, {"architecture": 7},
        {"architecture": ...}, {"architecture": None}, {"architecture": []},
    ],
)  # fmt: skip
def test_malformed_metadata_are_one_sentence(tmp_path, changes):
    save_source(
        tmp_path / "source.safetensors",
        Source(build_model("resnet20", 2), ["a", "b"], ((0.5,) * 3, (0.2,) * 3), "resnet20"),
    )
    assert open_source(tmp_path, architecture="resnet20").classes == ["a", "b"]
    with pytest.raises(UserError, match="has the architecture resnet20, not vgg16_bn"):
        open_source(tmp_path, architecture="vgg16_bn")
    resent(tmp_path, **changes)
    with pytest.raises(UserError, match=r"source.safetensors"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["resnet20", "torchvision:regnet_x_400mf", "torchvision:swin_t"])
def test_a_model_without_memory_becomes_the_one_that_is_loaded(name):
    torch.manual_seed(0)
    model, shell, images = build_model(name, 5).eval(), build_unallocated(name, 5), torch.randn(2, 3, 64, 64)
    assert all(parameter.is_meta for parameter in shell.parameters())
    assert load_state(shell, {**model.state_dict(), "more": torch.ones(1)}, "x") is not None
    assert all(parameter.is_meta for parameter in shell.parameters())  # a file that does not fit allocates nothing
    assert load_state(shell, model.state_dict(), "x") is None
    with torch.no_grad():
        assert torch.equal(shell.eval()(images), model(images))
    assert not any(parameter.is_meta for parameter in nn.Linear(2, 2).parameters())


def test_an_architecture_that_needs_its_weights_is_made_with_them(monkeypatch):
    class Computing(nn.Linear):
        def __init__(self, classes):
            super().__init__(3, classes)
            self.total = float(self.weight.sum())

    monkeypatch.setattr("seam.models.cifar.resnet20", Computing)
    assert not build_unallocated("resnet20", 2).weight.is_meta


@pytest.mark.parametrize("outputs", [10**12, 10**30, 100_001, 0, -1, 2.0, True, None])
def test_an_impossible_number_of_outputs_of_a_student_is_a_sentence(tmp_path, outputs):
    metadata = {"architecture": "resnet20", "last_layer": "fc", "classes": ["a"], "normalization": [[0.5] * 3] * 2}
    state = build_model("resnet20", 1).state_dict()
    save_tensors(tmp_path / "student.safetensors", state, {**metadata, "source_classes": 100_000})
    assert load_student(tmp_path).classes == ["a"]
    save_tensors(tmp_path / "student.safetensors", state, {**metadata, "source_classes": outputs})
    with pytest.raises(UserError, match="student.safetensors was not written by this workflow"):
        load_student(tmp_path)


def test_more_classes_than_a_model_has_are_a_sentence(tmp_path):
    source = Source(build_model("resnet20", 2), ["a"] * 100_001, ((0.5,) * 3, (0.2,) * 3), "resnet20")
    save_source(tmp_path / "source.safetensors", source)
    with pytest.raises(UserError, match="source.safetensors has more than 100,000 classes"):
        open_source(tmp_path)


def test_a_head_begins_with_the_answers_of_the_source_model_also_beside_a_rest_of_many_classes():
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(100).repeat(2)
    logits = torch.rand(200, 100, generator=generator) * 3  # so that 99 outputs always add up to more than one
    logits[torch.arange(200), classes] += 10
    outputs = torch.ones(100, dtype=torch.int64)
    outputs[7] = 0
    labels = outputs[classes]
    drawn = torch.cat([(labels == 0).nonzero().flatten(), torch.tensor([3, 50])])  # two images of each
    head = nn.Linear(100, 2)
    initialise_head(head, outputs, logits[drawn], labels[drawn])
    assert torch.equal(head(logits.relu()).argmax(1), labels)
    single = nn.Linear(100, 3)  # outputs that stand for one class each are those of the source model
    places = torch.full((100,), -1)
    places[:3] = torch.tensor([2, 0, 1])
    initialise_head(single, places, logits[:3], torch.tensor([2, 0, 1]))
    torch.testing.assert_close(single(logits.relu()), logits[:, [1, 2, 0]])


class Viewing(nn.Module):
    """A network as beginners write it: `view` needs the usual order in memory."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 5)

    def forward(self, images):
        features = self.layer(images).relu()
        return self.head(features.view(features.size(0), -1))


def test_a_network_that_views_its_features_keeps_the_usual_order():
    torch.manual_seed(0)
    network, images = Viewing().eval(), torch.randn(2, 3, 8, 8)
    expected, device = network(images), torch.device("cpu")
    last = images.contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size"):
        network(last)
    model = with_head(to_channels_last(network, device, (8, 8)), 5, 2)
    assert torch.allclose(model.source(last), expected, atol=1e-6)
    again = to_channels_last(copy_module(model), device, (8, 8))
    assert torch.equal(again.source(last), model.source(last)) and len(again.source._forward_pre_hooks) == 1
    plain = to_channels_last(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), device, (8, 8))
    assert plain[0].weight.is_contiguous(memory_format=torch.channels_last) and not plain._forward_pre_hooks


def test_layers_that_ask_for_their_version_load():
    """Without the version in a state dictionary, MNASNet refuses it."""
    network = build_model("torchvision:mnasnet0_5", 3)
    state = network.state_dict()
    assert load_state(build_model("torchvision:mnasnet0_5", 3), dict(state), "x.pth") is None
    network.load_state_dict(copy_state(network))


def test_lazy_layers_are_one_sentence():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    problem = load_state(lazy, {"1.weight": torch.zeros(3, 2), "1.bias": torch.zeros(3)}, "x.pth")
    assert (
        problem == "x.pth cannot be loaded: 1.weight is of a lazy layer of the architecture. Give the layer its sizes."
    )


def test_modules_that_keep_computed_tensors_are_copied():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    network = nn.Sequential(layer)
    network.kept = [network(torch.ones(1, 3))]
    copied = copy_module(network)
    assert torch.equal(copied(torch.ones(1, 3)), network(torch.ones(1, 3))) and not copied.kept[0].requires_grad


def test_a_last_layer_with_two_names_is_replaced_under_both():
    network = nn.Module()
    network.fc = nn.Linear(4, 3)
    network.top = nn.Sequential(nn.Flatten(), network.fc)
    replace_last_layer(network, "fc", 7)
    assert network.top[1] is network.fc and network.fc.out_features == 7


def test_a_new_head_has_the_precision_of_its_network():
    torch.set_default_dtype(torch.float64)
    try:
        assert with_head(nn.Linear(3, 2).float(), 2, 2).head.weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
