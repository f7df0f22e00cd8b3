"""The theory made visible: stationarity in the dual norm against dimension, for p from SGD to Muon.

    python examples/stationarity.py [DIRECTORY]

The method of Schattor (arXiv 2606.15702), ball oracle with averaged gradients, on the noisy
quadratic ``f(X) = <X - X*, A (X - X*)> / 2`` of d x d matrices, with the parameter-free schedule
``gamma_k = (k+1)^(-1/2)``, ``eta_k = (k+1)^(-3/4)``. The bound (derived)

    sum eta_k E|grad f(X_k)|_q <= D + 2 sum eta_k E|M_k - grad f(X_k)|_q + L/2 sum eta_k^2,
    E|M_k - grad f(X_k)|_q     <= sigma v_k + L u_k

has no dimension in it, only three constants in the norm of the same p: D = f(X_0) - min f, L with
|grad f(X) - grad f(Y)|_q <= L |X - Y|_p, and sigma = |Sigma^(1/2)|_q, where E N N' = Sigma. Two
problems, with the same constants at p = 2, show both sides of this:

* decaying: spectra of A and of the noise fall as i^(-3/2), so all constants stay bounded for every
  p, and so does the stationarity, Muon's included;
* flat: spectra are constant, so L and sigma at p > 2 grow with d, and stationarity grows with them.

Dimension-free therefore means: no dimension beyond that in the constants, and which p has constants
free of dimension depends on the problem.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from schattor.optim import ParameterFree, Schattor
from schattor.theory.exponents import dual
from schattor.theory.oracles import parameter_free

EXPONENTS = {"p=2 (SGD)": 2.0, "p=3": 3.0, "p=4": 4.0, "p=8": 8.0, "p=inf (Muon)": math.inf}
DIMENSIONS = (4, 8, 16, 32, 64, 128)
STEPS, SEEDS, MEASURE_EVERY = 300, 2, 10
DIMENSION_FREE = 0.1  # the largest exponent of growth that counts as none


@dataclass
class Point:
    """One problem, one p, one dimension."""

    problem: str
    p: str
    dimension: int
    measured: float  # mean over steps, weighted by eta_k, of |grad f(X_k)|_q
    bound: float  # what the theory allows for it
    smoothness: float  # L
    noise: float  # sigma


def norm(values: Tensor, exponent: float) -> float:
    """The l-`exponent` norm of singular values."""
    return float(torch.linalg.vector_norm(values, exponent))


def spectra(problem: str, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values of A, of the noise's Sigma^(1/2), and of X* - X_0."""
    index = torch.arange(1, dimension + 1, dtype=torch.float64)
    ones = torch.ones_like(index)
    if problem == "decaying":
        return index**-1.5, 0.5 * index**-1.5, ones
    return ones, 0.5 / math.sqrt(dimension) * ones, math.sqrt(2 / dimension) * ones


def constants(problem: str, dimension: int, p: float) -> tuple[float, float, float]:
    """(D, L, sigma): L is the l-r norm of A's spectrum, 1/r = 1 - 2/p, by Hoelder (derived)."""
    curvature, noise, distance = spectra(problem, dimension)
    gap = 0.5 * float((curvature * distance**2).sum())
    share = 1 - 2 / p
    smoothness = norm(curvature, 1 / share if share > 0 else math.inf)
    return gap, smoothness, norm(noise, dual(p))


def bound(gap: float, smoothness: float, noise: float) -> float:
    """The bound of this file's first lines, divided by the sum of all eta_k."""
    total, weights, variance, drift = gap, 0.0, 1.0, 0.0
    for step in range(STEPS):
        gamma, eta = parameter_free(step)
        if step > 0:  # gamma_0 = 1: the first average is the first gradient
            variance = (1 - gamma) ** 2 * variance + gamma**2
            drift = (1 - gamma) * (drift + parameter_free(step - 1)[1])
        error = noise * math.sqrt(variance) + smoothness * drift
        total += 2 * eta * error + smoothness * eta**2 / 2
        weights += eta
    return total / weights


