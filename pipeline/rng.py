"""Randomness keyed by what it is for, never drawn from a shared stream.

Every random number of a run is a function of (seed, purpose, integers): which layer, which epoch, which position in
the epoch's order. So it does not depend on how many stages there are, who draws it, or what was drawn before.
The generator is NumPy's Philox (Salmon et al. 2011), counter-based: position p's numbers can be had without
drawing those before it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_COUNT = 4  # Philox 4x64 gives four 64-bit words for each counter value


def key(seed: int, purpose: str, *index: int) -> int:
    """A 128-bit key for (seed, purpose, index...)."""
    text = repr((int(seed), purpose, tuple(int(i) for i in index))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def torch_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for ``torch.manual_seed``."""
    return key(seed, purpose, *index) >> 65


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A generator of its own for (seed, purpose, index...)."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *index)))


def uniform(seed: int, purpose: str, *index: int, first: int, count: int, draws: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for positions first … first+count-1, ``draws`` of them each: (count, draws) float64.

    A position's numbers are the same whichever block it is drawn in.
    """
    counts_per_position = -(-draws // _WORDS_PER_COUNT)
    bits = np.random.Philox(key=key(seed, purpose, *index))
    bits.advance(first * counts_per_position)
    block = np.random.Generator(bits).random((count, counts_per_position * _WORDS_PER_COUNT))
    return block[:, :draws]
