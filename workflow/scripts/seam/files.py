"""Atomic writes, and the file formats of the workflow: JSON, CSV and safetensors."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from seam.errors import UserError, cannot_read, cannot_write

if TYPE_CHECKING:
    import pandas as pd
    import torch


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


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write `data` as JSON, atomically. Floats survive the round trip exactly; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file. Raises UserError if it is missing, unreadable or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}): delete it and run the workflow again.") from error


def write_csv(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Write a pandas frame as CSV without its index, atomically. Floats have their shortest exact form."""
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False)


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
    """Write tensors as safetensors, atomically. The header keeps `metadata` as JSON."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # A single entry, because safetensors writes several in any order: equal content must give equal files.
    header = {"seam": json.dumps(metadata or {}, sort_keys=True)}
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
    """Return (tensors, metadata) of a file that `save_tensors` wrote. Raises UserError if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        # Opened by Python first, because safetensors reports a file without read permission as missing.
        with open(path, "rb"), safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("seam", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dictionary)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): delete it and run again.") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
