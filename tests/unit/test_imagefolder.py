import contextlib
import csv
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from server import serve

from seam.data.batches import batches, load_image
from seam.data.decoding import FORMATS, read_image, stored_size
from seam.data.kinds import imagefolder, imagenet
from seam.data.kinds.groups import read_groups
from seam.data.kinds.registry import class_groups, class_names, prepare_dataset, why_unavailable
from seam.data.preparation import channel_statistics
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.imports import ROOT


def noise(size=(32, 32), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def save(root, files, image=None):
    """Write each of `files`, {path: array}, under root as an image."""
    for name, pixels in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def root(tmp_path):
    """Two classes, two training images and a test image each, all different, without loss."""
    names = ["train/cat/a", "train/cat/b", "train/dog/a", "train/dog/b", "test/cat/a", "test/dog/a"]
    return save(tmp_path / "pets", {f"{name}.png": noise(seed=seed) for seed, name in enumerate(names)})


def prepare(root, tmp_path, **options):
    prepare_dataset({"kind": "imagefolder", "root": str(root), **options}, tmp_path / "out")
    return open_dataset(tmp_path / "out")


def test_images_and_labels(root, tmp_path):
    found = prepare(root, tmp_path)
    assert found.classes == ["cat", "dog"] and found.size == (32, 32) and found.augmentation == ("crop", "flip")
    assert found.train.labels.tolist() == [0, 0, 1, 1] and found.test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(found.train.images, [noise(seed=seed) for seed in (0, 1, 2, 3)])
    np.testing.assert_array_equal(found.test.images, [noise(seed=seed) for seed in (4, 5)])


def test_many_files_keep_their_order(tmp_path):
    files = {f"{split}/{name}/{number:04}.png": np.full((8, 8, 3), number % 256, np.uint8)
             for split, count in (("train", 250), ("test", 2)) for name in "ab" for number in range(count)}  # fmt: skip
    found = prepare(save(tmp_path / "many", files), tmp_path, size=8)
    assert found.train.images[:, 0, 0, 0].tolist() == [number % 256 for number in range(250)] * 2


def test_a_subset_takes_only_its_folders(root, tmp_path):
    save(root, {"train/ape/a.png": noise(), "test/ape/a.png": noise()})
    (root / "train/cat/a.png").write_text("damaged, but not wanted")
    found = prepare(root, tmp_path, classes=["dog", "ape"])
    assert found.classes == ["dog", "ape"] and found.train.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(found.train.images[0], noise(seed=2))


def test_folders_below_a_class_count_and_other_files_do_not(root, tmp_path, caplog):
    save(root, {"train/cat/more/c.PNG": noise(seed=9)})
    save(root, {"train/.cache/d.png": noise(), "train/cat/.thumbs/e.png": noise()})
    no_images = (
        "train/notes.txt",
        "train/cat/labels.csv",
        "train/cat/.hidden.png",
        "train/cat/README",
        "test/dog/a.csv",
    )
    for name in no_images:
        (root / name).write_text("no image")
    found = prepare(root, tmp_path)
    assert found.classes == ["cat", "dog"] and found.train.labels.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(found.train.images[2], noise(seed=9))
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert warning == f"{root}: 3 files are ignored for their endings (.csv, none)"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: [path.unlink() for path in (root / "train/cat").iterdir()], "train/cat has no images in it"),
        (lambda root: (root / "train/ant").mkdir(), "has train/ant but no test/ant"),
        (lambda root: (root / "test/ant").mkdir(), "has test/ant but no train/ant"),
        (lambda root: (root / "test").rename(root / "tset"), "there is no folder .*pets/test: give the folder that"),
        (lambda root: root.rename(root.with_name("moved")), "there is no folder .*pets/train"),
    ],
)
def test_a_wrong_folder_is_one_sentence(root, tmp_path, spoil, sentence):
    spoil(root)
    with pytest.raises(UserError, match=f"^root: .*{sentence}"):
        prepare(root, tmp_path)


