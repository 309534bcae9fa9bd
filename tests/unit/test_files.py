"""Files: atomic writes, also on a full disk; content that survives bit for bit; no code of others is run."""

import ast
import errno
import hashlib
import math
import os
import resource
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from server import serve
from torch import nn

from seam.cost.export import export
from seam.data.preparation import decode_array, save_array
from seam.data.storage import Split
from seam.download import fetch, unpack
from seam.errors import UserError
from seam.files import (
    atomic_write,
    check_seal,
    load_tensors,
    read_csv,
    read_json,
    save_tensors,
    sealed_write,
    sha256,
    write_csv,
    write_json,
    write_text,
)
from seam.report.style import blank, save
from seam.report.tables import read_table
from seam.training.checkpoint import Checkpoint

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"


def test_a_file_is_written_atomically(tmp_path):
    path = tmp_path / "folder" / "text.txt"
    write_text(path, "first")
    write_text(path, "second")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_absent_or_as_before_when_the_block_fails(tmp_path):
    path = tmp_path / "text.txt"
    for before in (None, "before"):
        if before:
            path.write_text(before)
        with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
            temporary.write_text("half of it")
            raise ZeroDivisionError
        assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file/table.csv .*: free some space or fix its permissions"):
        write_text(tmp_path / "file" / "table.csv", "text")


def test_the_block_s_own_missing_file_is_not_called_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "text.txt"):
        (tmp_path / "other").read_text()


def test_a_full_disk_is_one_sentence(tmp_path):
    message = r"Cannot write .*text.txt \(No space left on device\): free some space"
    with pytest.raises(UserError, match=message), atomic_write(tmp_path / "text.txt") as temporary:
        temporary.write_text("half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_json_keeps_floats(tmp_path):
    content = {"tenth": 0.1, "third": 1 / 3, "tiny": 5e-324, "text": "ä", "list": [1, None, True]}
    write_json(tmp_path / "content.json", content)
    assert read_json(tmp_path / "content.json") == content


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_refuses_what_is_no_number(tmp_path, number):
    with pytest.raises(ValueError):
        write_json(tmp_path / "content.json", {"number": number})
    assert list(tmp_path.iterdir()) == []


def test_json_that_is_missing_or_damaged_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="content.json is missing"):
        read_json(tmp_path / "content.json")
    (tmp_path / "content.json").write_text('{"half":')
    with pytest.raises(UserError, match="content.json is not a JSON file"):
        read_json(tmp_path / "content.json")


def test_csv_keeps_floats(tmp_path):
    write_csv(tmp_path / "table.csv", pd.DataFrame({"name": ["a", "b"], "value": [0.1, 1 / 3]}))
    lines = "name,value,digest\na,0.1,\nb,0.3333333333333333,{}\n"
    digest = hashlib.sha256(lines.format("").encode()).hexdigest()[:16]
    assert (tmp_path / "table.csv").read_text() == lines.format(digest)
    write_csv(tmp_path / "empty.csv", pd.DataFrame({"name": [], "value": []}))
    assert (tmp_path / "empty.csv").read_text() == "name,value\n"


RESULT = {"name": "red", "numbers": {2: 0.25, 10: [1, 2.5, None]}, "pair": (True, "ä")}
TABLE = pd.DataFrame({"epoch": [1, 2, 3], "target": ["a, b", 'c"\n"', "NA"], "accuracy": [0.5, 1 / 3, float("nan")]})


