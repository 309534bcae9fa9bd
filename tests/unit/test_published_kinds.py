"""The data sets that students are made for: small copies in the exact published layouts."""

import hashlib
import io
import os
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from server import serve

from seam.data.decoding import read_image
from seam.data.kinds.registry import KINDS, class_names, prepare_dataset, why_unavailable
from seam.data.storage import open_dataset
from seam.download import unpack
from seam.errors import UserError

PUBLISHED = ("mit67", "cub200", "flower102", "dog120", "action40")


def names(kind):
    return class_names({"kind": kind})


def paint(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path, "PNG")


def cells(texts):
    """A MATLAB cell array, N x 1, of texts."""
    array = np.empty((len(texts), 1), object)
    array[:, 0] = texts
    return array


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


# Each writes a copy with two training images and a test image of each class, in an order of no meaning,
# and gives {"train" or "test": [(path below root, class), ...]}.


def write_mit67(root):
    listed = {"train": [], "test": []}
    for number, name in enumerate(reversed(names("mit67"))):
        for split, file in (("train", "b room.jpg"), ("train", "a_1.jpg"), ("test", "c.jpg")):
            listed[split].append((f"Images/{name}/{file}", name))
            paint(root / listed[split][-1][0], number)
    for split, file in (("train", "TrainImages.txt"), ("test", "TestImages.txt")):
        write_lines(root / file, [path.removeprefix("Images/") for path, _ in listed[split]])
    return listed


def write_cub200(root):
    folder, rows = root / "CUB_200_2011", []
    for name in names("cub200"):
        rows += [(f"{name}/{name[4:]}_{part}.jpg", name, int(part != 1)) for part in range(3)]
    order = np.random.default_rng(0).permutation(len(rows))
    for number, row in enumerate(order):
        paint(folder / "images" / rows[row][0], number)
    write_lines(folder / "images.txt", [f"{number} {rows[row][0]}" for number, row in enumerate(order, 1)])
    labels = [f"{number} {int(rows[row][1][:3])}" for number, row in enumerate(order, 1)]
    write_lines(folder / "image_class_labels.txt", labels)
    write_lines(folder / "train_test_split.txt", [f"{number} {rows[row][2]}" for number, row in enumerate(order, 1)])
    write_lines(folder / "classes.txt", [f"{number} {name}" for number, name in enumerate(names("cub200"), 1)])
    return {
        split: [(f"CUB_200_2011/images/{path}", name) for path, name, mark in rows if mark == wanted]
        for split, wanted in (("train", 1), ("test", 0))
    }


