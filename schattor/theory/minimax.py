"""Minimax fits of series in the power, by linear programs and Lawson's iteration.

Needs numpy and scipy; used by `python -m schattor.theory.fit` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schattor.theory.spectra import condensed, spectra

try:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.optimize import linprog
except ImportError as error:
    raise ImportError(
        f"schattor.theory.minimax needs numpy and scipy ({error.name} is missing): pip install 'schattor[fit]'"
    ) from error

Array = NDArray[np.float64]


def peaks(error: Array, level: float) -> Array:
    """Indices of the local maxima of `error` above `level`, and both ends."""
    inner = (error[1:-1] >= error[:-2]) & (error[1:-1] >= error[2:]) & (error[1:-1] > level)
    return np.r_[0, np.flatnonzero(inner) + 1, len(error) - 1]


def relative_minimax(
    s: Array,
    values: Array,
    powers: Array,
    pinned: Array,
    basis: Array,
    tolerance: Array,
) -> Array:
    """Coefficients C of weights `pinned + C basis(power)`, minimax in |sum w F / s^power - 1|.

    values [n, points]; powers [nodes]; pinned [nodes, n]; basis [nodes, terms] (with the factor
    that vanishes at the pin); tolerance [nodes] divides the errors. Returns C [n, terms].
    """
    n, terms = values.shape[0], basis.shape[1]
    active = [np.unique(np.linspace(0, len(s) - 1, 60).astype(int)) for _ in powers]
    solution = np.zeros((n, terms))
    for _ in range(8):
        rows, sides = [], []
        for i, power in enumerate(powers):
            relative = values[:, active[i]].T / s[active[i], None] ** power
            row = (relative[:, :, None] * basis[i]).reshape(len(relative), -1)
            slack = np.full((len(relative), 1), tolerance[i])
            side = 1.0 - relative @ pinned[i]
            rows += [np.hstack([row, -slack]), np.hstack([-row, -slack])]
            sides += [side, -side]
        found = linprog(
            np.r_[np.zeros(n * terms), 1.0],
            A_ub=np.vstack(rows),
            b_ub=np.concatenate(sides),
            bounds=[(None, None)] * (n * terms) + [(0, None)],
            method="highs",
        )
        if found.x is None:
            raise RuntimeError(f"fit: the linear program failed: {found.message}")
        solution, level = found.x[:-1].reshape(n, terms), found.x[-1]
        worst = 0.0
        for i, power in enumerate(powers):
            weights = pinned[i] + solution @ basis[i]
            error = np.abs(weights @ values / s**power - 1.0) / tolerance[i]
            worst = max(worst, error.max())
            active[i] = np.union1d(active[i], peaks(error, 0.8 * level))
        if worst < 1.003 * level:
            break
    return solution


def best_errors(s: Array, values: Array, powers: Array) -> Array:
    """Least relative error at each power alone: what a series can at best reach."""
    one = np.ones((1, 1))
    errors = []
    for power in powers:
        pinned = np.zeros((1, len(values)))
        w = relative_minimax(s, values, [power], pinned, one, np.ones(1))[:, 0]
        errors.append(np.abs(w @ values / s**power - 1.0).max())
    return np.array(errors)


def frobenius_minimax(
    functions: Callable[[Array], Array],
    norm: int,
    powers: Array,
    pinned: Array,
    basis: Array,
    tolerance: Array | None = None,
    rounds: int = 300,
) -> tuple[Array, Array]:
    """Coefficients C of weights `pinned + C basis(power)`, minimax in the Frobenius error.

    `functions` maps singular values, divided by their Schatten norm of index `norm`, to
    [n, points]. The error of a spectrum is relative to its exact direction; Lawson's iteration
    over powers and spectra. Without `tolerance` every power is solved alone first, and its error
    divides. Returns C [n, terms] and the largest error at each power [nodes].
    """
    if tolerance is None:
        alone = [
            frobenius_minimax(
                functions, norm, powers[i : i + 1], pinned[i : i + 1], np.ones((1, 1)),
                np.ones(1), rounds,
            )[1][0]
            for i in range(len(powers))
        ]  # fmt: skip
        tolerance = np.array(alone) + 0.1 * max(alone)
    square, side, rest = [], [], []
    for s, count in (condensed(s) for s in spectra().values()):
        x = s / (count @ s**norm) ** (1.0 / norm)
        values = functions(x)
        for i, power in enumerate(powers):
            target = x**power
            scale = np.sqrt(count / (count @ target**2)) / tolerance[i]
            f, t = values * scale, target * scale - pinned[i] @ (values * scale)
            square.append(f @ f.T)
            side.append(f @ t)
            rest.append(t @ t)
    shape = (-1, len(powers), len(side[0]))
    square_, side_ = np.reshape(square, (*shape, shape[2])), np.reshape(side, shape)
    return lawson(square_, side_, np.reshape(rest, shape[:2]), basis, tolerance, rounds)


def lawson(
    square: Array, side: Array, rest: Array, basis: Array, tolerance: Array, rounds: int
) -> tuple[Array, Array]:
    """Lawson's iteration for the largest of many quadratics in C, over spectra and powers."""
    n, terms = square.shape[-1], basis.shape[1]
    share = np.full(rest.shape, 1.0 / rest.size)
    best, errors = np.inf, np.zeros(len(basis))
    solution = np.zeros((n, terms))
    for _ in range(rounds):
        gram = np.einsum("jpab,jp,pt,pu->atbu", square, share, basis, basis, optimize=True)
        gram = gram.reshape(n * terms, n * terms)
        right = np.einsum("jpa,jp,pt->at", side, share, basis).ravel()
        unit = 1.0 / np.sqrt(np.diag(gram))
        c = unit * np.linalg.lstsq(gram * unit * unit[:, None], right * unit, rcond=1e-11)[0]
        w = basis @ c.reshape(n, terms).T
        error = np.einsum("jpab,pa,pb->jp", square, w, w, optimize=True)
        error += rest - 2.0 * np.einsum("jpa,pa->jp", side, w)
        error = np.sqrt(np.maximum(error, 0.0))
        if error.max() < best:
            best, solution = error.max(), c.reshape(n, terms)
            errors = error.max(0) * tolerance
        share *= error + 1e-12
        share /= share.sum()
    return solution, errors
