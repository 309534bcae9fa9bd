"""Files that are whole or absent, verified downloads, and the errors a user can mend."""

import contextlib
import glob
import gzip
import hashlib
import json
import os
import shutil
import tarfile
import time
import zlib
from pathlib import Path, PurePosixPath


class UserError(Exception):
    """Something that the user can mend. Its text is one sentence: what, where, what to do."""


def in_one_line(error):
    """An exception as a sentence can quote it: "ValueError: what it says"."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def whole(path):
    """A temporary path beside `path` that takes its place when the block ends without an error.

    >>> with whole("table.csv") as temporary:           # doctest: +SKIP
    ...     frame.to_csv(temporary)

    Raises UserError where the folder cannot be written or the disk is full; `path` is then as before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # by processes that were killed
            left.unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary), temporary, str(path.parent), str(path)):
            raise _unwritable(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _unwritable(path, error):
    reason = getattr(error, "strerror", None) or error
    return UserError(f"Cannot write {path} ({reason}): free some space or mend its permissions, then run again.")


def _unreadable(path, error):
    return UserError(f"Cannot read {path} ({error.strerror or error}): mend its permissions, then run again.")


def write_text(path, text):
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, data):
    """Floats survive the round trip exactly; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}): delete it and run the workflow again.") from error


def write_csv(path, frame):
    """A pandas frame as CSV without its index; floats in their shortest exact form."""
    with whole(path) as temporary:
        frame.to_csv(temporary, index=False)


def save_tensors(path, tensors, metadata=None):
    """A dictionary of tensors as safetensors; `metadata` (a dictionary) is kept as JSON in its header."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # One entry, since safetensors writes several in any order: equal content must give equal files.
    header = {"seam": json.dumps(metadata or {}, sort_keys=True)}
    storages, separate = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if place in storages else tensor  # of a parameter that layers share
        storages.add(place)
    with whole(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as any new file; safetensors' own is for its owner alone
        try:
            save_file(separate, temporary, header)
        except SafetensorError as error:  # a full disk, too
            raise _unwritable(path, error) from error
        temporary.chmod(mode)


def load_tensors(path):
    """(tensors, metadata) of a file by `save_tensors`. Raises UserError where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"), safe_open(path, framework="pt") as file:  # which calls missing what it may not read
            header = json.loads((file.metadata() or {}).get("seam", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (it is no dictionary)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): delete it and run again.") from error


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        raise _unwritable(path, error) from error


def _published(path, checksum):
    """Whether the file is there. Raises UserError if it is another than the published one."""
    try:
        if not path.exists():
            return False
        found = sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error
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
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(error):
    """In a few words, why a download failed."""
    if getattr(error, "response", None) is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    return "the server cannot be reached or the connection broke off"
