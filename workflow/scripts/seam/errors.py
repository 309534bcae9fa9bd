"""Errors that the user can fix, each one sentence: what happened, where, and what to do."""

from __future__ import annotations

import os
import re

# A terminal acts on control characters and on those of the direction of writing, which could hide or forge lines.
# Surrogates stand for bytes that are not UTF-8, and cannot be printed.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """An error that the user can fix. Its text is one sentence: what happened, where, and what to do.

    What a terminal takes for commands is escaped, because the sentence can quote names from a file of somebody else.
    """

    def __init__(self, text: object = "") -> None:
        super().__init__(printable(str(text)))


def printable(text: str) -> str:
    r"""Return a text with its control characters written as \x1b and the like; line breaks and tabs stay."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1] if ord(found[0]) > 255 else f"\\x{ord(found[0]):02x}", text)


def one_line(error: BaseException) -> str:
    """Return the exception as a sentence can quote it: `ValueError: its message`, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def first_line(error: BaseException, most: int = 300) -> str:
    r"""Return the first line of an exception's text, for a sentence that continues after it, or the exception's type.

    >>> first_line(RuntimeError("The model is wrong.\nin line 3"))
    'The model is wrong'
    """
    return next(iter(str(error).splitlines()), type(error).__name__)[:most].rstrip(" .")


def cannot_write(path: str | os.PathLike[str], error: Exception) -> UserError:
    """Return the UserError for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"Cannot write {path} ({reason}): free some space or fix its permissions, then run again.")


def cannot_read(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Return the UserError for a file that cannot be read."""
    return UserError(f"Cannot read {path} ({error.strerror or error}): fix its permissions, then run again.")
