"""Weights in the forms that people have, and files with other objects, of which no code runs."""

import argparse
import collections
import copy
import logging
import os
import pickle
import struct
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from small import build, build_plain

from seam.errors import UserError
from seam.models.fitting import find_candidates
from seam.models.published import read_content, read_weights
from seam.models.unpickling import Placeholder, read_checkpoint
from seam.models.weights import load_state


@pytest.fixture
def state():
    torch.manual_seed(0)
    return build(4).state_dict()


def renamed(state, change):
    return {change(name): value for name, value in state.items()}


def read(path, key=None):
    module = build(4)
    own = read_weights(path, "small.py:build", module, key)
    return load_state(module, own, path), module.state_dict()


class Settings:
    """A class that no reader of the file has."""

    def __init__(self):
        self.rate, self.names = 0.1, ["a", "b"]


FORMS = {
    "plain": lambda state: state,
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "params": lambda state: {"params": state},
    "network": lambda state: {"network": {"weights": state}},
    "data parallel": lambda state: {"state_dict": renamed(state, "module.{}".format)},
    "compiled": lambda state: renamed(state, "_orig_mod.{}".format),
    "both": lambda state: {"net": renamed(state, "module._orig_mod.{}".format)},
    "compiled within": lambda state: renamed(state, lambda name: "model." + name.replace(".", "._orig_mod.", 1)),
    "backbone": lambda state: {"state_dict": renamed(state, "backbone.{}".format)},
    "lightning": lambda state: {
        "state_dict": renamed(state, "model.{}".format) | {"criterion.weight": torch.ones(4)},
        "hyper_parameters": Settings(), "callbacks": {"checkpoint": {"best": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}], "pytorch-lightning_version": "2.1",
    },
    "torchvision's reference": lambda state: {
        "model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3,
        "optimizer": torch.optim.SGD(build(4).parameters(), 0.1, momentum=0.9).state_dict(),
        "model_ema": renamed(other(state), "module.{}".format) | {"n_averaged": torch.tensor(3)},
    },
    "a module": lambda state: fitted(state),
    "a module in a dictionary": lambda state: {"model": torch.nn.DataParallel(fitted(state)), "epoch": 1},
    "profiled": lambda state: state | {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
    "parameters": lambda state: {name: torch.nn.Parameter(v, v.is_floating_point()) for name, v in state.items()},
}  # fmt: skip


def other(state):
    return {name: value + 1 for name, value in state.items()}


def fitted(state):
    module = build(4)
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize("ending", ["pt", "th", "ckpt", "bin", "pth.tar"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_weights_are_found_by_fit(tmp_path, state, form, ending):
    path = tmp_path / f"mine.{ending}"
    torch.save(form(copy.deepcopy(state)), path)
    problem, own = read(path)
    assert problem is None and all(torch.equal(own[name], value) for name, value in state.items())


def test_a_program_of_torch_export_has_weights(tmp_path):
    module = build_plain(4).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 16, 16),)), tmp_path / "mine.pt2")
    own = read_weights(tmp_path / "mine.pt2", "small.py:build_plain", build_plain(4))
    expected = {name: value for name, value in module.state_dict().items() if "num_batches" not in name}
    assert all(torch.equal(own[name], value) for name, value in expected.items())


def test_what_was_taken_and_what_was_left_out_is_said(tmp_path, state, caplog):
    caplog.set_level(logging.INFO)
    torch.save(FORMS["lightning"](state), tmp_path / "mine.ckpt")
    read(tmp_path / "mine.ckpt")
    said = caplog.text
    assert "objects that are not tensors are skipped" in said and "are those under state_dict" in said
    assert "the prefix model. of its names is left out" in said and "1 tensors without this prefix are skipped" in said