def test_a_folder_without_classes_is_one_sentence(tmp_path):
    (tmp_path / "pets/train").mkdir(parents=True)
    with pytest.raises(UserError, match="^root: .*train has no folders in it"):
        class_names({"kind": "imagefolder", "root": str(tmp_path / "pets")})
    with pytest.raises(UserError, match="^root: it is missing"):
        class_names({"kind": "imagefolder"})


# ------------------------------------------------------------------ images of all kinds


def test_16_bits_of_grey_are_scaled(tmp_path):
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 16), expected)


def test_cmyk(tmp_path):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 1] = ink[..., 2] = 255  # magenta and yellow: red
    Image.fromarray(ink, "CMYK").save(tmp_path / "red.jpg", quality=100)
    np.testing.assert_allclose(read_image(tmp_path / "red.jpg", 16).mean((0, 1)), [255, 0, 0], atol=3)


def test_palette_and_transparency(tmp_path):
    image = Image.fromarray(noise((16, 16)))
    for mode, suffix in (("P", "png"), ("P", "gif"), ("RGBA", "png"), ("LA", "png"), ("1", "png")):
        converted = image.convert(mode)
        options = {"transparency": bytes(range(256))} if (mode, suffix) == ("P", "png") else {}
        converted.save(tmp_path / f"image.{suffix}", **options)
        expected = np.asarray(converted.convert("RGB"))
        np.testing.assert_array_equal(read_image(tmp_path / f"image.{suffix}", 16), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_an_image_is_turned_as_its_exif_data_say(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    Image.fromarray(noise()).save(tmp_path / f"image.{suffix}", exif=exif, **options.get(suffix, {}))
    found = read_image(tmp_path / f"image.{suffix}", 32).astype(int)
    np.testing.assert_allclose(found, np.rot90(noise(), -1), atol=5 if suffix == "jpg" else 0)


def test_the_central_square_is_taken(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the central square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for name in ("wide", "high"):
        found = read_image(tmp_path / f"{name}.png", 20)
        assert found.shape == (20, 20, 3) and (found[1:-1, 1:-1] == 200).all()


@pytest.mark.parametrize("size", [(333, 500), (500, 333), (224, 224), (900, 1300), (256, 300)])
def test_a_large_size_is_cut_as_imagenet_is(tmp_path, size):
    from torchvision.transforms import v2

    Image.fromarray(noise(size)).save(tmp_path / "image.png")
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(Image.open(tmp_path / "image.png"))
    assert stored_size(224) == 256
    centre = read_image(tmp_path / "image.png", 256)[16:240, 16:240]
    np.testing.assert_array_equal(centre, np.asarray(expected))


def test_a_much_larger_jpeg_is_reduced_while_decoding(tmp_path):
    smooth = np.asarray(Image.fromarray(noise((4, 4))).resize((1200, 1600), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "image.png")
    Image.fromarray(smooth).save(tmp_path / "image.jpg", quality=95)
    found, expected = (read_image(tmp_path / f"image.{suffix}", 32).astype(int) for suffix in ("jpg", "png"))
    assert abs(found - expected).mean() < 2


def test_a_digest_of_the_files_sees_what_is_read_and_nothing_else(root, tmp_path):
    """Images below links and those that a CSV file lists, but neither hidden files nor those of other kinds."""
    linked, table = tmp_path / "linked", tmp_path / "images.csv"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(root / "train" / name)
    files = sorted((root / "train").rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in files))
    places = (root, linked, table)
    before = [imagefolder.listing_digest(place) for place in places]
    (root / "train/cat/.#lock.png").symlink_to("nowhere")  # of an editor
    (root / "train/cat/notes.txt").touch()
    assert [imagefolder.listing_digest(place) for place in places] == before
    save(root, {"train/cat/a.png": noise((40, 40), 9)})
    assert all(a != b for a, b in zip(before, map(imagefolder.listing_digest, places), strict=True))
    (root / "train/cat/gone.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="gone.png cannot be read"):
        imagefolder.listing_digest(root)


@pytest.mark.parametrize("content", [b"no image at all", b"", "truncated"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_damaged_file_is_named(root, tmp_path, content, suffix):
    path = root / "train" / "dog" / f"c.{suffix}"
    Image.fromarray(noise()).save(path)
    path.write_bytes(path.read_bytes()[:-100] if content == "truncated" else content)
    with pytest.raises(UserError, match=f"train/dog/c.{suffix} cannot be read as an image .*: replace it or remove it"):
        prepare(root, tmp_path)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").rglob("*images*"))


# ------------------------------------------------------------------ files that are no images, or bombs


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The file that each program writes which Pillow may start; they come first on the PATH."""
    ran, folder = tmp_path / "program-ran", tmp_path / "programs"
    folder.mkdir()
    for name in ("gs", "djpeg", "display", "xv"):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{ran}'\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return ran


@pytest.mark.parametrize("kind", ["EPS", "PCX", "SGI", "TGA", "ICO", "JPEG2000"])
def test_only_the_formats_in_the_docs_are_opened_whatever_the_name(kind, tmp_path, programs):
    Image.fromarray(noise()).save(tmp_path / "x", kind)
    (tmp_path / "x").rename(tmp_path / "x.jpg")
    with pytest.raises(UserError, match="x.jpg cannot be read as an image .it is none of BMP, GIF, JPEG, PNG, PPM"):
        read_image(tmp_path / "x.jpg", 16)
    assert not programs.exists()


def test_the_docs_list_the_formats():
    page = (ROOT.parents[1] / "docs/own-model.md").read_text(encoding="utf-8")
    listed = re.search(r"reads ([\w, ]+) and (\w+) in any", " ".join(page.split()))
    assert {*listed[1].upper().split(", "), listed[2]} == set(FORMATS)
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in imagefolder.SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_decides_about_the_format(kind, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "x", kind, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "x").rename(tmp_path / "x.gif")
    found = read_image(tmp_path / "x.gif", 32).astype(int)
    if kind not in ("JPEG", "GIF"):
        np.testing.assert_array_equal(found, noise())


def in_its_folder(make):
    """Let `make` write the file x.png from its folder: the path of a socket is short."""

    def write(path, monkeypatch):
        monkeypatch.chdir(path.parent)
        make(path.name)

    return write


@pytest.mark.parametrize(
    "make",
    [
        in_its_folder(os.mkfifo),
        in_its_folder(lambda name: socket.socket(socket.AF_UNIX).bind(name)),
        in_its_folder(lambda name: os.symlink("/dev/zero", name)),
        in_its_folder(lambda name: (os.mkfifo("pipe"), os.symlink("pipe", name))),
    ],
    ids=["pipe", "socket", "device", "link to a pipe"],
)
def test_what_would_be_waited_for_is_one_sentence(make, root, tmp_path, monkeypatch):
    path = root / "train/cat/x.png"
    make(path, monkeypatch)
    with pytest.raises(UserError, match="x.png is a pipe, a socket or a device, not a file: replace it or remove it"):
        load_image(path, 16, ((0, 0, 0), (1, 1, 1)))
    with pytest.raises(UserError, match="x.png is a pipe"):
        prepare(root, tmp_path)
    with pytest.raises(UserError, match="x.png is a pipe"):
        read_groups(path)


def test_a_pipe_that_takes_the_place_of_a_file_is_one_sentence(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "x.png")
    monkeypatch.setattr("seam.files.os.stat", lambda path: os.lstat(__file__))
    with pytest.raises(UserError, match="x.png is a pipe"):
        read_image(tmp_path / "x.png", 16)


@pytest.mark.parametrize(
    ("target", "reason"), [("x.png", "Too many levels"), ("none", "No such file"), (".", "Is a d")]
)
def test_a_link_to_no_image_is_one_sentence(target, reason, tmp_path):
    (tmp_path / "x.png").symlink_to(target)
    with pytest.raises(UserError, match=f"x.png cannot be read as an image .{reason}"):
        read_image(tmp_path / "x.png", 16)


def test_a_folder_with_an_images_name_is_a_folder(root, tmp_path):
    (root / "train/cat/x.png").mkdir()
    assert len(prepare(root, tmp_path).train) == 4


def png(width, height, *chunks):
    """A PNG that says to be of this size and has no pixels but `chunks`, each (name, content)."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    packed = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
              for name, data in (header, *chunks, (b"IEND", b"")))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    "content",
    [
        png(60000, 60000, (b"IDAT", zlib.compress(bytes(100)))),
        png(16, 16, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 << 20)))),
        b"P6 60000 60000 255 " + bytes(100),
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(100),
        b"BM" + struct.pack("<IIIIii", 100, 0, 54, 40, 60000, 60000) + bytes(100),
    ],
    ids=["PNG", "text of a PNG", "PPM", "GIF", "BMP"],
)
def test_a_decompression_bomb_is_one_sentence(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match="^[^\n]*x.png cannot be read as an image [^\n]*: replace it or remove it.$"):
        read_image(tmp_path / "x.png", 16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_no_damage_ends_in_another_error(kind, tmp_path):
    Image.fromarray(noise((16, 16))).save(tmp_path / "x", kind)
    content, random = (tmp_path / "x").read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[random.integers(min(120, len(content)))] = random.integers(256)
        (tmp_path / "x").write_bytes(damaged[: random.integers(10, len(content))])
        with contextlib.suppress(UserError):
            read_image(tmp_path / "x", 16)


# ------------------------------------------------------------------ large images, ImageNet


def test_large_images_beyond_the_budget_stay_files(tmp_path):
    folders = ("train/cat", "train/dog", "test/cat", "test/dog")
    names = [f"{folder}/{number}.png" for folder in folders for number in range(2)]
    root = save(tmp_path / "large", {name: noise((150, 180), seed) for seed, name in enumerate(names)})
    found = prepare(root, tmp_path, size=128, array_gb=0)
    assert found.train.images is None and len(found.train) == 4 and found.augmentation == ("resized-crop", "flip")
    assert found.train.files == [str(root / name) for name in names[:4]]
    options = {"normalization": (found.mean, found.std), "workers": 0}
    images, labels = next(iter(batches(found.test, [3, 0], [7, 8], 2, **options)))
    assert images.shape == (2, 3, 128, 128) and labels.tolist() == [7, 8]
    centre = read_image(root / names[7], stored_size(128))[9:137, 9:137]
    expected = (centre / 255 - found.mean) / found.std
    torch.testing.assert_close(images[0], torch.from_numpy(expected.astype(np.float32)).permute(2, 0, 1))
    images, _ = next(iter(batches(found.train, range(4), range(4), 4, augmentation=found.augmentation, **options)))
    assert images.shape == (4, 3, 128, 128)


@pytest.fixture
def large(tmp_path):
    """Three training images and a test image of each of two classes, as photographs come: JPEG files of many sizes."""
    root, sizes = tmp_path / "large", [(200, 260), (150, 149), (700, 640), (128, 128)]
    for label in ("cat", "dog"):
        for number, size in enumerate(sizes):
            folder = root / ("test" if number == 3 else "train") / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(size, number + len(label))).save(folder / f"{number}.jpg")
    return root


def content(folder):
    return json.loads((folder / "out" / "dataset.json").read_text())


def test_storage_changes_no_bit_of_a_batch(large, tmp_path):
    """Mean, deviation, order, augmentation and pixels are the same from an array and from files."""
    found = {}
    for storage in ("arrays", "files"):
        dataset = prepare(large, tmp_path, size=128, storage=storage)
        assert content(tmp_path)["storage"] == storage and (dataset.train.images is None) == (storage == "files")
        found[storage] = [dataset.mean, dataset.std]
        for augmentation in ((), ("resized-crop", "flip"), ("crop", "flip")):
            generator = torch.Generator().manual_seed(1)
            options = {"normalization": (dataset.mean, dataset.std), "generator": generator, "workers": 1}
            loader = batches(
                dataset.train, range(6), dataset.train.labels, 4, augmentation=augmentation, shuffle=True, **options
            )
            found[storage] += [part.numpy().tobytes() for _ in range(2) for batch in loader for part in batch]
            assert next(iter(loader))[0].shape == (4, 3, 128, 128)
    assert found["arrays"] == found["files"]


DECODING = """
import hashlib, os, sys
from seam.data.batches import batches
from seam.data.kinds.registry import prepare_dataset
from seam.data.storage import open_dataset

root, folder = sys.argv[1:]
disk = os.statvfs("/dev/shm")
for storage in ("arrays", "files"):
    entry = {"kind": "imagefolder", "root": root, "size": 224, "storage": storage}
    prepare_dataset(entry, folder, workers=2)
    train = open_dataset(folder).train
    digest = hashlib.sha256()
    for images, labels in batches(train, range(6), train.labels, 2, normalization=((0,) * 3, (1,) * 3), workers=4):
        digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
    print(disk.f_blocks * disk.f_frsize, digest.hexdigest())
"""


@pytest.mark.parametrize("size", ["64k", "8k"])
def test_little_shared_memory_is_enough(large, tmp_path, size):
    """A container may have little of it: images are decoded there as elsewhere, by fewer processes if need be."""
    words = [sys.executable, "-c", DECODING, str(large), str(tmp_path / "out")]
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small /dev/shm cannot be mounted here: that takes Linux with user namespaces")
    found = [
        subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        for command in (words, [*mount, *words])
    ]
    assert [one.returncode for one in found] == [0, 0], found[1].stderr[-3000:]
    usual, little = ([line.split() for line in one.stdout.splitlines()] for one in found)
    assert {line[0] for line in little} == {str(int(size[:-1]) * 1024)}
    assert len({line[1] for line in usual + little}) == 1


def test_the_mean_of_large_images_is_of_some_of_them_from_either_storage(large, tmp_path):
    found = {storage: prepare(large, tmp_path, size=128, storage=storage).train for storage in ("arrays", "files")}
    some = [read_image(large / f"train/{label}/{number}.jpg", 146) for label, number in
            (("cat", 0), ("cat", 2), ("dog", 1))]  # fmt: skip
    for split in found.values():
        mean, std = channel_statistics(split, sample=3)
        np.testing.assert_allclose(mean, np.mean(some, (0, 1, 2)) / 255)
        np.testing.assert_allclose(std, np.std(some, (0, 1, 2)) / 255)


def test_large_images_become_squares_of_8_7_of_the_size(large, tmp_path):
    found = prepare(large, tmp_path, size=224)
    assert content(tmp_path)["storage"] == "arrays" and content(tmp_path)["size"] == [224, 224]
    assert found.train.images.shape == (6, 256, 256, 3) and found.size == (224, 224) and found.train.size == (224, 224)
    np.testing.assert_array_equal(found.train.images[1], read_image(large / "train/cat/1.jpg", 256))
    (images, _), = batches(found.test, [0], [0], 1, normalization=((0, 0, 0), (1, 1, 1)))  # fmt: skip
    centre = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(centre, read_image(large / "test/cat/3.jpg", 256)[16:240, 16:240])


def test_what_is_more_than_the_budget_or_the_disk_stays_files(large, tmp_path, monkeypatch, caplog):
    needed = 8 * 256 * 256 * 3 / 1e9
    with caplog.at_level(logging.INFO, "seam"):
        for options, free, storage in (
            ({"array_gb": 1.01 * needed}, 1e12, "arrays"),
            ({"array_gb": 0.99 * needed}, 1e12, "files"),
            ({"array_gb": 0.99 * needed, "storage": "arrays"}, 1e12, "arrays"),
            ({"storage": "files"}, 1e12, "files"),
            ({}, 1.01e9 * needed, "files"),
        ):
            monkeypatch.setattr("seam.data.preparation.free_bytes", lambda folder, free=free: free)
            prepare(large, tmp_path, size=224, **options)
            assert content(tmp_path)["storage"] == storage
    assert "are more than array_gb allows" in caplog.text and "are too much for the disk" in caplog.text


def test_a_disk_that_is_full_is_one_sentence(large, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seam.files.os.posix_fallocate", full)
    with pytest.raises(UserError, match="^Cannot write .*train_images.npy .No space left on device.: free some space"):
        prepare(large, tmp_path, size=224)
    assert not list((tmp_path / "out").rglob("*images*"))


WNIDS = ["n01440764", "n01443537", "n01484850", "n01704323"]
MEMBERS = b"fish,n01440764 n01443537\nsea shark,n01484850 n01443537\ndinosaur,n01704323\nghosts,n09999998 n09999999"
ORDER = b"0,sea shark\n1,fish\n2,ghosts\n3,dinosaur"


@pytest.fixture
def ilsvrc(tmp_path):
    """A small copy in the published layout."""
    files = {}
    for number, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_{number}.JPEG"] = noise((300, 260), number)
        files[f"val/{wnid}/ILSVRC2012_val_{number + 1:08}.JPEG"] = noise((260, 300), number + 10)
    return save(tmp_path / "ilsvrc", files)


@pytest.fixture
def groupings(monkeypatch):
    """The two published files of groups, small, on a server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(dict(zip(imagenet.FILES, (MEMBERS, ORDER), strict=True))) as site:
        checksums = {name: hashlib.sha256(content).hexdigest() for name, content in site.files.items()}
        monkeypatch.setattr(imagenet, "PUBLISHED", site.url)
        monkeypatch.setattr(imagenet, "FILES", checksums)
        yield site


def test_imagenet(ilsvrc, tmp_path):
    entry = {"kind": "imagenet", "root": str(ilsvrc), "classes": WNIDS[2:0:-1], "array_gb": 0}
    prepare_dataset(entry, tmp_path / "out", tmp_path / "cache")
    found = open_dataset(tmp_path / "out")
    assert found.classes == ["n01484850", "n01443537"] and found.size == (224, 224)
    assert found.mean == (0.485, 0.456, 0.406) and found.std == (0.229, 0.224, 0.225)
    assert found.augmentation == ("resized-crop", "flip")
    assert [path.rpartition("/")[2] for path in found.train.files] == ["n01484850_2.JPEG", "n01443537_1.JPEG"]
    assert [path.rpartition("/")[2] for path in found.test.files] == [
        "ILSVRC2012_val_00000003.JPEG",
        "ILSVRC2012_val_00000002.JPEG",
    ]


def test_imagenet_without_a_root_is_left_out(tmp_path):
    entry = {"kind": "imagenet", "root": None}
    assert why_unavailable(entry) == "imagenet: its root is not given in the config, so what needs it is left out"
    with pytest.raises(UserError, match="its root is not given in the config"):
        prepare_dataset(entry, tmp_path)
    assert why_unavailable({"kind": "digits"}) is None


def test_the_classes_of_imagenet_are_known_without_its_images(ilsvrc):
    names = class_names({"kind": "imagenet", "root": None})
    assert len(names) == 1000 and names == sorted(set(names)) and set(WNIDS) <= set(names)
    assert (names[0], names[1], names[999]) == ("n01440764", "n01443537", "n15075141")
    assert class_names({"kind": "imagenet", "root": str(ilsvrc)}) == WNIDS  # a copy may be a part


def test_another_set_of_1000_classes_is_refused(tmp_path):
    names = class_names({"kind": "imagenet", "root": None})
    for split in ("train", "val"):
        for name in names[:-1]:
            (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / "n99999999").mkdir()
    with pytest.raises(UserError, match="^root: .*train has 1000 folders, but n99999999 is no class of ILSVRC2012"):
        class_names({"kind": "imagenet", "root": str(tmp_path)})
    for split in ("train", "val"):
        (tmp_path / split / "n99999999").rename(tmp_path / split / names[-1])
    assert class_names({"kind": "imagenet", "root": str(tmp_path)}) == names


def test_the_published_groups_come_in_their_order_without_single_classes(ilsvrc, groupings, tmp_path):
    entry = {"kind": "imagenet", "root": str(ilsvrc)}
    expected = {"sea_shark": ["n01484850", "n01443537"], "fish": ["n01440764", "n01443537"]}
    assert class_groups(entry, tmp_path) == expected
    assert list(class_groups(entry, tmp_path)) == list(expected)
    assert len(groupings.requests) == 2  # the second time they lie in the cache
    assert class_groups({**entry, "classes": WNIDS[:2]}, tmp_path) == {"fish": ["n01440764", "n01443537"]}


def test_other_groups_than_the_published_are_refused(ilsvrc, groupings, tmp_path):
    groupings.files["imagenet_superclass_scn2c.csv"] += b"\nmore,n1 n2"
    with pytest.raises(UserError, match="is not the published file"):
        class_groups({"kind": "imagenet", "root": str(ilsvrc)}, tmp_path)


def test_validation_images_in_one_folder_are_one_sentence(ilsvrc):
    for path in list((ilsvrc / "val").rglob("*.JPEG")):
        path.rename(ilsvrc / "val" / path.name)
    with pytest.raises(UserError, match="^root: the images in .*val are not sorted by class: move each into"):
        class_names({"kind": "imagenet", "root": str(ilsvrc)})


# ---------------------------------------------------------------------- images that are not split, and lists


def test_validation_images_take_the_place_of_test_images(root, tmp_path):
    expected = prepare(root, tmp_path / "a")
    (root / "test").rename(root / "val")
    found = prepare(root, tmp_path / "b")
    np.testing.assert_array_equal(found.test.images, expected.test.images)


def plain(root, counts):
    save(root, {f"{name}/{n}.png": noise(seed=n) for name, count in counts.items() for n in range(count)})


def test_a_folder_of_classes_is_split_class_by_class_and_the_split_is_written_down(tmp_path):
    root, counts = tmp_path / "photos", {"猫": 10, "dog": 25, "Ёж": 2}
    plain(root, counts)
    found = prepare(root, tmp_path / "a")
    assert found.classes == sorted(counts)
    shares = [np.bincount(split.labels, minlength=3).tolist() for split in (found.train, found.test)]
    assert shares == [[20, 1, 8], [5, 1, 2]]
    with open(tmp_path / "a" / "out" / "split.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(map(str, root.rglob("*.png")))
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows)
    assert [row["split"] for row in rows] == ["train"] * 29 + ["test"] * 8
    again, other = prepare(root, tmp_path / "b"), prepare(root, tmp_path / "c", split_seed=1)
    np.testing.assert_array_equal(again.test.images, found.test.images)
    assert not np.array_equal(other.test.images, found.test.images)
    assert len(prepare(root, tmp_path / "d", test_share=0.4).test) == 15


def test_a_preparation_that_fails_leaves_the_record_of_the_draw(tmp_path):
    root, place = tmp_path / "photos", tmp_path / "a" / "out"
    plain(root, {"cat": 10, "dog": 10})
    prepare(root, tmp_path / "a")
    before = {name: (place / name).read_bytes() for name in ("split.csv", "dataset.json")}
    plain(root, {"cat": 20, "dog": 20})
    (root / "cat" / "19.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"19\.png"):
        prepare(root, tmp_path / "a")
    assert {name: (place / name).read_bytes() for name in before} == before
    (root / "cat" / "19.png").unlink()
    prepare(root, tmp_path / "a")
    assert len((place / "split.csv").read_text().splitlines()) == 40


def test_a_data_set_that_is_split_has_no_record_of_a_draw(root, tmp_path):
    prepare(root, tmp_path / "a")
    assert not (tmp_path / "a" / "out" / "split.csv").exists()


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    plain(tmp_path / "photos", {"cat": 3, "dog": 1})
    with pytest.raises(UserError, match="root: class dog has a single image"):
        prepare(tmp_path / "photos", tmp_path / "a")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_list_of_images(root, tmp_path, delimiter):
    expected = prepare(root, tmp_path / "a")
    rows = [("split", "image", "label")]
    rows += [(p.parts[-3], str(p.relative_to(tmp_path)), p.parts[-2]) for p in sorted(root.rglob("*.png"))]
    table = tmp_path / "photos.csv"
    table.write_text("\ufeff" + "".join(delimiter.join(row) + "\n" for row in rows), encoding="utf-8")
    found = prepare(table, tmp_path / "b")
    assert found.classes == expected.classes
    np.testing.assert_array_equal(found.train.images, expected.train.images)
    np.testing.assert_array_equal(found.test.labels, expected.test.labels)


def test_rows_of_a_list_with_another_split_or_none_are_told(root, tmp_path, caplog):
    rows = [("split", "image", "label")]
    rows += [(path.parts[-3], str(path), path.parts[-2]) for path in sorted(root.rglob("*.png"))]
    table = tmp_path / "photos.csv"

    shutil.copy(rows[1][1], tmp_path / "more.png")

    def write(split):
        own = [rows[0], (split, "more.png", rows[1][2]), *rows[1:]]
        table.write_text("".join(",".join(row) + "\n" for row in own))

    write("trian")
    assert len(prepare(table, tmp_path / "a").test) == len([row for row in rows if row[0] == "test"])
    assert f"{table}: the images of the split trian are not used (1)" in caplog.text
    write("")
    with pytest.raises(UserError, match=r"root: line 2 of .*photos.csv has no split: write train or test in it"):
        prepare(table, tmp_path / "b")


def test_a_list_without_splits_is_split(tmp_path):
    plain(tmp_path / "photos", {"cat": 5, "dog": 5})
    lines = [f"photos/{name}/{n}.png,{name}" for name in ("cat", "dog") for n in range(5)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *lines]))
    found = prepare(tmp_path / "photos.csv", tmp_path / "a")
    assert (len(found.train), len(found.test)) == (8, 2) and (tmp_path / "a" / "out" / "split.csv").is_file()


def test_an_image_that_is_listed_again_counts_once(tmp_path, caplog):
    """Two copies could end up in training and test."""
    plain(tmp_path / "photos", {"cat": 5, "dog": 5})
    lines = [f"photos/{name}/{n}.png,{name}" for name in ("cat", "dog") for n in range(5)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *lines, *lines[:3]]))
    found = prepare(tmp_path / "photos.csv", tmp_path / "a")
    assert (len(found.train), len(found.test)) == (8, 2)
    assert "lists images again on 3 of its lines: each image counts once" in caplog.text


def test_a_pipe_as_a_list_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "photos.csv")
    with pytest.raises(UserError, match="photos.csv is a pipe"):
        prepare(tmp_path / "photos.csv", tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cat.png,cat\n", "must name a column of paths"),
        ("path,label\n", "lists no images"),
        ("path,label\nnone.png,cat\n", "line 2 of .* names the image none.png"),
        ("path,label\n,cat\n", "line 2 of .* has no path or no label"),
        ("path,label,split\nphotos/cat/0.png,cat,train\n", "must have train and test"),
        (f"path,label\nphotos/cat/0.png,{'a' * 131_073}\n", "is not a CSV file .field larger than"),
        ('path,label\nphotos/cat/0.png,"a\nb"\n', "line 3 of .* has the label 'a.nb', which cannot be printed"),
        ("path,label\nphotos/cat/0.png,a\0b\n", "line 2 of .* has the label 'a.x00b', which cannot be printed"),
        ("path,label\nphotos/cat/0.png,a\x1b[1mb\n", "line 2 of .* has the label 'a.x1b.1mb'"),
        ("path,label\nphotos/cat/0.png,a\u2028b\n", "line 2 of .* has the label 'a.u2028b'"),
        (
            "path,label\nphotos/cat/0.png,cat\nphotos/./cat/0.png,dog\n",
            "lines 2 and 3 of .* give the image photos/./cat/0.png another label: correct",
        ),
        (
            "path,label,split\nphotos/cat/0.png,cat,train\nphotos/cat/0.png,cat,test\n",
            "lines 2 and 3 of .* give the image photos/cat/0.png another split: correct",
        ),
    ],
)
def test_a_wrong_list_is_one_sentence(tmp_path, text, sentence):
    plain(tmp_path / "photos", {"cat": 1})
    (tmp_path / "photos.csv").write_text(text)
    with pytest.raises(UserError, match=f"^root: .*{sentence}"):
        prepare(tmp_path / "photos.csv", tmp_path / "a")
