"""Seeds that depend on where in a run one is, so that nothing of them has to be saved."""

import numpy as np


def seed_of(*parts: int) -> int:
    """A 63-bit seed that depends on every part, e.g. (seed, step)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
