"""Atomic writes, and the file formats of the workflow: JSON, CSV and safetensors."""

import contextlib
import glob
import hashlib
import json
import os
from pathlib import Path

from seam.errors import UserError, cannot_read, cannot_write


@contextlib.contextmanager
def atomic_write(path):
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
            raise cannot_write(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path, text):
    with atomic_write(path) as temporary:
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
        raise cannot_read(path, error) from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}): delete it and run the workflow again.") from error


def write_csv(path, frame):
    """A pandas frame as CSV without its index; floats in their shortest exact form."""
    with atomic_write(path) as temporary:
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
    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as any new file; safetensors' own is for its owner alone
        try:
            save_file(separate, temporary, header)
        except SafetensorError as error:  # a full disk, too
            raise cannot_write(path, error) from error
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
        raise cannot_read(path, error) from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): delete it and run again.") from error


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
