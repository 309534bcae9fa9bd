"""What the engine raises."""


class EngineError(Exception):
    """One sentence that says what is wrong with a model, its input or this machine, and what to do."""


class UnsupportedError(EngineError):
    """The model is valid, but beyond this engine: another one may run it."""