def test_averaged_weights_are_a_choice(tmp_path, state, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": state, "state_dict_ema": other(state)}, path)
    assert torch.equal(read(path)[1]["8.bias"], state["8.bias"])
    assert "weights_key: state_dict_ema takes them" in caplog.text
    assert torch.equal(read(path, "state_dict_ema")[1]["8.bias"], state["8.bias"] + 1)
    with pytest.raises(UserError, match="has no weights under ema, only under state_dict, state_dict_ema"):
        read(path, "ema")


def test_two_networks_in_one_file_must_be_told_apart(tmp_path, state):
    path = tmp_path / "mine.ckpt"
    both = renamed(state, "student.{}".format) | renamed(other(state), "teacher.{}".format)
    torch.save({"state_dict": both}, path)
    with pytest.raises(UserError, match="under state_dict.student and state_dict.teacher: save one .* weights_key"):
        read(path)
    assert torch.equal(read(path, "state_dict.teacher")[1]["8.bias"], state["8.bias"] + 1)


def test_a_prefix_in_safetensors_is_found(tmp_path, state):
    save_file(renamed(state, "model.{}".format), tmp_path / "mine.safetensors")
    assert read(tmp_path / "mine.safetensors")[0] is None


def test_the_sentence_names_what_is_wrong_behind_a_prefix(tmp_path, state):
    del state["8.bias"]
    torch.save({"state_dict": renamed(state, "model.{}".format)}, tmp_path / "mine.ckpt")
    assert "8.bias is missing in it. Name the architecture" in read(tmp_path / "mine.ckpt")[0]


# ---------------------------------------------------------------------- hostile files


def archive(path, content):
    """Write an archive as torch does, with this pickle in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/byteorder", "little")
        file.writestr("a/data/0", bytes(16))
    return path


HOSTILE = {
    "reduce": b"cos\nsystem\n(S'touch harmed'\ntR.",
    "inst": b"(S'touch harmed'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch harmed'\no.",
    "newobj": b"\x80\x02cos\nsystem\n(X\x0c\x00\x00\x00touch harmedt\x81.",
    "dotted": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x1eopen('harmed', 'w').close() or\x85R.",
    "build": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\n_wrap_close\nX\x05\x00\x00\x00close\x86R)R.",
    "extension": b"\x80\x02\x82\x01)R.",
    "damaged": b"\x80\x02r\x01.",
    "append": b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch harmeda.",
    "reference": b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_no_code_of_a_hostile_pickle_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "mine.pt", content)
    with pytest.raises(UserError, match="mine.pt"):
        read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "system", lambda *_: pytest.fail("code ran"))
        try:
            content = read_checkpoint(path)[0]
        except pickle.UnpicklingError:
            return
        assert isinstance(content, (Placeholder, collections.OrderedDict)) or "Global" in type(content).__name__
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "arguments", [(0, (9, 9), (9, 1)), (-1, (1,), (1,)), (0, (1,), (1, 1)), (0, (1.0,), (1,)), (5, (1,), (1,))]
)
def test_a_tensor_never_reaches_beyond_its_storage(arguments):
    from seam.models.unpickling import _rebuild, _Storage

    with pytest.raises((pickle.UnpicklingError, TypeError)):
        _rebuild(_Storage(torch.zeros(4)), *arguments)


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"cos\nsystem\n." * 1000)
    with pytest.raises(UserError):
        read(tmp_path / "mine.pt")


# ------------------------------------------------------------------ files that would fill the memory or take years


def nested_key(count=60):
    """A pickle of a dictionary whose key is a tuple that holds another one twice, and so on: 2 ** count parts."""
    tuples = b"".join(b"h%ch%c\x86q%c" % (number, number, number + 1) for number in range(count))
    return b"\x80\x02)q\x00" + tuples + b"}h%cK\x01s." % count


def pack(path, parts):
    with zipfile.ZipFile(path, "w") as written:
        for name, content in {"a/version": b"3", "a/byteorder": b"little", **parts}.items():
            written.writestr(name, content)


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        parts = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in parts.items():
            bomb.writestr(name, content)
    assert (tmp_path / "bomb.pt").stat().st_size < 5_000
    with pytest.raises(UserError, match="bomb.pt is compressed, which torch's own files are not"):
        read_content(tmp_path / "bomb.pt")


def wide_key(width=300):
    """A pickle of a dictionary whose key is a tuple of tuples of tuples of tuples: width ** 4 parts in few bytes."""
    level = b"(" + b"h%c" * width + b"t"
    levels = b"".join(level % ((number,) * width) + b"q%c" % (number + 1) for number in range(4))
    return b"\x80\x02)q\x00" + levels + b"}h\x04K\x01s."


def repeated_list(items=30_000, calls=30_000):
    """A pickle that makes an OrderedDict of the same long list again and again."""
    pairs = b"]q\x00(" + b"NN\x86" * items + b"e0"
    return b"\x80\x02" + pairs + b"ccollections\nOrderedDict\nq\x01]" + b"h\x01h\x00\x85Ra" * calls + b"."


def set_of_keys():
    """A pickle of a set of such a key, by the function `set`."""
    return nested_key().replace(b"}h%cK\x01s." % 60, b"c__builtin__\nset\n]h%ca\x85R." % 60)


def storage_of_a_nested_tuple():
    """A pickle whose tensor names a nested tuple as its storage, of which torch computes the hash."""
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nh%cX\x03\x00\x00\x00cpuK\x04tQ." % 60
    return nested_key().replace(b"}h%cK\x01s." % 60, pid)


def unfolded_tensor(kind):
    """A pickle that calls a container with a tensor of 300,000 values over a single one, as its only argument."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00J\xe0\x93\x04\x00\x85K\x00\x85tR"
    return b"\x80\x02" + kind + b"(" + tensor + b"tR."


def repeated_bytes(items=100_000, calls=200):
    """A pickle that makes a tuple of the same long bytes again and again."""
    data = b"B" + struct.pack("<I", items) + bytes(items) + b"q\x010ctorch\nSize\nq\x020"
    return b"\x80\x03" + data + b"]" + b"h\x02h\x01\x85Ra" * calls + b"."


def equal_hashes(count=40_000):
    """A pickle of a dictionary whose keys are pairs of numbers that all have the same hash."""
    first, second, seed, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64 - 1
    keys: list[tuple[int, int]] = []
    for one in range(1, 10 * count):
        lane = (seed + one * second) & mask
        lane = ((lane << 31 | lane >> 33) * first) & mask
        other = (12345 - lane) * pow(second, -1, 2**64) & mask
        other -= 2**64 if other >> 63 else 0
        if abs(other) <= 1 << 60 and other != -1:
            keys.append((one, other))
    assert len({hash(key) for key in keys}) == 1 and len(keys) > count
    items = b"".join(pickle.dumps(key, 2)[2:-1] + b"N" for key in keys)  # to build the dictionary takes a minute
    return b"\x80\x02}(" + items + b"u."


YEARS = {
    "bytes": (repeated_bytes, "is not a whole weights file"),
    "equal hashes": (equal_hashes, "has too many tuples of numbers as keys: save the state_dict"),
    "a key": (nested_key, "repeats parts of itself too often: save the state_dict"),
    "a wide key": (wide_key, "repeats parts of itself too often: save the state_dict"),
    "a list": (repeated_list, "repeats parts of itself too often: save the state_dict"),
    "a set": (set_of_keys, "repeats parts of itself too often: save the state_dict"),
    "a storage": (storage_of_a_nested_tuple, "is not a whole weights file"),
    "a bytearray": (lambda: b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "is not a whole weights file"),
}


def write_archive(path, content):
    pack(path, {"a/data.pkl": content})


def write_legacy(path, content):
    """Write a file as torch.save did before 1.6, with this pickle in it."""
    torch.save({}, path, _use_new_zipfile_serialization=False)
    whole, empty = path.read_bytes(), pickle.dumps({}, 2)
    assert whole.count(empty) == 1
    path.write_bytes(whole.replace(empty, content))


@pytest.mark.parametrize(("content", "words"), YEARS.values(), ids=YEARS)
@pytest.mark.parametrize("write", [write_archive, write_legacy])
def test_what_would_take_years_or_the_memory_is_refused(tmp_path, write, content, words):
    write(tmp_path / "keys.pt", content())
    began = time.monotonic()
    with pytest.raises(UserError, match=f"keys.pt {words}"):
        read_content(tmp_path / "keys.pt")
    assert time.monotonic() - began < 20  # seconds; on a busy machine, too


@pytest.mark.parametrize("kind", [b"ctorch\nSize\n", b"c__builtin__\nset\n", b"ccollections\nOrderedDict\n"])
def test_a_container_unfolds_no_tensor(tmp_path, kind):
    pack(tmp_path / "size.pt", {"a/data.pkl": unfolded_tensor(kind), "a/data/0": bytes(4)})
    with pytest.raises(pickle.UnpicklingError, match="a container of something other than a list"):
        read_checkpoint(tmp_path / "size.pt")


def test_an_archive_that_two_readers_see_differently(tmp_path):
    """torch ignores the checksum of a part and the case of its name: it would have read what another reader refuses."""
    pack(tmp_path / "keys.pt", {"a/data.pkl": nested_key()})
    content = bytearray((tmp_path / "keys.pt").read_bytes())
    place = content.find(b"PK\x01\x02", content.find(b"data.pkl", content.find(b"PK\x01\x02")) - 60)
    content[place + 16] ^= 1  # the checksum in the directory
    (tmp_path / "keys.pt").write_bytes(content)
    with pytest.raises(UserError, match="keys.pt is not a whole weights file"):
        read_content(tmp_path / "keys.pt")
    pack(tmp_path / "case.pt", {"a/DATA.PKL": nested_key()})
    with pytest.raises(UserError, match="case.pt is not a whole weights file"):
        read_content(tmp_path / "case.pt")


def test_a_changed_bit_in_the_weights_is_noticed(tmp_path, state):
    torch.save(state, tmp_path / "mine.pt")
    content = bytearray((tmp_path / "mine.pt").read_bytes())
    content[content.find(state["8.weight"].numpy().tobytes()) + 5] ^= 4
    (tmp_path / "mine.pt").write_bytes(content)
    with pytest.raises(UserError, match="mine.pt is not a whole weights file"):
        read(tmp_path / "mine.pt")


def test_keys_that_are_tuples_are_read(tmp_path):
    torch.save({"state": {("a", (1, 2)): torch.ones(3)}, "weight": torch.ones(2)}, tmp_path / "tuples.pt")
    assert read_content(tmp_path / "tuples.pt")["weight"].tolist() == [1, 1]


def test_many_pairs_of_texts_are_read(tmp_path):
    """Tokenizers have them. Python's hash of a text is secret, so that nobody can choose texts with the same one."""
    ranks = {("a", str(number)): number for number in range(50_000)}
    torch.save({"ranks": ranks, "weight": torch.ones(2)}, tmp_path / "tuples.pt")
    assert read_content(tmp_path / "tuples.pt")["ranks"] == ranks


def module_of(parameters, modules):
    module = Placeholder("torch.nn.Module")
    module.state = {"_parameters": parameters, "_modules": modules}
    return module


def nested_names(length=900):
    return module_of({}, {"a" * length: module_of({"b" * length: torch.ones(1)}, {})})


def shared_parameters(count=5_000):
    parameters = {str(number): torch.ones(1) for number in range(count)}
    return module_of({}, {str(number): module_of(parameters, {}) for number in range(count)})


def shared_dictionary(count=5_000):
    shared = {str(number): torch.ones(1) for number in range(count)}
    return {str(number): shared for number in range(count)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nested_names, "has a name of 1,801 characters, aaa.*: save the state_dict"),
        (lambda: {"a" * 10_000: torch.ones(1)}, "has a name of 10,000 characters"),
        (shared_parameters, "repeats parts of itself too often: save the state_dict"),
        (shared_dictionary, "repeats parts of itself too often: save the state_dict"),
    ],
)
def test_names_that_would_fill_the_memory_are_refused(content, words):
    began = time.monotonic()
    with pytest.raises(UserError, match=f"^mine.pt {words}"):
        find_candidates(content(), "mine.pt")
    assert time.monotonic() - began < 20  # seconds; on a busy machine, too


