"""Errors that the user can fix, each one sentence: what happened, where, and what to do."""

from __future__ import annotations

import os


class UserError(Exception):
    """An error that the user can fix. Its text is one sentence: what happened, where, and what to do."""


def one_line(error: BaseException) -> str:
    """Return the exception as a sentence can quote it: `ValueError: its message`, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def cannot_write(path: str | os.PathLike[str], error: Exception) -> UserError:
    """Return the UserError for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"Cannot write {path} ({reason}): free some space or fix its permissions, then run again.")


def cannot_read(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Return the UserError for a file that cannot be read."""
    return UserError(f"Cannot read {path} ({error.strerror or error}): fix its permissions, then run again.")