def damages(content):
    """Every flip of a bit of a file, and every truncation."""
    for place, byte in enumerate(content):
        yield content[:place]
        for bit in range(8):
            yield content[:place] + bytes([byte ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize(
    "name, write, read",
    [
        ("result.json", lambda path: write_json(path, RESULT), read_json),
        ("result.json", lambda path: write_json(path, RESULT), lambda path: read_json(path, sealed=True)),
        ("table.csv", lambda path: write_csv(path, TABLE), lambda path: read_table(path).to_csv()),
        ("one.csv", lambda path: write_csv(path, TABLE[["accuracy"]]), lambda path: read_csv(path).to_csv()),
    ],
)
def test_no_flipped_bit_and_no_truncation_changes_a_result_in_silence(tmp_path, name, write, read):
    path = tmp_path / name
    write(path)
    expected, content, refused = read(path), path.read_bytes(), 0
    for damaged in damages(content):
        path.write_bytes(damaged)
        try:
            found = read(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # a space that became another, or a digit of a float beyond its precision
            assert found == expected
    assert refused > 0.9 * 9 * len(content)


def test_results_without_a_digest_are_read(tmp_path):
    """Those of older versions, and files that people write; but not where `sealed` asks for a digest."""
    (tmp_path / "old.json").write_text('{"accuracy": 0.5}\n')
    assert read_json(tmp_path / "old.json") == {"accuracy": 0.5}
    with pytest.raises(UserError, match="old.json is damaged, its content does not have its digest"):
        read_json(tmp_path / "old.json", sealed=True)
    (tmp_path / "old.csv").write_text("epoch,accuracy\n1,0.5\n")
    assert read_table(tmp_path / "old.csv").to_dict("list") == {"epoch": [1], "accuracy": [0.5]}
    write_json(tmp_path / "edited.json", {"accuracy": 0.5}, sealed=False)
    assert (tmp_path / "edited.json").read_text() == '{\n  "accuracy": 0.5\n}\n'


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\0", '"\\ud800"'])
@pytest.mark.parametrize("name", ["stranger.json", "stranger.csv"])
def test_a_malformed_result_is_one_sentence(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    read = read_json if name.endswith("json") else read_table
    with suppress(UserError):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [read_json, read_table])
def test_a_result_is_a_file_of_a_plausible_size(tmp_path, monkeypatch, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(UserError, match=f"{name} is a pipe, a socket or a device, not a file"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="Cannot read .* .Is a directory."):
        read(tmp_path)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    monkeypatch.setattr("seam.files.MOST_JSON", 1000)
    monkeypatch.setattr("seam.files.MOST_CSV", 1000)
    with pytest.raises(UserError, match="sparse has more than 1,000 bytes, too many for a result"):
        read(tmp_path / "sparse")


def random_floats(count=20_000):
    """Finite numbers of all magnitudes: random bits."""
    found = np.random.default_rng(0).integers(0, 1 << 64, count, np.uint64).view(np.float64)
    return np.concatenate(
        [found[np.isfinite(found)], [0.0, -0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308]]
    )


def bits(numbers):
    return np.asarray(numbers, np.float64).view(np.uint64).tolist()


def test_every_float_survives_json_bit_for_bit(tmp_path):
    numbers = random_floats()
    write_json(tmp_path / "content.json", {"numbers": numbers.tolist()})
    assert bits(read_json(tmp_path / "content.json")["numbers"]) == bits(numbers)


def test_every_float_survives_a_table_bit_for_bit(tmp_path):
    numbers = random_floats()
    write_csv(tmp_path / "table.csv", pd.DataFrame({"value": numbers}))
    assert bits(read_table(tmp_path / "table.csv")["value"]) == bits(numbers)
    text = (tmp_path / "table.csv").read_text().splitlines()[1:]  # and whoever else reads it
    assert bits([float(line.partition(",")[0]) for line in text]) == bits(numbers)


def test_tensors_and_their_metadata(tmp_path):
    tensors = {"weight": torch.randn(3, 4).t(), "bits": torch.tensor([1, 0], dtype=torch.uint8)}
    save_tensors(tmp_path / "tensors.safetensors", tensors, {"classes": ["a", "ä"], "count": 2})
    found, metadata = load_tensors(tmp_path / "tensors.safetensors")
    assert metadata == {"classes": ["a", "ä"], "count": 2}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_tensors_that_share_their_numbers_are_stored_each(tmp_path):
    tensor = torch.arange(6.0)
    save_tensors(tmp_path / "tied.safetensors", {"a": tensor, "b": tensor, "c": tensor[2:].view(2, 2)})
    found, _ = load_tensors(tmp_path / "tied.safetensors")
    assert found["a"].equal(tensor) and found["b"].equal(tensor) and found["c"].equal(tensor[2:].view(2, 2))


def test_tensors_that_are_missing_or_damaged_are_one_sentence(tmp_path):
    path = tmp_path / "tensors.safetensors"
    with pytest.raises(UserError, match="is missing"):
        load_tensors(path)
    save_tensors(path, {"weight": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_tensors(path)


def test_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")
    np.save(tmp_path / "array.npy", np.arange(5))
    assert sha256(tmp_path / "array.npy") == sha256(tmp_path / "array.npy")


# ------------------------------------------------------------------ no room

ROOM = 128 * 1024  # bytes; each writer below needs some three times as many
NOISE = np.random.default_rng(0)
BYTES = NOISE.bytes(400_000)


@pytest.fixture(params=["a full disk", "a limit on files"])
def full(request, tmp_path):
    """A folder where no file of more than ROOM bytes can be written."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "a full disk":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", folder]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a small disk cannot be mounted here: only Linux's root may")
        yield folder
        subprocess.run(["umount", "--lazy", folder], check=True)  # a failed test's traceback may keep a file open
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))  # Python ignores SIGXFSZ: a write fails instead
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def picture(path):
    figure = blank(5, 5, "noise")
    figure.subplots().imshow(NOISE.random((500, 500)))
    save(figure, [path])


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32))


WRITERS = {
    "text.txt": lambda path, _: write_text(path, "text " * 80_000),
    "content.json": lambda path, _: write_json(path, list(range(60_000))),
    "table.csv": lambda path, _: write_csv(path, pd.DataFrame({"value": NOISE.random(20_000)})),
    "weights.safetensors": lambda path, _: save_tensors(path, {"weight": torch.zeros(100_000)}),
    "labels.npy": lambda path, _: save_array(path, np.arange(50_000)),
    "images.npy": lambda path, source: decode_array(
        path, Split(np.zeros(3), (224, 224), files=[str(source / "image.png")] * 3), workers=1
    ),
    "figure.png": lambda path, _: picture(path),
    "figure.pdf": lambda path, _: picture(path),
    "model.onnx": lambda path, _: export(network(), path, (3, 32, 32), 2),
    "run.pt": lambda path, _: Checkpoint(path, {}, __file__).write({"weight": torch.zeros(100_000)}),
    "runs.pt": lambda path, _: Checkpoint(path, {}, __file__).write({str(i): torch.zeros(1000) for i in range(100)}),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with an image and an archive, where there is room."""
    folder = tmp_path_factory.mktemp("source")
    Image.fromarray(NOISE.integers(0, 256, (300, 300, 3), np.uint8)).save(folder / "image.png")
    (folder / "Images").mkdir()
    (folder / "Images/a.bin").write_bytes(b"a small one")
    (folder / "Images/b.bin").write_bytes(BYTES)
    with tarfile.open(folder / "archive.tgz", "w:gz") as tar:
        tar.add(folder / "Images", "Images")
    return folder


NO_ROOM = r"Cannot write .*{} \(.*(No space left on device|File too large).*\): free some space"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_without_room_a_file_is_absent_or_as_before(full, source, name):
    path = full / name
    for before in ([], [path]):
        if before:
            path.write_bytes(b"before")
        with pytest.raises(UserError, match=NO_ROOM.format(name)) as error:
            WRITERS[name](path, source)
        assert "\n" not in str(error.value)
        assert list(full.iterdir()) == before
    assert path.read_bytes() == b"before"
    write_text(path, "what has room is written")


def test_without_room_an_archive_is_not_unpacked(full, source):
    for before in (False, True):
        if before:
            (full / "mine").write_bytes(b"before")
        with pytest.raises(UserError, match=NO_ROOM.format("disk")):
            unpack(source / "archive.tgz", full, ["Images"])
        assert list(full.iterdir()) == [full / "mine"] * before


def test_without_room_a_download_is_absent_and_goes_on_where_there_is_some(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path, checksum = tmp_path / "w.bin", hashlib.sha256(BYTES).hexdigest()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve({"w.bin": BYTES}) as site:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
        try:
            with pytest.raises(UserError, match=NO_ROOM.format("w.bin")):
                fetch(site.url + "w.bin", path, checksum)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not path.exists()
        fetch(site.url + "w.bin", path, checksum)
        asked = [wanted for _, wanted in site.requests]
    assert path.read_bytes() == BYTES
    assert asked[0] is None and asked[1].startswith("bytes=") and len(asked) == 2


def test_without_room_a_download_leaves_no_file(full, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve({"w.bin": BYTES}) as site, pytest.raises(UserError, match=NO_ROOM.format("w.bin")):
        fetch(site.url + "w.bin", full / "w.bin", hashlib.sha256(BYTES).hexdigest())
    assert not (full / "w.bin").exists()


def test_an_array_is_the_same_however_it_lies_in_memory(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 5), np.uint8).transpose(0, 2, 3, 1)
    save_array(tmp_path / "array.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "array.npy"), array)


# ------------------------------------------------------------------ what comes from elsewhere


def test_a_sparse_file_in_an_archive_counts_as_large_as_it_becomes(tmp_path):
    """A few bytes of a header may announce a file of a terabyte."""
    member = tarfile.TarInfo("Images/a.bin")
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": member.name}
    with tarfile.open(tmp_path / "archive.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    (tmp_path / "into").mkdir()
    with pytest.raises(UserError, match="would become more than 4 times its size"):
        unpack(tmp_path / "archive.tar", tmp_path / "into", ["Images"])
    assert list((tmp_path / "into").iterdir()) == []


def test_a_file_that_is_announced_too_large_is_refused_before_it_is_written(tmp_path, monkeypatch):
    member = tarfile.TarInfo("Images/a.bin")
    member.size = 1 << 40
    (tmp_path / "archive.tar").write_bytes(member.tobuf() + bytes(10_240))
    (tmp_path / "into").mkdir()
    monkeypatch.setattr("seam.download.shutil.copyfileobj", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(UserError, match="would become more than 4 times its size"):
        unpack(tmp_path / "archive.tar", tmp_path / "into", ["Images"])
    assert list((tmp_path / "into").iterdir()) == []


def test_a_link_to_a_file_elsewhere_is_not_copied(tmp_path):
    (tmp_path / "secret").write_text("not of the archive")
    with tarfile.open(tmp_path / "archive.tar", "w") as tar:
        for kind, place in ((tarfile.SYMTYPE, "a"), (tarfile.LNKTYPE, "b")):
            member = tarfile.TarInfo(f"Images/{place}")
            member.type, member.linkname = kind, str(tmp_path / "secret")
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("Images/c"))
    (tmp_path / "into").mkdir()
    unpack(tmp_path / "archive.tar", tmp_path / "into", ["Images"])
    assert [path.name for path in (tmp_path / "into/Images").iterdir()] == ["c"]


def calls():
    """(file, dotted name, call) of every call in the workflow's code."""
    for path in sorted(SCRIPTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(SCRIPTS)), ast.unparse(node.func), node


def test_nothing_in_the_workflow_runs_code_from_a_file():
    """Pickles are read by the readers of weights and of CIFAR alone, neither of which imports what a file names."""
    found = list(calls())
    options = {
        (file, name): {word.arg: ast.unparse(word.value) for word in call.keywords} for file, name, call in found
    }
    assert not [words for words in options.values() if "allow_pickle" in words]
    unsafe = (
        "pickle.load",
        "pickle.loads",
        "pd.read_pickle",
        "joblib.load",
        "yaml.load",
        "torch.load",
        "torch.hub.load",
        "eval",
        "exec",
    )
    # No text at all, and the text of an architecture that the caller names, whose digest was checked.
    nothing, architecture = [(file, ast.unparse(call)) for file, name, call in found if name in unsafe]
    assert nothing == ("seam/cli/main.py", "exec('')")
    assert architecture[0] == "seam/models/architectures.py" and architecture[1].startswith("exec(")
    readers = ["seam/data/kinds/cifar.py", "seam/models/unpickling.py"]  # neither imports what a file names
    assert {file for file, name, _ in found if name.endswith("Unpickler")} == set(readers)
    assert [file for file, name, _ in found if name.endswith(("extractall", "extract", "unpack_archive"))] == []


def test_tensors_are_kept_as_safetensors_but_for_checkpoints():
    saved = {
        (file, name) for file, name, _ in calls() if name in ("torch.save", "pickle.dump", "np.savez", "save_file")
    }
    assert saved == {("seam/training/checkpoint.py", "torch.save"), ("seam/files.py", "save_file")}


@pytest.mark.parametrize("seed", range(3))
def test_every_damage_to_tensors_that_matters_is_noticed(tmp_path, seed):
    random, path = np.random.default_rng(seed), tmp_path / "tensors.safetensors"
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(3), "c": torch.tensor([True, False])}
    save_tensors(path, tensors, {"classes": ["x", "y"]})
    content = path.read_bytes()
    for place in random.choice(len(content), 60, replace=False):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]
        )
        with suppress(UserError):
            found, metadata = load_tensors(path)
            assert metadata == {"classes": ["x", "y"]} and found.keys() == tensors.keys()
            assert all(torch.equal(found[name], value) for name, value in tensors.items())
        path.write_bytes(content[:place])
        with pytest.raises(UserError, match="is not a whole safetensors file"):
            load_tensors(path)


@pytest.mark.parametrize("about", ["{}", "[]", "7", "null", "{", '{"sha256": 7}', "[" * 100_000])
def test_tensors_without_a_digest_are_one_sentence(tmp_path, about):
    path = tmp_path / "tensors.safetensors"
    save_file({"a": torch.zeros(2)}, path, {"seam": about})
    with pytest.raises(UserError, match="digest|not a whole safetensors file"):
        load_tensors(path)


def test_a_sealed_file_is_verified(tmp_path):
    path = tmp_path / "x.npy"
    with sealed_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.arange(6))
    check_seal(path)
    assert np.load(path).tolist() == np.load(path, mmap_mode="r").tolist() == list(range(6))
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError, match="x.npy is damaged"):
            check_seal(path)
        path.write_bytes(content[:place])
        with pytest.raises(UserError, match="x.npy is damaged"):
            check_seal(path)
