"""Downloads and archives that are verified before they are used."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from seam.errors import UserError, cannot_read, cannot_write
from seam.files import sha256


def fetch(url: str, path: str | os.PathLike[str], checksum: str, attempts: int = 4, progress: bool = True) -> Path:
    """Download `url` to `path`, unless the file is there already. Returns the path.

    checksum: the SHA-256 in hexadecimal, or its first characters if the publisher gives no more.

    A broken transfer is resumed, also by a later run. Jobs that want the same file wait for the first one. Raises
    UserError if the server cannot be reached, or sends another file than the published one. `path` then does not exist.
    """
    path = Path(path)
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
            if _is_complete(path, checksum):  # another job was faster
                return path
            for attempt in range(attempts):
                resumed = partial.exists()
                try:
                    _transfer(url, partial, progress)
                except (requests.RequestException, HTTPError) as error:
                    status = getattr(getattr(error, "response", None), "status_code", None)
                    if attempt + 1 == attempts or (status and status < 500 and status not in (408, 429)):
                        raise UserError(f"Cannot download {url} ({_reason(error)}): {advice}.") from error
                    time.sleep(2**attempt)
                    continue
                digest = sha256(partial)
                if digest.startswith(checksum):
                    os.replace(partial, path)
                    return path
                partial.unlink()
                # A resumed transfer may have begun with the part of another file: it gets one more attempt.
                if not resumed or attempt + 1 == attempts:
                    raise UserError(f"{url} is not the published file (SHA-256 {digest}, not {checksum}): {advice}.")
    except OSError as error:
        raise cannot_write(path, error) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


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
    return True


def _transfer(url: str, partial: Path, progress: bool) -> None:
    """Append the rest of `url` to the file `partial`. Raises an error of requests or urllib3 if the transfer breaks."""
    import requests
    from tqdm import tqdm

    done = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if done and response.status_code == 416:  # nothing is missing: the checksum decides
            return
        response.raise_for_status()
        if response.status_code != 206:  # the server sends the file from its start
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        disable = None if progress else True
        with (
            tqdm(total=total, initial=done, desc=partial.stem, unit="B", unit_scale=True, disable=disable) as bar,
            open(partial, "ab" if done else "wb") as file,
        ):
            for chunk in response.raw.stream(1 << 20, decode_content=False):  # the bytes as they are on the server
                file.write(chunk)
                bar.update(len(chunk))
    if partial.stat().st_size < total:
        raise requests.ConnectionError("the transfer broke off")


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
    return "the server cannot be reached or the connection broke off"
