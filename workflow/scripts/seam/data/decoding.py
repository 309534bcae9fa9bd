"""Image files to arrays: whatever Pillow reads, as RGB, upright."""

import multiprocessing
import os
import struct
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import repeat

import numpy as np
from PIL import Image, ImageOps

from seam.errors import UserError

PART = 200  # images that one worker decodes at once
LARGE = 128  # from this working size in pixels on more than the working size is kept: see `stored`


def stored(size):
    """Side of the square that is kept of an image for the working size `size`, in pixels.

    256 for 224, as ImageNet's test images are cut: 8/7 of a large size, so that a training image can be a random
    part and a test image the centre; a small size itself.
    """
    return round(size * 8 / 7) if size >= LARGE else size


def open_image(path, least=None):
    """The image as RGB, turned as its EXIF data say. Raises UserError where it is damaged or no image.

    least: shorter side in pixels that is enough; a JPEG that is much larger is then decoded faster, reduced.
    """
    try:
        with Image.open(path) as image:
            if least and min(image.size) >= 4 * least:
                image.draft("RGB", (2 * least, 2 * least))
            image.load()
            if "exif" in image.info or image.format == "TIFF":
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them to 255
                image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
            if image.mode == "F":  # Pillow would take them for 0 to 255
                raise ValueError("its pixels are fractions; save it with 8 or 16 bits")
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace it or remove it.") from error


def read_image(path, side):
    """The central square of the image, its shorter side resized to `side` pixels: uint8 [side, side, 3]."""
    image = open_image(path, least=side)
    width, height = image.size
    scale = side / min(width, height)
    width, height = max(side, int(width * scale)), max(side, int(height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) != (side, side):
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def read_images(paths, side, into, workers=None):
    """Decode all `paths` into the array `into`, uint8 [N, side, side, 3]; `workers` processes, or one for each core."""
    from tqdm import tqdm

    starts = range(0, len(paths), PART)
    with _pool(workers or cores()) as pool, tqdm(desc="images", total=len(paths), disable=None) as bar:
        parts = pool.map(_read_part, (paths[start : start + PART] for start in starts), repeat(side))
        try:
            for start, images in zip(starts, parts, strict=True):
                into[start : start + len(images)] = images
                bar.update(len(images))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_part(paths, side):
    return np.stack([read_image(path, side) for path in paths])


def _pool(workers):
    """A pool of processes, on small files twice as fast as threads; of threads where forking is not safe."""
    if sys.platform == "linux":
        return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
    return ThreadPoolExecutor(workers)


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
