"""EfficientNet-Lite0, the source model of flowers-lite0.yaml; configs/README.md says where its weights come from."""

from torch import nn


def build(classes: int) -> nn.Module:
    """Return a new EfficientNet-Lite0 for images whose side is a multiple of 32 px, without stochastic depth."""
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports] (pip installs it)

    return EfficientNet.from_name(
        "efficientnet-lite0", num_classes=classes, drop_connect_rate=0.0, batch_norm_momentum=0.9
    )
