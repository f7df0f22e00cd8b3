import math

import numpy as np
import pytest

from schattor.theory import oracles
from schattor.theory.exponents import dual

INF = math.inf
INDICES = [1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 9.0, INF]
SPECTRA = {
    "spread": [3.0, 1.0, 0.2, 1e-3],
    "rank deficient": [2.0, 0.5, 0.0, 0.0],
    "largest repeated": [1.5, 1.5, 1.5, 0.1],
    "tiny": [3e-200, 1e-200, 1e-203, 0.0],
    "huge": [3e200, 1e200, 1e190, 5.0],
}
SPECTRUM = pytest.mark.parametrize("s", SPECTRA.values(), ids=SPECTRA)


def unit_competitors(p, count=2000, seed=0):
    """Matrices of Schatten norm 1: by von Neumann, sorted singular values are the best of them."""
    values = np.abs(np.random.default_rng(seed).standard_cauchy((count, 4)))
    return values / np.linalg.norm(values, ord=p, axis=1, keepdims=True)


@SPECTRUM
@pytest.mark.parametrize("p", INDICES)
def test_schatten_norm_is_the_norm_of_the_values(s, p):
    largest = max(s)
    expected = largest * np.linalg.norm(np.array(s) / largest, ord=p)
    assert oracles.schatten_norm(s, p) == pytest.approx(expected, rel=1e-14)


@SPECTRUM
@pytest.mark.parametrize("p", INDICES)
def test_ball_lies_on_the_ball_and_reaches_the_dual_norm(s, p):
    d = oracles.ball(s, p, 0.3)
    assert oracles.schatten_norm(d, p) == pytest.approx(0.3, rel=1e-12)
    gain = math.fsum(a * b for a, b in zip(s, d, strict=True))
    assert gain == pytest.approx(0.3 * oracles.schatten_norm(s, dual(p)), rel=1e-12)
    assert all(b == 0.0 for a, b in zip(s, d, strict=True) if a == 0.0)


@pytest.mark.parametrize("p", INDICES)
def test_nothing_of_unit_norm_beats_the_ball(p):
    s = np.array(SPECTRA["spread"])
    assert (unit_competitors(p) @ s).max() <= s @ oracles.ball(s, p) * (1 + 1e-12)


@SPECTRUM
@pytest.mark.parametrize("p", INDICES)
def test_regularized_is_the_ball_of_radius_eta_dual_norm(s, p):
    d = oracles.regularized(s, p, 0.5)
    dual_norm = oracles.schatten_norm(s, dual(p))
    assert oracles.schatten_norm(d, p) == pytest.approx(0.5 * dual_norm, rel=1e-12)
    expected = oracles.ball(s, p, 0.5 * dual_norm)
    assert d == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", INDICES)
def test_regularized_minimises_its_objective(p):
    s, eta = np.array(SPECTRA["spread"]), 0.7

    def objective(d):
        return -s @ d + np.linalg.norm(d, ord=p) ** 2 / (2 * eta)

    best = objective(np.array(oracles.regularized(s, p, eta)))
    assert best == pytest.approx(-eta / 2 * oracles.schatten_norm(s, dual(p)) ** 2, rel=1e-12)
    for unit in unit_competitors(p, 500):
        for length in (0.1, 1.0, 3.0):
            assert objective(length * unit) >= best - 1e-12


def test_p_two_is_gradient_descent_exactly():
    assert oracles.regularized([0.3, 0.1], 2.0, 1.0) == [0.3, 0.1]


@pytest.mark.parametrize("p", INDICES)
def test_zero_gives_zero(p):
    assert oracles.ball([0.0, 0.0], p) == [0.0, 0.0]
    assert oracles.regularized([0.0, 0.0], p) == [0.0, 0.0]
    assert oracles.ball([], p) == []


