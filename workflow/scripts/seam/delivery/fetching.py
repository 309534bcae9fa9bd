"""Data sets by name, of torchvision or of Hugging Face's `datasets`, as folders of images."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from seam.errors import UserError, one_line
from seam.files import write_text

CACHE = Path("data")
DONE = ".complete"  # a file in a folder that has all images


def image_folder(data: str, cache: str | Path = CACHE) -> str:
    """Return the folder of a data set: `data` itself, or for torchvision:NAME and hf:NAME one that is written here.

    Images are stored without loss, as cache/NAME/train/CLASS/*.png and test/CLASS. Raises UserError if the package is
    not installed or has no such data set.
    """
    kind, colon, name = data.partition(":")
    if not colon or kind not in ("torchvision", "hf") or Path(data).exists():
        return data
    folder = Path(cache) / f"{kind}-{name.replace('/', '-')}"
    if (folder / DONE).is_file():
        return str(folder)
    read = _torchvision if kind == "torchvision" else _hugging_face
    try:
        for split, images in read(name, str(cache)).items():
            _write(folder / split, images)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"--data {data} needs a package that is not installed ({one_line(error)}): install it."
        ) from error
    except Exception as error:  # downloads and unknown names fail in many ways
        raise UserError(
            f"--data {data} cannot be read ({one_line(error)[:300]}): check its name, or the network."
        ) from error
    write_text(folder / DONE, "")
    return str(folder)


def _torchvision(name: str, cache: str) -> dict[str, Iterable[tuple[Any, str]]]:
    import torchvision

    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind):
        raise UserError(
            f"--data torchvision:{name} is no data set of torchvision: write CIFAR10 or OxfordIIITPet, say."
        )
    parameters = inspect.signature(kind).parameters
    splits = {}
    for split in ("train", "test"):
        options: dict[str, Any] = {"root": cache, "download": True, "train": split == "train", "split": split}
        dataset: Any = kind(**{key: value for key, value in options.items() if key in parameters})
        classes = getattr(dataset, "classes", None)
        if classes is None:
            raise UserError(f"--data torchvision:{name} has no class names: it is none of classification.")
        splits[split] = _named(dataset, classes)
    return splits


def _named(dataset: Any, classes: Any) -> Iterator[tuple[Any, str]]:
    for number in range(len(dataset)):
        image, label = dataset[number]
        yield image, str(classes[label])


def _hugging_face(name: str, cache: str) -> dict[str, Iterable[tuple[Any, str]]]:
    datasets = importlib.import_module("datasets")  # no requirement: most people do without it
    found = datasets.load_dataset(name, cache_dir=cache, trust_remote_code=False)
    train = found["train"]
    images = next((key for key, kind in train.features.items() if type(kind).__name__ == "Image"), None)
    label = next((key for key, kind in train.features.items() if type(kind).__name__ == "ClassLabel"), None)
    if images is None or label is None:
        raise UserError(f"--data hf:{name} has no column of images and one of class labels.")
    names = train.features[label].names
    test = next((part for part in ("test", "validation", "val") if part in found), None)
    parts = {"train": train, "test": found[test]} if test else {".": train}
    return {split: ((row[images], names[row[label]]) for row in part) for split, part in parts.items()}


def _write(folder: Path, images: Iterable[tuple[Any, str]]) -> None:
    for number, (image, name) in enumerate(images):
        safe = name.replace("/", "-").replace("\0", "").lstrip(".") or "class"
        place = folder / safe / f"{number:06}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(place)
