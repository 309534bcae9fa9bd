"""Checkpoint files, each of which belongs to exactly one job."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import torch

import seam
from seam.errors import UserError
from seam.files import check_seal, sealed_write
from seam.imports import code_digest
from seam.log import log
from seam.models.unpickling import read_checkpoint


class Checkpoint:
    """One file with the state of a job, and the provenance of that state.

    A job never resumes from the file of another job, of other code or of another torch, but sets it aside.
    """

    def __init__(self, path: str | Path, provenance: dict[str, Any], module: str | Path | None) -> None:
        """Describe the file; nothing is read or written yet.

        provenance: {name: value} of all that the job depends on, as JSON could hold it (see seam.reuse.provenance).
        module: the path of the module that runs the job. The digest of its code and imports joins the provenance.
        None, as in a notebook: the version of this package joins it instead.
        """
        self.path = Path(path)
        code = f"seam {seam.__version__}" if module is None else code_digest(module)
        self.provenance = {**provenance, "code": code, "torch": str(torch.__version__)}

    def read(self) -> dict[str, Any] | None:
        """Return the state that was written last, or None if there is none for this job.

        Raises UserError if the path is a folder or leads through a file.
        """
        try:
            check_seal(self.path)
            content, has_placeholders = read_checkpoint(self.path)
            provenance, state = content["provenance"], content["state"]
            names = provenance.keys() | self.provenance
        except FileNotFoundError:
            return None
        except (IsADirectoryError, NotADirectoryError) as error:
            reason = error.strerror
            raise UserError(f"{self.path} cannot be a checkpoint ({reason}): give the path of a file.") from error
        except UserError:
            return self._set_aside("it cannot be read: it is damaged")
        except (pickle.UnpicklingError, OSError, LookupError, TypeError, AttributeError):
            return self._set_aside("it cannot be read")
        if has_placeholders:
            return self._set_aside("it holds objects that no job writes")
        different = sorted(name for name in names if provenance.get(name) != self.provenance.get(name))
        if different:
            return self._set_aside(f"it belongs to a job with other {', '.join(different)}")
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Write the state atomically. Raises UserError if the disk is full or the folder cannot be written."""
        with sealed_write(self.path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save({"provenance": self.provenance, "state": state}, file)
            except RuntimeError as error:  # torch's writer hides the error of the file, such as that of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def _set_aside(self, reason: str) -> None:
        numbers = itertools.count(1)
        aside = self.path.with_name(f"{self.path.name}.aside")
        while aside.exists():  # it may be a file of the user's, which a wrong path has moved
            aside = self.path.with_name(f"{self.path.name}.aside{next(numbers)}")
        os.replace(self.path, aside)
        log.warning("the checkpoint %s is not continued, because %s: it is kept as %s", self.path, reason, aside.name)
