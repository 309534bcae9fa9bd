"""Downloads and archives that are verified before they are used."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tarfile
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from seam.errors import UserError, cannot_read, cannot_write
from seam.files import read_json, sha256, write_json
from seam.log import log
from seam.progress import progress as shown

if TYPE_CHECKING:
    import requests

PINS = "pins.json"


STALL = 30  # seconds without a byte that end a transfer
WINDOW = 60  # seconds in which the headers must arrive, and over which there must be SLOWEST bytes per second
SLOWEST = 1000
REDIRECTS = 5
MOST = 4_000_000_000  # bytes of a file whose size is not known


def fetch(
    url: str,
    path: str | os.PathLike[str],
    checksum: str,
    attempts: int = 4,
    progress: bool = True,
    most: int = MOST,
) -> Path:
    """Download `url` to `path`, unless the file is there already. Returns the path.

    checksum: the SHA-256 in hexadecimal, or its first characters if the publisher gives no more. The file `pins.json`
    beside `path` then keeps the complete one of the first file that fits, and another file is refused later.
    most: the most bytes that the file can have.

    A broken or stalled transfer is resumed, also by a later run. Jobs that want the same file wait for the first one.
    Raises UserError if the server cannot be reached, or sends another file than the published one. `path` then does not
    exist.
    """
    path = Path(path)
    checksum = _pinned(path, checksum)
    if _is_complete(path, checksum):
        return path

    import requests
    from filelock import FileLock
    from urllib3.exceptions import HTTPError

    partial = path.with_name(path.name + ".partial")
    advice = f"run again, or put the file at {path} yourself"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            checksum = _pinned(path, checksum)
            if _is_complete(path, checksum):  # another job was faster
                return path
            for attempt in range(attempts):
                resumed = partial.exists()
                try:
                    _transfer(url, partial, progress, most)
                except (requests.RequestException, HTTPError) as error:
                    status = getattr(getattr(error, "response", None), "status_code", None)
                    if attempt + 1 == attempts or (status and status < 500 and status not in (408, 429)):
                        raise UserError(f"Cannot download {url} ({_reason(error)}): {advice}.") from error
                    time.sleep(2**attempt)
                    continue
                except _BadAnswer as error:
                    partial.unlink(missing_ok=True)
                    if not resumed or attempt + 1 == attempts:
                        raise UserError(f"Cannot download {url} ({error}): {advice}.") from error
                    continue
                digest = sha256(partial)
                if digest.startswith(checksum):
                    _pin(path, checksum, digest)
                    os.replace(partial, path)
                    return path
                partial.unlink()
                # A resumed transfer may have begun with the part of another file: it gets one more attempt.
                if not resumed or attempt + 1 == attempts:
                    raise UserError(f"{url} is not the published file (SHA-256 {digest}, not {checksum}): {advice}.")
    except OSError as error:
        raise cannot_write(path, error) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


class _BadAnswer(Exception):
    """A server's answer that cannot be used, and would not be better the next time. Its text says why."""


def _pinned(path: Path, checksum: str) -> str:
    """Return the complete SHA-256 that was pinned for `path`; `checksum` if it is complete itself, or none was."""
    pins = path.with_name(PINS)
    if len(checksum) == 64 or not pins.exists():
        return checksum
    content = read_json(pins)
    pin = content.get(path.name) if isinstance(content, dict) else ""
    if pin is None:
        return checksum
    if not isinstance(pin, str) or not re.fullmatch("[0-9a-f]{64}", pin) or not pin.startswith(checksum):
        raise UserError(f"{pins} has no SHA-256 for {path.name} that begins with {checksum}: delete its line there.")
    return pin


