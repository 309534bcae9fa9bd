"""Seeds that are derived from one seed and the names of a job."""

import hashlib


def derive_seed(seed, *names):
    """A seed of its own for each job: the first 63 bits of the SHA-256 of the seed and the job's names."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
