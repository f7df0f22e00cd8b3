"""Traces of what the chain forms on its way against quadratic forms of its iterates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from schattor.adaptive import samples as samples_module
from schattor.adaptive.chain import DEPTH, Direct, Shorter, iterates, traces
from schattor.adaptive.criteria import CRITERIA, Forms, curve, powers_of_grid
from schattor.adaptive.forms import forms_of
from schattor.adaptive.moments import Moments, Side, side_of
from schattor.adaptive.samples import Samples
from schattor.adaptive.squares import squares, values
from schattor.theory import chains

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def matrices(rows: int, cols: int, decay: float) -> Tensor:
    """Two of them, with singular values ``i^-decay``."""
    u, s, vh = torch.linalg.svd(normal(2, rows, cols), full_matrices=False)
    return u * torch.arange(1, s.shape[1] + 1, dtype=F64) ** -decay @ vh


def moments(n: int) -> Tensor:
    x = normal(2, 3 * n, n, seed=1) * torch.arange(1, n + 1, dtype=F64) ** -0.7
    return x.mT @ x / (3 * n)


def errors(powers: tuple[float, ...], s: Tensor) -> Tensor:
    """Relative, of every power at every singular value."""
    iterated, parts = values(s)
    table = torch.tensor([chains.weights(power, DEPTH) for power in powers], dtype=F64).to(s)
    return (squares(powers) @ parts / (table @ iterated).square() - 1).abs()


# Between, below and beyond the singular values that the sums were found on; beside the sums, which
# are found on a processor.
SINGULAR_VALUES = torch.logspace(-6, 0.0043, 5001, dtype=F64, device="cpu")


@pytest.mark.parametrize(
    ("low", "high", "bound"),
    [
        (0.0, 1.0, 0.006),
        (0.0, 0.3, 0.006),
        (0.25, 1.0, 0.006),
        (0.1, 0.1, 0.006),
        (-0.1, 1.0, 0.013),
        (-0.2, 1.0, 0.07),
    ],
)
def test_sums_reproduce_squares(low: float, high: float, bound: float) -> None:
    """To half a percent from power 0 on; below, `forms_of` asks for the squares themselves."""
    found = errors(powers_of_grid(low, high), SINGULAR_VALUES)
    assert float(found.max()) < bound
    if low < 0:
        assert float(found.max()) > 0.006


def test_power_one_is_exact() -> None:
    assert float(errors((1.0,), SINGULAR_VALUES).max()) < 1e-9


def test_rounding_is_not_multiplied() -> None:
    """What single precision does to a trace reaches the sum as it is."""
    _, parts = values(SINGULAR_VALUES)
    found = squares(powers_of_grid(0.0, 1.0))
    assert float((found.abs() @ parts.abs() / (found @ parts)).max()) < 1.1


CHAINS = [
    ((7, 7), "left"),
    ((7, 7), "right"),
    ((6, 8), "left"),
    ((6, 8), "right"),
    ((6, 20), "shorter"),
]


@pytest.mark.parametrize(("shape", "kind"), CHAINS, ids=str)
def test_traces_are_those_of_singular_values(shape: tuple[int, int], kind: str) -> None:
    x, grads = matrices(*shape, 1.0), normal(2, *shape, seed=2)
    moment = moments(shape[1] if kind == "right" else shape[0])
    scaled = x / torch.linalg.svdvals(x).pow(4).sum(1).pow(0.25)[:, None, None]
    u, s, vh = torch.linalg.svd(scaled, full_matrices=False)
    vectors = vh if kind == "right" else u.mT
    energies = (vectors @ moment * vectors).sum(2)
    falls = (u.mT @ grads * vh).sum(2)
    chain: Any
    if kind == "shorter":
        chain = Shorter(x)
        grads = grads @ chain.first.mT
    else:
        chain = Direct(x, kind == "right")
    found, (passed,) = traces(chain, moment, [grads])
    for i in range(2):
        iterated, parts = values(s[i])
        torch.testing.assert_close(found[i], parts @ energies[i], rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(passed[i], iterated @ falls[i], rtol=1e-7, atol=1e-10)


def relative(criterion: Any, forms: Forms) -> Tensor:
    found = curve(criterion, forms, powers_of_grid(0.0, 1.0))
    return found - found[:, -1:]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(9, 9), (24, 32), (16, 48)], ids=str)
def test_traces_say_what_quadratic_forms_say(
    shape: tuple[int, int], dtype: torch.dtype, right: bool, criterion: Any
) -> None:
    """On all sides, from the iterates' definition: half a percent of J, the rest to rounding."""
    x, noise = matrices(*shape, 1.0), 0.05 * normal(2, *shape, seed=2)
    moment = moments(shape[1] if right else shape[0])
    inputs = Moments(Side(moment.to(dtype).unbind()), right)
    found = forms_of(x.to(dtype), (x + noise).to(dtype), inputs, None, True, 0.0)
    exact = forms_of(x, x + noise, Moments(Side(moment.unbind()), right), lambda y: y, True, 0.0)
    error = (relative(criterion, found) - relative(criterion, exact)).abs().max()
    assert float(error) < (0.006 if criterion == "tightness" else 1e-3)
    assert found.norms is not None and exact.norms is not None
    close = {"rtol": 1e-7, "atol": 1e-9} if dtype == F64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.falls, exact.falls, **close)
    torch.testing.assert_close(found.norms, exact.norms, **close)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("shape", [(9, 9), (6, 20)], ids=str)
def test_powers_below_zero_have_the_squares_themselves(shape: tuple[int, int], right: bool) -> None:
    x = matrices(*shape, 1.0)
    moment = moments(shape[1] if right else shape[0])
    inputs = Moments(Side(moment.unbind()), right)
    steps = iterates(x)
    weighed = steps @ moment[:, None] if right else moment[:, None] @ steps
    expected = (weighed[:, :, None] * steps[:, None]).sum((3, 4)).flatten(1)
    found = forms_of(x, x, inputs, None, False, -0.1)
    torch.testing.assert_close(found.curves, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("shape", [(64, 64), (64, 160)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_traces_keep_single_precision(shape: tuple[int, int], decay: float) -> None:
    x, moment = matrices(*shape, decay), moments(shape[0])
    kinds: list[Any] = [Shorter if shape[1] > shape[0] else Direct] * 2
    one = traces(kinds[0](x.float()), moment.float(), [])[0].double()
    two = traces(kinds[1](x), moment, [])[0]
    assert float((one / two - 1).abs().max()) < 1e-4


def test_blocks_that_share_samples_have_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    formed: list[int] = []
    mean = Samples.mean

    def counted(self: Samples) -> Tensor:
        formed.append(1)
        return mean(self)

    monkeypatch.setattr(samples_module.Samples, "mean", counted)
    rows = normal(12, 4)
    shared = Samples((), rows.mT @ rows, torch.tensor(12))
    other = Samples((), 2 * rows.mT @ rows, torch.tensor(12))
    side = side_of([shared, other, shared])
    assert len(formed) == 2
    torch.testing.assert_close(side.stacked(F64)[2], rows.mT @ rows / 12)
    torch.testing.assert_close(side.stacked(F64)[1], rows.mT @ rows / 6)


def test_moments_are_exactly_symmetric() -> None:
    found = Samples((), normal(4, 4), torch.tensor(3)).moment()
    assert torch.equal(found, found.mT)
