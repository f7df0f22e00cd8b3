"""Tables for the battery: optimizers, inputs, inputs that must be refused; and the paper's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from schattor.optim import (
    KLSOAP,
    SGD,
    SOAP,
    AdamW,
    KLShampoo,
    MuAdam,
    MuAdamSania,
    Muon,
    Schattor,
    Shampoo,
    SPlus,
)
from schattor.theory import exponents, oracles
from schattor.theory.preconditioners import PRECONDITIONERS

F64 = torch.float64
SHAPES = ((6, 6), (4, 9), (9, 4), (1, 7), (5, 1))


class Problem(NamedTuple):
    """Parameters with gradients, the same numbers for every optimizer."""

    params: list[nn.Parameter]

    def next_gradients(self, step: int) -> None:
        for index, param in enumerate(self.params):
            generator = torch.Generator().manual_seed(1000 * step + index)
            grad = torch.randn(param.shape, generator=generator, dtype=F64)
            param.grad = grad.to(param.dtype)


def problem(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = F64, steps: int = 1
) -> Problem:
    made = Problem([])
    for index, shape in enumerate(shapes):
        generator = torch.Generator().manual_seed(index)
        weight = torch.randn(shape, generator=generator, dtype=F64)
        made.params.append(nn.Parameter(weight.to(dtype)))
    made.next_gradients(steps)
    return made


def weights_of(made: Problem) -> list[Tensor]:
    return [param.detach().clone() for param in made.params]


def run(optimizer: torch.optim.Optimizer, made: Problem, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        made.next_gradients(step)
        optimizer.step()


def calls_to_move(optimizer: torch.optim.Optimizer) -> int:
    """Calls after which matrices have moved: the first of some members gathers only."""
    name = optimizer.param_groups[0].get("preconditioner")
    return 1 if name is None else 1 + PRECONDITIONERS[name].warm


# Every optimizer once, by what makes it different: the battery runs over this table.
OPTIMIZERS: dict[str, Callable[[Any], Schattor]] = {
    "default": lambda params: Schattor(params, lr=0.01),
    "p2_regularized": lambda params: Schattor(
        params, lr=0.01, p=2, oracle="regularized", momentum_form="heavy_ball"
    ),
    "p3_spectral": lambda params: Schattor(params, lr=0.01, p=3, scale="spectral"),
    "p1": lambda params: Schattor(params, lr=0.01, p=1),
    "p1.1": lambda params: Schattor(params, lr=0.01, p=1.1, weight_decay=0.1),
    "beyond_muon": lambda params: Schattor(params, lr=0.01, power=-0.1),
    "no_momentum": lambda params: Schattor(params, lr=0.01, p=4, momentum=0.0),
    "l2_ball": lambda params: Schattor(params, lr=0.01, p=3, coupling="l2"),
    "greedy": lambda params: Schattor(params, lr=0.01, p=3, coupling="greedy"),
    "max_regularized": lambda params: Schattor(
        params, lr=0.001, p=3, oracle="regularized", coupling="max"
    ),
    "block_diagonal": lambda params: Schattor(params, lr=0.01, p=3, coupling="block_diagonal"),
    "exact": lambda params: Schattor(params, lr=0.01, p=3, method="exact"),
    "schedule": lambda params: Schattor(params, lr=0.01, p=lambda step: 2.0 + step),
    "muon": lambda params: Muon(params, lr=0.01),
    "sgd": lambda params: SGD(params, lr=0.01, momentum=0.9, nesterov=True),
    "adamw": lambda params: AdamW(params, lr=0.01),
    "sign": lambda params: Schattor([{"params": list(params), "rule": "sign"}], lr=0.01),
    "muadam": lambda params: MuAdam(params, lr=0.01),
    "muadam_sania": lambda params: MuAdamSania(params, lr=0.01),
    "padam_p3_nesterov": lambda params: Schattor(params, lr=0.01, p=3, preconditioner="padam"),
    "factored": lambda params: Schattor(
        params, lr=0.01, preconditioner="adam", second_moment="factored", scale="pin"
    ),
    "shampoo": lambda params: Shampoo(params, lr=0.01, precondition_frequency=2),
    "shampoo_like_adam": lambda params: Shampoo(
        params, lr=0.01, betas=(0.9, 0.99), precondition_frequency=2, grafting="adam"
    ),
    "shampoo_cut": lambda params: Shampoo(params, lr=0.01, max_preconditioner_dim=4),
    "kl_shampoo": lambda params: KLShampoo(params, lr=0.01, precondition_frequency=2),
    "kl_soap": lambda params: KLSOAP(params, lr=0.01, precondition_frequency=2),
    "soap": lambda params: SOAP(params, lr=0.01, precondition_frequency=2),
    "soap_polar_factored": lambda params: Schattor(
        params,
        lr=0.01,
        preconditioner="soap",
        second_moment="factored",
        precondition_frequency=3,
        stagger=True,
    ),
    "soap_one_sided_l2": lambda params: Schattor(
        params,
        lr=0.01,
        p=3,
        preconditioner="soap",
        max_precond_dim=6,
        precondition_frequency=1,
        coupling="l2",
    ),
    "splus": lambda params: SPlus(params, lr=0.1, inverse_every=2),
    "like_adam": lambda params: Schattor(params, lr=0.01, scale="adam"),
    "entries_p3": lambda params: Schattor(params, lr=0.01, p=3, norm="entries"),
}


def unit_ball(x: Tensor, power: float) -> tuple[Tensor, float]:
    """The unit ball direction (of minus the step) and the dual norm, from all singular values."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    if math.isinf(power):
        return u[:, :1] @ vh[:1], float(s[0])
    present = s > 1e-13 * s[0]  # a zero singular value is one of rounding, and stays zero
    norm = float((s[present] ** (1 + power)).sum() ** (1 / (1 + power)))
    return (u[:, present] * (s[present] / norm) ** power) @ vh[present], norm


def paper_step(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float,
    power: float,
    oracle: str = "ball",
    outer: float | None = None,
    block_weights: Sequence[float] | None = None,
    scale: str = "unit",
    momentum: float = 0.0,
    form: str = "ema",
    nesterov: bool = False,
    decay: float = 0.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """One step of the paper in float64: new weights and moments."""
    share = 1 - momentum if form == "ema" else 1.0
    w = [1.0] * len(grads) if block_weights is None else list(block_weights)
    outer = (math.inf if oracle == "ball" else 2.0) if outer is None else outer
    momenta = [momentum * m + share * g.double() for m, g in zip(momenta, grads, strict=True)]
    applied = [
        momentum * m + share * g.double() if nesterov else m
        for m, g in zip(momenta, grads, strict=True)
    ]
    units, norms = zip(*(unit_ball(x, power) for x in applied), strict=True)
    factors = oracles.couple(norms, w, outer)
    total = 1.0 if oracle == "ball" else oracles.coupled_norm(norms, w, outer)
    new = []
    for weight, unit, factor in zip(weights, units, factors, strict=True):
        step = lr * factor * total * shaped(unit, scale, power) * unit
        new.append((1 - lr * decay) * weight.double() - step)
    return new, momenta


def shaped(unit: Tensor, scale: str, power: float) -> float:
    """What ``scale`` does to the unit ball direction of an (outputs, inputs) matrix."""
    m, n = unit.shape
    if scale == "spectral":
        return min(m, n) ** exponents.inverse_p(power) * math.sqrt(max(1.0, m / n))
    size = float(unit.norm())
    return 0.2 * math.sqrt(m * n) / size if scale == "rms" and size else 1.0
