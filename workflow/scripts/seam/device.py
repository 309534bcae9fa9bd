"""Where the work runs, and the seeds it runs with."""

import hashlib

from seam.files import UserError


def select(name="auto"):
    """The torch device called `auto`, `cpu`, `cuda` or `mps`. Raises UserError where it is not there."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[name]:
        raise UserError(f"device: {name} is asked for in the config, but torch finds none here: choose auto or cpu.")
    return torch.device(name)


def derive_seed(seed, *names):
    """A seed of its own for each job: the first 63 bits of the SHA-256 of the seed and the job's names."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
