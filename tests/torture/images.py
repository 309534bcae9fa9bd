"""Hostile files among the images of a folder."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from . import commands
from .outcomes import HELD, RUN, SILENT, UNCLEAR, Ending, generator
from .world import World

SIZE = 16
NORMALIZATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
Pixels = np.ndarray | None
Maker = Callable[[Path, random.Random], Pixels]


def picture(chance: random.Random) -> np.ndarray:
    """Return random pixels, uint8 [SIZE, SIZE, 3]."""
    return np.random.default_rng(chance.randrange(1 << 30)).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Return the pixels as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _eps(path: Path, chance: random.Random) -> Pixels:
    path.write_bytes(encoded(picture(chance), "EPS"))
    return None


def _postscript(path: Path, chance: random.Random) -> Pixels:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(x) run showpage\n%%EOF\n")
    return None


def _fifo(path: Path, chance: random.Random) -> Pixels:
    os.mkfifo(path)
    return None


def _socket(path: Path, chance: random.Random) -> Pixels:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)
    return None


def _cut(kind: str) -> Maker:
    def make(path: Path, chance: random.Random) -> Pixels:
        content = encoded(picture(chance), kind)
        path.write_bytes(content[: chance.randrange(1, len(content) * 3 // 4)])
        return None

    return make


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _huge(path: Path, chance: random.Random) -> Pixels:
    path.write_bytes(_png(chance.choice([60000, 1 << 30]), 60000, zlib.compress(bytes(1000))))
    return None


def _bomb(path: Path, chance: random.Random) -> Pixels:
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * 20000)) for _ in range(12000))
    path.write_bytes(_png(20000, 12000, rows + packer.flush()))
    return None


def _text_bomb(path: Path, chance: random.Random) -> Pixels:
    pixels = picture(chance)
    content = encoded(pixels)
    text = b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    path.write_bytes(content[:33] + chunk + content[33:])
    return pixels


def _written(kind: str) -> Maker:
    def make(path: Path, chance: random.Random) -> Pixels:
        pixels = picture(chance)
        path.write_bytes(encoded(pixels, kind))
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    return make


def _bytes(content: bytes) -> Maker:
    def make(path: Path, chance: random.Random) -> Pixels:
        path.write_bytes(content)
        return None

    return make


def _noise(path: Path, chance: random.Random) -> Pixels:
    path.write_bytes(chance.randbytes(chance.randrange(1, 5000)))
    return None


def _psd(path: Path, chance: random.Random) -> Pixels:
    pixels = picture(chance)
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIZE, SIZE, 8, 3)
    path.write_bytes(header + bytes(12) + struct.pack(">H", 0) + pixels.transpose(2, 0, 1).tobytes())
    return pixels


def _folder(path: Path, chance: random.Random) -> Pixels:
    path.mkdir()
    return None


def _link(target: str) -> Maker:
    def make(path: Path, chance: random.Random) -> Pixels:
        path.symlink_to(target.format(name=path.name))
        return None

    return make


def _good_link(path: Path, chance: random.Random) -> Pixels:
    pixels = picture(chance)
    (path.parent / "elsewhere.bin").write_bytes(encoded(pixels))
    path.symlink_to("elsewhere.bin")
    return pixels


def _flipped(kind: str) -> Maker:
    """A changed bit that the format's own checksum covers, or that changes pixels only."""

    def make(path: Path, chance: random.Random) -> Pixels:
        content = bytearray(encoded(picture(chance), kind))
        content[chance.randrange(41, len(content) - 16)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        return None

    return make


def _fractions(path: Path, chance: random.Random) -> Pixels:
    Image.fromarray(np.full((SIZE, SIZE), 0.5, np.float32)).save(path, "TIFF")
    return None


def _gif_bomb(path: Path, chance: random.Random) -> Pixels:
    content = bytearray(encoded(picture(chance), "GIF"))
    content[6:10] = struct.pack("<HH", 65535, 65535)
    path.write_bytes(content)
    return None


def _tiff_bomb(path: Path, chance: random.Random) -> Pixels:
    """A TIFF that says that it has 2^31 columns, in a strip of few bytes."""
    tags = [(256, 4, 1, 1 << 31), (257, 4, 1, 1 << 31), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 1 << 31), (279, 4, 1, 10)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4))
    return None


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
XPM = b'/* XPM */\nstatic char * x[] = {"16 16 1 1", "a c red",' + b'"aaaaaaaaaaaaaaaa",' * 16 + b"};\n"

