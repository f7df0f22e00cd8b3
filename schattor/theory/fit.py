"""Makes `chains_table.json`: `python -m schattor.theory.fit` (needs numpy and scipy).

Three fits, all over Chebyshev series in the power. Below power 1 the weights of the chain's
iterates are minimax in the relative error on [smallest(depth), UPPER] (one linear program over all
powers, with exchange). Between power 1 and CHAIN_MAX_POWER small singular values hardly matter, so
there the weights are minimax in the relative Frobenius error over a family of spectra; so are the
coefficients of the Gram squarings above. Every branch is pinned to its neighbour by a factor that
vanishes where they meet. Derived.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from schattor.theory.chains import CHAIN_MAX_POWER, MIN_POWER, SQUARINGS_MAX_POWER, UPPER, depths

try:
    import numpy as np
    from numpy.polynomial.chebyshev import chebvander
    from scipy.optimize import linprog, minimize
except ImportError as error:
    raise ImportError(
        f"schattor.theory.fit needs numpy and scipy, and {error.name} is missing: "
        "pip install 'schattor[fit]'"
    ) from error

Array = Any
Step = Sequence[float]

STEP = (3.0979664911, -4.8776809055, 2.2809126835)
FINISH = ((2.8514076660, -4.0268162686, 1.8607791726), (2.2865111960, -2.2506510288, 0.9238826514))
REACH = 3.13
"""Every further step reaches this factor deeper into the spectrum."""
OVERSHOOT = 1.03
"""Each step maps [0, OVERSHOOT] into itself, so that rounding is never amplified."""
BAND_EDGES = (-0.3, -0.25, -0.2, -0.15, -0.1, -0.05, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
SQUARINGS_SPLIT = 10.0
"""Powers up to here use the Gram matrix to the eighth, above to the sixteenth."""

PUBLISHED = {
    "jordan": {
        "source": "Jordan et al. 2024 (Muon); torch.optim.Muon",
        "safety": 1.0,
        "rows": [[3.4445, -4.7750, 2.0315]],
    },
    "polar_express": {
        "source": "Amsel et al., The Polar Express, arXiv 2505.16932, the published implementation",
        "safety": 1.01,
        "rows": [
            [8.28721201814563, -23.595886519098837, 17.300387312530933],
            [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
            [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
            [3.3184196573706015, -2.488488024314874, 0.51004894012372],
            [2.300652019954817, -1.6689039845747493, 0.4188073119525673],
            [1.891301407787398, -1.2679958271945868, 0.37680408948524835],
            [1.8750014808534479, -1.2500016453999487, 0.3750001645474248],
            [1.875, -1.25, 0.375],
        ],
    },
    "newton_schulz": {
        "source": "Bjorck and Bowie 1971, fifth order",
        "safety": 1.0,
        "rows": [[1.875, -1.25, 0.375]],
    },
}


def smallest(depth: int) -> float:
    """Least singular value for which a chain of `depth` steps is fitted."""
    return float(1e-2 * REACH ** (5 - depth))


def iterates(s: Array, steps: Sequence[Step]) -> Array:
    """Values [len(steps) + 1, len(s)] of the chain's iterates at the singular values s."""
    values = [s]
    for a, b, c in steps:
        x = values[-1]
        values.append(x * (a + x * x * (b + x * x * c)))
    return np.array(values)


def chain(step: Step, finish: Sequence[Step], depth: int) -> list[Step]:
    """The `depth` steps: `step` repeated, then the finishing ones."""
    return [step] * (depth - len(finish)) + list(finish)


def series(low: float, high: float, powers: Array, degree: int) -> Array:
    """Chebyshev polynomials [len(powers), degree + 1] of the power mapped from [low, high]."""
    return chebvander((2.0 * np.asarray(powers) - low - high) / (high - low), degree)
