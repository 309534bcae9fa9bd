"""Residual branches in models that people write: each is removed exactly, or it stays and a sentence says so."""

import copy

import onnx
import pytest
import torch
import torch.nn.functional as F
from test_channels import randomise
from torch import nn

from seam.cost.export import export
from seam.masks.branch_trials import removable_branches
from seam.masks.branches import Branch
from seam.masks.channels import find_groups
from seam.masks.shrink import removal_error, resize, shrink
from seam.models.removed import Removed

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def conv(inputs=8, outputs=8, size=3):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class Network(nn.Module):
    """A stem, a block with a residual branch, and a head."""

    def __init__(self, block):
        super().__init__()
        self.stem, self.block, self.fc = conv(3), block, nn.Linear(8, 4)

    def forward(self, images):
        return self.fc(self.block(self.stem(images)).relu().mean((2, 3)))


class Block(nn.Module):
    """A block whose forward pass is a function of itself and its input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


class OwnNorm(nn.Conv2d):
    """A convolution with a norm of its own."""

    def __init__(self):
        super().__init__(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(super().forward(x)).relu()


class OwnLayerNorm(nn.LayerNorm):
    """A layer norm that calls the function, as timm's does."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class OwnShortcut(nn.Conv2d):
    """A convolution with its own shortcut: without it `x` would be lost as well."""

    def forward(self, x):
        return x + super().forward(x)


def aliased():
    """Layers with two names, of which the second one is called."""
    block = Block(lambda self, x: x + self.net(x), a=conv(), b=nn.BatchNorm2d(8))
    block.net = nn.Sequential(block.a, nn.ReLU(), block.b)
    return block


def checked(x):
    torch._assert(x.ndim == 4, "not four dimensions")
    return x


def scale(*shape):
    return nn.Parameter(torch.full(shape, 0.3))


