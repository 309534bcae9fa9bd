"""Data sets by name, of torchvision or of Hugging Face's `datasets`, as folders of images."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from seam.data.decoding import FORMATS, as_rgb
from seam.errors import UserError, cannot_write, one_line
from seam.files import open_file, write_text

CACHE = Path("data")
MOST_BYTES = 500_000_000  # of an image's file
DONE = ".complete"  # a file in a folder that has all images


def image_folder(data: str, cache: str | Path = CACHE) -> str:
    """Return the folder of a data set: `data` itself, or for torchvision:NAME and hf:NAME one that is written here.

    hf:NAME:CONFIGURATION names one of several configurations of a data set. Images without a label are left out.
    Images are stored without loss, as cache/NAME/train/CLASS/*.png and test/CLASS. Raises UserError if the package is
    not installed or has no such data set.
    """
    kind, colon, name = data.partition(":")
    if not colon or kind not in ("torchvision", "hf") or Path(data).exists():
        return data
    folder = Path(cache) / f"{kind}-{re.sub('[/:]', '-', name)}"
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
    if "train" in parameters:
        splits: dict[str, Any] = {"train": [{"train": True}], "test": [{"train": False}]}
    elif "split" in parameters:
        splits = {
            name: [{"split": split} for split in options]
            for name, options in (("train", ("trainval", "train")), ("test", ("test", "val", "valid")))
        }
    else:  # all images are in one set, which is split later
        splits = {".": [{}]}
    common = {key: value for key, value in (("root", cache), ("download", True)) if key in parameters}
    parts = {}
    for split, options in splits.items():
        dataset = _first_that_is_there(kind, [{**common, **each} for each in options])
        classes = getattr(dataset, "classes", None)
        if classes is None:
            raise UserError(f"--data torchvision:{name} has no class names: it is none of classification.")
        parts[split] = _named(dataset, classes)
    return parts


def _first_that_is_there(kind: Any, options: list[dict[str, Any]]) -> Any:
    """Return the data set of the first options that it takes: names of splits differ from one to another."""
    for each in options[:-1]:
        with contextlib.suppress(ValueError):
            return kind(**each)
    return kind(**options[-1])


def _named(dataset: Any, classes: Any) -> Iterator[tuple[Any, str]]:
    for number in range(len(dataset)):
        image, label = dataset[number]
        yield image, str(classes[label])


def _hugging_face(name: str, cache: str) -> dict[str, Iterable[tuple[Any, str]]]:
    datasets = importlib.import_module("datasets")  # no requirement: most people do without it
    name, _, configuration = name.partition(":")
    options = {"cache_dir": cache, **_without_scripts(datasets, name)}
    stored = datasets.load_dataset(name, configuration or None, **options)
    if "train" not in stored and len(stored) > 1:
        raise UserError(f"--data hf:{name} has no part called train, but {', '.join(stored)}: store it as a folder.")
    first = "train" if "train" in stored else next(iter(stored))
    train = stored[first]
    images = next((key for key, kind in train.features.items() if type(kind).__name__ == "Image"), None)
    label = next((key for key, kind in train.features.items() if type(kind).__name__ == "ClassLabel"), None)
    if images is None or label is None:
        raise UserError(f"--data hf:{name} has no column of images and one of class labels.")
    names = train.features[label].names
    # Not decoded there: the package would open any format, and PostScript runs as a program.
    stored = {key: part.cast_column(images, datasets.Image(decode=False)) for key, part in stored.items()}
    train = stored[first]
    # The test images of a contest often have no labels, which is written as -1.
    labelled = (stored[part] for part in ("test", "validation", "val") if part in stored)
    test = next((part for part in labelled if any(map(_is_label, part[label]))), None)
    parts = {"train": train, "test": test} if test is not None else {".": train}
    return {
        split: ((_decoded(row[images]), names[row[label]]) for row in part if _is_label(row[label]))
        for split, part in parts.items()
    }


def _without_scripts(datasets: Any, name: str) -> dict[str, Any]:
    """Return the arguments with which the package `datasets` runs no code of a data set's author.

    Versions before 2.16 cannot be told so, and versions since 4 have no such code. Raises UserError for the former.
    """
    if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:
        return {"trust_remote_code": False}
    version = str(getattr(datasets, "__version__", "0"))
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < 4:
        raise UserError(
            f"--data hf:{name} needs a newer version of the package datasets than {version}, which would run code of "
            "the data set's author: pip install -U datasets."
        )
    return {}


def _decoded(image: Mapping[str, Any]) -> Any:
    """Return the image of a row, {"bytes": its content, or "path": its file}. Raises OSError for other formats."""
    content = image["bytes"]
    if content is None:  # the row names a file, which must not be a device or a pipe
        with open_file(image["path"]) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{image['path']} is too large for an image: remove it from the data set.")
    opened = Image.open(io.BytesIO(content), formats=FORMATS)
    opened.load()
    return opened


def _is_label(label: int | None) -> bool:
    return label is not None and label >= 0


def _write(folder: Path, images: Iterable[tuple[Any, str]]) -> None:
    names: dict[str, str] = {}
    for number, (image, name) in enumerate(images):
        safe = name.replace("/", "-").replace("\0", "").lstrip(".") or "class"
        if names.setdefault(safe, name) != name:
            raise UserError(
                f"The classes {names[safe]!a} and {name!a} would share the folder {safe}: store the images as folders."
            )
        place = folder / safe / f"{number:06}.png"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            as_rgb(image).save(place)
        except OSError as error:
            raise cannot_write(place, error) from error
        except ValueError as error:
            raise UserError(f"Image {number} of class {name!a} cannot be used: {error}.") from error
