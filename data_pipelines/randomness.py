"""Randomness as a function of (seed, position, name): any example can be made again, alone, in any process.

SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, doi 10.1145/2660193.2660195): one multiply-xor-shift chain per number, so a
whole batch costs a few array operations where numpy generators would cost 10 to 20 us per example.
"""

from __future__ import annotations

import zlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64 whose output bits each depend on all input bits."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fold(key: np.ndarray | int, number: np.ndarray | int) -> np.ndarray:
    """A new key from a key and a number (both broadcast)."""
    return mix(mix(_word(key)) ^ _word(number))


def named(key: np.ndarray | int, name: str) -> np.ndarray:
    """The key of stream `name`."""
    return fold(key, zlib.crc32(name.encode()))


def uniform(key: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) per key."""
    return (mix(key) >> np.uint64(11)) * 2.0**-53


def _word(number: np.ndarray | int) -> np.ndarray:
    return np.asarray(number % 2**64 if isinstance(number, int) else number).astype(np.uint64)
