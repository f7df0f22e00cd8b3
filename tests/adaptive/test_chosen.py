"""What each block of a bucket is chosen from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schattor.adaptive.auto import AutoP
from schattor.adaptive.chooser import Chooser
from schattor.adaptive.criteria import curve
from schattor.adaptive.forms import forms_of
from schattor.adaptive.moments import Moments, Side
from schattor.optim import Schattor

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def curves(together: bool) -> list[Tensor]:
    """Of wide and tall weights of one shape, in one bucket or each in its own."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 20)
    ).to(F64)
    named = [*net.named_parameters()][::2]
    parts = [named] if together else [[each] for each in named]
    groups = [{"params": part, "rule": "matrix"} for part in parts]
    optimizer = Schattor(groups, p=AutoP(warmup=0, interval=1, statistics="inputs"))
    optimizer.watch(net)
    for step in range(2):
        optimizer.zero_grad()
        (net(normal(40, 12, seed=2 * step)) - normal(40, 20, seed=3)).square().mean().backward()
        optimizer.step()
    return [optimizer.state[param]["auto_curve"] for _, param in named]


def test_blocks_of_one_bucket_choose_as_they_would_alone() -> None:
    one, many = curves(together=True), curves(together=False)
    assert all(float(each.amax() - each.amin()) > 0.01 for each in one)
    torch.testing.assert_close(one, many, rtol=1e-6, atol=1e-6)


def test_a_search_below_zero_compares_the_squares_themselves() -> None:
    auto = AutoP(lowest_power=-0.2)
    chooser = Chooser(auto, [], None)
    x, inputs = normal(1, 9, 9), normal(1, 30, 9, seed=1)
    grads = x + 0.1 * normal(1, 9, 9, seed=2)
    moments = Moments(Side((inputs.mT @ inputs).unbind()), True)
    past = torch.full((1, len(chooser.powers)), torch.nan, dtype=F64)
    found, _ = chooser.choose(x, grads, moments, None, past, torch.zeros(1, dtype=torch.int64))
    exact = forms_of(x, grads, moments, lambda steps: steps, False, 0.0)
    expected = curve("tightness", exact, chooser.powers)
    torch.testing.assert_close(found, (expected - expected.amax(1, keepdim=True)).exp())
