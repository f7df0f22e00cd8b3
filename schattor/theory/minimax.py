"""Minimax fits of series in the power, by linear programs and by Lawson's iteration.

Used by `python -m schattor.theory.fit` alone. Needs numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schattor.theory.spectra import Array, condensed, spectra

try:
    import numpy as np
    from scipy.optimize import linprog
except ImportError as error:
    raise ImportError(
        f"schattor.theory.minimax needs numpy and scipy ({error.name} is missing): "
        "pip install 'schattor[fit]'"
    ) from error

__all__ = ["frobenius_minimax", "relative_minimax", "single_power_errors"]


def _peaks(error: Array, level: float) -> Array:
    """Indices of the local maxima of `error` above `level`, and both ends."""
    inner = (error[1:-1] >= error[:-2]) & (error[1:-1] >= error[2:]) & (error[1:-1] > level)
    return np.asarray(np.r_[0, np.flatnonzero(inner) + 1, len(error) - 1])


def relative_minimax(
    s: Array,
    values: Array,
    powers: Sequence[float] | Array,
    pinned: Array,
    basis: Array,
    tolerance: Array,
) -> Array:
    """Coefficients C of the weights `w = pinned + C basis`, minimax in `|w values / s^power - 1|`.

    s [points]; values [n, points] of the functions that are mixed; powers [nodes]; pinned
    [nodes, n]; basis [nodes, terms], with the factor that vanishes at the pin; tolerance [nodes]
    divides the errors. Returns C [n, terms]. One linear program over all powers, with exchange of
    points. Raises RuntimeError if the program cannot be solved. Derived.
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
            raise RuntimeError(f"relative_minimax: no solution: {found.message}")
        solution, level = found.x[:-1].reshape(n, terms), found.x[-1]
        worst = 0.0
        for i, power in enumerate(powers):
            mixture = (pinned[i] + solution @ basis[i]) @ values
            error = np.abs(mixture / s**power - 1.0) / tolerance[i]
            worst = max(worst, float(error.max()))
            active[i] = np.union1d(active[i], _peaks(error, 0.8 * level))
        if worst < 1.003 * level:
            break
    return solution


def single_power_errors(s: Array, values: Array, powers: Sequence[float] | Array) -> Array:
    """Least relative error [nodes] of each power alone: the best that any series can reach."""
    one, none = np.ones((1, 1)), np.zeros((1, len(values)))
    errors = []
    for power in powers:
        w = relative_minimax(s, values, [power], none, one, np.ones(1))[:, 0]
        errors.append(np.abs(w @ values / s**power - 1.0).max())
    return np.array(errors)


def frobenius_minimax(
    functions: Callable[[Array], Array],
    norm: int,
    powers: Array,
    pinned: Array,
    basis: Array,
    *,
    freedom: float,
    rounds: int = 300,
) -> Array:
    """Coefficients C of the weights `w = pinned + C basis`, minimax in the angle over `spectra`.

    `functions` maps singular values, divided by their Schatten norm of index `norm`, to the
    [n, points] that are mixed; powers, pinned and basis as in `relative_minimax`. A spectrum's
    error is the Frobenius distance to its exact direction, relative to it, after a change of size
    by at most `freedom` (in full at the hardest power, else in proportion to the error there).
    Each power's errors are divided by what that power alone could reach. Returns C [n, terms].
    Derived.
    """
    square, cross = _moments(functions, norm, powers)
    one, rigid = np.ones((1, 1)), np.zeros(1)
    alone = np.zeros(len(powers))
    for i in range(len(powers)):
        part = square[:, i : i + 1], cross[:, i : i + 1], pinned[i : i + 1]
        alone[i] = _lawson(*part, one, np.ones(1), rigid, rounds)[1]
    tolerance = alone + 0.1 * alone.max()
    size_freedom = freedom * alone / alone.max()
    return _lawson(square, cross, pinned, basis, tolerance, size_freedom, rounds)[0]


def _moments(functions: Callable[[Array], Array], norm: int, powers: Array) -> tuple[Array, Array]:
    """<f, f> [spectra, powers, n, n] and <f, t>, relative to the targets' own <t, t>."""
    square, cross = [], []
    for s, count in (condensed(s) for s in spectra().values()):
        x = s / float(count @ s**norm) ** (1.0 / norm)
        values, targets = functions(x), x ** powers[:, None]
        size = (targets**2) @ count
        square.append((values * count @ values.T)[None] / size[:, None, None])
        cross.append(targets * count @ values.T / size[:, None])
    return np.array(square), np.array(cross)


def _lawson(
    square: Array,
    cross: Array,
    pinned: Array,
    basis: Array,
    tolerance: Array,
    freedom: Array,
    rounds: int,
) -> tuple[Array, float]:
    """Lawson's iteration: C with the least largest error over spectra and powers; that error."""
    n, terms = square.shape[-1], basis.shape[1]
    size = np.ones(cross.shape[:2])
    share = size / size.size
    best, solution = np.inf, np.zeros((n, terms))
    for _ in range(rounds):
        pull = share / (size * tolerance) ** 2
        mean = np.einsum("jpab,jp->pab", square, pull)
        gram = np.einsum("pab,pt,pu->atbu", mean, basis, basis, optimize=True)
        gram = gram.reshape(n * terms, n * terms)
        side = np.einsum("jpa,jp->pa", cross, pull * size)
        side -= np.einsum("pab,pb->pa", mean, pinned)
        right = (side.T @ basis).ravel()
        unit = 1.0 / np.sqrt(np.diag(gram))
        c = unit * np.linalg.lstsq(gram * unit * unit[:, None], right * unit, rcond=1e-11)[0]
        w = pinned + basis @ c.reshape(n, terms).T
        own = np.einsum("jpab,pa,pb->jp", square, w, w, optimize=True)
        along = np.einsum("jpa,pa->jp", cross, w)
        error = np.sqrt(np.maximum(own - 2 * size * along + size**2, 0.0))
        error /= size * tolerance
        if error.max() < best:
            best, solution = float(error.max()), c.reshape(n, terms)
        share *= error + 1e-12
        share /= share.sum()
        size = np.clip(along, 1.0 - freedom, 1.0 + freedom)
    return solution, best
