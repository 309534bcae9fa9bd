"""Hyper-parameters and their defaults. `config.schema.yaml` describes each; a test checks that both agree."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackSettings:
    """Of the attack, in normalised space; `config.schema.yaml` describes each."""

    eps: float = 0.1
    step: float = 0.01
    steps: int = 40
    clip: tuple = (-2.2, 2.2)
    target: float = 1000.0
    weight: float = 0.1
    batch_size: int = 64


@dataclass(frozen=True)
class SearchSettings:
    """Hyper-parameters of a search; `config.schema.yaml` describes each."""

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

    def __post_init__(self):
        for name, known in (("schedule", ("published", "fast")), ("selection", ("holdout", "test"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, and not one of {', '.join(known)}")


@dataclass(frozen=True)
class TrainingSettings:
    """Hyper-parameters of a training; `config.schema.yaml` describes each."""

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0005
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class FinetuningSettings:
    """Hyper-parameters of a student's training; `config.schema.yaml` describes each."""

    epochs: int
    patience: int
    lr: float
    weight_decay: float
    momentum: float = 0.0
    lr_last: float | None = None
    keep_zeros: bool = False
