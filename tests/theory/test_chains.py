"""The committed table against the promises it makes, in float64."""

import math

import numpy as np
import pytest
import torch.optim._muon as torch_muon

from schattor.theory import chains
from schattor.theory.spectra import spectra

DEPTHS = list(chains.depths())
DEPTH = pytest.mark.parametrize("depth", DEPTHS)
POINTS = 100_000
RNG = np.random.default_rng(0)
CHAIN_POWERS = np.r_[
    np.linspace(chains.MIN_POWER, 1.0, 27), RNG.uniform(chains.MIN_POWER, 1.0, 20), 1 / 3, 1 / 7, 0
]
SHARP_POWERS = np.r_[np.linspace(1.0, chains.CHAIN_MAX_POWER, 27)[1:], 1.0001, 4 / 3]
SQUARED_POWERS = np.r_[
    np.geomspace(chains.CHAIN_MAX_POWER, chains.SQUARINGS_MAX_POWER, 60), 3, 5, 9, 10, 10.001, 17
]
ODD = np.array([1, 3, 5, 9, 17, 33])


def step(x, abc):
    a, b, c = abc
    return x * (a + x * x * (b + x * x * c))


def iterates(s, steps):
    values = [s]
    for abc in steps:
        values.append(step(values[-1], abc))
    return np.array(values)


def norm(s, index):
    return np.linalg.norm(s, ord=index)


def cosine(x, y):
    return x @ y / math.sqrt((x @ x) * (y @ y))


def squared(s, power):
    """The squarings' direction of a spectrum, scaled as `chains.squarings` says."""
    coefficients = chains.squarings(power)
    exponents = ODD[: len(coefficients), None]
    x = s / norm(s, exponents[-1, 0] - 1)
    return np.array(coefficients) @ x**exponents, x


@DEPTH
def test_relative_error_keeps_the_band(depth):
    s = np.geomspace(chains.smallest(depth), chains.UPPER, POINTS)
    values = iterates(s, chains.steps("schattor", depth))
    for power in CHAIN_POWERS:
        error = np.abs(np.array(chains.weights(power, depth)) @ values / s**power - 1).max()
        assert error <= chains.band(power, depth), power


@DEPTH
def test_band_is_useful(depth):
    powers = [power for power in CHAIN_POWERS if power >= 0]
    assert max(chains.band(power, depth) for power in powers) < 0.0066
    assert chains.band(-0.1, depth) < 0.025
    assert chains.band(1.0, depth) == 0.0


@DEPTH
def test_below_the_smallest_it_only_falls_short(depth):
    s = chains.smallest(depth) * np.geomspace(1e-4, 1, 2000)
    values = iterates(s, chains.steps("schattor", depth))
    for power in CHAIN_POWERS:
        ratio = np.array(chains.weights(power, depth)) @ values / s**power
        assert ratio.min() > -1e-6, power
        assert ratio.max() <= 1.01 + chains.band(power, depth), power


@DEPTH
def test_steps_hold_under_perturbation(depth):
    """Every iterate stays in [-1.03, 1.03] when each step's input is off by up to 2 %."""
    start = np.geomspace(1e-5, chains.UPPER, 2000)
    for trial in range(30):
        x = start
        for abc in chains.steps("schattor", depth):
            off = RNG.uniform(-1, 1, x.shape) if trial else 1.0
            x = step(x * (1 + 0.02 * off), abc)
            assert np.abs(x).max() <= 1.03


@DEPTH
def test_weights_do_not_cancel(depth):
    """What is rounded in the iterates is multiplied by at most the sum of absolute weights."""
    for power in np.linspace(0, chains.CHAIN_MAX_POWER, 100):
        assert np.abs(chains.weights(power, depth)).sum() < 1.5


@DEPTH
def test_power_one_is_the_matrix_itself(depth):
    assert chains.weights(1.0, depth) == (1.0,) + (0.0,) * depth


@DEPTH
@pytest.mark.parametrize("joint", [0.0, 1.0])
def test_weights_are_continuous(depth, joint):
    at = np.array(chains.weights(joint, depth))
    for beside in (joint - 1e-9, joint + 1e-9):
        assert chains.weights(beside, depth) == pytest.approx(at, abs=1e-7)
    powers = np.linspace(chains.MIN_POWER, chains.CHAIN_MAX_POWER, 5001)
    table = np.array([chains.weights(power, depth) for power in powers])
    steps = np.abs(np.diff(table, axis=0)).max(1)
    assert steps.max() < 0.4 and np.abs(np.diff(steps)).max() < 0.05


@DEPTH
def test_sharp_directions_of_the_chain_keep_the_cosine(depth):
    family = spectra((48, 500, 5000))
    steps = chains.steps("schattor", depth)
    mixtures = np.array([chains.weights(power, depth) for power in SHARP_POWERS])
    for name, s in family.items():
        x = s / norm(s, 4)
        directions = mixtures @ iterates(x, steps)
        for direction, power in zip(directions, SHARP_POWERS, strict=True):
            assert cosine(direction, x**power) >= chains.SHARP_COSINE, (name, power)