def _pin(path: Path, checksum: str, digest: str) -> None:
    """Keep `digest`, the complete SHA-256 of the first file for `path`, if no more than `checksum` is published."""
    from filelock import FileLock

    if len(checksum) == 64:
        return
    pins = path.with_name(PINS)
    with FileLock(path.with_name(f".{PINS}.lock")):
        content = read_json(pins) if pins.exists() else {}
        write_json(pins, {**content, path.name: digest}, sealed=False)
    log.info("%s: %d digits of its SHA-256 are published; %s now pins it to %s", path, len(checksum), pins, digest)


def _is_complete(path: Path, checksum: str) -> bool:
    """Return whether the published file is at `path`. Raises UserError if another file is."""
    try:
        if not path.exists():
            return False
        digest = sha256(path)
    except OSError as error:
        raise cannot_read(path, error) from error
    if not digest.startswith(checksum):
        raise UserError(
            f"{path} is not the published file (SHA-256 {checksum}): delete it, so that it is downloaded again."
        )
    try:
        _pin(path, checksum, digest)
    except (OSError, UserError) as error:  # the folder cannot be written
        log.warning("%s: its SHA-256 %s could not be pinned (%s)", path, digest, error)
    return True


class _Transfer:
    """What a transfer and the thread that watches it know of each other. `lock` guards the rest.

    given_up: whether nothing may be written any more; arrived: bytes since `began`, a time of time.monotonic().
    """

    def __init__(self) -> None:
        self.lock, self.given_up = threading.Lock(), False
        self.began, self.arrived = time.monotonic(), 0
        self.error: BaseException | None = None

    def restart(self) -> None:
        """Count from now on, since the headers have arrived or a window has passed."""
        self.began, self.arrived = time.monotonic(), 0


def _transfer(url: str, partial: Path, progress: bool, most: int) -> None:
    """Append the rest of `url` to the file `partial`.

    Raises an error of requests or urllib3 if the transfer breaks or stalls, _BadAnswer if no attempt can succeed.
    """
    import requests

    transfer = _Transfer()

    def work() -> None:
        try:
            _receive(url, partial, progress, most, transfer)
        except BaseException as error:
            transfer.error = error

    # In a thread, because a socket's timeout counts from the last byte: a server that sends one byte of its headers
    # every few seconds would hold a transfer for ever.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(min(1.0, WINDOW / 4))
            with transfer.lock:
                seconds = time.monotonic() - transfer.began
                if thread.is_alive() and seconds > WINDOW:
                    if transfer.arrived < SLOWEST * seconds:
                        raise requests.Timeout(f"{transfer.arrived:,} bytes arrived in {seconds:.0f} s")
                    transfer.restart()
    finally:
        with transfer.lock:
            transfer.given_up = True
    if transfer.error is not None:
        raise transfer.error


def _receive(url: str, partial: Path, progress: bool, most: int, transfer: _Transfer) -> None:
    """Do the work of `_transfer`; end without a word when it is given up."""
    import requests
    from tqdm import tqdm

    done = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with _open_url(url, headers) as response:
        if done and response.status_code == 416:  # nothing is missing: the checksum decides
            return
        response.raise_for_status()
        if response.status_code != 206:  # the server sends the file from its start
            done = 0
        _check_range(response.headers.get("Content-Range"), done)
        total = done + _length(response.headers.get("Content-Length"))
        if total > most:
            raise _BadAnswer(f"the server announces {total:,} bytes, but the file has at most {most:,}")
        with transfer.lock:
            if transfer.given_up:
                return
            transfer.restart()
            file = open(partial, "ab" if done else "wb")  # noqa: SIM115 (closed by the block below)
        bar = tqdm(
            total=total,
            initial=done,
            desc=partial.stem,
            unit="B",
            unit_scale=True,
            disable=not progress or shown.hides_bars or None,
        )
        with file, bar:
            # Each read is of the bytes as they are on the server, and returns what has arrived.
            while chunk := response.raw.read1(1 << 16, decode_content=False):
                done += len(chunk)
                if done > most:
                    raise _BadAnswer(f"the server sends more than {most:,} bytes, the most that the file has")
                with transfer.lock:
                    if transfer.given_up:
                        return
                    file.write(chunk)
                    file.flush()  # nothing is written later, when this transfer is given up
                    transfer.arrived += len(chunk)
                bar.update(len(chunk))
    if partial.stat().st_size < total:
        raise requests.ConnectionError("the transfer broke off")


