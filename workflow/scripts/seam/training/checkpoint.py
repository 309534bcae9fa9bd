"""Checkpoint files that belong to exactly one job."""

import os
import pickle
from pathlib import Path

import torch

from seam.files import atomic_write
from seam.imports import code_digest
from seam.log import log


class Checkpoint:
    """One file with the state of a job, and what the state belongs to.

    path: the file; about: {name: value} of all that the job depends on, as JSON could hold it; module: the path of the
    module that runs the job, whose code and imports the state depends on. A file of another job, of other code or
    another torch is never continued but set aside.
    """

    def __init__(self, path, about, module):
        self.path = Path(path)
        self.about = {**about, "code": code_digest(module), "torch": str(torch.__version__)}

    def read(self):
        """The state that was written last, None if there is none for this job."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            about, state = content["about"], content["state"]
        except FileNotFoundError:
            return None
        except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError):
            return self._set_aside("it cannot be read")
        other = sorted(name for name in about.keys() | self.about if about.get(name) != self.about.get(name))
        if other:
            return self._set_aside(f"it belongs to a job with other {', '.join(other)}")
        return state

    def write(self, state):
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save({"about": self.about, "state": state}, file)
            except RuntimeError as error:  # of torch's writer, where the file's own error came before: a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def remove(self):
        self.path.unlink(missing_ok=True)

    def _set_aside(self, reason):
        aside = self.path.with_name(f"{self.path.name}.aside")
        os.replace(self.path, aside)
        log.warning("the checkpoint %s is not continued, as %s: it is kept as %s", self.path, reason, aside.name)