def test_sharp_directions_of_squarings_keep_cosine_and_size():
    for name, s in spectra((48, 500, 5000)).items():
        for power in SQUARED_POWERS:
            direction, x = squared(s, power)
            target = x**power
            assert cosine(direction, target) >= chains.SHARP_COSINE, (name, power)
            assert abs(direction @ target / (target @ target) - 1) < 0.08, (name, power)


def test_chain_meets_squarings_at_the_switch():
    power = chains.CHAIN_MAX_POWER
    for depth in (4, 8):
        for name, s in spectra((100, 2000)).items():
            x = s / norm(s, 4)
            mixed = np.array(chains.weights(power, depth)) @ iterates(
                x, chains.steps("schattor", depth)
            )
            direction, _ = squared(s, np.nextafter(power, 3))
            # Each is within one angle of the exact direction, so the two are within twice it.
            assert cosine(direction, mixed) > 1 - 4 * (1 - chains.SHARP_COSINE), name


@pytest.mark.parametrize("power", [3.0, 5.0, 9.0, 17.0, 33.0])
def test_squarings_nearly_hit_their_own_exponents(power):
    coefficients = chains.squarings(power)
    exact = (ODD == power).astype(float)[: len(coefficients)]
    assert coefficients == pytest.approx(exact, abs=0.05)


def test_squarings_are_continuous():
    powers = np.linspace(chains.CHAIN_MAX_POWER, 10, 3000)
    table = np.array([chains.squarings(power) for power in powers])
    assert table.shape[1] == 5 and np.abs(np.diff(table, axis=0)).max() < 0.1
    powers = np.linspace(10, chains.SQUARINGS_MAX_POWER, 3000)[1:]
    table = np.array([chains.squarings(power) for power in powers])
    assert table.shape[1] == 6 and np.abs(np.diff(table, axis=0)).max() < 0.1


def test_smallest_falls_by_one_factor_a_step():
    values = [chains.smallest(depth) for depth in DEPTHS]
    assert chains.smallest(5) == 0.01
    assert np.diff(np.log(values)) == pytest.approx(-math.log(3.13))


def test_schattor_repeats_one_step():
    for depth in DEPTHS:
        steps = chains.steps("schattor", depth)
        assert len(steps) == depth and len(set(steps[:-2])) == 1
        assert steps[-2:] == chains.steps("schattor", 5)[-2:]


def test_jordan_is_torch_muon():
    published = (torch_muon.DEFAULT_A, torch_muon.DEFAULT_B, torch_muon.DEFAULT_C)
    assert chains.steps("jordan", 5) == (published,) * 5


def test_polar_express_as_published():
    first, *middle, last = chains.steps("polar_express", 10)
    assert first == (
        8.28721201814563 / 1.01,
        -23.595886519098837 / 1.01**3,
        17.300387312530933 / 1.01**5,
    )
    assert middle[-1] == last == (1.875, -1.25, 0.375)
    assert chains.steps("polar_express", 3) == (first, *middle[:2])
    s = np.geomspace(1e-3, 1, POINTS)
    assert np.abs(iterates(s, chains.steps("polar_express", 8))[-1] - 1).max() < 2e-3


def test_newton_schulz_converges_to_third_order():
    a, b, c = chains.steps("newton_schulz", 1)[0]
    assert (a + b + c, a + 3 * b + 5 * c, 6 * b + 20 * c) == (1.0, 0.0, 0.0)


def test_final_weights():
    assert chains.final_weights(3) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chains.steps("muon", 5), "steps: coefficients must be one of schattor, jordan, "),
        (lambda: chains.steps("schattor", 3), r"steps: depth must be in \[4, 10\], got 3"),
        (lambda: chains.steps("schattor", 11), r"depth must be in \[4, 10\], got 11"),
        (lambda: chains.steps("jordan", 0), "steps: depth must be at least 1, got 0"),
        (lambda: chains.final_weights(0), "final_weights: depth must be at least 1, got 0"),
        (lambda: chains.smallest(3), r"smallest: depth must be in \[4, 10\], got 3"),
        (lambda: chains.weights(0.5, 12), r"weights: depth must be in \[4, 10\], got 12"),
        (lambda: chains.weights(-0.31, 5), r"weights: power must be in \[-0.3, 2.3\], got -0.31"),
        (lambda: chains.weights(2.4, 5), "weights: power must be in"),
        (lambda: chains.weights(math.nan, 5), "weights: power must be in"),
        (lambda: chains.band(1.1, 5), r"band: power must be in \[-0.3, 1\], got 1.1"),
        (lambda: chains.band(0.5, 3), r"band: depth must be in"),
        (lambda: chains.squarings(2.2), r"squarings: power must be in \[2.3, 33\], got 2.2"),
        (lambda: chains.squarings(math.inf), "squarings: power must be in"),
        (lambda: chains.squarings(math.nan), "squarings: power must be in"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("depth", [5.0, "5", True, None])
def test_depth_must_be_an_int(depth):
    with pytest.raises(TypeError, match="steps: depth must be an int, got"):
        chains.steps("jordan", depth)