# What it is: the name of its file; the function that writes it and returns its pixels (None: it must be refused).
ATTACKS: dict[str, tuple[str, Maker]] = {
    "EPS": ("x.jpg", _eps),
    "FIFO": ("x.png", _fifo),
    "socket": ("x.png", _socket),
    "PostScript": ("x.png", _postscript),
    "truncated PNG": ("x.png", _cut("PNG")),
    "truncated JPEG": ("x.jpg", _cut("JPEG")),
    "truncated GIF": ("x.gif", _cut("GIF")),
    "truncated BMP": ("x.bmp", _cut("BMP")),
    "truncated WebP": ("x.webp", _cut("WEBP")),
    "truncated TIFF": ("x.tif", _cut("TIFF")),
    "huge dimensions": ("x.png", _huge),
    "decompression bomb": ("x.png", _bomb),
    "bomb in a text chunk": ("x.png", _text_bomb),
    "huge GIF": ("x.gif", _gif_bomb),
    "huge TIFF": ("x.tif", _tiff_bomb),
    "PNG with a wrong ending": ("x.jpg", _written("PNG")),
    "JPEG with a wrong ending": ("x.png", _written("JPEG")),
    "zero bytes": ("x.png", _bytes(b"")),
    "SVG": ("x.png", _bytes(SVG)),
    "XPM": ("x.png", _bytes(XPM)),
    "a web page": ("x.jpg", _bytes(b"<!DOCTYPE html><html><body>404</body></html>")),
    "PDF": ("x.jpg", _bytes(b"%PDF-1.7\n1 0 obj<<>>endobj\n%%EOF\n")),
    "noise": ("x.png", _noise),
    "PSD": ("x.jpg", _psd),
    "PCX": ("x.jpg", _written("PCX")),
    "folder": ("x.png", _folder),
    "link to itself": ("x.png", _link("{name}")),
    "link to nothing": ("x.png", _link("nowhere.png")),
    "link to a device": ("x.png", _link("/dev/zero")),
    "link to a folder": ("x.png", _link("/proc/self")),
    "link to an image": ("x.png", _good_link),
    "bit flip in a PNG": ("x.png", _flipped("PNG")),
    "fractions": ("x.tif", _fractions),
}


def attempt(world: World, number: int, seed: int) -> tuple[str, Ending]:
    """Read a hostile image by itself, and in each second round of the list as one of a data set's."""
    chance, name = generator(seed, "images", number), list(ATTACKS)[number % len(ATTACKS)]
    if number // len(ATTACKS) % 2:
        return f"{name}: in a data set", _in_a_folder(world, name, chance)
    return f"{name}: alone", _alone(world, name, chance)


def _traps(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a marker and an environment whose first programs write it: the ones that Pillow would start."""
    marker, programs = folder / "program-ran", folder / "bin"
    programs.mkdir()
    for name in ("gs", "gswin64c", "djpeg", "xv", "display", "convert", "ppmtogif", "rsvg-convert"):
        (programs / name).write_text(f"#!/bin/sh\ntouch '{marker}'\nexit 1\n")
        (programs / name).chmod(0o755)
    return marker, {"PATH": f"{programs}:{os.environ['PATH']}"}


def _alone(world: World, name: str, chance: random.Random) -> Ending:
    with world.attempt() as folder:
        marker, extra = _traps(folder)
        ending, make = ATTACKS[name]
        pixels = make(folder / ending, chance)
        expected = None if pixels is None else _digest(pixels)
        answer = commands.call(lambda: _image(folder / ending), folder, extra)
        return commands.judge(answer, expected, marker)


def _image(path: Path) -> str:
    import seam

    value = seam.image(path, SIZE, NORMALIZATION)
    pixels = np.asarray(value).reshape(3, SIZE, SIZE).transpose(1, 2, 0) * 255
    return _digest(pixels.round().astype(np.uint8))


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _in_a_folder(world: World, name: str, chance: random.Random) -> Ending:
    """Make a data set of a folder that holds the image: refused in a sentence, or all images are right."""
    with world.attempt("images") as folder:
        marker, extra = _traps(folder)
        ending, make = ATTACKS[name]
        place = folder / "images/train/blue"
        for path in [*place.glob("*.png")][8:]:
            path.unlink()
        before = len([*place.iterdir()])
        pixels = make(place / ending, chance)
        config = {**world.config, "datasets": {**world.config["datasets"]}}
        config["datasets"]["colours"] = {"kind": "imagefolder", "root": str(folder / "images"), "size": SIZE}
        commands.write_config(folder, config)
        said = commands.run(folder, "results/datasets/colours/dataset.json", deadline=120, variables=extra)
        if marker.exists():
            return Ending(RUN, "another program was started")
        if said.problem:
            return Ending(UNCLEAR, said.problem)
        if said.status != 0:
            return Ending(HELD, said.sentence)
        answer = commands.call(lambda: _blue(folder / "results/datasets/colours"), folder)
    return _judge_folder(answer, before, pixels)


def _judge_folder(answer: commands.Answer, before: int, pixels: Pixels) -> Ending:
    if answer.how != "value":
        return Ending(UNCLEAR, answer.text[:160])
    number, *found = answer.text.split()
    if int(number) == before and pixels is None:
        return Ending(HELD, "left out")
    if pixels is not None and _digest(pixels) in found:
        return Ending(HELD, "right pixels")
    return Ending(SILENT, f"{number} images of {before}, without a word")


def _blue(folder: Path) -> str:
    from seam.data.storage import open_dataset

    split = open_dataset(folder).train
    assert split.images is not None
    chosen = [index for index, label in enumerate(split.labels) if label == 0]
    return " ".join([str(len(chosen)), *(_digest(np.asarray(split.images[index])) for index in chosen)])
