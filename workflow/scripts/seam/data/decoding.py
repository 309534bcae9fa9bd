"""Image files to arrays, as RGB and upright."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from seam.errors import UserError
from seam.files import open_file

# Pillow reads more formats, some of them by starting another program (EPS: Ghostscript). These are enough.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 90_000_000  # of a resized image, such as one a pixel wide
ORIENTATION = 0x0112  # its number in EXIF
LARGE = 128  # pixels: from this working size on, images are stored larger than they are used; see `stored_size`


def stored_size(size: int) -> int:
    """Return the side in pixels of the square that is stored of an image, for the working size `size`.

    It is 8/7 of a large size (256 for 224), so that a training image can be a random part of the square and a test
    image its centre, as for ImageNet. It is the working size itself if that is small.
    """
    return round(size * 8 / 7) if size >= LARGE else size


def open_image(path: str | os.PathLike[str], min_side: int | None = None) -> Image.Image:
    """Return the image as RGB, rotated as its EXIF data say.

    Its content decides about its format, not its name. Raises UserError if it has none of FORMATS, is damaged, is no
    regular file, or has more pixels than Pillow takes for plausible (about 179 million).

    min_side: the shorter side in pixels that is enough. A JPEG that is much larger is then decoded faster, reduced.
    """
    try:
        with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
            if min_side and min(image.size) >= 4 * min_side:
                image.draft("RGB", (2 * min_side, 2 * min_side))
            image.load()
            return as_rgb(image)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise UserError(
            f"{path} cannot be read as an image (it is none of {formats}): replace it or remove it."
        ) from error
    except Exception as error:  # Pillow raises many types for a damaged file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}): replace it or remove it.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, rotated as its metadata say. Raises ValueError if its pixels are fractions."""
    if image.getexif().get(ORIENTATION, 1) != 1:  # of XMP, too
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them to 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":  # Pillow would take them for 0 to 255
        raise ValueError("its pixels are fractions; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(path: str | os.PathLike[str], side: int) -> np.ndarray:
    """Return the central square of an image, its shorter side resized to `side` pixels: uint8 [side, side, 3].

    Raises UserError as `open_image` does, and if one side is so much longer that the resized image would be too large.
    """
    image = open_image(path, min_side=side)
    width, height = image.size
    scale = side / min(width, height)
    width, height = max(side, int(width * scale)), max(side, int(height * scale))
    if width * height > MOST_PIXELS:
        sides = f"{image.width} x {image.height}"
        raise UserError(
            f"{path} cannot be used, because its sides differ too much ({sides} pixels): crop or remove it."
        )
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) != (side, side):
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
