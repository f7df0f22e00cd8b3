"""Lengths of steps against the closed forms in theory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from schattor import Schattor
from schattor.directions import Directions
from schattor.optim._settings import pin_ratio
from schattor.optim._sizes import couple, over, shape_factors, unit_factors
from schattor.theory import oracles


@given(
    norms=st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1e30)), min_size=1, max_size=6),
    outer=st.sampled_from([1.0, 1.5, 2.0, 4.0, math.inf]),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_couple_is_the_closed_form(norms: list[float], outer: float, data: st.DataObject) -> None:
    weight = st.floats(0.01, 100.0)
    weights = data.draw(st.lists(weight, min_size=len(norms), max_size=len(norms)))
    factors, norm = couple(
        torch.tensor(norms, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64), outer
    )
    assert factors.tolist() == pytest.approx(oracles.couple(norms, weights, outer), rel=1e-12)
    assert float(norm) == pytest.approx(oracles.coupled_norm(norms, weights, outer), rel=1e-12)


def test_over_is_zero_where_nothing_is() -> None:
    result = over(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, -1.0]))
    assert result.tolist() == [0.5, 0.0, 0.0]


def test_unit_factors_make_the_norm_one() -> None:
    inner, square, dual = (torch.tensor([x, 0.0]) for x in (8.0, 4.0, 2.0))
    found = Directions(torch.zeros(2, 1, 1), inner, square, dual)
    assert unit_factors("unit", found).tolist() == [0.25, 0.0]
    assert unit_factors("rms", found).tolist() == [0.5, 0.0]


def test_shape_factors() -> None:
    fans = [(4, 9), (9, 4)]

    def factors(scale: str, power: float) -> list[float]:
        return shape_factors(scale, power, fans, 0.25)

    for scale in ("unit", "sgd", "adam"):
        assert factors(scale, 0.5) == [1.0, 1.0]
    assert factors("rms", 0.5) == pytest.approx([1.2, 1.2])
    assert factors("spectral", 0.0) == pytest.approx([1.0, 1.5])
    assert factors("spectral", 1.0) == pytest.approx([2.0, 3.0])
    assert factors("spectral", math.inf) == pytest.approx([4.0, 6.0])
    assert factors("width", 0.5) == pytest.approx([2 / 13, 2 / 13])


def test_pin_goes_from_muon_to_adam() -> None:
    """From SGD to Muon, its code: ``sqrt(min) kappa^(1/p)``, their p the inverse of our power."""
    muon, adam = (shape_factors("pin", power, [(4, 9)], 0.25)[0] for power in (0.0, 1.0))
    assert muon == pytest.approx(math.sqrt(4))
    assert adam == pytest.approx(0.25 * math.sqrt(4 * 9))
    assert shape_factors("pin", 0.5, [(4, 9)], 0.25)[0] == pytest.approx(math.sqrt(muon * adam))


def test_pin_below_two_stays_at_adamws_size() -> None:
    at_two = shape_factors("pin", 1.0, [(64, 256)], 0.2)
    assert shape_factors("pin", math.inf, [(64, 256)], 0.2) == at_two
    param = nn.Parameter(torch.zeros(64, 256))
    optimizer = Schattor([param], lr=1e-3, p=1, scale="pin")
    param.grad = torch.randn(64, 256)
    optimizer.step()
    ratio = pin_ratio(optimizer.param_groups[0])
    expected = 1e-3 * shape_factors("pin", 1.0, [(64, 256)], ratio)[0]
    assert float(param.detach().norm()) == pytest.approx(expected, rel=1e-4)