def write_flower102(root):
    """Of the three images of a class one is for training, one for validation and one for test."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 103), 3))
    parts, listed = {"trnid": [], "valid": [], "tstid": []}, {"train": [], "test": []}
    for label in range(1, 103):
        for part, place in zip(parts, np.flatnonzero(labels == label), strict=True):
            parts[part].append(place + 1)
            path = f"jpg/image_{place + 1:05}.jpg"
            listed["test" if part == "tstid" else "train"].append((path, f"{label:03}"))
            paint(root / path, place)
    savemat(root / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    savemat(root / "setid.mat", {name: np.array(part, np.uint16)[None] for name, part in parts.items()})
    return listed


def write_dog120(root):
    listed = {"train": [], "test": []}
    for number, name in enumerate(names("dog120")):
        for part, split in enumerate(("train", "train", "test")):
            listed[split].append((f"Images/{name}/{name[:9]}_{part}.jpg", name))
            paint(root / listed[split][-1][0], number)
    for split, pairs in listed.items():
        content = {
            "file_list": cells([path.removeprefix("Images/") for path, _ in pairs]),
            "annotation_list": cells([path.removeprefix("Images/").removesuffix(".jpg") for path, _ in pairs]),
            "labels": np.array([[names("dog120").index(name) + 1] for _, name in pairs], np.uint8),
        }
        savemat(root / f"{split}_list.mat", content)
    return listed


def write_action40(root):
    listed = {"train": [], "test": []}
    for name in names("action40"):
        for part, split in enumerate(("train", "test", "train"), 1):
            listed[split].append((f"JPEGImages/{name}_{part:03}.jpg", name))
            paint(root / listed[split][-1][0], part)
        for split in listed:
            found = [path.removeprefix("JPEGImages/") for path, label in listed[split] if label == name]
            write_lines(root / "ImageSplits" / f"{name}_{split}.txt", found)
    actions = ["action_name\tnumber_of_images", *(f"{name}\t\t3" for name in reversed(names("action40")))]
    write_lines(root / "ImageSplits" / "actions.txt", actions)
    return listed


WRITERS = {
    "mit67": write_mit67,
    "cub200": write_cub200,
    "flower102": write_flower102,
    "dog120": write_dog120,
    "action40": write_action40,
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """{kind: (root, what is listed)}."""
    found = {}
    for kind, write in WRITERS.items():
        root = tmp_path_factory.mktemp(kind)
        found[kind] = root, write(root)
    return found


@pytest.fixture
def copy(copies, tmp_path, request):
    """A copy to spoil, of the kind that the test names: its root. Images are links to the one copy of them."""
    root, _ = copies[request.param]
    shutil.copytree(
        root, tmp_path / "copy", copy_function=lambda a, b: (os.link if a[-4:] == ".jpg" else shutil.copy)(a, b)
    )
    return request.param, tmp_path / "copy"


def load(kind, root, **options):
    entry = {"kind": kind, "root": str(root), "size": 16, **options}
    return KINDS[kind].load(entry, class_names(entry), "no cache")


# ------------------------------------------------------------------ what is known before any job


@pytest.mark.parametrize(
    ("kind", "count", "some"),
    [
        ("mit67", 67, {0: "airport_inside", 66: "winecellar"}),
        ("cub200", 200, {0: "001.Black_footed_Albatross", 16: "017.Cardinal", 199: "200.Common_Yellowthroat"}),
        ("flower102", 102, {0: "001", 9: "010", 101: "102"}),
        ("dog120", 120, {0: "n02085620-Chihuahua", 119: "n02116738-African_hunting_dog"}),
        ("action40", 40, {0: "applauding", 35: "washing_dishes", 36: "watching_TV"}),
    ],
)
def test_class_names_are_known_without_the_data_and_sorted(kind, count, some):
    found = names(kind)
    assert len(set(found)) == count and found == sorted(found)
    assert {index: found[index] for index in some} == some
    assert class_names({"kind": kind, "classes": found[5:2:-1]}) == found[5:2:-1]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("mit67", "put Images, TrainImages.txt and TestImages.txt from https://web.mit.edu/torralba/www/indoor.html"),
        ("cub200", "write download: true, or put CUB_200_2011 from https://data.caltech.edu/records/65de6-vp158"),
        ("flower102", "write download: true, or put jpg, imagelabels.mat and setid.mat from https://www.robots.ox"),
        ("dog120", "write download: true, or put Images, train_list.mat and test_list.mat from http://vision.stanf"),
        ("action40", "put JPEGImages and ImageSplits from http://vision.stanford.edu/Datasets/40actions.html into"),
    ],
)
def test_what_is_not_there_is_one_line_that_says_what_to_get_from_where(kind, sentence, tmp_path):
    line = why_unavailable({"kind": kind, "root": None, "download": False})
    start = f"{kind}: its root is not given in the config, so what needs it is left out: "
    assert line.startswith(start + sentence) and line.endswith("into a folder and give that as its root")
    assert (
        why_unavailable({"kind": kind, "root": "somewhere"})
        is why_unavailable({"kind": kind, "download": True})
        is None
    )
    with pytest.raises(UserError, match=f"^{kind}: its root is not given"):
        prepare_dataset({"kind": kind}, tmp_path)


@pytest.mark.parametrize("kind", ["mit67", "action40"])
def test_what_cannot_be_downloaded_says_so_before_any_job(kind):
    with pytest.raises(UserError, match=f"^download: {kind} has no published checksum.*: put .* from http"):
        class_names({"kind": kind, "root": None, "download": True})


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("mit67", "TestImages.txt"),
        ("cub200", "CUB_200_2011/images.txt"),
        ("flower102", "setid.mat"),
        ("dog120", "train_list.mat"),
        ("action40", "ImageSplits/actions.txt"),
    ],
)
def test_a_root_without_a_list_is_named_before_any_job(copies, tmp_path, kind, part):
    for item in copies[kind][0].iterdir():
        (tmp_path / item.name).symlink_to(item)
    assert class_names({"kind": kind, "root": str(tmp_path)}) == names(kind)
    top = part.partition("/")[0]
    (tmp_path / top).unlink()
    if top != part:
        for item in (copies[kind][0] / top).iterdir():
            (tmp_path / top).mkdir(exist_ok=True)
            (tmp_path / top / item.name).symlink_to(item)
        (tmp_path / part).unlink()
    with pytest.raises(UserError, match=f"^root: {tmp_path} has no {part}: put .* from http"):
        class_names({"kind": kind, "root": str(tmp_path)})


# ------------------------------------------------------------------ the published layouts


@pytest.mark.parametrize("kind", PUBLISHED)
def test_images_and_labels_are_the_published_ones(copies, kind):
    root, listed = copies[kind]
    splits = load(kind, root)
    for split, pairs in listed.items():
        found = splits[split]
        expected = sorted((names(kind).index(name), str(root / path)) for path, name in pairs)
        assert list(zip(found.labels.tolist(), found.files, strict=True)) == expected
        assert found.size == (16, 16) and found.images is None
    assert len(splits["train"]) == 2 * len(names(kind)) and len(splits["test"]) == len(names(kind))
    assert KINDS[kind].size == 224 and KINDS[kind].augmentation(224) == ["resized-crop", "flip"]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_subset_has_its_own_labels_and_needs_no_other_image(copies, kind, tmp_path):
    root, listed = copies[kind]
    wanted = [names(kind)[7], names(kind)[2]]
    entry = {"kind": kind, "root": str(root), "size": 16, "classes": wanted}
    prepare_dataset(entry, tmp_path, workers=1)
    found = open_dataset(tmp_path)
    assert found.classes == wanted and found.kind == kind and found.augmentation == ("crop", "flip")
    assert found.train.labels.tolist() == [0, 0, 1, 1] and found.test.labels.tolist() == [0, 1]
    paths = [min(path for path, name in listed["train"] if name == label) for label in wanted]
    np.testing.assert_array_equal(found.train.images[::2], [read_image(root / path, 16) for path in paths])


def test_lists_of_the_dogs_may_lie_in_their_own_folder(copies, tmp_path):
    root, _ = copies["dog120"]
    (tmp_path / "Images").symlink_to(root / "Images")
    (tmp_path / "lists").mkdir()
    for name in ("train_list.mat", "test_list.mat"):
        (tmp_path / "lists" / name).symlink_to(root / name)
    assert load("dog120", tmp_path)["test"].labels.tolist() == list(range(120))


@pytest.mark.parametrize("copy", PUBLISHED, indirect=True)
def test_a_listed_image_that_is_not_there_is_named(copy):
    kind, root = copy
    path = load(kind, root)["test"].files[3]
    (root / path).unlink()
    with pytest.raises(UserError, match=f"^{path} is in the published lists but not there: restore it"):
        load(kind, root)


def edit(path, change):
    path.write_text(change(path.read_text()))


def edit_mat(path, change):
    content = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    savemat(path, change(content))


def without_last_line(text):
    return "".join(text.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize(
    ("copy", "spoil", "sentence"),
    [
        (
            "mit67",
            lambda root: edit(root / "TestImages.txt", lambda text: text + "attic/a.jpg\n"),
            "has the class attic, which is not among the published ones",
        ),
        (
            "mit67",
            lambda root: edit(root / "TestImages.txt", lambda text: text + "bar/a_1.jpg\n"),
            "the lists have bar/a_1.jpg for training and for test",
        ),
        (
            "mit67",
            lambda root: edit(root / "TestImages.txt", without_last_line),
            "the lists have no test image of airport_inside",
        ),
        (
            "mit67",
            lambda root: (root / "TestImages.txt").write_bytes(b"\xff\xfe\x00"),
            "TestImages.txt cannot be read",
        ),
        (
            "cub200",
            lambda root: edit(root / "CUB_200_2011/image_class_labels.txt", without_last_line),
            "image_class_labels.txt does not have the images in images.txt: download both again",
        ),
        (
            "cub200",
            lambda root: edit(root / "CUB_200_2011/train_test_split.txt", lambda text: text + "601 1\n"),
            "train_test_split.txt does not have the images in images.txt: download both again",
        ),
        (
            "cub200",
            lambda root: edit(root / "CUB_200_2011/images.txt", lambda text: text + "601\n"),
            "images.txt has nothing after 601",
        ),
        (
            "cub200",
            lambda root: edit(root / "CUB_200_2011/classes.txt", without_last_line),
            "image_class_labels.txt has the class 200, which is not in classes.txt",
        ),
        (
            "cub200",
            lambda root: edit(root / "CUB_200_2011/classes.txt", lambda text: text.replace("Cardinal", "Redbird")),
            "has the class 017.Redbird, which is not among the published ones",
        ),
        (
            "flower102",
            lambda root: edit_mat(root / "imagelabels.mat", lambda found: {"labels": found["labels"][:, :-1]}),
            "setid.mat has image 306, but imagelabels.mat has 305 labels",
        ),
        (
            "flower102",
            lambda root: edit_mat(root / "setid.mat", lambda found: {"trnid": found["trnid"], "valid": found["valid"]}),
            "setid.mat has no tstid in it",
        ),
        (
            "flower102",
            lambda root: edit_mat(root / "imagelabels.mat", lambda found: {"labels": found["labels"] + 1}),
            "has the class 103, which is not among the published ones",
        ),
        (
            "dog120",
            lambda root: edit_mat(root / "train_list.mat", lambda found: found | {"labels": found["labels"][:-1]}),
            "train_list.mat has 239 labels that do not fit its 240 paths",
        ),
        (
            "dog120",
            lambda root: edit_mat(root / "test_list.mat", lambda found: found | {"labels": found["labels"] * 0 + 1}),
            "test_list.mat has 120 labels that do not fit its 120 paths",
        ),
        (
            "dog120",
            lambda root: edit_mat(
                root / "train_list.mat", lambda found: found | {"labels": np.roll(found["labels"], 1, axis=0)}
            ),
            "train_list.mat has 240 labels that do not fit its 240 paths",
        ),
        (
            "dog120",
            lambda root: edit_mat(root / "train_list.mat", lambda found: found | {"file_list": found["labels"]}),
            "train_list.mat has no list of paths as its file_list",
        ),
        (
            "action40",
            lambda root: edit(root / "ImageSplits/actions.txt", lambda text: text.replace("fishing", "angling")),
            "actions.txt does not have the action fishing",
        ),
        (
            "action40",
            lambda root: (root / "ImageSplits/fishing_test.txt").unlink(),
            "fishing_test.txt cannot be read",
        ),
    ],
    indirect=["copy"],
)
def test_wrong_lists_are_one_sentence(copy, spoil, sentence):
    kind, root = copy
    spoil(root)
    with pytest.raises(UserError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        load(kind, root)


@pytest.mark.parametrize("copy", ["flower102", "dog120"], indirect=True)
@pytest.mark.parametrize("content", [b"", b"no MATLAB file", "truncated", "garbled"])
def test_a_damaged_mat_file_is_one_sentence(copy, content):
    kind, root = copy
    path = root / {"flower102": "setid.mat", "dog120": "train_list.mat"}[kind]
    whole = path.read_bytes()
    changed = {"truncated": whole[: len(whole) // 2], "garbled": whole[:128] + bytes(reversed(whole[128:]))}
    path.write_bytes(content if isinstance(content, bytes) else changed[content])
    with pytest.raises(UserError, match=rf"^{path} [^\n]*: download it again.$"):
        load(kind, root)


# ------------------------------------------------------------------ downloads


@pytest.fixture
def home(copies, monkeypatch):
    """The public homes: archives of the small copies, served. A function (kind, change of {name: bytes})."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("seam.download.time.sleep", lambda seconds: None)
    with serve({}) as site:

        def publish(kind, change=lambda tar: None):
            root, _ = copies[kind]
            downloads = []
            for file in KINDS[kind].downloads:
                site.files[file.name] = (
                    pack(root, file.wanted, change, "w:gz" if file.name.endswith("gz") else "w")
                    if file.wanted
                    else (root / file.name).read_bytes()
                )
                checksum = hashlib.sha256(site.files[file.name]).hexdigest()
                downloads.append(replace(file, url=site.url + file.name, sha256=checksum))
            monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], downloads=tuple(downloads)))
            return site

        yield publish


