"""Networks as a user would give them in the config: `architecture: small.py:build`."""

from torch import nn


def build(classes):
    """Return an untrained network for images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(64, classes),
    )


def build_plain(classes):
    """Return an untrained network that can be vectorised: it has no dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, classes),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, images):
        inner = nn.functional.relu(self.bn1(self.conv1(images)))
        return nn.functional.relu(self.bn2(self.conv2(inner)) + images)


class Grouped(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images):
        return images + self.conv(self.norm(images).relu())


def build_grouped(classes):
    """A network with two residual branches and no channel that can be removed: group norms need all of them."""
    blocks = [Grouped(8), Grouped(8), nn.GroupNorm(2, 8), nn.ReLU()]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


def build_residual(classes):
    """A network with three residual branches."""
    stem = nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    blocks = [Block(16) for _ in range(3)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
