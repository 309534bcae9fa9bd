"""Whole networks, exported by torch, give what ONNX Runtime gives."""

import warnings

import pytest
from conftest import INSTRUCTIONS, assert_agrees, needs_compiler

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision").models

NETWORKS = [
    ("resnet18", 0.9),
    ("mobilenet_v2", 0.0),
    ("mobilenet_v3_small", 0.5),
    ("efficientnet_b0", 0.9),
    ("squeezenet1_1", 0.0),
    ("densenet121", 0.8),
    ("vgg11_bn", 0.95),
    ("regnet_y_400mf", 0.5),
]


def export(module, shape, path):
    """Write a module as an ONNX file with a free batch size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(1, *shape),),
            str(path),
            dynamo=False,
            opset_version=13,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    return path


def prune(module, share):
    """Set the smallest weights of each layer to zero, and give batch normalisation statistics that matter."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and share:
            limit = parameter.data.abs().flatten().kthvalue(max(1, int(parameter.numel() * share))).values
            parameter.data[parameter.data.abs() <= limit] = 0
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return module


@needs_compiler
@pytest.mark.parametrize(("name", "zeros"), NETWORKS)
def test_torchvision(name, zeros, tmp_path):
    torch.manual_seed(0)
    module = prune(getattr(models, name)(weights=None, num_classes=10), zeros)
    if name == "vgg11_bn":
        module.avgpool, module.classifier = torch.nn.Identity(), torch.nn.Linear(512 * 4, 10)
    path = export(module, (3, 64, 64), tmp_path / "model.onnx")
    assert_agrees(path, (1, 5), instructions=INSTRUCTIONS[0])


@needs_compiler
@pytest.mark.parametrize("zeros", [0.0, 0.8, 0.95, 1.0])
def test_residual_network(zeros, tmp_path):
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            widths = [(3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 64, 2)]
            self.layers = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, s, 1) for i, o, s in widths)
            self.shortcuts = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 1, s) for i, o, s in widths)
            self.linear = torch.nn.Linear(64, 10)

        def forward(self, x):
            for layer, shortcut in zip(self.layers, self.shortcuts, strict=True):
                x = torch.relu(layer(x) + shortcut(x))
            return self.linear(x.mean((2, 3)).view(x.size(0), -1))

    path = export(prune(Network(), zeros), (3, 32, 32), tmp_path / "model.onnx")
    for instructions in INSTRUCTIONS:
        assert_agrees(path, (1, 2, 16, 33), instructions=instructions, threads=2)
