import itertools
import json
import os
import pickle
import subprocess
import sys
import tarfile
from contextlib import suppress
from dataclasses import replace

import cifar_archives
import numpy as np
import pytest
from server import serve

from seam.data.kinds import cifar, cifar10, cifar100
from seam.data.kinds.registry import KINDS, class_groups, class_names, prepare_dataset
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.files import json_digest, read_json, sha256

# ------------------------------------------------------------------ what is known before any job


def test_what_the_config_needs_is_known_without_heavy_packages():
    code = (
        "import sys; from seam.data.kinds import registry; registry.class_groups({'kind': 'cifar100'});"
        "entries = [{'kind': kind} for kind in registry.KINDS if kind != 'imagefolder'];"
        "[(registry.why_unavailable(entry), registry.class_names(entry)) for entry in entries];"
        "print(*sys.modules.keys() & {'numpy', 'torch', 'PIL', 'sklearn', 'requests', 'scipy'})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "\n"


def test_class_names():
    assert class_names({"kind": "digits"}) == [str(digit) for digit in range(10)]
    assert class_names({"kind": "cifar10"})[3] == "cat"
    names = class_names({"kind": "cifar100"})
    assert len(names) == 100 and names == sorted(names)
    assert [names[index] for index in (0, 1, 41, 58, 83, 99)] == [
        "apple", "aquarium_fish", "lawn_mower", "pickup_truck", "sweet_pepper", "worm",
    ]  # fmt: skip


def test_a_subset_keeps_its_own_order():
    assert class_names({"kind": "cifar10", "classes": ["dog", "cat"]}) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["cat", "unicorn"], "classes: unicorn is no class of this cifar10: choose among airplane, .*"),
        (["cat", "cat"], "classes: cat is listed twice"),
    ],
)
def test_a_wrong_subset_is_one_sentence(classes, sentence):
    with pytest.raises(UserError, match=sentence):
        class_names({"kind": "cifar10", "classes": classes})


def test_cifar100_has_20_superclasses_of_5():
    groups = class_groups({"kind": "cifar100"})
    assert len(groups) == 20 and list(groups) == sorted(groups)
    assert {len(members) for members in groups.values()} == {5}
    assert sorted(name for members in groups.values() for name in members) == class_names({"kind": "cifar100"})
    assert groups["aquatic_mammals"] == ["beaver", "dolphin", "otter", "seal", "whale"]


def test_a_subset_has_the_superclasses_that_lie_wholly_inside():
    trees = ["willow_tree", "maple_tree", "oak_tree", "palm_tree", "pine_tree"]
    assert list(class_groups({"kind": "cifar100", "classes": [*trees, "apple", "pear"]})) == ["trees"]


@pytest.mark.parametrize("kind", ["digits", "cifar10"])
def test_others_have_none(kind):
    with pytest.raises(UserError, match=f"{kind} has no superclasses of its own"):
        class_groups({"kind": kind})


def test_groups_of_one_s_own(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("has legs,cat dog\nflies,airplane bird\n\nswims,ship\n")
    groups = class_groups({"kind": "cifar10", "groups": str(path)})
    assert groups == {"has_legs": ["cat", "dog"], "flies": ["airplane", "bird"]}  # `swims` has a single class


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pets,cat dogg", "puts dogg into pets, which is no class"),
        ("pets cat dog", "line 1 of .* is not like"),
        ("pets,cat dog\npets,bird cat", "line 2 of .* names pets again"),
        ("pets,cat,dog", "line 1 of .* is not like"),
        ("", "has no groups in it"),
    ],
)
def test_a_wrong_file_of_groups_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UserError, match=f"^groups: .*{sentence}"):
        class_groups({"kind": "cifar10", "groups": str(tmp_path / "groups.csv")})


def test_a_missing_file_of_groups_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="^groups: .* cannot be read"):
        class_groups({"kind": "cifar10", "groups": str(tmp_path / "groups.csv")})


# ------------------------------------------------------------------ what is prepared and opened


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    prepare_dataset({"kind": "digits"}, folder)
    return folder


