import math

import pytest

from schattor.theory import exponents

INF = math.inf


@pytest.mark.parametrize("p", [1.0, 1.03, 1.5, 2.0, 3.0, 17.0, 1e9, INF])
def test_dual_pairs_and_powers_agree(p):
    q = exponents.dual(p)
    assert 1 / p + 1 / q == pytest.approx(1.0, abs=1e-15)
    assert exponents.dual(q) == pytest.approx(p, rel=1e-6)
    power = exponents.power_of(p)
    assert power == pytest.approx(q - 1, abs=1e-9)
    assert exponents.p_of(power) == pytest.approx(p, rel=1e-6)
    assert exponents.inverse_p(power) == pytest.approx(1 / p, abs=1e-15)


def test_ends_are_exact():
    assert (exponents.dual(1), exponents.dual(2), exponents.dual(INF)) == (INF, 2.0, 1.0)
    assert (exponents.power_of(1), exponents.power_of(2), exponents.power_of(INF)) == (INF, 1, 0)
    assert (exponents.p_of(INF), exponents.p_of(1), exponents.p_of(0)) == (1, 2, INF)


def test_inverse_p_continues_below_zero():
    assert exponents.inverse_p(-0.2) == pytest.approx(-0.25)


@pytest.mark.parametrize("p", [0.999, 0.0, -2.0, -INF, math.nan])
@pytest.mark.parametrize("function", [exponents.dual, exponents.power_of])
def test_p_below_one_is_refused(function, p):
    with pytest.raises(ValueError, match=rf"{function.__name__}: p must be in \[1, inf\], got"):
        function(p)


@pytest.mark.parametrize("power", [-0.1, -INF, math.nan])
def test_no_p_has_a_negative_power(power):
    with pytest.raises(ValueError, match=r"p_of: power must be in \[0, inf\], got"):
        exponents.p_of(power)


@pytest.mark.parametrize("power", [-1.0, -INF, math.nan])
def test_inverse_p_refuses_its_pole(power):
    with pytest.raises(ValueError, match=r"inverse_p: power must be in \(-1, inf\], got"):
        exponents.inverse_p(power)
