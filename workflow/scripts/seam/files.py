"""Atomic writes, and the file formats of the workflow: JSON, CSV and safetensors."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from seam.errors import UserError, cannot_read, cannot_write

if TYPE_CHECKING:
    import pandas as pd
    import torch

SEAL_BYTES = 32  # of a SHA-256
# The 14th field of an ONNX model, metadata_props: an entry of 76 bytes, the key sha256 and a value of 66, in JSON.
ONNX_SEAL = b"\x72\x4c\x0a\x06sha256\x12\x42"
SEAL_LENGTH = len(ONNX_SEAL) + 66
DIGEST = "digest"  # the key, or the column, that records the digest of a JSON or CSV file
CSV_DIGITS = 16  # of the digest of a table
MOST_JSON = 100_000_000  # bytes of a JSON file; parsing takes many times as much memory
MOST_CSV = 200_000_000


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block ends without an error.

    >>> with atomic_write("table.csv") as temporary:           # doctest: +SKIP
    ...     frame.to_csv(temporary)

    Raises UserError if the folder cannot be written or the disk is full. After any error `path` is as before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for remnant in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of killed processes
            remnant.unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary), temporary, str(path.parent), str(path)):
            raise cannot_write(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], data: Any, sealed: bool = True) -> None:
    """Write `data` as JSON, atomically. Floats survive the round trip exactly; NaN and infinity raise ValueError.

    sealed: whether an object gets the key `digest`, which `read_json` verifies. Not for a file that people edit.
    """
    text = json.dumps(data, indent=2, allow_nan=False)
    if sealed and isinstance(data, dict):
        digest = json_digest(json.loads(text))  # of what a reader gets: its keys are text, its tuples are lists
        text = json.dumps({**data, DIGEST: digest}, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str], sealed: bool = False) -> Any:
    """Return the content of a JSON file without its digest.

    sealed: whether to refuse a file that records no digest, such as one of an older version.

    Raises UserError if it is missing, unreadable or damaged: if its content does not have the digest that it records.
    """
    try:
        data = json.loads(_read(path, MOST_JSON).decode("utf-8"))
        if not isinstance(data, dict):
            return data
        recorded, digest = data.pop(DIGEST, None), json_digest(data)
        # A bit that flips in the key itself, the last one, would make an older file of this one.
        last = list(data)[-1:] if recorded is None else []
        renamed = any(is_sha256(data[key]) and data[key] == json_digest(_without(data, key)) for key in last)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file ({error}): delete it and run the workflow again.") from error
    if recorded != digest and (sealed or renamed or recorded is not None):
        raise damaged(path)
    return data


def _without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != key}


def json_digest(data: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON object without its key `digest`, which records it."""
    return hashlib.sha256(json.dumps(_without(data, DIGEST), sort_keys=True).encode()).hexdigest()