def test_parts_that_overlap_are_refused(tmp_path):
    pack(tmp_path / "overlap.pt", {"a/data.pkl": pickle.dumps({}, 2), "a/data/0": bytes(10_000)})
    content = bytearray((tmp_path / "overlap.pt").read_bytes())
    directory = len(content) - 22  # the record of the directory's end
    size, start = (int.from_bytes(content[directory + place : directory + place + 4], "little") for place in (12, 16))
    again = bytes(content[start : start + size])
    content[directory:directory] = again  # each part is listed twice
    end = len(content) - 22
    count = 2 * int.from_bytes(content[end + 8 : end + 10], "little")
    content[end + 8 : end + 12] = 2 * count.to_bytes(2, "little")
    content[end + 12 : end + 16] = (2 * size).to_bytes(4, "little")
    (tmp_path / "overlap.pt").write_bytes(content)
    with pytest.raises(UserError, match="overlap.pt has parts that overlap, which torch's own files have not"):
        read_content(tmp_path / "overlap.pt")


# ---------------------------------------------------------------------- the same content as torch.load


def assert_same(ours, theirs):
    """Compare contents, types of values and tensors bit for bit."""
    if isinstance(theirs, torch.Tensor):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert ours.contiguous().reshape(-1).view(torch.uint8).tolist() == (
            theirs.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
        )
    elif isinstance(theirs, dict):
        assert type(ours) is type(theirs) and list(ours) == list(theirs)
        assert getattr(ours, "_metadata", None) == getattr(theirs, "_metadata", None)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(ours) is type(theirs) and repr(ours) == repr(theirs)


