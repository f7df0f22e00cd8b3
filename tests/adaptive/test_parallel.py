"""p from data where every rank sees its own part of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from ranks import join, leave
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from schattor import AutoP, Schattor
from schattor.adaptive.auto import Statistics

KINDS: tuple[Statistics, ...] = get_args(Statistics)
STEPS = 5


def trained(kind: Statistics, parts: slice, ranks: bool) -> Any:
    """What is chosen and reached by training on some of the rows of every batch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    model = model.double()
    auto = AutoP(warmup=1, interval=1, statistics=kind)
    group = {"params": [*model.named_parameters()][:4:2], "rule": "matrix"}
    optimizer = Schattor([group], lr=1e-2, p=auto)
    called: nn.Module = DistributedDataParallel(model) if ranks else model
    if kind != "gradients":
        optimizer.watch(called)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        (called(x[parts]) - y[parts]).square().mean().backward()
        optimizer.step()
    return optimizer.p_history(), [param.detach() for param in model.parameters()]


class Experts(nn.Module):
    """Every row goes to one of three experts, which are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 10, dtype=torch.float64))

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 3)
        for e in experts.unique():
            y = y.index_put((experts == e,), x[experts == e] @ self.weight[e].mT)
        return y


def trained_experts(parts: slice, ranks: bool) -> Any:
    """The same of experts, of which the last has rows in the second half of a batch alone."""
    torch.manual_seed(0)
    model = Experts()
    group = {"params": [model.weight], "rule": "matrix", "blocks": {"batch": 1}}
    optimizer = Schattor([group], lr=1e-2, p=AutoP(warmup=0, interval=1))
    called: nn.Module = DistributedDataParallel(model) if ranks else model
    optimizer.watch(called)
    experts = torch.tensor([0] * 20 + [1] * 24 + [2] * 20)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        (called(x[parts], experts[parts]) - y[parts]).square().mean().backward()
        optimizer.step()
    return optimizer.p_history(), [model.weight.detach()]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(step)
    x, y = (torch.randn(64, n, generator=generator, dtype=torch.float64) for n in (10, 3))
    return x * torch.arange(1, 11) ** -1.0, y


def run_rank(rank: int, folder: str) -> None:
    join(rank, folder)
    parts = slice(32 * rank, 32 * rank + 32)
    found = {kind: trained(kind, parts, True) for kind in KINDS}
    leave(rank, folder, {**found, "experts": trained_experts(parts, True)})


@pytest.mark.usefixtures("on_processor")
def test_ranks_choose_what_one_process_chooses_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in range(2))
    alone = {kind: trained(kind, slice(None), False) for kind in KINDS}
    alone["experts"] = trained_experts(slice(None), False)
    for kind, (history, reached) in alone.items():
        assert first[kind][0] == second[kind][0] == history
        assert all(len(choices) >= STEPS - 1 for choices in history.values())
        for ours, theirs, own in zip(first[kind][1], second[kind][1], reached, strict=True):
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(ours, own, rtol=1e-9, atol=1e-12)
    assert len({str(found[0]) for found in alone.values()}) == len(alone)
    assert all(len({p for _, p in each}) > 1 for each in alone["experts"][0].values())
