"""Small networks for tests."""

import torch
from torch import nn


class Residual(nn.Module):
    """Grouped, strided and dilated convolutions, a shortcut, and one layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4)
        self.dilated = nn.Conv2d(16, 16, (3, 1), padding=(2, 0), dilation=(2, 1), groups=16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        x = self.norm(self.stem(images)).relu()
        x = self.twice(self.twice(x).relu())
        x = self.dilated(self.grouped(x)) + self.shortcut(x)
        return self.head(self.up(x).mean((2, 3)))


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 2),
    )  # fmt: skip


def prune(module, share, seed=0):
    """Set that share of the weights of each convolution and linear layer to zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            weight = layer.weight.data
            weight[torch.rand(weight.shape, generator=generator) < share] = 0
    return module


class Block(nn.Module):
    """A convolution with a bias, one whose output is used twice, one that runs twice, a norm before a convolution."""

    def __init__(self):
        super().__init__()
        self.biased, self.biased_norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.twice, self.twice_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.shared, self.shared_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.tied, self.tied_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.tied.weight = self.shared.weight
        self.plain, self.plain_norm = nn.Conv2d(8, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6, affine=False)
        self.first_norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = self.biased_norm(self.biased(x)).relu()
        y = self.twice(x)
        x = self.twice_norm(y) + y
        x = self.shared_norm(self.shared(self.shared(x)))
        x = self.tied_norm(self.tied(x))
        x = self.first_norm(self.plain_norm(self.plain(x)).relu())
        return self.last(x.mean((2, 3)))


def lively(network):
    """Statistics and biases that are not those of a new network."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0, 0.3)
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, 0, 0.3)
    return network.double().eval()
