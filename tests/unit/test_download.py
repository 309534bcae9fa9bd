import hashlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from server import serve

from seam.download import fetch
from seam.errors import UserError

CONTENT = bytes(range(256)) * 2000
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("seam.download.time.sleep", lambda seconds: None)
    with serve({"file.bin": CONTENT}) as site:
        yield site


def names(folder):
    """What lies in the folder, but for locks."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_file_is_fetched_once(site, tmp_path):
    path = tmp_path / "cache" / "file.bin"
    assert fetch(site.url + "file.bin", path, CHECKSUM) == path
    assert path.read_bytes() == CONTENT
    fetch(site.url + "file.bin", path, CHECKSUM)
    assert site.requests == [("file.bin", None)]
    assert names(path.parent) == {"file.bin"}


def test_the_first_characters_of_a_checksum_are_enough(site, tmp_path):
    assert fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM[:8]).read_bytes() == CONTENT


def test_a_cut_transfer_is_resumed(site, tmp_path):
    site.cuts = [100_000, 50_000]
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [asked for _, asked in site.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_resumes_too(site, tmp_path):
    site.cuts = [100_000]
    with pytest.raises(UserError, match="broke off"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM, attempts=1)
    assert names(tmp_path) == {"file.bin.partial"}
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert site.requests[-1] == ("file.bin", "bytes=100000-")


def test_a_server_without_ranges_sends_the_whole_file_again(site, tmp_path):
    site.cuts, site.ranges = [100_000], False
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("stale", [b"of another file", CONTENT + b"too long"])
def test_the_part_of_another_file_is_dropped(site, tmp_path, stale):
    (tmp_path / "file.bin.partial").write_bytes(stale)
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_complete_partial_file_needs_no_transfer(site, tmp_path):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT)
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert names(tmp_path) == {"file.bin"}


def test_a_wrong_file_is_refused_and_leaves_nothing(site, tmp_path):
    with pytest.raises(UserError, match="is not the published file"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", "0" * 64)
    assert names(tmp_path) == set()
    assert len(site.requests) == 1


def test_a_missing_file_is_not_asked_for_again(site, tmp_path):
    with pytest.raises(UserError, match=r"Cannot download .*other.bin \(the server says 404 Not Found\)"):
        fetch(site.url + "other.bin", tmp_path / "other.bin", CHECKSUM)
    assert len(site.requests) == 1


def test_a_server_in_trouble_is_asked_again(site, tmp_path):
    site.failures = [503, 500]
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert len(site.requests) == 3


def test_a_server_whose_trouble_lasts(site, tmp_path):
    site.failures = [503] * 4
    with pytest.raises(UserError, match="503"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert len(site.requests) == 4


def unreachable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/file.bin"


def test_no_server(monkeypatch, tmp_path):
    monkeypatch.setattr("seam.download.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="cannot be reached.*put the file at .*file.bin yourself"):
        fetch(unreachable(), tmp_path / "file.bin", CHECKSUM)


def test_offline_with_the_file_at_hand(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert fetch(unreachable(), tmp_path / "file.bin", CHECKSUM).read_bytes() == CONTENT


def test_another_file_at_its_place_is_not_replaced(site, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not the published file .*: delete it"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"
    assert site.requests == []


def test_jobs_that_want_the_same_file_fetch_it_once(site, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(fetch, site.url + "file.bin", tmp_path / "file.bin", CHECKSUM) for _ in range(4)]
    assert {job.result() for job in jobs} == {tmp_path / "file.bin"}
    assert len(site.requests) == 1


def test_a_place_that_cannot_be_written(site, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder is needed")
    with pytest.raises(UserError, match="Cannot write"):
        fetch(site.url + "file.bin", tmp_path / "cache" / "file.bin", CHECKSUM)


def test_a_folder_at_its_place_is_a_sentence(site, tmp_path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(UserError, match=r"Cannot read .*file.bin \(Is a directory\)"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert site.requests == []


@pytest.mark.parametrize("sent", [b"", b"<html>please log in</html>", CONTENT[:-1], CONTENT + b"!", CONTENT[::-1]])
def test_whatever_else_the_server_sends_is_refused(site, tmp_path, sent):
    site.files["file.bin"] = sent
    with pytest.raises(UserError, match="is not the published file|Cannot download"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert names(tmp_path) == set()


def test_the_complete_checksum_is_compared(site, tmp_path):
    """One digit off, at either end."""
    for wrong in ("0" + CHECKSUM[1:], CHECKSUM[:-1] + ("0" if CHECKSUM[-1] != "0" else "1")):
        with pytest.raises(UserError, match=f"SHA-256 {CHECKSUM}, not {wrong}"):
            fetch(site.url + "file.bin", tmp_path / "file.bin", wrong)
    assert names(tmp_path) == set()
