"""Criteria from a chain's iterates against those from all singular values, in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from schattor.adaptive.auto import AutoP
from schattor.adaptive.chain import factors, iterates
from schattor.adaptive.criteria import (
    CRITERIA,
    Criterion,
    Forms,
    curve,
    powers_of_grid,
)
from schattor.adaptive.forms import forms_of
from schattor.adaptive.moments import Moments, Side
from schattor.adaptive.statistics import InputMoments
from schattor.theory import criteria as exact

F64 = torch.float64
GRID = powers_of_grid(0.0, 1.0)


class Layer(NamedTuple):
    """A momentum, a gradient and a second moment of inputs, with what an SVD knows of them."""

    momentum: Tensor
    grad: Tensor
    moment: Tensor

    def curve(self, criterion: str, powers: tuple[float, ...]) -> Tensor:
        u, s, vh = torch.linalg.svd(self.momentum, full_matrices=False)
        c = torch.einsum("mi,mn,in->i", u, self.grad, vh).tolist()
        b = torch.einsum("in,nk,ik->i", vh, self.moment, vh).tolist()
        a = torch.linalg.eigvalsh(self.moment).tolist()
        find = {
            "tightness": lambda power: exact.tightness(power, s.tolist(), c, b),
            "momentum_aligned": lambda power: exact.momentum_aligned(power, s.tolist(), c, a),
            "hoelder": lambda power: exact.hoelder(power, s.tolist(), a),
        }[criterion]
        return torch.tensor([find(power) for power in powers], dtype=F64).log()

    def forms(self, right: bool = True, least: float = 0.0) -> Forms:
        """With the inputs along the columns; along the rows, which a tall weight's are."""
        moments = Moments(Side([self.moment]), right)
        return forms_of(self.momentum[None], self.grad[None], moments, None, True, least)


def layer(rows: int, cols: int, decay: float, seed: int = 0, noise: float = 0.3) -> Layer:
    """Singular values ``i^-decay``; inputs whose variance falls like ``1/i``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    u, _, vh = torch.linalg.svd(normal(rows, cols), full_matrices=False)
    momentum = u @ torch.diag(torch.arange(1, rows + 1, dtype=F64) ** -decay) @ vh
    grad = momentum + noise * momentum.norm() / math.sqrt(rows * cols) * normal(rows, cols)
    inputs = normal(200, cols) * torch.arange(1, cols + 1, dtype=F64) ** -0.5
    return Layer(momentum, grad, inputs.mT @ inputs / 200)


LAYERS = [(12, 20, 0.0), (12, 20, 0.7), (20, 20, 1.4), (16, 48, 2.1), (1, 6, 0.0)]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_chains_find_what_singular_values_say(
    shape: tuple[int, int, float], criterion: Criterion
) -> None:
    """The curve within twice the chain's band (a square of it), and a p that loses below 0.1 %."""
    each = layer(*shape)
    found, true = curve(criterion, each.forms(), GRID)[0], each.curve(criterion, GRID)
    shape_found, shape_true = found - found[-1], true - true[-1]  # known up to a factor
    assert float((shape_found - shape_true).abs().max()) < 0.015
    assert float(true.max() - true[found.argmax()]) < 1e-3


def test_the_grid_loses_nothing_that_matters() -> None:
    """Against a hundred times finer search of the exact criterion."""
    fine = tuple(i / 6400 for i in range(6401))
    for shape in LAYERS:
        each = layer(*shape)
        loss = each.curve("tightness", fine).max() - each.curve("tightness", GRID).max()
        assert 0 <= float(loss) < 1e-3


def test_powers_beyond_muon_are_found_where_they_gain() -> None:
    """Inputs that vary most where the momentum is large: small directions should lead."""
    rows = 12
    s = torch.arange(1, rows + 1, dtype=F64) ** -1.0
    each = Layer(torch.diag(s), torch.diag(s), torch.diag(s**2.4))
    powers = powers_of_grid(-0.2, 1.0)
    found = powers[int(curve("tightness", each.forms(least=-0.2), powers)[0].argmax())]
    true = powers[int(each.curve("tightness", powers).argmax())]
    assert true == -0.2  # the best would be s^(1 - 2.4) = s^-1.4
    assert found == pytest.approx(true, abs=0.04)


