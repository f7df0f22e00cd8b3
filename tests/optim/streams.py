"""Streams of gradients, and what a rule of `paper_rules.py` makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from paper_rules import Rule
from torch import Tensor, nn
from torch.optim import Optimizer

F64 = torch.float64
STEPS = 25


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors too small for a second thread, and for a GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.device("cpu"):
        yield
    torch.set_num_threads(threads)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gradients(shape: tuple[int, ...], steps: int = STEPS, seed: int = 1) -> list[Tensor]:
    return [normal(*shape, seed=seed + step) for step in range(steps)]


def moved(rule: Rule, grads: list[Tensor], start: Tensor | None = None) -> Tensor:
    """The weights after steps with these gradients, from zero unless said otherwise."""
    w = torch.zeros_like(grads[0]) if start is None else start
    for g in grads:
        w = rule.step(w, g)
    return w


def steps_of(rule: Rule, grads: list[Tensor]) -> list[Tensor]:
    """What each step adds to the weights, over -lr; weights stay zero."""
    return [rule.step(torch.zeros_like(g), g) / -rule.lr for g in grads]


def run(optimizer: Optimizer, param: nn.Parameter, grads: list[Tensor]) -> Tensor:
    """Steps of an optimizer with these gradients of its one parameter."""
    for g in grads:
        param.grad = g.to(param.dtype)
        optimizer.step()
    return param.detach()
