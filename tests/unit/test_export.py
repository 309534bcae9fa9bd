import json
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from networks import Residual, prune, vgg
from onnx import numpy_helper
from torch import nn

from seam.cost.export import export, onnx_metadata
from seam.errors import UserError
from seam.files import check_onnx_seal


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


class Viewed(nn.Module):
    """Flattens as the public CIFAR models do, by a view to the size of the batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, images):
        return self.head(self.conv(images).view(images.size(0), -1))


@pytest.mark.parametrize("build", [Residual, vgg, Viewed, torchvision.models.resnet18])
def test_the_file_computes_what_the_module_does(build, tmp_path):
    torch.manual_seed(0)
    size = 8 if build is Viewed else 32
    module = prune(build(), 0.5).eval()
    export(module, tmp_path / "model.onnx", (3, size, size))
    for number in (1, 5, 16):  # the batch is free
        images = torch.randn(number, 3, size, size)
        with torch.no_grad():
            expected = module(images).numpy()
        np.testing.assert_allclose(run(tmp_path / "model.onnx", images), expected, rtol=1e-3, atol=1e-4)


def test_the_file_has_the_names_and_the_opset_that_engines_ask_for(tmp_path):
    export(Viewed(), tmp_path / "model.onnx", (3, 8, 8), batch_size=4)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [13]
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    dimensions = images.type.tensor_type.shape.dim
    assert dimensions[0].dim_param == "batch"
    assert [d.dim_value for d in dimensions[1:]] == [3, 8, 8]


def test_the_file_says_what_its_outputs_are_and_what_its_images_take(tmp_path):
    metadata = onnx_metadata(["ä cat", "rest"], ((0.5, 0.4, 0.3), (0.2, 0.2, 0.25)))
    export(Viewed(), tmp_path / "model.onnx", (3, 8, 8), metadata=metadata)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    said = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert len(said.pop("sha256")) == 64
    check_onnx_seal(tmp_path / "model.onnx")
    assert said == {"classes": ["ä cat", "rest"], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.25]}


def test_zeros_stay_zeros_when_batch_norm_is_folded_in(tmp_path):
    module = prune(vgg(), 0.9)
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
            layer.running_mean.normal_()
    export(module, tmp_path / "model.onnx", (3, 32, 32))
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    kept = [np.count_nonzero(numpy_helper.to_array(t)) for t in graph.initializer if len(t.dims) > 1]
    layers = [layer for layer in module if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert sorted(kept) == sorted(int(layer.weight.count_nonzero()) for layer in layers)


def test_the_module_is_left_as_it_is_and_nothing_is_warned_of(tmp_path):
    module = vgg().train()
    module[1].eval()
    modes = [layer.training for layer in module.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(module, tmp_path / "model.onnx", (3, 32, 32))
    assert [layer.training for layer in module.modules()] == modes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


class Sized(nn.Module):
    def forward(self, images):
        assert images.shape[2] == 8  # torch warns that the trace will not check this
        return images.mean((2, 3))


def test_torch_does_not_warn_of_a_trace_that_is_checked(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(Sized(), tmp_path / "model.onnx", (3, 8, 8))


class Inexpressible(nn.Module):
    def forward(self, images):
        return torch.special.i0(images)


class Random(nn.Module):
    def forward(self, images):
        return images + torch.rand(1)


class Branching(nn.Module):
    def forward(self, images):
        means = images.mean((2, 3))
        return means if means[0].sum() > 0 else 2 * means  # the trace holds one of the two


class OneBatch(nn.Module):
    def forward(self, images):
        return images.reshape(16, 192)[:, :2]


class NotANumber(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) / 0 * 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Inexpressible(), r"Cannot export the model of .*model.onnx to ONNX \(.*i0.*\): rewrite that operation"),
        (Random(), "does not compute what the model does"),
        (Branching(), "does not compute what the model does"),
        (OneBatch(), "for 1 image.*any number of images"),
        (NotANumber(), "does not compute what the model does .*nan"),
    ],
)
def test_a_model_that_cannot_be_exported_leaves_no_file(module, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export(module, tmp_path / "model.onnx", (3, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_torch_prints_nothing_of_a_model_that_it_cannot_export(tmp_path, capfd):
    with pytest.raises(UserError) as raised:
        export(Inexpressible(), tmp_path / "model.onnx", (3, 8, 8))
    assert capfd.readouterr() == ("", "")
    assert "pull request" not in str(raised.value) and "graph" not in str(raised.value)


def test_an_earlier_file_survives_a_failed_export(tmp_path):
    (tmp_path / "model.onnx").write_text("earlier")
    with pytest.raises(UserError):
        export(Inexpressible(), tmp_path / "model.onnx", (3, 8, 8))
    assert (tmp_path / "model.onnx").read_text() == "earlier"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_is_exported(tmp_path, heads):
    """Vision transformers: torch fuses attention in eval mode, and its ONNX form is made for a newer opset."""
    torch.manual_seed(0)
    module = torchvision.models.VisionTransformer(16, 8, 2, heads, 32, 64, num_classes=3)
    was = torch.backends.mha.get_fastpath_enabled()
    export(module, tmp_path / "model.onnx", (3, 16, 16))
    assert torch.backends.mha.get_fastpath_enabled() == was


def test_a_model_that_no_onnx_file_can_hold_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("seam.cost.export.MOST_BYTES", 100)
    with pytest.raises(UserError, match="its weights take 0.0 GB, and an ONNX file holds at most 0.0 GB"):
        export(nn.Conv2d(3, 8, 3), tmp_path / "model.onnx", (3, 8, 8))
    assert not list(tmp_path.iterdir())
