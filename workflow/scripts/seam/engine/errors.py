"""What the engine raises."""

LONGEST_MESSAGE = 600  # characters; names in a file can be of any length


class EngineError(Exception):
    """One sentence that says what is wrong with a model, its input or this machine, and what to do."""

    def __init__(self, message: str):
        line = "".join(c if c.isprintable() else " " for c in str(message))
        super().__init__(line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + " ...")


class UnsupportedError(EngineError):
    """The model is valid, but beyond this engine: another one may run it."""