def write_csv(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Write a pandas frame as CSV without its index, atomically. Floats have their shortest exact form.

    A table with rows gets a last column `digest`, which is empty but for the last row. There it has the first digits
    of the SHA-256 of the file without them. `read_csv` verifies it.
    """
    if len(frame):
        frame = frame.assign(**{DIGEST: None})
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
        if len(frame):
            content = temporary.read_bytes()
            temporary.write_bytes(content[:-1] + _csv_digest(content))


def read_csv(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """Return the table in a CSV file without its digest. `options` are those of `pandas.read_csv`.

    A file without a digest is read, too: one of an older version, or one that people write.

    Raises UserError if it is missing, unreadable or damaged: if its content does not have the digest that it records.
    """
    import pandas as pd

    content = _read(path, MOST_CSV)
    header, _, rest = content.partition(b"\n")
    if header.endswith(b"," + DIGEST.encode()) or re.search(rb",[0-9a-f]{16}\n\Z", content[-18:]):
        end = len(content) - CSV_DIGITS - 1
        if not rest or content[end:] != _csv_digest(content[:end] + b"\n"):
            raise damaged(path)
    elif content[-1:] not in (b"", b"\n"):
        raise UserError(f"{path} is cut, its last line has no end: delete it and run the workflow again.")
    try:
        return pd.read_csv(io.BytesIO(content), **options).drop(columns=DIGEST, errors="ignore")
    except ValueError as error:  # also pandas' own errors, and text that is not UTF-8
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a table ({reason}): delete it and run the workflow again.") from error


def _csv_digest(content: bytes) -> bytes:
    """Return the digest of a CSV file whose last cell is still empty, and the line's end."""
    return hashlib.sha256(content).hexdigest()[:CSV_DIGITS].encode() + b"\n"


def _read(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of a file of results. Raises UserError if there is none, or one of more than `most` bytes."""
    try:
        with open_file(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes, too many for a result: delete it and run again.")
    return content


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading.

    Raises UserError for a pipe, a socket or a device, which could be waited for without end; OSError as open() does.
    """
    if not S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise _not_a_file(path)
    # O_NONBLOCK, because a pipe may have taken the file's place since: opening it would wait for a writer.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_a_file(path)
    return file


def _not_a_file(path: str | os.PathLike[str]) -> UserError:
    return UserError(f"{path} is a pipe, a socket or a device, not a file: replace it or remove it.")


def save_tensors(
    path: str | os.PathLike[str], tensors: dict[str, torch.Tensor], metadata: dict[str, Any] | None = None
) -> None:
    """Write tensors as safetensors, atomically. The header keeps `metadata` as JSON, with a digest of the content."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # A single entry, because safetensors writes several in any order: equal content must give equal files.
    metadata = {**(metadata or {}), "sha256": tensors_digest(tensors, metadata or {})}
    header = {"seam": json.dumps(metadata, sort_keys=True)}
    storages, separate = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses shared storage
        storages.add(storage)
    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the usual mode of a new file: safetensors gives its owner alone access
        try:
            save_file(separate, temporary, header)
        except SafetensorError as error:  # also on a full disk
            raise cannot_write(path, error) from error
        temporary.chmod(mode)


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return (tensors, metadata) of a file that `save_tensors` wrote.

    Raises UserError if it is missing, or damaged: if its content does not have the digest that it records.
    """
    from safetensors import SafetensorError, safe_open

    require_file(path)
    try:
        # Opened by Python first, because safetensors reports a file without read permission as missing.
        with open(path, "rb"), safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("seam", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a whole safetensors file ({reason}): delete it and run again.") from error
    digest = metadata.pop("sha256", None) if isinstance(metadata, dict) else None
    if digest is None:
        raise UserError(f"{path} records no digest of its content: delete it and run the workflow again to make it.")
    if digest != tensors_digest(tensors, metadata):
        raise damaged(path)
    return tensors, metadata


def tensors_digest(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> str:
    """Return the SHA-256 of metadata and of the names, types, shapes and values of tensors, in hexadecimal."""
    import torch

    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def sealed_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `atomic_write`; the file then ends with the SHA-256 of what the block wrote, 32 bytes.

    For formats whose readers ignore what follows the content: .npy and torch's archives. `check_seal` verifies it.
    """
    with atomic_write(path) as temporary:
        yield temporary
        digest = bytes.fromhex(sha256(temporary))
        with open(temporary, "ab") as file:
            file.write(digest)


def check_seal(path: str | os.PathLike[str]) -> None:
    """Raise UserError unless a file is as `sealed_write` wrote it. FileNotFoundError if it is missing."""
    digest, size = hashlib.sha256(), os.path.getsize(path) - SEAL_BYTES
    with open_file(path) as file:
        while size > 0 and (part := file.read(min(size, 1 << 20))):
            digest.update(part)
            size -= len(part)
        if size or file.read() != digest.digest():
            raise damaged(path)


def seal_onnx(path: str | os.PathLike[str]) -> None:
    """Append the SHA-256 of an ONNX file to it, as its metadata `sha256`.

    A message of protobuf that follows another one adds to its lists: the file stays an ONNX file.
    """
    digest = sha256(path)
    with open(path, "ab") as file:
        file.write(ONNX_SEAL + json.dumps(digest).encode())


def check_onnx_seal(path: str | os.PathLike[str]) -> None:
    """Raise UserError unless an ONNX file is as `seal_onnx` left it."""
    try:
        with open_file(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    body, seal = content[:-SEAL_LENGTH], content[-SEAL_LENGTH:]
    if seal != ONNX_SEAL + json.dumps(hashlib.sha256(body).hexdigest()).encode():
        raise damaged(path)


def damaged(path: str | os.PathLike[str]) -> UserError:
    """Return the UserError for a file whose content does not have the digest that was recorded."""
    return UserError(f"{path} is damaged, its content does not have its digest: delete it and run the workflow again.")


def require_file(path: str | os.PathLike[str]) -> None:
    """Raise UserError if `path` exists and is no file: opening a FIFO would wait without end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is no file: delete it and run the workflow again.")


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11, and DeepSparse runs in an earlier one
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def reserve(path: str | os.PathLike[str]) -> None:
    """Allocate the disk blocks of a sparse file that will be memory-mapped.

    Raises OSError if the disk is too small. Without this, writing to the map would end the process.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            with open(path, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:  # some network drives cannot allocate: the file is then written as it is
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


def is_sha256(value: object) -> bool:
    """Return whether `value` is a SHA-256 in hexadecimal, as `sha256` gives it."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
