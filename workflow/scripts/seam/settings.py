"""The hyper-parameters of every procedure, with their defaults.

`workflow/schemas/config.schema.yaml` describes each of them and has the same defaults, which a test checks. This module
imports neither torch nor anything else of the package, so that reading it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """How a source model is trained: `training` of the config."""

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0005
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class SearchSettings:
    """How the masks of a target problem are searched in direct reuse: `search` of the config.

    Raises ValueError if the schedule or the selection is unknown.
    """

    epochs: int = 300
    batch_size: int = 64
    lr_mask: float = 0.05
    lr_head: float = 0.1
    alpha: float = 1.0
    head_every: int = 5
    schedule: str = "published"
    selection: str = "holdout"
    holdout: float = 0.2
    tolerance: float = 0.0
    accuracy_worth: float | None = 5.0
    patience: int = 50
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("schedule", ("published", "fast")), ("selection", ("holdout", "test"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}.")


@dataclass(frozen=True)
class RecoverySettings:
    """How a re-engineered model is trained after its search: `recovery` of the config. 0 epochs: not at all."""

    epochs: int = 0
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0005
    distillation: float = 1.0
    temperature: float = 4.0
    fresh_negatives: bool = False


@dataclass(frozen=True)
class TransferSettings:
    """What all steps of indirect reuse share: the keys of `transfer` of the config that are no block.

    last_layer: the name of the source model's last layer, or None to find it (an entry of `models` has it).
    """

    batch_size: int = 64
    selection: str = "holdout"
    holdout: float = 0.1
    last_layer: str | None = None


@dataclass(frozen=True)
class LastLayerSettings:
    """How a new last layer is trained while all other layers stay as they are: `transfer.head` of the config."""

    epochs: int = 300
    patience: int = 30
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0001


@dataclass(frozen=True)
class ThresholdSearchSettings:
    """How the masks of indirect reuse are searched: `transfer.search` of the config."""

    epochs: int = 300
    lr_mask: float = 0.05
    lr_last: float = 0.001
    alpha: float = 0.5


@dataclass(frozen=True)
class FinetuningSettings:
    """How a student is trained: `transfer.finetune` of the config, and with other defaults `standard` and `retrain`."""

    epochs: int = 300
    patience: int = 30
    lr: float = 0.005
    lr_last: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0001
    keep_zeros: bool = False


@dataclass(frozen=True)
class AttackSettings:
    """How test images are perturbed against a source model, in normalised space: `attack` of the config."""

    eps: float = 0.1
    step: float = 0.01
    steps: int = 40
    clip: tuple[float, float] = (-2.2, 2.2)
    target: float = 1000.0
    weight: float = 0.1
    batch_size: int = 64
