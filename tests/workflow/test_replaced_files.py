"""Files that are replaced by others with older dates, as `cp -p`, `mv`, `rsync -a` and `tar x` do, are noticed."""

import os
import shutil

import pytest
import torch
from colours import ARCHITECTURE, paint
from workflows import change, jobs, small_config, snakemake

from seam.config.content import Digests, pinned, version
from seam.imports import ROOT
from seam.models.architectures import build_model

SOURCE = "results/models/mine/source.safetensors"


def replaced(path, content):
    """Put a file with other content in the place of `path`, with a date of last year."""
    new = path.with_name("new")
    new.write_bytes(content)
    os.utime(new, (1.6e9, 1.6e9))
    os.replace(new, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, config) of a run that took weights and an architecture from files."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(paint(folder / "images", train=2, test=1)) | {"direct_reuse": [], "indirect_reuse": []}
    file, _, name = ARCHITECTURE.rpartition(":")
    shutil.copy(file, folder / "net.py")
    torch.save(build_model(ARCHITECTURE, 4).state_dict(), folder / "mine.pt")
    mine = {"architecture": f"{folder}/net.py:{name}", "dataset": "colours", "weights": f"{folder}/mine.pt"}
    config["models"]["mine"] = mine | {"normalization": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    snakemake(folder, "--", SOURCE, config=config)
    return folder, config


@pytest.mark.parametrize("name", ["mine.pt", "net.py"])
def test_a_replaced_file_with_an_older_date_is_noticed(run, name):
    folder, config = run
    path = folder / name
    shutil.copy2(path, folder / "kept")
    assert "Nothing to be done" in snakemake(folder, "--dry-run", "--", SOURCE, config=config)[1]
    replaced(path, path.read_bytes() + b"\n# another\n")
    assert jobs(snakemake(folder, "--dry-run", "--", SOURCE, config=config)[1])["fetch_weights"] == 1
    os.replace(folder / "kept", path)
    assert "Nothing to be done" in snakemake(folder, "--dry-run", "--", SOURCE, config=config)[1]


def test_a_replaced_list_of_images_is_noticed(run):
    folder, config = run
    images = sorted((folder / "images").rglob("*.png"))
    lines = [f"{path},{path.parent.name},{path.parents[1].name}\n" for path in images]
    (folder / "list.csv").write_text("".join(["path,label,split\n", *lines]))
    config = change(config, ["datasets", "listed"], {"kind": "imagefolder", "root": f"{folder}/list.csv", "size": 16})
    made = "results/datasets/listed/dataset.json"
    snakemake(folder, "--", made, config=config)
    assert "Nothing to be done" in snakemake(folder, "--dry-run", "--", made, config=config)[1]
    replaced(folder / "list.csv", "".join(["path,label,split\n", *reversed(lines)]).encode())
    assert jobs(snakemake(folder, "--dry-run", "--", made, config=config)[1]) == {"prepare_dataset": 1}


def test_digests_are_remembered_and_content_decides(tmp_path):
    file, memory = tmp_path / "file", tmp_path / "memory.json"
    file.write_text("one")
    first = Digests(memory).of([file])
    assert first == Digests(memory).of([file]) and len(Digests(memory).known) == 1
    replaced(file, b"two")
    assert Digests(memory).of([file]) != first
    assert Digests(memory).of([tmp_path, tmp_path / "none"]) == {str(tmp_path): None, str(tmp_path / "none"): None}
    for damage in (b"{", b"[]", b"\xff"):
        memory.write_bytes(damage)
        assert Digests(memory).of([file])[str(file)]


def test_versions(tmp_path):
    assert version("torch") == torch.__version__.partition("+")[0] and version("no-such-package") is None
    assert pinned(ROOT.parents[1] / "envs/deepsparse.txt", "deepsparse") == "1.8.0"
    assert pinned(ROOT.parents[1] / "envs/deepsparse.txt", "torch") is None