def everything():
    """What a checkpoint of a training holds, and tensors of all kinds."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten())
    optimizers = [torch.optim.Adam(module.parameters()), torch.optim.SGD(module.parameters(), 0.1, 0.9)]
    for optimizer in optimizers:
        module(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
    base = torch.arange(24.0).reshape(4, 6)
    types = ["float16", "bfloat16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    return {
        "module": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "random": torch.get_rng_state(),
        "views": (base, base.T, base[1:3, ::2], base.expand(2, 4, 6), base[0, 0], torch.empty(0, 3), torch.zeros(())),
        "types": {name: base.to(getattr(torch, name)) for name in [*types, "complex64", "float8_e4m3fn", "uint16"]},
        "values": [None, True, -(2**70), 3, 0.1, float("inf"), float("-0.0"), "\u00e4", b"\x00\xff"],
        "containers": [{1: {2: ()}}, {"x", 1}, [[], ()]],
        "keys": {("a", (1, 2)): 1, 0.5: 2, None: 3, b"c": 4, True: 5},
        "size": base.shape,
        "parameter": torch.nn.Parameter(base.clone()),
        "shared": [base, base],
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_the_content_is_that_of_torch_load(tmp_path, legacy):
    content = everything()
    if legacy:  # which torch itself cannot read in such files
        for name in ("float8_e4m3fn", "uint16"):
            del content["types"][name]
    torch.save(content, tmp_path / "all.pt", _use_new_zipfile_serialization=not legacy)
    theirs = torch.load(tmp_path / "all.pt", weights_only=True)
    ours, has_placeholders = read_checkpoint(tmp_path / "all.pt")
    assert not has_placeholders
    theirs["size"] = tuple(theirs["size"])
    assert_same(ours, theirs)
    first, second = ours["shared"]
    first[0, 0] = 7  # they share their memory, as those of torch do
    assert second[0, 0] == 7 and ours["views"][0][0, 0] == 7


@pytest.mark.parametrize("cut", [0.001, 0.2, 0.5, 0.9, 0.999])
def test_a_legacy_file_that_is_cut_is_damaged(tmp_path, cut):
    path = tmp_path / "all.pt"
    torch.save(everything(), path, _use_new_zipfile_serialization=False)
    os.truncate(path, int(path.stat().st_size * cut))
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(path)
