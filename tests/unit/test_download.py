import hashlib
import json
import logging
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from server import serve

from seam.download import _redirected, fetch
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


# ------------------------------------------------------------------ servers that mean harm, or are broken


@pytest.mark.parametrize(("size", "pause"), [(1000, 5), (10, 0.02)], ids=["stalled", "dripping"])
def test_a_transfer_that_hardly_moves_ends_in_a_sentence(site, tmp_path, monkeypatch, size, pause):
    for name, value in {"STALL": 0.2, "WINDOW": 0.3, "SLOWEST": 100_000}.items():
        monkeypatch.setattr(f"seam.download.{name}", value)
    site.drip = (size, pause)
    with pytest.raises(
        UserError, match="no byte arrived for 0.2 seconds, or fewer than 100000 per second over 0.3 s.*: run again"
    ):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM, attempts=2)
    assert names(tmp_path) == {"file.bin.partial"}  # a later run resumes it
    assert site.requests[1][1].startswith("bytes=")


@pytest.mark.parametrize(
    "begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_headers_that_never_end_end_in_a_sentence(tmp_path, monkeypatch, begin):
    """A byte every few milliseconds: a socket's timeout never ends that. The last one is in the size of a chunk."""
    for name, value in {"STALL": 0.5, "WINDOW": 0.3}.items():
        monkeypatch.setattr(f"seam.download.{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(begin)
                while not ended.wait(0.02):
                    connection.sendall(b"0")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/file.bin"
            with pytest.raises(UserError, match="no byte arrived for 0.5 seconds, or fewer than 1000 per second"):
                fetch(url, tmp_path / "file.bin", CHECKSUM, attempts=1)
        finally:
            ended.set()
            thread.join()
    assert not (tmp_path / "file.bin").exists()


def test_a_file_that_announces_too_much_is_not_downloaded(site, tmp_path):
    with pytest.raises(UserError, match="announces 512,000 bytes, but the file has at most 1,000.: run again"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM, most=1000)
    assert names(tmp_path) == set() and len(site.requests) == 1


@pytest.mark.parametrize("announced", [None, "900"])
def test_a_file_that_never_ends_is_cut(site, tmp_path, announced):
    site.headers = {"Content-Length": announced}
    with pytest.raises(UserError, match="more than 1,000 bytes|is not the published file"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM, most=1000)
    assert names(tmp_path) == set() and len(site.requests) == 1


def test_a_file_of_the_most_bytes_is_taken(site, tmp_path):
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM, most=len(CONTENT))


@pytest.mark.parametrize("value", ["abc", "-5", "1e9", "0x10", "9" * 5000, "\xb2", ""])
def test_a_malformed_length_is_one_sentence(site, tmp_path, value):
    site.headers = {"Content-Length": value}
    with pytest.raises(UserError, match=r"^Cannot download \S+ \(the server sends a malformed header, Content-Length"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("value", ["abc", "bytes 5-9/10", "bytes x-y/z", "bytes 100000-", "items 100000-511999/512000"])
def test_a_malformed_range_starts_the_download_again(site, tmp_path, value):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT[:100_000])
    site.headers = {"Content-Range": value}
    assert fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM).read_bytes() == CONTENT
    assert [asked for _, asked in site.requests] == ["bytes=100000-", None]


def test_a_redirect_is_followed(site, tmp_path):
    site.redirects = {"old.bin": "/older.bin", "older.bin": site.url + "file.bin"}
    assert fetch(site.url + "old.bin", tmp_path / "file.bin", CHECKSUM).read_bytes() == CONTENT


def test_redirects_in_a_circle_are_one_sentence(site, tmp_path):
    site.redirects = {"a": "/b", "b": "/a"}
    with pytest.raises(UserError, match="redirects more than 5 times"):
        fetch(site.url + "a", tmp_path / "file.bin", CHECKSUM)
    assert len(site.requests) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[x", "mailto:x"])
def test_a_redirect_elsewhere_is_refused(site, tmp_path, location):
    site.redirects = {"a": location}
    with pytest.raises(UserError, match=r"the server redirects (to|from) .*, which is refused"):
        fetch(site.url + "a", tmp_path / "file.bin", CHECKSUM)
    assert names(tmp_path) == set()


def test_https_never_becomes_http():
    assert _redirected("https://a.org/x", "https://b.org/y") == "https://b.org/y"
    assert _redirected("https://a.org/x", "/y") == "https://a.org/y"
    assert _redirected("http://a.org/x", "https://b.org/y") == "https://b.org/y"
    with pytest.raises(Exception, match="redirects to 'http://a.org/x', which is refused"):
        _redirected("https://a.org/x", "http://a.org/x")


def test_a_pipe_at_its_place_is_one_sentence(site, tmp_path):
    os.mkfifo(tmp_path / "file.bin")
    with pytest.raises(UserError, match="file.bin is a pipe"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)


# ------------------------------------------------------------------ pins


@pytest.fixture
def twins():
    """Two contents whose SHA-256 begin with the same digit, and that digit."""
    seen = {}
    for number in range(100):
        content = b"%d" % number
        digit = hashlib.sha256(content).hexdigest()[0]
        if digit in seen:
            return seen[digit], content, digit
        seen[digit] = content
    raise AssertionError


@pytest.mark.parametrize("at_hand", [False, True])
def test_a_short_checksum_is_pinned_on_first_use(site, tmp_path, twins, caplog, at_hand):
    first, other, digit = twins
    path, digest = tmp_path / "w.pt", hashlib.sha256(first).hexdigest()
    site.files["w.pt"] = first
    if at_hand:
        path.write_bytes(first)
    with caplog.at_level(logging.INFO, "seam"):
        fetch(site.url + "w.pt", path, digit)
    assert f"1 digits of its SHA-256 are published; {tmp_path}/pins.json now pins it to {digest}" in caplog.text
    assert json.loads((tmp_path / "pins.json").read_text()) == {"w.pt": digest}
    fetch(site.url + "w.pt", path, digit)
    path.unlink()
    fetch(site.url + "w.pt", path, digit)

    site.files["w.pt"] = other  # its first digit is right
    path.write_bytes(other)
    with pytest.raises(UserError, match=f"is not the published file .SHA-256 {digest}.: delete it"):
        fetch(site.url + "w.pt", path, digit)
    path.unlink()
    with pytest.raises(UserError, match=f"is not the published file .SHA-256 .*, not {digest}"):
        fetch(site.url + "w.pt", path, digit)
    assert not path.exists()


def test_pins_of_other_files_stay(site, tmp_path):
    (tmp_path / "pins.json").write_text(json.dumps({"other.pt": "a" * 64}))
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM[:8])
    assert json.loads((tmp_path / "pins.json").read_text()) == {"other.pt": "a" * 64, "file.bin": CHECKSUM}


def test_a_complete_checksum_is_not_pinned(site, tmp_path):
    fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM)
    assert names(tmp_path) == {"file.bin"}


@pytest.mark.parametrize(
    "pins", ["", "[]", "3", '{"file.bin": 3}', '{"file.bin": "abc"}', json.dumps({"file.bin": "0" * 64})]
)
def test_damaged_pins_are_one_sentence(site, tmp_path, pins):
    (tmp_path / "pins.json").write_text(pins)
    with pytest.raises(UserError, match="pins.json"):
        fetch(site.url + "file.bin", tmp_path / "file.bin", CHECKSUM[:8])
    assert site.requests == []