def test_digits(digits):
    found = open_dataset(digits)
    assert found.train.images.shape == (1433, 32, 32, 3) and found.test.images.shape == (364, 32, 32, 3)
    assert found.train.images.dtype == np.uint8 and isinstance(found.train.images, np.memmap)
    assert found.train.labels.dtype == np.int64
    assert found.classes == [str(digit) for digit in range(10)]
    assert found.size == (32, 32) and found.augmentation == ("crop",)
    share = np.bincount(found.test.labels) / np.bincount(np.concatenate([found.train.labels, found.test.labels]))
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    scaled = found.train.images / 255
    np.testing.assert_allclose(found.mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, scaled.std((0, 1, 2)), rtol=1e-6)


def test_train_and_test_share_no_image(digits):
    found = open_dataset(digits)
    train, test = ({image.tobytes() for image in split.images} for split in (found.train, found.test))
    assert not train & test
    assert len(found.train) + len(found.test) == 1797


def test_the_manifest_says_what_is_there(digits):
    content = json.loads((digits / "dataset.json").read_text())
    assert content["kind"] == "digits" and content["storage"] == "arrays" and content["size"] == [32, 32]
    assert sum(content["counts"]["train"].values()) == 1433 and content["counts"]["test"]["0"] == 36
    files = {"train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy"}
    assert set(content["sha256"]) == files
    assert all(sha256(digits / "arrays" / name) == value for name, value in content["sha256"].items())


def test_the_same_data_are_the_same_files(digits, tmp_path):
    assert prepare_dataset({"kind": "digits"}, tmp_path) == read_json(digits / "dataset.json")


def test_a_subset_has_its_own_labels(digits, tmp_path):
    whole = open_dataset(digits)
    prepare_dataset({"kind": "digits", "classes": ["8", "3"], "augmentation": []}, tmp_path)
    found = open_dataset(tmp_path)
    assert found.classes == ["8", "3"] and found.augmentation == ()
    for part, all_of_it in ((found.train, whole.train), (found.test, whole.test)):
        np.testing.assert_array_equal(part.images[part.labels == 0], all_of_it.images[all_of_it.labels == 8])
        np.testing.assert_array_equal(part.images[part.labels == 1], all_of_it.images[all_of_it.labels == 3])


def test_what_is_not_prepared_or_damaged_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="dataset.json is missing"):
        open_dataset(tmp_path)
    prepare_dataset({"kind": "digits"}, tmp_path)
    open_dataset(tmp_path)
    for name in ("test_images.npy", "train_labels.npy"):
        path = tmp_path / "arrays" / name
        before, content = path.stat(), path.read_bytes()
        for damage in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"", None):
            path.unlink(missing_ok=True)
            if damage is not None:
                path.write_bytes(damage)
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            with pytest.raises(UserError, match=f"is damaged .*{name}.*: delete .*dataset.json and run again"):
                open_dataset(tmp_path)
        path.write_bytes(content)
    open_dataset(tmp_path)


def test_a_damaged_manifest_is_one_sentence(tmp_path):
    prepare_dataset({"kind": "digits"}, tmp_path)
    path = tmp_path / "dataset.json"
    manifest = json.loads(path.read_text())
    for name in manifest:
        for value in (None, 7, [], ...):
            changed = {key: each for key, each in (manifest | {name: value}).items() if each != ...}
            for content in (changed, changed | {"digest": json_digest(changed)}):  # damage, or a sender's work
                path.write_text(json.dumps(content))
                with suppress(UserError):
                    open_dataset(tmp_path)
    path.write_text(json.dumps(manifest | {"mean": [0.0, 0.0, 0.0]}))
    with pytest.raises(UserError, match="dataset.json is damaged, its content does not have its digest"):
        open_dataset(tmp_path)


