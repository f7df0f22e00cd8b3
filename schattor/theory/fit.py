"""Makes `chains_table.json`: `python -m schattor.theory.fit` (needs numpy and scipy).

Weights are Chebyshev series in the power, in three branches. For power <= 1 they are minimax in the
relative error on [smallest(depth), UPPER]. Above, small singular values hardly matter, so weights
(and the coefficients of the Gram squarings) are minimax in the angle to the exact direction over a
family of spectra. A factor that vanishes where two branches meet pins one to the other. Derived.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from schattor.theory.chains import (
    CHAIN_MAX_POWER,
    MIN_POWER,
    SQUARINGS_MAX_POWER,
    UPPER,
    depths,
    mixture,
)
from schattor.theory.minimax import frobenius_minimax, relative_minimax, single_power_errors
from schattor.theory.spectra import Array

try:
    import numpy as np
    from numpy.polynomial.chebyshev import chebvander
    from scipy.optimize import minimize
except ImportError as error:
    raise ImportError(
        f"schattor.theory.fit needs numpy and scipy ({error.name} is missing): "
        "pip install 'schattor[fit]'"
    ) from error

__all__ = ["fit_depth", "fit_squarings", "fit_steps", "iterates", "main", "table"]

Step = Sequence[float]

STEP: Step = (3.0979664911233556, -4.877680905497762, 2.2809126835356475)
FINISH: Sequence[Step] = (
    (2.8514076660238725, -4.026816268636331, 1.8607791725868785),
    (2.2865111959698847, -2.250651028781941, 0.9238826513506788),
)
REACH = 3.13
"""Every further step reaches this factor deeper into the spectrum."""
OVERSHOOT = 1.03
"""Every step maps [0, OVERSHOOT] into itself, so that rounding cannot grow from step to step."""
BAND_EDGES = (-0.3, -0.25, -0.2, -0.15, -0.1, -0.05, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
SIZE_FREEDOM = 0.04
"""What sharp directions may lose in size to gain in angle, at the hardest power."""
SQUARINGS = (
    ((1, 3, 5, 9, 17), CHAIN_MAX_POWER, 10.0),
    ((1, 3, 5, 9, 17, 33), 10.0, SQUARINGS_MAX_POWER),
)
"""Exponents of the singular values, and the powers that they serve."""

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


def chain(step: Step, finish: Sequence[Step], depth: int) -> list[Step]:
    """The `depth` steps of the chain: `step` repeated, then the finishing ones."""
    return [step] * (depth - len(finish)) + list(finish)


def iterates(s: Array, steps: Sequence[Step]) -> Array:
    """Values [len(steps) + 1, points] of the chain's iterates at singular values s [points].

    >>> iterates(np.ones(1), [(15 / 8, -10 / 8, 3 / 8)])[:, 0].tolist()
    [1.0, 1.0]
    """
    values = [s]
    for a, b, c in steps:
        x = values[-1]
        values.append(x * (a + x * x * (b + x * x * c)))
    return np.array(values)


def _series(low: float, high: float, powers: Array, degree: int) -> Array:
    return np.asarray(chebvander((2.0 * powers - low - high) / (high - low), degree))


def _nodes(low: float, high: float, count: int) -> Array:
    """Chebyshev nodes of [low, high], without the ends."""
    angle = np.pi * (np.arange(count) + 0.5) / count
    return np.asarray((low + high - (high - low) * np.cos(angle)) / 2.0)


def _rounded(values: Array) -> list[Any]:
    rounded: list[Any] = np.vectorize(lambda v: float(f"{v:.10g}"))(values).tolist()
    return rounded


def fit_depth(depth: int, step: Step = STEP, finish: Sequence[Step] = FINISH) -> dict[str, Any]:
    """The table's entry of one depth: three branches of weights and the bands that they keep."""
    steps = chain(step, finish, depth)
    s = np.geomspace(smallest(depth), UPPER, 10_000)
    values = iterates(s, steps)
    first = np.eye(depth + 1)[0]

    powers = _nodes(0.0, 1.0, 32)
    reach = single_power_errors(s, values, powers)
    basis = (1.0 - powers)[:, None] * _series(0.0, 1.0, powers, 7 if depth < 9 else 9)
    pinned = np.tile(first, (len(powers), 1))
    weights = relative_minimax(s, values, powers, pinned, basis, reach + 0.35 * reach.max())

    powers = _nodes(MIN_POWER, 0.0, 16)
    reach = single_power_errors(s, values, powers)
    basis = powers[:, None] * _series(MIN_POWER, 0.0, powers, 5)
    at_zero = first + weights @ _series(0.0, 1.0, np.zeros(1), weights.shape[1] - 1)[0]
    pinned = np.tile(at_zero, (len(powers), 1))
    negative = relative_minimax(s, values, powers, pinned, basis, reach + 0.02 * reach.max())

    powers = _nodes(1.0, CHAIN_MAX_POWER, 9)
    basis = (1.0 - powers)[:, None] * _series(1.0, CHAIN_MAX_POWER, powers, 5)
    pinned = np.tile(first, (len(powers), 1))
    sharp = frobenius_minimax(
        lambda x: iterates(x, steps), 4, powers, pinned, basis, freedom=SIZE_FREEDOM
    )

    entry: dict[str, Any] = {
        "smallest": smallest(depth),
        "negative_weights": _rounded(negative),
        "weights": _rounded(weights),
        "sharp_weights": _rounded(sharp),
    }
    return entry | _promises(entry, steps)


