"""What each block of a bucket is chosen from."""

from __future__ import annotations

import torch
from torch import Tensor

from schattor.adaptive.auto import AutoP
from schattor.adaptive.chooser import Chooser
from schattor.adaptive.criteria import curve
from schattor.adaptive.forms import forms_of
from schattor.adaptive.moments import Moments, Side

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


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