def test_a_failed_second_try_leaves_the_first_data_set(tmp_path, monkeypatch):
    manifest = prepare_dataset({"kind": "digits"}, tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("seam.data.preparation.channel_statistics", lambda split: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_dataset({"kind": "digits", "classes": ["1", "2"]}, tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path.name for path in tmp_path.iterdir()} == {"arrays", "dataset.json"}
    assert open_dataset(tmp_path).classes == manifest["classes"]
    (tmp_path / ".arrays.new").mkdir()  # of a killed process
    prepare_dataset({"kind": "digits", "classes": ["1", "2"]}, tmp_path)
    assert open_dataset(tmp_path).classes == ["1", "2"]
    assert {path.name for path in tmp_path.iterdir()} == {"arrays", "dataset.json"}


@pytest.mark.parametrize("name", ["arrays", ".arrays.new"])
def test_a_link_in_the_folder_of_a_data_set_leads_nowhere(tmp_path, name):
    folder, elsewhere = tmp_path / "digits", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    (elsewhere / "train_images.npy").write_bytes(b"of somebody")
    (folder / name).symlink_to(elsewhere)
    prepare_dataset({"kind": "digits"}, folder)
    assert [(path.name, path.read_bytes()) for path in elsewhere.iterdir()] == [("train_images.npy", b"of somebody")]
    assert len(open_dataset(folder).classes) == 10 and not (folder / "arrays").is_symlink()


# ------------------------------------------------------------------ CIFAR-10 and CIFAR-100


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Make archives in the published layout the published ones: a function (kind, members) that serves them."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("seam.download.time.sleep", lambda seconds: None)
    with serve({}) as site:

        def publish(kind, members, damage=lambda content: content):
            name = kind.archive
            path = cifar_archives.archive(tmp_path / "published" / name, members)
            path.write_bytes(damage(path.read_bytes()))
            site.files[name] = path.read_bytes()
            monkeypatch.setitem(KINDS, kind.name, replace(kind, home=site.url, sha256=sha256(path)))
            return site

        yield publish


def pictures(rows):
    """uint8 [N, 3072] as it is published -> [N, 32, 32, 3], pixel by pixel."""
    found = np.zeros((len(rows), 32, 32, 3), np.uint8)
    for y, x, plane in itertools.product(range(32), range(32), range(3)):
        found[:, y, x, plane] = rows[:, plane * 1024 + y * 32 + x]
    return found


def test_cifar10(published, tmp_path):
    members, content = cifar_archives.cifar10_members(cifar10.KIND.classes)
    site = published(cifar10.KIND, members)
    prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")
    found = open_dataset(tmp_path / "out")
    assert found.augmentation == ("crop", "flip") and found.classes == cifar10.KIND.classes
    for split, (rows, labels) in zip((found.train, found.test), content.values(), strict=True):
        assert split.labels.tolist() == labels
        np.testing.assert_array_equal(split.images, pictures(rows))
    assert len(found.train) == 100 and len(found.test) == 20
    prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")
    assert site.requests == [("cifar-10-python.tar.gz", None)]
    assert (tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz").is_file()


def test_cifar100(published, tmp_path):
    members, content = cifar_archives.cifar100_members(cifar100.KIND.classes, cifar100.GROUPS)
    published(cifar100.KIND, members)
    prepare_dataset({"kind": "cifar100"}, tmp_path / "out", tmp_path / "cache")
    found = open_dataset(tmp_path / "out")
    assert found.classes == cifar100.KIND.classes
    assert found.train.labels.tolist() == content["train"][1]
    np.testing.assert_array_equal(found.test.images, pictures(content["test"][0]))


def test_a_subset_of_cifar100(published, tmp_path):
    members, content = cifar_archives.cifar100_members(cifar100.KIND.classes, cifar100.GROUPS)
    published(cifar100.KIND, members)
    wanted = [*cifar100.GROUPS["trees"], "worm"]
    prepare_dataset({"kind": "cifar100", "classes": wanted}, tmp_path / "out", tmp_path / "cache")
    found = open_dataset(tmp_path / "out")
    assert found.classes == wanted
    assert len(found.train) == 12 and len(found.test) == 6
    rows, labels = content["test"]
    np.testing.assert_array_equal(found.test.images[found.test.labels == 5][0], pictures(rows)[labels.index(99)])


def test_offline_with_the_archive_in_the_root(published, tmp_path):
    site = published(cifar10.KIND, cifar_archives.cifar10_members(cifar10.KIND.classes)[0])
    entry = {"kind": "cifar10", "root": str(tmp_path / "published")}
    assert prepare_dataset(entry, tmp_path / "out", tmp_path / "cache")["counts"]["test"]["cat"] == 2
    assert site.requests == [] and not (tmp_path / "cache").exists()


def test_a_cut_download_is_resumed(published, tmp_path):
    site = published(cifar10.KIND, cifar_archives.cifar10_members(cifar10.KIND.classes)[0])
    site.cuts = [10_000]
    prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")
    assert [asked for _, asked in site.requests] == [None, "bytes=10000-"]


def test_a_wrong_root_is_named_before_any_job(tmp_path):
    with pytest.raises(UserError, match="^root: .* does not hold cifar-10-python.tar.gz"):
        class_names({"kind": "cifar10", "root": str(tmp_path)})
    with pytest.raises(UserError, match="^size: "):
        class_names({"kind": "cifar10", "size": 64})


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w')",)


def test_a_harmful_pickle_is_not_run_even_with_the_right_checksum(published, tmp_path):
    members, _ = cifar_archives.cifar10_members(cifar10.KIND.classes)
    members["cifar-10-batches-py/data_batch_3"] = pickle.dumps(Harmful(tmp_path / "harm"), protocol=2)
    published(cifar10.KIND, members)
    with pytest.raises(UserError, match="cannot be read .it asks for __builtin__.exec"):
        prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize("rooted", [False, True])
def test_an_archive_with_another_checksum_is_not_even_opened(published, tmp_path, monkeypatch, rooted):
    published(cifar10.KIND, cifar_archives.cifar10_members(cifar10.KIND.classes)[0])
    monkeypatch.setitem(KINDS, "cifar10", replace(KINDS["cifar10"], sha256="0" * 64))
    monkeypatch.setattr(cifar.tarfile, "open", lambda *arguments: pytest.fail("opened"))
    entry = {"kind": "cifar10"} | ({"root": str(tmp_path / "published")} if rooted else {})
    with pytest.raises(UserError, match="is not the published file"):
        prepare_dataset(entry, tmp_path / "out", tmp_path / "cache")


def test_nothing_is_unpacked_so_no_name_leads_outside(published, tmp_path):
    members, _ = cifar_archives.cifar10_members(cifar10.KIND.classes)
    members |= {"../outside": b"harm", str(tmp_path / "absolute"): b"harm"}
    published(cifar10.KIND, members)
    prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")
    assert not list(tmp_path.rglob("outside")) and not (tmp_path / "absolute").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"arrays", "dataset.json"}


def test_a_link_in_the_archive_is_not_followed(published, tmp_path):
    members, _ = cifar_archives.cifar10_members(cifar10.KIND.classes)
    link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
    published(cifar10.KIND, members | {link.name: link})
    with pytest.raises(UserError, match="has no file cifar-10-batches-py/test_batch"):
        prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")


@pytest.mark.parametrize("left", [0.001, 0.5, 0.95])
def test_a_truncated_archive_is_one_sentence(published, tmp_path, left):
    members, _ = cifar_archives.cifar10_members(cifar10.KIND.classes)
    published(cifar10.KIND, members, damage=lambda content: content[: int(left * len(content))])
    with pytest.raises(UserError, match="cifar-10-python.tar.gz (cannot be read|has no file)"):
        prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")


def test_other_class_names_are_refused(published, tmp_path):
    published(cifar10.KIND, cifar_archives.cifar10_members([*cifar10.KIND.classes[:9], "lorry"])[0])
    with pytest.raises(UserError, match="other class names than were published"):
        prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")


def test_other_superclasses_are_refused(published, tmp_path):
    swapped = cifar100.GROUPS | {"fish": cifar100.GROUPS["trees"], "trees": cifar100.GROUPS["fish"]}
    published(cifar100.KIND, cifar_archives.cifar100_members(cifar100.KIND.classes, swapped)[0])
    with pytest.raises(UserError, match="puts .* into (fish|trees), unlike the published one"):
        prepare_dataset({"kind": "cifar100"}, tmp_path / "out", tmp_path / "cache")


def test_no_server_and_no_archive_says_where_to_put_it(published, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "cifar10", replace(cifar10.KIND, home="http://127.0.0.1:9/"))
    with pytest.raises(UserError, match="put the file at .*cifar10/cifar-10-python.tar.gz yourself"):
        prepare_dataset({"kind": "cifar10"}, tmp_path / "out", tmp_path / "cache")
