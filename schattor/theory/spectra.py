"""Spectra that the sharpening directions are fitted and tested on. Needs numpy."""

from __future__ import annotations

from collections.abc import Sequence

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as error:
    raise ImportError("schattor.theory.spectra needs numpy: pip install 'schattor[fit]'") from error

__all__ = ["Array", "condensed", "gaussian", "spectra"]

Array = NDArray[np.float64]


def gaussian(size: int, aspect: float) -> Array:
    """Singular values of a gaussian matrix of `size` rows, relative to the largest.

    `aspect` = columns / rows >= 1. Quantiles of the Marchenko-Pastur law.

    >>> [round(float(s), 2) for s in gaussian(4, 1.0)]
    [1.0, 0.67, 0.39, 0.13]
    """
    low, high = 1.0 - aspect**-0.5, 1.0 + aspect**-0.5
    s = np.linspace(max(low, 1e-6), high, 40001)
    mass = np.cumsum(np.sqrt(np.maximum((high**2 - s**2) * (s**2 - low**2), 0.0)) / s)
    values: Array = np.interp((np.arange(size)[::-1] + 0.5) / size, mass / mass[-1], s)
    return np.asarray(values / values[0])


def spectra(sizes: Sequence[int] = (64, 1024, 8192)) -> dict[str, Array]:
    """Named spectra of each size, descending from 1: what gradients look like, and extremes."""
    family: dict[str, Array] = {}
    for size in sizes:
        i = np.arange(1.0, size + 1.0)
        for aspect in (1, 2, 4, 8):
            family[f"gaussian {size} aspect {aspect}"] = gaussian(size, aspect)
        for decay in (0.25, 0.5, 1.0, 2.0):
            family[f"power law {decay} {size}"] = i**-decay
        for digits in (1, 2, 3, 6):
            family[f"geometric 1e-{digits} {size}"] = 10.0 ** (-digits * (i - 1) / (size - 1))
        for bulk in (0.3, 0.1, 0.03):
            spiked = bulk * gaussian(size, 1)
            spiked[: max(1, size // 256)] = 1.0
            family[f"spiked {bulk} {size}"] = spiked
        family[f"linear {size}"] = i[::-1] / size
        family[f"flat {size}"] = np.ones(size)
    return family


def condensed(s: Array, head: int = 64, tail: int = 128) -> tuple[Array, Array]:
    """Values and their multiplicities, at most head + tail of them, that stand for a spectrum."""
    if len(s) <= head + tail:
        return s, np.ones(len(s))
    parts = np.array_split(s[head:], tail)
    values = np.r_[s[:head], [np.sqrt(np.mean(part**2)) for part in parts]]
    return values, np.r_[np.ones(head), [float(len(part)) for part in parts]]
