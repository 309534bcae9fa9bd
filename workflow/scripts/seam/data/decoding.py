"""Image files to arrays: whatever Pillow reads, as RGB, upright."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from seam.files import UserError

LARGE = 128  # from this size on an eighth of the shorter side is cut off, as in ImageNet's Resize 256, CenterCrop 224


def open_image(path, least=None):
    """The image as RGB, turned as its EXIF data say. Raises UserError where it is damaged or no image.

    least: shorter side in pixels that is enough; a JPEG that is much larger is then decoded faster, reduced.
    """
    try:
        with Image.open(path) as image:
            if least:
                image.draft("RGB", (2 * least, 2 * least))
            image.load()
            if image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them to 255
                image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace it or remove it.") from error


def read_image(path, size):
    """The central square of the image at size x size: uint8 [size, size, 3].

    The shorter side becomes `size` first, or 8/7 of it for a large size: 256 for 224.
    """
    short = round(size * 8 / 7) if size >= LARGE else size
    image = open_image(path, least=short)
    width, height = image.size
    scale = short / min(width, height)
    width, height = max(short, int(width * scale)), max(short, int(height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def read_images(paths, size, into):
    """Decode all `paths` into the array `into`, uint8 [N, size, size, 3], on all cores that are ours."""
    from tqdm import tqdm

    def read(start):
        for place in range(start, min(start + 100, len(paths))):
            into[place] = read_image(paths[place], size)

    with ThreadPoolExecutor(cores()) as pool:
        try:
            for _ in tqdm(pool.map(read, range(0, len(paths), 100)), desc="images", unit_scale=100, total=-(-len(paths) // 100), disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
