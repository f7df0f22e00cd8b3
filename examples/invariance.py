"""Who notices a change of units, and who a rotation: trajectories with and without it, float64.

    python examples/invariance.py [DIRECTORY]

Two problems, each posed twice in coordinates of which one is a linear image of the other, from the
same starting point. A method that is invariant draws the same curve of the loss twice.

* units: logistic regression, features multiplied by ``exp(U(-5, 5))`` (150 times up or down), the
  experiment of Preconditioned matrix norms (arXiv 2510.10777) on made-up data. Only MuAdam-SANIA,
  at eps = 0, sees the same problem: its weights ``1/|g|`` cancel the units.
* rotation: a linear net of two layers, squared loss; inputs and outputs are turned by random
  orthogonal matrices. Muon knows no axes, and Shampoo, KL-Shampoo and SOAP bring their own, the
  eigenvectors of their factors, which turn along. AdamW lives in the axes of the weights.

Round-off is what is left of a deviation; the steps of polar factors let it grow with time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import schattor

STEPS = 100
EXAMPLES, FEATURES, CLASSES, WIDTH = 512, 24, 6, 12
UNCHANGED = 1e-6  # the largest relative deviation of the loss that counts as none
SEED = 0

# Name, member, learning rate that suits the problem as given, and settings.
Method = tuple[str, str, float, dict[str, Any]]
UNITS: list[Method] = [
    ("AdamW", "adamw", 0.03, {}),
    ("Muon", "muon", 0.03, {}),
    ("MuAdam", "muadam", 0.01, {}),
    ("MuAdam-SANIA", "muadam_sania", 2e-3, {"adamw_eps": 0.0}),
]
ROTATION: list[Method] = [
    ("AdamW", "adamw", 0.02, {}),
    ("SPlus", "splus", 0.1, {"inverse_every": 10}),
    ("Muon", "muon", 0.02, {}),
    ("Shampoo", "shampoo", 0.2, {}),
    ("KL-Shampoo", "kl_shampoo", 0.02, {}),
    ("SOAP", "soap", 0.02, {}),
]


@dataclass(frozen=True)
class Problem:
    """Weights to begin with and a loss of them, in one choice of coordinates."""

    start: list[Tensor]
    loss: Callable[[list[nn.Parameter]], Tensor]


@dataclass(frozen=True)
class Pair:
    """One method on a problem as given and as transformed: the losses before every step."""

    name: str
    given: list[float]
    transformed: list[float]

    @property
    def deviations(self) -> list[float]:
        """Relative deviation of the loss, step by step."""
        return [abs(a - b) / a for a, b in zip(self.given, self.transformed, strict=True)]


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def classification(units: bool) -> Problem:
    """Logistic regression without biases, from zero; `units` rescales every feature."""
    generator = torch.Generator().manual_seed(SEED)
    inputs = normal(EXAMPLES, FEATURES, generator=generator)
    truth = normal(FEATURES, CLASSES, generator=generator)
    noise = 2 * normal(EXAMPLES, CLASSES, generator=generator)
    labels = (inputs @ truth + noise).argmax(1)
    if units:
        spread = torch.rand(FEATURES, generator=generator, dtype=torch.float64)
        inputs = inputs * (10 * spread - 5).exp()
    start = torch.zeros(CLASSES, FEATURES, dtype=torch.float64)
    return Problem([start], lambda w: nn.functional.cross_entropy(inputs @ w[0].T, labels))


def regression(rotated: bool) -> Problem:
    """A linear net of two square layers; `rotated` turns its inputs and its targets.

    Square layers have gradients of full rank: no eigenvector of a factor is arbitrary.
    """
    generator = torch.Generator().manual_seed(SEED)
    spectrum = torch.arange(1, WIDTH + 1, dtype=torch.float64) ** -0.75
    inputs = normal(EXAMPLES, WIDTH, generator=generator) * spectrum  # some features are larger
    truth = normal(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    targets = inputs @ truth.T + 0.1 * normal(EXAMPLES, WIDTH, generator=generator)
    first, second = (normal(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(2))
    if rotated:
        turn_in, turn_out = (
            torch.linalg.qr(normal(WIDTH, WIDTH, generator=generator)).Q for _ in range(2)
        )
        inputs, targets = inputs @ turn_in.T, targets @ turn_out.T
        first, second = first @ turn_in.T, turn_out @ second
    return Problem(
        [first, second], lambda w: (inputs @ w[0].T @ w[1].T - targets).square().sum(1).mean()
    )


def descend(problem: Problem, member: str, lr: float, settings: dict[str, Any]) -> list[float]:
    """The losses before every step of one method, and after the last."""
    weights = [nn.Parameter(start.clone()) for start in problem.start]
    optimizer = schattor.create(member, weights, lr=lr, weight_decay=0.0, **settings)
    losses = []
    for _ in range(STEPS + 1):
        loss = problem.loss(weights)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def compare(pose: Callable[[bool], Problem], methods: list[Method]) -> list[Pair]:
    """Every method on the problem as given and as transformed."""
    given, changed = pose(False), pose(True)
    return [
        Pair(name, *(descend(problem, member, lr, settings) for problem in (given, changed)))
        for name, member, lr, settings in methods
    ]


def print_table(title: str, pairs: list[Pair]) -> None:
    """The final losses and the largest deviation between the two trajectories."""
    print(f"\n{title:<16}{'final loss':>12}{'transformed':>13}{'deviation':>12}  unchanged")
    for pair in pairs:
        largest = max(pair.deviations)
        print(
            f"{pair.name:<16}{pair.given[-1]:>12.4g}{pair.transformed[-1]:>13.4g}{largest:>12.1e}"
            f"  {'yes' if largest < UNCHANGED else 'no'}"
        )


def plot(path: Path, columns: dict[str, list[Pair]]) -> None:
    """Losses above (dashed: transformed), deviations below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = dict.fromkeys(pair.name for pairs in columns.values() for pair in pairs)
    colors = {name: f"C{index}" for index, name in enumerate(names)}
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharex=True, constrained_layout=True)
    for column, (title, pairs) in enumerate(columns.items()):
        losses, deviations = axes[0][column], axes[1][column]
        for pair in pairs:
            color = colors[pair.name]
            losses.plot(pair.given, color=color, label=pair.name, alpha=0.6)
            losses.plot(pair.transformed, color=color, linestyle="--")
            shown = [max(deviation, 1e-17) for deviation in pair.deviations]
            deviations.plot(shown, color=color, label=pair.name)
        deviations.axhline(UNCHANGED, color="gray", linestyle=":", linewidth=1)
        losses.set(title=title, yscale="log", ylabel="loss (dashed: transformed problem)")
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter("{x:g}")
        deviations.set(yscale="log", xlabel="step", ylabel="relative deviation of the loss")
        deviations.set_ylim(1e-17, 1e3)
        for axis in (losses, deviations):
            axis.grid(alpha=0.3)
        losses.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(directory: Path) -> None:
    """Run all, print the table, write invariance.png."""
    torch.set_num_threads(1)  # the matrices are too small for more to help
    directory.mkdir(parents=True, exist_ok=True)
    units, rotation = compare(classification, UNITS), compare(regression, ROTATION)
    print(f"Largest relative deviation of the loss over {STEPS} steps; below {UNCHANGED:g}: none.")
    print_table("units", units)
    print_table("rotation", rotation)
    plot(
        directory / "invariance.png",
        {
            "units: features times exp(U(-5, 5)), logistic regression": units,
            "rotation of inputs and outputs, linear net of two layers": rotation,
        },
    )
    print(f"\nwrote {directory / 'invariance.png'}")


if __name__ == "__main__":
    began = time.perf_counter()
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print(f"{time.perf_counter() - began:.0f} s")
