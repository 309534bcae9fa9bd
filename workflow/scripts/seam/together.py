"""Several searches in one process, each a job of its own all the same.

A job searches its own target and others of its source model that wait for their turn in the same run, up to a number:
on a GPU in one vectorised pass where that can be, elsewhere one after the other. What it finds lies beside their
folders, as `.{target}.ahead`, until their own jobs take it, which then load neither torch nor images. Locks settle who
searches what: jobs on any number of cores, GPUs and nodes share the targets among them, whichever starts when.

A result is what the target's own job would have found (of a vectorised pass: to rounding), and only the job that it
belongs to takes it: one with the same hyper-parameters, seed, images, source model, code and torch.
"""

import contextlib
import hashlib
import itertools
import shutil
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from seam.files import UserError, read_json, sha256, whole, write_json
from seam.progress import compute_with, log

FILES = ("masks.safetensors", "history.csv", "metrics.json")
ENOUGH = 600  # seconds after which no further target is begun: what they share is worth some seconds each
POLL = 1  # seconds between two looks at a target that another job searches


class Targets:
    """The searches of a run that wait.

    planned: the file that lists them, as arguments of `seam.reengineer.reengineer`, written when the run began.
    device: as for `reengineer`. code: the files of the library that their results depend on. threads: torch's.
    """

    def __init__(self, planned, device, code, threads=1):
        self.planned, self.device, self.threads = Path(planned), device, threads
        self.code = hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(code))).hexdigest()

    def search(self, own, most):
        """Write the results of `own`, the arguments of one search, into its folder.

        In this process are at most `most` searches: of `own`, and of others with its source model. Raises UserError
        where its own search does, or where files cannot be locked.
        """
        if self._take(own):
            log.info("another job has found this already, and has it in its log")
            return
        left, begun = most - 1, time.monotonic()
        if self._vectorises():
            left -= self._search_in_one_pass(own, most)
        self._search(own)
        for one in self._others(own):
            if not left or time.monotonic() - begun > ENOUGH:
                break
            try:
                left -= self._search(one)
            except UserError as error:
                log.warning("%s is left to its own job: %s", one["target"], error)
        said = False
        while not self._take(own):
            if not self._search(own) and not said:
                log.info("waits: another job of this run searches %s", own["target"])
                said = True
            time.sleep(POLL)

    def _others(self, own):
        """The searches with the same source model that are not done yet; last first, as their own jobs begin with the
        first."""
        if not self.planned.exists():  # a job that is run by hand
            return
        for one in reversed(read_json(self.planned)):
            other = one["folder"] != own["folder"] and one["model_folder"] == own["model_folder"]
            if other and not self._is_done(one):
                yield one

    def _vectorises(self):
        """Whether several searches in one pass are faster: on a GPU, most of which one alone leaves idle."""
        from seam.device import select

        return select(self.device).type == "cuda"

    def _search_in_one_pass(self, own, most):
        """Search `own` and others like it, at most `most` in all; the number of others that are found."""
        from seam.reengineer import reengineer_all

        compute_with(self.threads)
        alike = ("settings", "dataset_folder", "problem", "seed")
        with contextlib.ExitStack() as locks:
            chosen = {}
            for one in itertools.chain([own], self._others(own)):
                same = all(one[name] == own[name] for name in alike)
                if same and locks.enter_context(_lock(one)) and not self._is_there(one):
                    chosen[one["target"]] = one
                elif one is own:
                    return 0
                if len(chosen) == most:
                    break
            for one in chosen.values():
                shutil.rmtree(_ahead(one), ignore_errors=True)
            found, searches = set(), [one | {"folder": _ahead(one)} for one in chosen.values()]
            for target in reengineer_all(searches, self.device):
                write_json(_ahead(chosen[target]) / "about.json", self._about(chosen[target]))
                found.add(target)
        return len(found - {own["target"]})

    def _search(self, one):
        """Search it, unless another job does or has done so; whether it was searched."""
        with _lock(one) as held:
            if not held or self._is_there(one):
                return False
            from seam.reengineer import reengineer

            compute_with(self.threads)
            log.info("searches %s of %s", one["target"], one["model"])
            shutil.rmtree(_ahead(one), ignore_errors=True)
            reengineer(**one | {"folder": _ahead(one)}, device=self.device)
            write_json(_ahead(one) / "about.json", self._about(one))
            return True

    def _take(self, one):
        """Put the result of a search into its folder; whether it was there."""
        if not self._is_there(one):
            return False
        for name in FILES:
            with whole(Path(one["folder"]) / name) as temporary:
                shutil.copyfile(_ahead(one) / name, temporary)
        shutil.rmtree(_ahead(one))
        return True

    def _is_there(self, one):
        """Whether its result waits to be taken."""
        with contextlib.suppress(UserError):
            return read_json(_ahead(one) / "about.json") == self._about(one)
        return False

    def _is_done(self, one):
        """Whether its own job has ended since the run began."""
        with contextlib.suppress(FileNotFoundError):
            made = Path(one["folder"], FILES[-1]).stat().st_mtime
            return made > self.planned.stat().st_mtime
        return False

    def _about(self, one):
        """All that its result depends on."""
        return {
            "names": [one[name] for name in ("model", "dataset", "problem", "target", "members")],
            "hyper-parameters": one["settings"],
            "seed": one["seed"],
            "data": _digest(Path(one["dataset_folder"]) / "dataset.json"),
            "source model": _digest(Path(one["model_folder"]) / "source.safetensors"),
            "code": self.code,
            "torch": version("torch"),
        }


_digest = cache(sha256)


def _ahead(one):
    """Where a result waits: beside its folder, so that it finds its source model from there as well."""
    folder = Path(one["folder"])
    return folder.with_name(f".{folder.name}.ahead")


@contextlib.contextmanager
def _lock(one):
    """Whether this job alone may search it, until the block ends."""
    path = Path(f"{one['checkpoint']}.lock")
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        raise UserError(f"Cannot lock {path} ({error}): set together: 1 in the config.") from error
    try:
        yield True
    finally:
        lock.release()