def _promises(entry: dict[str, Any], steps: Sequence[Step]) -> dict[str, Any]:
    """Largest relative error and largest sum of absolute weights between the BAND_EDGES."""
    s = np.geomspace(entry["smallest"], UPPER, 100_000)
    values = iterates(s, steps)
    band, weight_sum = [], []
    for low, high in zip(BAND_EDGES[:-1], BAND_EDGES[1:], strict=True):
        powers = np.linspace(low, high, 33)
        weights = np.array([mixture(entry, power) for power in powers])
        ratios = ((w @ values) / s**p for w, p in zip(weights, powers, strict=True))
        error = max(float(np.abs(ratio - 1.0).max()) for ratio in ratios)
        band.append(float(f"{1.01 * error:.4g}"))
        weight_sum.append(float(f"{np.abs(weights).sum(1).max():.4g}"))
    return {"band": band, "weight_sum": weight_sum}


def _odd_powers(exponents: Sequence[int], s: Array) -> Array:
    return np.asarray(s ** np.array(exponents)[:, None])


def fit_squarings(exponents: Sequence[int], low: float, high: float) -> dict[str, Any]:
    """The table's entry of one segment of Gram squarings, low < power <= high.

    A Chebyshev series in log(power) for each exponent of the singular values.
    """
    edges = float(np.log(low)), float(np.log(high))
    logs = _nodes(*edges, 14)
    coefficients = frobenius_minimax(
        partial(_odd_powers, exponents),
        exponents[-1] - 1,
        np.exp(logs),
        np.zeros((len(logs), len(exponents))),
        _series(*edges, logs, 9),
        freedom=SIZE_FREEDOM,
    )
    return {
        "exponents": list(exponents),
        "range": [low, high],
        "coefficients": _rounded(coefficients),
    }


def overshoot(steps: Sequence[Step]) -> float:
    """How far any step leaves [0, OVERSHOOT] near its upper end; 0 for a safe chain."""
    x = np.linspace(1.0, OVERSHOOT, 4)
    return max(0.0, float(np.abs(np.array(steps) @ x ** [[1], [3], [5]]).max()) - OVERSHOOT)


def fit_steps(evaluations: int = 420) -> tuple[Step, Sequence[Step]]:
    """The repeated step and the two finishing ones again, from the known ones (Nelder-Mead)."""

    def cost(flat: Array) -> float:
        step, *finish = flat.reshape(3, 3).tolist()
        total = 0.3 * overshoot([step, *finish])
        for depth in (5, 7, 9):
            s = np.geomspace(smallest(depth), UPPER, 500)
            values = iterates(s, chain(step, finish, depth))
            if not np.abs(values).max() < 3.0:
                return 9.0
            total += float(single_power_errors(s, values, [0.0, 0.3, 0.6]).max())
        return total

    start = np.array([STEP, *FINISH]).ravel()
    simplex = np.vstack([start, start + 0.02 * np.diag(start)])
    options = {
        "maxfev": evaluations,
        "initial_simplex": simplex,
        "xatol": 1e-6,
        "fatol": 1e-7,
    }
    step, *finish = minimize(cost, start, method="Nelder-Mead", options=options).x.reshape(3, 3)
    return step.tolist(), [f.tolist() for f in finish]


def table(step: Step = STEP, finish: Sequence[Step] = FINISH) -> dict[str, Any]:
    """The whole table, with the steps given."""
    entries = {}
    for depth in depths():
        entries[str(depth)] = fit_depth(depth, step, finish)
        print(f"depth {depth}: band {entries[str(depth)]['band']}", flush=True)
    return {
        "made_by": "python -m schattor.theory.fit",
        "chain": {
            "step": list(step),
            "finish": [list(f) for f in finish],
            "band_edges": list(BAND_EDGES),
            "depths": entries,
        },
        "squarings": [fit_squarings(*segment) for segment in SQUARINGS],
        "published": PUBLISHED,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: fits the table and writes it where the package reads it."""
    parser = argparse.ArgumentParser(description="Make the table of chain coefficients.")
    parser.add_argument("--refit-steps", action="store_true", help="fit the steps again, too")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("chains_table.json")
    )
    options = parser.parse_args(arguments)
    made = table(*(fit_steps() if options.refit_steps else (STEP, FINISH)))
    text = json.dumps(made, indent=1)
    one_line = re.sub(r"\[\s*([-\d.][^\[\]{}]*?)\s*\]", _on_one_line, text)
    options.output.write_text(one_line + "\n", encoding="utf-8")


def _on_one_line(numbers: re.Match[str]) -> str:
    return "[" + re.sub(r"\s*\n\s*", " ", numbers.group(1)) + "]"


if __name__ == "__main__":
    main()