def test_the_fall_of_the_surrogate_is_the_fall_of_the_loss() -> None:
    """Random-feature regression: a step ``-t O`` of the best t lets the true loss fall by J / 2."""
    generator = torch.Generator().manual_seed(3)
    w, inputs, targets = (
        torch.randn(*shape, generator=generator, dtype=F64) for shape in ((6, 9), (9, 50), (6, 50))
    )

    def loss(weight: Tensor) -> float:
        return float((weight @ inputs - targets).square().sum() / (2 * 50))

    grad = (w @ inputs - targets) @ inputs.mT / 50
    moment = inputs @ inputs.mT / 50
    u, s, vh = torch.linalg.svd(grad, full_matrices=False)
    c = s.tolist()
    b = torch.einsum("in,nk,ik->i", vh, moment, vh).tolist()
    for power in (0.0, 0.3, 1.0):
        direction = u @ torch.diag(s**power) @ vh
        step = (grad * direction).sum() / (direction @ moment * direction).sum()
        fall = loss(w) - loss(w - step * direction)
        assert fall == pytest.approx(exact.tightness(power, s.tolist(), c, b), rel=1e-10)


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_bounds_are_below_the_fall(power: float) -> None:
    for seed in range(5):
        each = layer(8, 12, 0.5, seed)
        tight, aligned = (float(each.curve(name, (power,))) for name in CRITERIA[:2])
        assert aligned <= tight + 1e-12
        plain = layer(8, 12, 0.5, seed, noise=0.0)
        hoelder = float(plain.curve("hoelder", (power,)))
        assert hoelder == pytest.approx(float(plain.curve("momentum_aligned", (power,))))


def test_scales_of_momentum_gradient_and_inputs_do_not_choose() -> None:
    each = layer(12, 20, 0.7)
    scaled = Layer(1e-6 * each.momentum, 1e3 * each.grad, 1e4 * each.moment)
    for criterion in CRITERIA:
        first, second = (curve(criterion, x.forms(), GRID)[0] for x in (each, scaled))
        assert torch.allclose(first - first[0], second - second[0], atol=1e-9)


def test_a_momentum_that_does_not_descend_has_no_best_power() -> None:
    each = layer(6, 8, 0.5, noise=0.0)
    opposed = Layer(each.momentum, -each.grad, each.moment)
    assert (curve("tightness", opposed.forms(), GRID) == -math.inf).all()


def test_both_sides_of_a_wide_matrix() -> None:
    """A tall layer enters transposed, its inputs along the rows."""
    each = layer(12, 12, 0.7)
    moments = Moments(Side([each.moment]), False)
    x, grad = each.momentum.mT[None], each.grad.mT[None]
    turned = forms_of(x, grad, moments, None, False, 0.0)
    assert torch.allclose(
        curve("tightness", turned, GRID), curve("tightness", each.forms(), GRID), atol=1e-9
    )


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_the_shorter_side_keeps_single_precision(decay: float) -> None:
    """Rounding of a Gram matrix that follows the chain by itself grows tenfold a step."""
    momentum = layer(64, 160, decay).momentum[None]
    first, _, found = factors(momentum.float())
    whole = found.double() @ first.double()[:, None]
    error = (whole - iterates(momentum)).norm(dim=(2, 3)) / iterates(momentum).norm(dim=(2, 3))
    assert float(error.max()) < 1e-4


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_some_of_the_inputs_are_enough(decay: float) -> None:
    """The p from as many of 4096 inputs as are looked at by default loses below 0.1 %."""
    each = layer(40, 96, 1.0)
    linear = nn.Linear(96, 40, bias=False, dtype=F64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 256, 96, generator=generator, dtype=F64)
    x *= torch.arange(1, 97, dtype=F64) ** (-decay / 2)
    curves = []
    for tokens in (None, AutoP().tokens):
        moments = InputMoments(linear, [linear.weight], tokens=tokens)
        moments.record(True)
        linear(x)
        moment = moments.moment(linear.weight)
        assert moment is not None
        curves.append(curve("tightness", each._replace(moment=moment).forms(), GRID)[0])
    true, found = curves
    assert float(true.max() - true[found.argmax()]) < 1e-3
