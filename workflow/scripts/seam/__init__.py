"""SeaM: re-engineer a trained network to the weights that a target problem needs.

>>> import seam                                          # doctest: +SKIP
>>> model = seam.load("results/direct/resnet20-cifar10/binary/cat")
>>> image = seam.image("photo.jpg", 32, model.normalization)
>>> model(image).argmax(1)                               # 0: a cat, 1: anything else
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seam.data.batches import load_image as image
    from seam.reuse.load import load_reengineered as load
    from seam.reuse.load import load_student

__version__ = "0.2.0"
__all__ = ["image", "load", "load_student"]

# Loaded at their first use. Importing any module of the package runs this file: an import statement here would make
# every module, and so every job of the workflow, depend on what it names.
_PUBLIC = {
    "image": ("seam.data.batches", "load_image"),
    "load": ("seam.reuse.load", "load_reengineered"),
    "load_student": ("seam.reuse.load", "load_student"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(globals().keys() | _PUBLIC.keys())
