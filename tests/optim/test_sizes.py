"""Lengths of steps against the closed forms in theory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schattor.directions import Directions
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
    assert shape_factors("unit", 0.5, fans) == [1.0, 1.0]
    assert shape_factors("rms", 0.5, fans) == pytest.approx([1.2, 1.2])
    assert shape_factors("spectral", 0.0, fans) == pytest.approx([1.0, 1.5])
    assert shape_factors("spectral", 1.0, fans) == pytest.approx([2.0, 3.0])
    assert shape_factors("spectral", math.inf, fans) == pytest.approx([4.0, 6.0])