def measure(problem: str, dimension: int, p: float) -> float:
    """Run the method and average the dual norm of the true gradient over steps and seeds."""
    generator = torch.Generator().manual_seed(dimension)
    curvature, noise, distance = (s.float() for s in spectra(problem, dimension))
    # The variable is Y = X - X*; A, the noise and the start share their left singular vectors.
    blocks = [nn.Parameter(torch.diag(-distance)) for _ in range(SEEDS)]
    optimizer = Schattor(
        [{"params": blocks, "rule": "matrix"}], lr=1.0, p=p, scale="unit", nesterov=False
    )
    schedule = ParameterFree(optimizer)
    total = weights = 0.0
    for step in range(STEPS):
        eta = optimizer.param_groups[0]["lr"]
        if step < MEASURE_EVERY or step % MEASURE_EVERY == 0:
            stationarity = torch.stack([curvature[:, None] * y.detach() for y in blocks])
            values = torch.linalg.svdvals(stationarity)
            weight = eta * (1 if step < MEASURE_EVERY else MEASURE_EVERY)
            total += weight * sum(norm(v.double(), dual(p)) for v in values) / SEEDS
            weights += weight
        for block in blocks:
            sample = torch.randn(dimension, dimension, generator=generator) / math.sqrt(dimension)
            block.grad = curvature[:, None] * block.detach() + noise[:, None] * sample
        optimizer.step()
        schedule.step()
    return total / weights


def growth(points: list[Point], quantity: str) -> float:
    """The exponent e of quantity ~ d^e over the two largest doublings of the dimension."""
    before, last = points[-3], points[-1]
    ratio = getattr(last, quantity) / getattr(before, quantity)
    return math.log(ratio) / math.log(last.dimension / before.dimension)


def plot(path: Path, curves: dict[tuple[str, str], list[Point]]) -> None:
    """Measured stationarity (lines) and its bound (dashes) for both problems."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "decaying": "decaying spectra: constants bounded for every p",
        "flat": "flat spectra: constants grow with d for p > 2",
    }
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, constrained_layout=True)
    shades = matplotlib.colormaps["viridis"]
    for (problem, name), points in curves.items():
        axis = axes[list(titles).index(problem)]
        color = shades(0.9 - 0.8 * list(EXPONENTS).index(name) / (len(EXPONENTS) - 1))
        dimensions = [point.dimension for point in points]
        axis.plot(dimensions, [x.measured for x in points], color=color, marker="o", label=name)
        axis.plot(dimensions, [x.bound for x in points], color=color, linestyle="--", alpha=0.6)
        axis.set(xscale="log", yscale="log", xlabel="dimension d", title=titles[problem])
        axis.set_xticks(dimensions, [str(d) for d in dimensions])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean dual norm of the gradient (dashed: bound)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def measure_all() -> dict[tuple[str, str], list[Point]]:
    """All points by problem and p; prints a line for each."""
    curves: dict[tuple[str, str], list[Point]] = {}
    first, last = f"d={DIMENSIONS[0]}", f"d={DIMENSIONS[-1]}"
    print(f"{'problem':<10}{'p':<13}{first:>7}{last:>9}  growth   of the bound  dimension-free")
    for problem in ("decaying", "flat"):
        for name, p in EXPONENTS.items():
            points = curves.setdefault((problem, name), [])
            for dimension in DIMENSIONS:
                gap, smoothness, noise = constants(problem, dimension, p)
                allowed = bound(gap, smoothness, noise)
                found = measure(problem, dimension, p)
                points.append(Point(problem, name, dimension, found, allowed, smoothness, noise))
            exponent = growth(points, "measured")
            print(
                f"{problem:<10}{name:<13}{points[0].measured:>7.3f}{points[-1].measured:>9.3f}"
                f"  d^{exponent:<+7.2f}d^{growth(points, 'bound'):<+11.2f} "
                f"{'yes' if exponent < DIMENSION_FREE else 'no'}"
            )
    return curves


def main(directory: Path) -> None:
    """Run all, print the growth with dimension, write stationarity.png and .json."""
    torch.set_num_threads(1)  # the matrices are too small for more to help
    directory.mkdir(parents=True, exist_ok=True)
    print(
        f"Dual norm of the gradient, mean over {STEPS} steps and {SEEDS} seeds; dimension-free: "
        f"it grows slower than d^{DIMENSION_FREE} between d={DIMENSIONS[-3]} and {DIMENSIONS[-1]}."
    )
    curves = measure_all()
    broken = [p for points in curves.values() for p in points if p.measured > p.bound]
    print(f"The bound of the theory holds at {'every point' if not broken else 'NOT all points'}.")
    document = {
        "torch": torch.__version__,
        "steps": STEPS,
        "seeds": SEEDS,
        "points": [asdict(point) for points in curves.values() for point in points],
    }
    (directory / "stationarity.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(directory / "stationarity.png", curves)
    print(f"wrote {directory / 'stationarity.png'} and stationarity.json")


if __name__ == "__main__":
    start = time.perf_counter()
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print(f"{time.perf_counter() - start:.0f} s")
