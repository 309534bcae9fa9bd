"""Errors that the user can fix, each one sentence: what happened, where, and what to do."""


class UserError(Exception):
    """Something that the user can mend. Its text is one sentence: what, where, what to do."""


def one_line(error):
    """An exception as a sentence can quote it: "ValueError: what it says"."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def cannot_write(path, error):
    reason = getattr(error, "strerror", None) or error
    return UserError(f"Cannot write {path} ({reason}): free some space or mend its permissions, then run again.")


def cannot_read(path, error):
    return UserError(f"Cannot read {path} ({error.strerror or error}): mend its permissions, then run again.")
