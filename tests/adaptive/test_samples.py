"""Few samples are kept as they are, many as a sum; what is found by either is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schattor import Schattor
from schattor.adaptive.auto import AutoP, Statistics
from schattor.adaptive.forms import forms_of
from schattor.adaptive.moments import Moments, Side, side_of
from schattor.adaptive.samples import Collection, Samples, joined, samples_of
from schattor.adaptive.statistics import InputMoments

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def samples(x: Tensor, dtype: torch.dtype = F64) -> Samples:
    """Of rows ``[count, n]``, all of them, for a weight of a dtype."""
    like = Collection(torch.empty(3, x.shape[1], dtype=dtype), x.shape[1])
    return samples_of(x[None], 2, like, None)


def numbers_in(found: Samples) -> int:
    tensors = found.rows if found.total is None else (found.total,)
    return sum(each.numel() for each in tensors)


# What is kept.


@pytest.mark.parametrize(
    "counts", [(3,), (7,), (8,), (9,), (3, 4), (3, 5), (3, 9), (9, 3), (2,) * 5]
)
def test_no_more_numbers_than_rows_or_than_a_sum(counts: tuple[int, ...]) -> None:
    parts = [normal(count, 8, seed=seed) for seed, count in enumerate(counts)]
    found = joined([samples(part) for part in parts])
    rows = torch.cat(parts)
    assert numbers_in(found) == 8 * min(len(rows), 8)
    assert (found.total is None) == (len(rows) < 8)
    assert found.height == min(len(rows), 8) and int(found.number) == len(rows)
    torch.testing.assert_close(found.moment(), rows.mT @ rows / len(rows))
    assert torch.equal(found.moment(), found.moment().mT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64], ids=str)
@pytest.mark.parametrize("count", [5, 40])
def test_rows_keep_the_dtype_of_halves(dtype: torch.dtype, count: int) -> None:
    x = normal(count, 8).to(dtype)
    found = samples(x, torch.float32)
    if count < 8:
        assert found.rows[0].dtype == (dtype if dtype.itemsize == 2 else torch.float32)
        assert found.root().dtype == torch.float32
        torch.testing.assert_close(found.root() * 5**0.5, x.float())
    assert found.dtype == found.moment().dtype == torch.float32
    torch.testing.assert_close(found.moment(), x.float().mT @ x.float() / count)
    assert samples(x, F64).dtype == F64


@pytest.mark.parametrize("count", [5, 40])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_rows_that_are_not_finite_count_as_none(count: int, bad: float) -> None:
    x = normal(count, 8).float()
    sick = x.clone()
    sick[2, 3] = bad
    found = samples(sick, torch.float32)
    rest = torch.cat([x[:2], x[3:]])
    assert int(found.number) == count - 1
    torch.testing.assert_close(found.moment(), rest.mT @ rest / len(rest))


def test_rows_are_copies() -> None:
    x = normal(3, 8)
    found = samples(x)
    before = found.moment()
    x.mul_(2)
    assert torch.equal(found.moment(), before)


@pytest.mark.parametrize("count", [5, 40])
def test_some_of_the_numbers(count: int) -> None:
    x, places = normal(count, 8), torch.tensor([6, 1, 2])
    found = samples(x).at(places).moment()
    torch.testing.assert_close(found, x[:, places].mT @ x[:, places] / count)


def test_layers_that_read_the_same_share_what_calls_add_up_to() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) * self.k(x) * self.v(x)

    net: Any = nn.Sequential(Attention(), Attention())
    moments = InputMoments(net, net.parameters())
    moments.record(True)
    for call in range(4):  # 5, 10: rows; 15, 20: sums
        net(normal(5, 12, seed=call).float())
        for block in net:
            q, k, v = (moments.samples(layer.weight) for layer in (block.q, block.k, block.v))
            assert q is k is v and q is not None and int(q.number) == 5 * (call + 1)
            assert (q.total is None) == (call < 2)


def test_layers_that_read_the_same_once_and_then_not() -> None:
    layers = [nn.Linear(12, 4) for _ in range(2)]
    a, b = layers
    net = nn.ModuleList(layers)
    moments = InputMoments(net, net.parameters())
    moments.record(True)
    x = [normal(5, 12, seed=seed).float() for seed in range(3)]
    for layer, read in ((a, x[0]), (b, x[0]), (a, x[1]), (b, x[2])):
        layer(read)
    for layer, second in ((a, x[1]), (b, x[2])):
        rows = torch.cat([x[0], second])
        torch.testing.assert_close(moments.moment(layer.weight), rows.mT @ rows / 10)


# What is found.


@pytest.mark.parametrize("spectra", [False, True])
@pytest.mark.parametrize("through", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("shape", [(9, 9), (6, 9), (6, 14)], ids=str)
@pytest.mark.parametrize("behind", [None, False, True], ids=["I", "sum", "rows"])
def test_roots_say_what_moments_say(
    shape: tuple[int, int], right: bool, through: bool, spectra: bool, behind: bool | None
) -> None:
    """All pairs of kinds, on all sides; blocks with more rows and fewer, and with the same."""
    x, grads = normal(3, *shape), normal(3, *shape, seed=1)
    outward = (lambda steps: 2 * steps) if through else None
    n, m = shape[::-1] if right else shape
    rows = [samples(normal(count, n, seed=2 + count)) for count in (4, 2)]
    inputs = [rows[0], rows[1], rows[0]]
    other = None
    if behind is not None:
        other = [samples(normal(4 if behind else 40, m, seed=7 + i)) for i in range(3)]
    expected = Moments(
        Side([each.moment() for each in inputs]),
        right,
        None if other is None else Side([each.moment() for each in other]),
    )
    found = Moments(side_of(inputs), right, None if other is None else side_of(other))
    assert found.inputs.roots and (found.behind is None or found.behind.roots == behind)
    one, two = (forms_of(x, grads, each, outward, spectra, 0.0) for each in (found, expected))
    torch.testing.assert_close(one.curves, two.curves, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(one.falls, two.falls)
    if one.inputs is not None and two.inputs is not None:
        kept = one.inputs.shape[1]
        torch.testing.assert_close(one.inputs.sort().values, two.inputs.sort().values[:, -kept:])


def trained(kind: Statistics, criterion: Any, copies: tuple[int, int]) -> Any:
    """A run whose samples are there so many times, before the first and the later layers."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Linear(24, 24)).to(
        F64
    )
    auto = AutoP(warmup=0, interval=1, smoothing=0.0, statistics=kind, criterion=criterion)
    group = {"params": [*net.named_parameters()][::2], "rule": "matrix"}
    optimizer = Schattor([group], lr=1e-2, p=auto)
    optimizer.watch(net)
    scales = torch.arange(1, 25, dtype=F64) ** -1.0
    for step in range(4):
        x, y = (normal(6, 24, seed=2 * step + i) * scales for i in range(2))
        optimizer.zero_grad()
        hidden = net[1](net[0](x.repeat(copies[0], 1))).repeat(4, 1)[: 6 * copies[1]]
        out = net[3](net[2](hidden))
        (out - y.repeat(copies[1], 1)).square().mean().backward()
        optimizer.step()
    weights = [net[0].weight, net[2].weight, net[3].weight]
    return optimizer.p_history(), [optimizer.state[weight]["auto_curve"] for weight in weights]


@pytest.mark.parametrize(
    ("kind", "criterion"),
    [("inputs", "tightness"), ("inputs", "momentum_aligned"), ("kfac", "tightness")],
)
def test_rows_choose_what_sums_choose(kind: Statistics, criterion: Any) -> None:
    """6 rows of 24 numbers, 24 of them, and both in one bucket; a mean is of all the same."""
    all_copies = ((1, 1), (4, 4), (4, 1), (1, 4))
    once, *several = [trained(kind, criterion, copies) for copies in all_copies]
    assert all(len(choices) == 4 for choices in once[0].values())
    assert all(float(curve.amax() - curve.amin()) > 0.1 for curve in once[1])
    for history, curves in several:
        assert history == once[0]
        torch.testing.assert_close(curves, once[1], rtol=1e-5, atol=1e-5)
