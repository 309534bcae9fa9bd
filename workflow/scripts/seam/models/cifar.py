"""ResNet20 and VGG16-BN for 32 px images.

Parameters are named as in the public `chenyaofo/pytorch-cifar-models` checkpoints, which load unchanged.
ResNet20: He et al., "Deep Residual Learning" (CVPR 2016), section 4.2, with 1x1 convolutional shortcuts.
VGG16-BN: Simonyan & Zisserman (ICLR 2015), configuration D, batch norm, a 512-wide classifier.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


def resnet20(classes: int) -> nn.Sequential:
    """Return ResNet20: [B, 3, 32, 32] images to [B, classes] logits; 0.27 million weights, 41 million MACs."""
    widths = (16, 32, 64)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    layers["bn1"] = nn.BatchNorm2d(16)
    layers["relu"] = nn.ReLU(inplace=True)
    inputs = 16
    for stage, width in enumerate(widths, 1):
        blocks = [ResidualBlock(inputs, width, 1 if stage == 1 else 2)]
        blocks += [ResidualBlock(width, width, 1) for _ in range(2)]
        layers[f"layer{stage}"] = nn.Sequential(*blocks)
        inputs = width
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    return initialise(nn.Sequential(layers))


def vgg16_bn(classes: int) -> nn.Sequential:
    """Return VGG16-BN: [B, 3, 32, 32] images to [B, classes] logits; 15.2 million weights, 314 million MACs."""
    layers: list[nn.Module] = []
    inputs = 3
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    classifier = nn.Sequential(
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, classes),
    )
    return initialise(
        nn.Sequential(OrderedDict(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=classifier))
    )


def initialise(model: nn.Sequential) -> nn.Sequential:
    """Initialise the convolutions as in He et al. (ICCV 2015), in place. Returns the model.

    Linear layers keep torch's own initialisation, which is smaller. With He's, VGG16's three linear layers would start
    with a loss of 5 and learn nothing for several epochs.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
