"""Files that are whole or absent, verified downloads, and the errors a user can mend."""

import contextlib
import hashlib
import json
import os
from pathlib import Path


class UserError(Exception):
    """Something that the user can mend. Its text is one sentence: what, where, what to do."""


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
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary, str(path.parent), str(path)):
            raise UserError(f"Cannot write {path}: {error.strerror or error}. Free some space or mend its permissions, then run again.") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


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
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}): delete it and run the workflow again.") from error


def write_csv(path, frame):
    """A pandas frame as CSV without its index; floats in their shortest exact form."""
    with whole(path) as temporary:
        frame.to_csv(temporary, index=False)


def save_tensors(path, tensors, metadata=None):
    """A dictionary of tensors as safetensors; `metadata` (a dictionary) is kept as JSON in its header."""
    from safetensors.torch import save_file

    header = {name: json.dumps(value, sort_keys=True) for name, value in (metadata or {}).items()}
    with whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, header)


def load_tensors(path):
    """(tensors, metadata) of a safetensors file. Raises UserError where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}).") from error


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ResumingDownloader:
    """A pooch downloader that goes on from the bytes of an earlier try, kept in `partial`."""

    def __init__(self, partial, progress=True):
        self.partial, self.progress = Path(partial), progress

    def __call__(self, url, output_file, pooch_or_none, check_only=False):
        import requests
        from tqdm import tqdm

        done = self.partial.stat().st_size if self.partial.exists() else 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == 416:  # nothing is left to ask for: the checksum decides
                answer.close()
            else:
                answer.raise_for_status()
                if answer.status_code != 206:  # the server sends the file from its start
                    done = 0
                total = int(answer.headers.get("Content-Length", 0)) + done
                with open(self.partial, "ab" if done else "wb") as file, tqdm(
                    total=total or None, initial=done, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=not self.progress
                ) as bar:
                    for chunk in answer.iter_content(1 << 20):
                        file.write(chunk)
                        bar.update(len(chunk))
        os.replace(self.partial, output_file)


def fetch(url, path, checksum, attempts=4, progress=True):
    """Download `url` to `path` unless a file with this checksum is there already.

    `checksum` is a whole SHA-256 in hexadecimal, or its first characters where the publisher gives no
    more. A broken transfer goes on where it stopped, also in a later run. Raises UserError where the
    server cannot be reached or what it sends is not the file that was published.
    """

    path = Path(path)
    if path.exists() and sha256(path).startswith(checksum):
        return path
    if path.exists():
        raise UserError(f"{path} is not the published file (its SHA-256 does not start with {checksum}): delete it, and it is fetched again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
