"""What weights are seen to multiply, for the tests of p from data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from schattor import AutoP, Schattor
from schattor.adaptive.chooser import Chooser, Inputs
from schattor.adaptive.own import OwnMoments
from schattor.adaptive.products import Products
from schattor.adaptive.samples import Samples
from schattor.blocks import BlockSpec
from schattor.optim._chosen import widths_of

Found = TypeVar("Found")
ALWAYS = AutoP(warmup=0, interval=1, smoothing=0.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def truth(*rows: Tensor) -> Tensor:
    """The mean of ``x x'`` over rows ``[..., n]``, in float64."""
    x = torch.cat([part.detach().double().flatten(0, -2) for part in rows])
    return x.mT @ x / len(x)


def choices(monkeypatch: pytest.MonkeyPatch, of: Callable[[Samples], Found]) -> list[Found | None]:
    """Of the samples that blocks are chosen by from now on, in the order they are asked for."""
    found: list[Found | None] = []
    samples = Chooser.samples

    def watched(self: Chooser, inputs: Inputs) -> Samples | None:
        seen = samples(self, inputs)
        found.append(None if seen is None else of(seen))
        return seen

    monkeypatch.setattr(Chooser, "samples", watched)
    return found


class Own(nn.Module):
    """A weight, and any way to apply it."""

    def __init__(self, weight: Tensor, apply: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.apply_to = apply

    def forward(self, *args: Any) -> Any:
        return self.apply_to(self.weight, *args)


class Seen:
    """The moments of what blocks of some parameters of a model were seen to multiply."""

    def __init__(
        self,
        model: nn.Module,
        specs: dict[str, BlockSpec | None],
        tokens: int | None = None,
    ) -> None:
        self.params = {name: model.get_parameter(name) for name in specs}
        widths = [widths_of(self.params[name], name, spec) for name, spec in specs.items()]
        self.blocks = {each.name: range(len(each.blocks) or 1) for each in widths}
        self.own = OwnMoments(widths, tokens)
        self.products = Products(model, widths, self.own, tokens)

    def __enter__(self) -> Seen:
        self.products.record(True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.products.record(False)

    def moments(self, name: str = "weight") -> list[Tensor | None]:
        collections = [self.own.like(self.params[name], block) for block in self.blocks[name]]
        return [each.samples and each.samples.moment() for each in collections]

    def numbers(self, name: str = "weight") -> list[int]:
        collections = [self.own.like(self.params[name], block) for block in self.blocks[name]]
        return [0 if each.samples is None else int(each.samples.number) for each in collections]


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert [each is None for each in found] == [each is None for each in expected]
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)


def curves_of(optimizer: Schattor) -> list[Tensor]:
    """The smoothed criterion of every block, NaN where it was never known."""
    entries = (entry for state in optimizer.state.values() for entry in state.items())
    return [value for key, value in entries if key.startswith("auto_curve")]
