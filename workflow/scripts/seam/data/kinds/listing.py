"""Where the images of a user's data set are: folders that are split already, a folder of classes, or a CSV file."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seam.errors import UserError, cannot_read
from seam.files import open_file
from seam.log import log

if TYPE_CHECKING:
    import numpy as np

TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first of them that is there has the test images
TEST_SHARE = 0.2
PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")  # columns of a CSV file
LABELS = ("label", "class", "class_name", "category", "target")
SPLITS = ("split", "set", "subset")
MOST_BYTES = 500_000_000  # of a CSV file

Files = dict[str, list[str]]  # class: sorted paths


def is_table(root: str | Path) -> bool:
    """Return whether the root of a data set is a CSV file."""
    return str(root).lower().endswith((".csv", ".tsv"))


def is_line(name: str) -> bool:
    """Return whether the name of a class can be printed and is a single line, as labels.txt has it."""
    # Cc: control characters; Cs: bytes that are not UTF-8; Zl and Zp: other ends of lines.
    return not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, name))


def test_folder(root: str | Path) -> str | None:
    """Return the folder in root that has the test images; `test` if there is none beside a folder `train`.

    None if root has neither, so that its folders are the classes.
    """
    present = [name for name in TEST_FOLDERS if (Path(root) / name).is_dir()]
    if present:
        return present[0]
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    return "test" if not names or "train" in names else None


def draw_test_images(labels: Sequence[int], names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Return which images are for testing, bool [N]: `share` of each class's, but at least one, drawn at random.

    labels: indices into `names`. Raises UserError if a class has a single image.
    """
    import numpy as np

    chosen, classes = np.zeros(len(labels), bool), np.asarray(labels)
    for label, name in enumerate(names):
        images = np.flatnonzero(classes == label)
        if len(images) < 2:
            raise UserError(
                f"root: class {name} has a single image, which cannot be split for training and testing: add some, or "
                "remove the class."
            )
        random = np.random.default_rng([seed, label, len(images)])
        chosen[random.choice(images, count_test_images(len(images), share), replace=False)] = True
    return chosen


def count_test_images(images: int, share: float) -> int:
    """Return how many of the images of a class are drawn for testing: `share` of them, but at least one and not all."""
    return min(images - 1, max(1, round(share * images)))


def read_table(path: str | Path) -> dict[str | None, Files]:
    """Return {split: {class: paths}} of a CSV file with a column of paths, one of labels and, if it has one, of splits.

    Paths begin at the folder of the CSV file. Without a column of splits, the only split is None. A line that says the
    same as one before it counts once, with a warning: two copies could end up in training and test. Raises UserError,
    which names the line, if a column, a label or an image is missing, or if an image has two labels or two splits.
    """
    try:
        return _read_table(Path(path))
    except csv.Error as error:  # such as a cell of 131,073 characters
        raise UserError(f"root: {path} is not a CSV file ({error}): correct it.") from error


def _read_table(path: Path) -> dict[str | None, Files]:
    try:
        with open_file(path) as table:
            content = table.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"root: {path} is too large for a list of images: split it.")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"root: {path} is not in UTF-8: save it with that encoding.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    file, label = (next((columns[name] for name in known if name in columns), None) for known in (PATHS, LABELS))
    split = next((columns[name] for name in SPLITS if name in columns), None)
    if file is None or label is None:
        raise UserError(
            f"root: the first line of {path} must name a column of paths ({', '.join(PATHS[:3])}) and one of labels "
            f"({', '.join(LABELS[:3])}), but it is {first.strip()[:80]!a}."
        )
    splits: dict[str | None, Files] = {}
    listed: dict[str, tuple[str, str | None, int]] = {}  # image: label, split, line
    repeated = 0
    for row in reader:
        place, name = (str(row.get(column) or "").strip() for column in (file, label))
        if not place or not name:
            raise UserError(f"root: line {reader.line_num} of {path} has no path or no label: complete or remove it.")
        if not is_line(name):
            raise UserError(
                f"root: line {reader.line_num} of {path} has the label {name[:80]!a}, which cannot be printed as one "
                "line: rename it."
            )
        image = os.path.join(os.path.abspath(path.parent), place)
        if not os.path.isfile(image):
            raise UserError(
                f"root: line {reader.line_num} of {path} names the image {place}, but there is no such file."
            )
        part = str(row.get(split) or "").strip().lower() if split else None
        if part == "":
            raise UserError(f"root: line {reader.line_num} of {path} has no split: write train or test in it.")
        before = listed.setdefault(os.path.normpath(image), (name, part, reader.line_num))
        if before[:2] != (name, part):
            difference = "label" if before[0] != name else "split"
            raise UserError(
                f"root: lines {before[2]} and {reader.line_num} of {path} give the image {place} another {difference}: "
                "correct one of them."
            )
        if before[2] != reader.line_num:
            repeated += 1
            continue
        splits.setdefault(part, {}).setdefault(name, []).append(image)
    if repeated:
        log.warning("%s lists images again on %d of its lines: each image counts once", path, repeated)
    if not splits:
        raise UserError(f"root: {path} lists no images: add a line for each.")
    return {part: {name: sorted(files) for name, files in sorted(classes.items())} for part, classes in splits.items()}


def table_splits(splits: Mapping[str | None, Files], path: str | Path) -> tuple[Files, Files | None]:
    """Return the (training, test) images of a table; None for the test images if they are to be drawn."""
    if None in splits:
        return splits[None], None
    train = splits.get("train", splits.get("training"))
    test = next((splits[name] for name in TEST_FOLDERS if name in splits), None)
    if train is None or test is None:
        known = ", ".join(sorted(map(str, splits)))
        raise UserError(f"root: the column of splits in {path} must have train and test (or val), but it has {known}.")
    for name, files in splits.items():
        if files is not train and files is not test:
            log.warning("%s: the images of the split %s are not used (%d)", path, name, sum(map(len, files.values())))
    return train, test
