"""Seeds that are derived from one seed and the names of a job."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """Return a seed for the job with these names: the first 63 bits of the SHA-256 of `seed` and the names."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
