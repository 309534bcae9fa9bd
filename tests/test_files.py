import errno
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch

from seam.files import (
    UserError,
    load_tensors,
    read_json,
    save_tensors,
    sha256,
    whole,
    write_csv,
    write_json,
    write_text,
)


def test_a_file_is_whole(tmp_path):
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
        with pytest.raises(ZeroDivisionError), whole(path) as temporary:
            temporary.write_text("half of it")
            raise ZeroDivisionError
        assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file/table.csv .*: free some space or mend its permissions"):
        write_text(tmp_path / "file" / "table.csv", "text")


def test_the_block_s_own_missing_file_is_not_called_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), whole(tmp_path / "text.txt"):
        (tmp_path / "other").read_text()


def test_a_full_disk_is_one_sentence(tmp_path):
    message = r"Cannot write .*text.txt \(No space left on device\): free some space"
    with pytest.raises(UserError, match=message), whole(tmp_path / "text.txt") as temporary:
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
    assert (tmp_path / "table.csv").read_text() == "name,value\na,0.1\nb,0.3333333333333333\n"


def test_tensors_and_their_metadata(tmp_path):
    tensors = {"weight": torch.randn(3, 4).t(), "bits": torch.tensor([1, 0], dtype=torch.uint8)}
    save_tensors(tmp_path / "tensors.safetensors", tensors, {"classes": ["a", "ä"], "count": 2})
    found, metadata = load_tensors(tmp_path / "tensors.safetensors")
    assert metadata == {"classes": ["a", "ä"], "count": 2}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


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