@pytest.mark.parametrize("outer", [1.0, 1.5, 2.0, 4.0, INF])
def test_coupled_step_is_optimal(outer):
    """The factors c have outer norm |c_i / w_i|_A = 1 and gain g; nothing of norm 1 gains more."""
    norms, weights = [3.0, 0.5, 1.0, 2.0], [0.5, 2.0, 1.5, 0.1]
    c, g = oracles.couple(norms, weights, outer), oracles.coupled_norm(norms, weights, outer)
    scaled = [a / w for a, w in zip(c, weights, strict=True)]
    assert oracles.schatten_norm(scaled, outer) == pytest.approx(1.0, rel=1e-13)
    assert np.dot(c, norms) == pytest.approx(g, rel=1e-13)
    rivals = unit_competitors(outer) * weights
    assert (rivals @ norms).max() <= g * (1 + 1e-12)


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, 9.0])
def test_common_p_is_the_oracle_of_the_block_diagonal_matrix(p):
    blocks = [[3.0, 1.0], [0.5, 0.2, 0.1], [2.0]]
    norms = [oracles.schatten_norm(s, dual(p)) for s in blocks]
    factors = oracles.couple(norms, [1.0] * 3, p)
    coupled = [c * v for c, s in zip(factors, blocks, strict=True) for v in oracles.ball(s, p)]
    whole = oracles.ball([v for s in blocks for v in s], p)
    assert coupled == pytest.approx(whole, rel=1e-13)


def test_coupling_ends():
    norms, weights = [3.0, 3.0, 0.0], [1.0, 1.0, 2.0]
    assert oracles.couple(norms, weights, INF) == weights
    assert oracles.couple(norms, weights, 1.0) == [1.0, 0.0, 0.0]
    assert oracles.couple([0.0, 0.0], [1.0, 2.0], INF) == [0.0, 0.0]
    assert oracles.coupled_norm([0.0, 0.0], [1.0, 2.0], 2.0) == 0.0


def test_parameter_free_powers():
    steps = [0, 1, 99, 10**6]
    for k in steps:
        gamma, eta = oracles.parameter_free(k)
        assert gamma == pytest.approx((k + 1) ** -0.5)
        assert eta == pytest.approx((k + 1) ** -0.75)
        assert oracles.parameter_free(k, "regularized") == (gamma, gamma)
        heavy, slow = oracles.parameter_free(k, "ball", 1.5)
        assert heavy == pytest.approx((k + 1) ** -0.6)
        assert slow == pytest.approx((k + 1) ** -0.8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oracles.ball([1.0], 0.5), r"ball: p must be in \[1, inf\], got 0.5"),
        (lambda: oracles.regularized([1.0], math.nan), "regularized: p must be in"),
        (lambda: oracles.schatten_norm([1.0], 0.9), "schatten_norm: p must be in"),
        (lambda: oracles.ball([-1.0], 2.0), "ball: s must be finite and not negative, got -1.0"),
        (lambda: oracles.ball([math.nan], 2.0), "ball: s must be finite"),
        (lambda: oracles.ball([1.0], 2.0, -1.0), "ball: radius must be finite and not negative"),
        (lambda: oracles.regularized([1.0], 2.0, 0.0), "regularized: eta must be positive"),
        (lambda: oracles.regularized([INF], 2.0), "regularized: s must be finite"),
        (lambda: oracles.schatten_norm([INF], 2.0), "schatten_norm: s must be finite"),
        (lambda: oracles.couple([1.0], [1.0], 0.5), r"couple: outer must be in \[1, inf\]"),
        (lambda: oracles.couple([1.0], [1.0, 2.0], 2.0), "couple: weights must have one value for"),
        (lambda: oracles.couple([1.0], [0.0], 2.0), "couple: weights must be positive"),
        (lambda: oracles.coupled_norm([-1.0], [1.0], 2.0), "coupled_norm: norms must be finite"),
        (lambda: oracles.parameter_free(-1), "parameter_free: step must be at least 0, got -1"),
        (lambda: oracles.parameter_free(1, "l2"), "oracle must be ball or regularized, got 'l2'"),
        (lambda: oracles.parameter_free(1, "ball", 1.0), r"tail must be in \(1, 2\], got 1.0"),
        (lambda: oracles.parameter_free(1, "regularized", 1.5), "tail must be 2 for oracle"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_step_must_be_an_int():
    with pytest.raises(TypeError, match="parameter_free: step must be an int, got float"):
        oracles.parameter_free(1.0)