def _open_url(url: str, headers: dict[str, str]) -> requests.Response:
    """Return the answer to a request, after at most REDIRECTS redirects. Raises _BadAnswer if one is refused."""
    import requests

    for _ in range(REDIRECTS + 1):
        try:
            response = requests.get(url, headers=headers, stream=True, timeout=STALL, allow_redirects=False)
        except requests.RequestException:
            raise
        except ValueError as error:  # requests looks at the address of a redirect, too
            raise _BadAnswer(f"the server redirects from {url} to no address ({error}), which is refused") from error
        if not response.is_redirect:
            return response
        response.close()
        url = _redirected(url, response.headers["Location"])
    raise _BadAnswer(f"the server redirects more than {REDIRECTS} times")


def _redirected(url: str, location: str) -> str:
    """Return the address to which `url` is redirected. Raises _BadAnswer unless it is at least as safe."""
    try:
        target = urljoin(url, location)
        safe = urlsplit(target).scheme in {"https", urlsplit(url).scheme} and bool(urlsplit(target).hostname)
    except ValueError:
        target, safe = location, False
    if not safe:
        raise _BadAnswer(f"the server redirects to {target[:200]!a}, which is refused")
    return target


def _length(header: str | None) -> int:
    """Return the value of a header Content-Length, 0 if there is none. Raises _BadAnswer if it is malformed."""
    if header is not None and not re.fullmatch("[0-9]{1,18}", header.strip()):
        raise _BadAnswer(f"the server sends a malformed header, Content-Length: {header[:50]!a}")
    return int(header or 0)


def _check_range(header: str | None, start: int) -> None:
    """Raise _BadAnswer if a header Content-Range says that the answer does not begin with byte `start`."""
    if not start or header is None:
        return
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", header.strip())
    if not match or int(match[1]) != start:
        raise _BadAnswer(f"the server was asked for bytes {start}- and sends Content-Range: {header[:50]!a}")


def unpack(
    archive: str | os.PathLike[str], folder: str | os.PathLike[str], wanted: Iterable[str], max_ratio: int = 4
) -> None:
    """Unpack the paths `wanted` of a tar archive, with everything below them, into `folder`.

    Each path appears complete or not at all. Paths that exist already stay as they are. Links and devices are skipped.
    Only one process at a time may unpack an archive.

    Raises UserError if the archive is damaged, lacks one of `wanted`, has a path that leads out of it, or would become
    more than `max_ratio` times its size.
    """
    archive, folder, wanted = Path(archive), Path(folder), list(wanted)
    temporary = folder / f".{archive.name}.part"
    advice = "delete it and run again"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    try:
        room = max_ratio * archive.stat().st_size
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if ".." in path.parts:
                    raise UserError(f"{archive} has a path that leads out of it ({member.name}): {advice}.")
                source = tar.extractfile(member) if member.isfile() else None
                if source is None or not any(path.is_relative_to(name) for name in wanted):
                    continue
                room -= member.size
                if room < 0:
                    raise UserError(f"{archive} would become more than {max_ratio} times its size: {advice}.")
                target = temporary / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
        for name in wanted:
            if not (temporary / name).exists():
                raise UserError(f"{archive} has no {name}: {advice}.")
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / name, folder / name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive} cannot be read ({error}): {advice}.") from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Return in a few words why a download failed."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server says {response.status_code} {response.reason}"
    if "Timeout" in type(error).__name__:
        return f"no byte arrived for {STALL} seconds, or fewer than {SLOWEST} per second over {WINDOW} seconds"
    return "the server cannot be reached or the connection broke off"
