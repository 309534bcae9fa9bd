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
