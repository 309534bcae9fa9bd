"""Downloads and archives that are verified before they are used."""

import gzip
import os
import shutil
import tarfile
import time
import zlib
from pathlib import Path, PurePosixPath

from seam.errors import UserError, cannot_read, cannot_write
from seam.files import sha256


def fetch(url, path, checksum, attempts=4, progress=True):
    """Download `url` to `path` unless a file with this checksum is there already; gives the path.

    `checksum` is a whole SHA-256 in hexadecimal, or its first characters where the publisher gives no
    more. A broken transfer goes on where it stopped, also in a later run; jobs that want the same file
    wait for the first. Raises UserError where the server cannot be reached or what it sends is not the
    file that was published: `path` holds the published file or nothing.
    """
    path = Path(path)
    if _published(path, checksum):
        return path

    import requests
    from filelock import FileLock
    from urllib3.exceptions import HTTPError

    partial = path.with_name(path.name + ".partial")
    by_hand = f"run again, or put the file at {path} yourself"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if _published(path, checksum):  # another job was faster
                return path
            for attempt in range(attempts):
                resumed = partial.exists()
                try:
                    _transfer(url, partial, progress)
                except (requests.RequestException, HTTPError) as error:
                    status = getattr(getattr(error, "response", None), "status_code", None)
                    if attempt + 1 == attempts or (status and status < 500 and status not in (408, 429)):
                        raise UserError(f"Cannot download {url} ({_reason(error)}): {by_hand}.") from error
                    time.sleep(2**attempt)
                    continue
                found = sha256(partial)
                if found.startswith(checksum):
                    os.replace(partial, path)
                    return path
                partial.unlink()
                if not resumed or attempt + 1 == attempts:  # what was resumed may have been another file: once more
                    raise UserError(f"{url} is not the published file (SHA-256 {found}, not {checksum}): {by_hand}.")
    except OSError as error:
        raise cannot_write(path, error) from error


def _published(path, checksum):
    """Whether the file is there. Raises UserError if it is another than the published one."""
    try:
        if not path.exists():
            return False
        found = sha256(path)
    except OSError as error:
        raise cannot_read(path, error) from error
    if not found.startswith(checksum):
        raise UserError(f"{path} is not the published file (SHA-256 {checksum}): delete it, and it is fetched again.")
    return True


def _transfer(url, partial, progress):
    """Download `url` onto the end of the file `partial`. Raises an error of requests or urllib3 where it breaks off."""
    import requests
    from tqdm import tqdm

    done = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if done and answer.status_code == 416:  # nothing is left to ask for: the checksum decides
            return
        answer.raise_for_status()
        if answer.status_code != 206:  # the server sends the file from its start
            done = 0
        total = done + int(answer.headers.get("Content-Length", 0))
        shown = {"desc": partial.stem, "unit": "B", "unit_scale": True, "disable": None if progress else True}
        with tqdm(total=total, initial=done, **shown) as bar, open(partial, "ab" if done else "wb") as file:
            for chunk in answer.raw.stream(1 << 20, decode_content=False):  # the bytes as they lie on the server
                file.write(chunk)
                bar.update(len(chunk))
    if partial.stat().st_size < total:
        raise requests.ConnectionError("the transfer broke off")


def unpack(archive, folder, wanted, most=4):
    """Unpack the paths `wanted` of a tar archive, with all below them, into `folder`: each whole or not at all.

    What is there already stays as it is. Links and devices are left out. Raises UserError where the archive is
    damaged, lacks one of `wanted`, has a path that leads out of it, or would become more than `most` times its size.
    One process at a time may unpack an archive.
    """
    archive, folder = Path(archive), Path(folder)
    temporary = folder / f".{archive.name}.part"
    again = "delete it and run again"
    shutil.rmtree(temporary, ignore_errors=True)  # what an ended process left
    try:
        room = most * archive.stat().st_size
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if ".." in path.parts:
                    raise UserError(f"{archive} has a path that leads out of it ({member.name}): {again}.")
                if not member.isfile() or not any(path.is_relative_to(name) for name in wanted):
                    continue
                room -= member.size
                if room < 0:
                    raise UserError(f"{archive} would become more than {most} times its size: {again}.")
                target = temporary / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
        for name in wanted:
            if not (temporary / name).exists():
                raise UserError(f"{archive} has no {name}: {again}.")
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / name, folder / name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive} cannot be read ({error}): {again}.") from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(error):
    """In a few words, why a download failed."""
    if getattr(error, "response", None) is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    return "the server cannot be reached or the connection broke off"
