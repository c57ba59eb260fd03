"""Random numbers by their address, not by the order in which they are drawn.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): a keyed
bijection of a 128-bit counter. What belongs to a token is computed from the token's address, for a
whole batch at once; a generator for each example would cost 15 microseconds of set-up.
"""

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(
    key: tuple[int, int], example: np.ndarray, position: np.ndarray, stream: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four uint64[n] of 32 random bits each for every address.

    Args:
        key: two numbers of 32 bits, such as (seed, epoch).
        example: int[n] of up to 64 bits.
        position: int[n] of up to 32 bits.
        stream: tells apart what is drawn at one address for different purposes; 32 bits.
    """
    k0, k1 = (k & 0xFFFFFFFF for k in key)
    number = example.astype(np.uint64)
    c0, c1 = number & _LOW, number >> _SHIFT
    c2 = position.astype(np.uint64) & _LOW
    c3 = np.full_like(c2, stream)
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(bits: np.ndarray) -> np.ndarray:
    """float64[n] in [0, 1) of 32 random bits each."""
    return bits / 2.0**32


def below(bits: np.ndarray, bound: int) -> np.ndarray:
    """int64[n] in [0, bound) of 32 random bits each; uneven by less than bound / 2**32."""
    return ((bits * np.uint64(bound)) >> _SHIFT).astype(np.int64)