REMOVED = {
    "two names": aliased,
    "a norm of its own": lambda: Block(lambda self, x: x + self.b(self.a(x)), a=OwnNorm(), b=OwnNorm()),
    "operands by name": lambda: Block(lambda self, x: torch.add(input=x, other=self.b(self.a(x))), a=conv(), b=conv()),
    "input by name": lambda: Block(lambda self, x: x + self.b(input=self.a(x)), a=conv(8, 12), b=conv(12, 8)),
    "a size": lambda: Block(
        lambda self, x: x + self.up(self.a(x), output_size=[16, 16]),
        a=nn.Conv2d(8, 8, 2, 2), up=nn.ConvTranspose2d(8, 8, 2, 2),
    ),
    "nn.Identity": lambda: Block(lambda self, x: self.i(x) + self.b(self.a(x)), i=nn.Identity(), a=conv(), b=conv()),
    "a scale in another shape": lambda: Block(
        lambda self, x: x + self.b(self.a(x)).mul(self.scale.reshape(1, -1, 1, 1)), a=conv(), b=conv(), scale=scale(8)
    ),
    "activation first": lambda: Block(lambda self, x: x + self.b(F.relu(self.a(F.relu(x)))), a=conv(), b=conv()),
    "GELU first": lambda: Block(lambda self, x: x + self.b(self.a(F.gelu(x))), a=conv(), b=conv()),
    "gate first": lambda: Block(
        lambda self, x: x + self.c(x.mean((2, 3), keepdim=True)).tanh() * self.a(x), a=conv(), c=conv(8, 8, 1)
    ),
    "a norm of linear layers": lambda: Block(
        lambda self, x: x + self.b(self.n(self.a(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
        a=nn.Linear(8, 12), n=nn.LayerNorm(12), b=nn.Linear(12, 8),
    ),
    "a layer norm of its own": lambda: Block(
        lambda self, x: x + self.b(self.n(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=conv(), n=OwnLayerNorm(8), b=conv(),
    ),
    "a size that is checked": lambda: Block(
        lambda self, x: x + checked(self.b(checked(self.a(x)))), a=conv(), b=conv()
    ),
    "a grouped transposed convolution": lambda: Block(
        lambda self, x: x + self.b(self.a(x).relu()), a=conv(), b=nn.ConvTranspose2d(8, 8, 3, padding=1, groups=4)
    ),
}  # fmt: skip
STAYING = {
    "a shortcut of its own": lambda: Block(lambda self, x: self.a(x), a=OwnShortcut(8, 8, 3, padding=1)),
    "weights without their layer": lambda: Block(
        lambda self, x: x + self.b(F.conv2d(x, self.a.weight, self.a.bias, padding=self.a.padding)), a=conv(), b=conv()
    ),
    "a scale of the inner width": lambda: Block(
        lambda self, x: x + self.b((self.a(x) * self.scale).relu()), a=conv(8, 12), b=conv(12, 8), scale=scale(12, 1, 1)
    ),
    "sizes that change": lambda: Block(
        lambda self, x: x + self.up(self.a(F.adaptive_avg_pool2d(x, 8))), a=conv(), up=nn.ConvTranspose2d(8, 8, 2, 2)
    ),
}


def without_branches(groups):
    kept = torch.ones(groups.count, dtype=torch.bool)
    for name in groups.branches:
        groups.split(kept)[name][:] = False
    return kept


@pytest.mark.parametrize("make", REMOVED.values(), ids=REMOVED)
def test_a_branch_is_removed_exactly(make, tmp_path):
    module = randomise(Network(make()))
    groups = find_groups(module, IMAGES)
    assert len(groups.branches) == 1 and not groups.staying
    kept = without_branches(groups)
    assert removal_error(module, groups, kept, IMAGES) < 1e-6
    small = shrink(copy.deepcopy(module), groups, kept)
    names = [name for name, _ in small.named_modules(remove_duplicate=False)]
    convolutions = [name for name in names if isinstance(small.get_submodule(name), (nn.Conv2d, nn.ConvTranspose2d))]
    assert convolutions == ["stem"]  # under no other name
    rebuilt = resize(randomise(Network(make())), small.state_dict()).eval()
    rebuilt.load_state_dict(small.state_dict())
    torch.testing.assert_close(rebuilt(IMAGES), small(IMAGES))
    export(small, tmp_path / "model.onnx", (3, 16, 16), 2)  # compares the outputs
    operations = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operations == ["Conv", "Relu", "ReduceMean", "Gemm"]
    for name, bits in groups.split(kept).items():
        bits[:] = name in groups.branches
        bits[::2] = True
    assert removal_error(module, groups, kept, IMAGES) < 1e-6  # half of the channels
    small = shrink(copy.deepcopy(module), groups, kept)
    rebuilt = resize(randomise(Network(make())), small.state_dict()).eval()
    rebuilt.load_state_dict(small.state_dict())
    torch.testing.assert_close(rebuilt(IMAGES), small(IMAGES))


class Tokens(nn.Module):
    """A branch of linear layers on tokens, whose shapes ONNX does not know: their number is computed."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, images):
        x = self.stem(images).flatten(2).transpose(1, 2)
        return self.fc((x + self.b(F.gelu(self.a(x)))).mean(1))


def test_a_branch_on_tokens_leaves_no_trace(tmp_path):
    module = randomise(Tokens())
    groups = find_groups(module, IMAGES)
    assert len(groups.branches) == 1
    export(shrink(module, groups, without_branches(groups)), tmp_path / "model.onnx", (3, 16, 16), 2)
    operations = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert not {"ConstantOfShape", "Add"}.intersection(operations)


@pytest.mark.parametrize("make", STAYING.values(), ids=STAYING)
def test_a_branch_that_the_code_needs_stays(make):
    module = randomise(Network(make()))
    groups = find_groups(module, IMAGES)
    assert not groups.branches and len(groups.staying) == 1
    assert f"The residual branch {groups.staying[0]} stays: the model's code needs its layers." in groups.sentences()
    assert all(not units.branches and not units.ends for units in groups.layers.values())


def test_one_branch_of_two_stays():
    module = nn.Sequential(Network(STAYING["sizes that change"]()).block, REMOVED["activation first"]())
    module = randomise(nn.Sequential(conv(3), module, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))
    groups = find_groups(module, IMAGES)
    assert list(groups.branches) == ["1.1"] and list(groups.staying) == ["1.0"]
    assert removal_error(module, groups, without_branches(groups), IMAGES) < 1e-6


def test_trials_depend_on_the_architecture_alone():
    module = Network(STAYING["a shortcut of its own"]())
    branch = Branch("block.a", ("block.a",), ("block.a",))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()  # with these weights all outputs are equal
    before = copy.deepcopy(module.state_dict())
    assert removable_branches(module, [branch], IMAGES) == []
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(isinstance(layer, Removed) for layer in module.modules())