def pack(root, wanted, change=lambda tar: None, mode="w"):
    """A tar archive of what is `wanted` below root and of some that is not."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        add(tar, "README", b"not needed")
        for name in wanted:
            tar.add(root / name, name)
        change(tar)
    return file.getvalue()


def add(tar, name, content=b"harm"):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["cub200", "flower102", "dog120"])
def test_a_download_gives_the_same_as_a_copy_of_one_s_own(home, copies, tmp_path, kind):
    site = home(kind)
    site.cuts = [20_000]
    entry = {"kind": kind, "root": None, "download": True, "size": 16}
    assert class_names(entry) == names(kind) and site.requests == []  # no name needs the download
    found = KINDS[kind].load(entry, names(kind), tmp_path)
    expected = load(kind, copies[kind][0])
    for split in ("train", "test"):
        inside = [path.removeprefix(str(tmp_path / kind)) for path in found[split].files]
        assert inside == [path.removeprefix(str(copies[kind][0])) for path in expected[split].files]
        assert found[split].labels.tolist() == expected[split].labels.tolist()
    assert "bytes=20000-" in [asked for _, asked in site.requests]
    assert not (tmp_path / kind / "README").exists() and not list((tmp_path / kind).glob("*.part*"))
    count = len(site.requests)
    for file in KINDS[kind].downloads:
        if file.wanted:
            (tmp_path / kind / file.name).unlink()  # what is unpacked is enough
    KINDS[kind].load(entry, names(kind), tmp_path)
    assert len(site.requests) == count


def test_another_archive_than_the_published_is_not_opened(home, tmp_path, monkeypatch):
    site = home("dog120")
    site.files["images.tar"] += b"more"
    monkeypatch.setattr("seam.download.tarfile.open", lambda *arguments: pytest.fail("opened"))
    with pytest.raises(UserError, match="images.tar is not the published file"):
        prepare_dataset({"kind": "dog120", "download": True}, tmp_path / "out", tmp_path / "cache")


@pytest.fixture
def packed(tmp_path):
    """A function that packs a small tree and, with what `change` does to it, gives the archive and a folder for it."""
    tree = tmp_path / "tree"
    (tree / "Images/cat").mkdir(parents=True)
    (tree / "Images/cat/a.jpg").write_bytes(bytes(range(256)) * 10)
    (tree / "list.mat").write_bytes(b"a list")

    def make(change=lambda tar: None, mode="w:gz"):
        path = tmp_path / "archive.tgz"
        path.write_bytes(pack(tree, ["Images", "list.mat"], change, mode))
        (tmp_path / "into").mkdir(exist_ok=True)
        return path, tmp_path / "into"

    return make


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_what_is_wanted_is_unpacked(packed):
    path, into = packed()
    unpack(path, into, ["Images", "list.mat"])
    assert tree(into) == ["Images/cat/a.jpg", "list.mat"]
    assert (into / "Images/cat/a.jpg").read_bytes() == bytes(range(256)) * 10
    (into / "list.mat").write_bytes(b"mine")
    unpack(path, into, ["Images", "list.mat"])
    assert (into / "list.mat").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["Images/../../outside.jpg", "../outside.jpg", "Images/cat/../../../outside.jpg"])
def test_a_path_that_leads_outside_is_refused(packed, tmp_path, name):
    path, into = packed(lambda tar: add(tar, name))
    with pytest.raises(UserError, match=r"archive.tgz has a path that leads out of it \(.*outside.jpg\)"):
        unpack(path, into, ["Images"])
    assert not list(tmp_path.rglob("outside*")) and list(into.iterdir()) == []


def test_an_absolute_path_is_left_out(packed, tmp_path):
    path, into = packed(lambda tar: add(tar, str(tmp_path / "absolute")))
    unpack(path, into, ["Images"])
    assert not (tmp_path / "absolute").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_left_out(packed, tmp_path, kind):
    def change(tar):
        link = tarfile.TarInfo("Images/link")
        link.type, link.linkname = kind, str(tmp_path) if kind == tarfile.SYMTYPE else "list.mat"
        tar.addfile(link)
        if kind == tarfile.SYMTYPE:
            add(tar, "Images/link/inside.jpg")

    path, into = packed(change)
    unpack(path, into, ["Images"])
    assert not (tmp_path / "inside.jpg").exists() and not (into / "Images/link").is_symlink()
    assert not (into / "Images/link").exists() or (into / "Images/link").is_dir()


def test_an_archive_that_swells_is_refused(packed):
    path, into = packed(lambda tar: add(tar, "Images/cat/b.jpg", bytes(10_000_000)))
    with pytest.raises(UserError, match="archive.tgz would become more than 4 times its size"):
        unpack(path, into, ["Images"])
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("left", [0.001, 0.5, 0.8])
def test_a_truncated_archive_leaves_nothing(packed, mode, left):
    path, into = packed(lambda tar: add(tar, "Images/cat/b.jpg", np.random.default_rng(0).bytes(50_000)), mode)
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(UserError, match="archive.tgz (cannot be read|has no)"):
        unpack(path, into, ["Images", "list.mat"])
    assert list(into.iterdir()) == []


def test_an_archive_without_what_is_wanted_is_one_sentence(packed):
    path, into = packed()
    with pytest.raises(UserError, match="archive.tgz has no lists"):
        unpack(path, into, ["lists"])
