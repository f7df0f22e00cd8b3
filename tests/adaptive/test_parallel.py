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


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(step)
    x, y = (torch.randn(64, n, generator=generator, dtype=torch.float64) for n in (10, 3))
    return x * torch.arange(1, 11) ** -1.0, y


def run_rank(rank: int, folder: str) -> None:
    join(rank, folder)
    parts = slice(32 * rank, 32 * rank + 32)
    leave(rank, folder, {kind: trained(kind, parts, True) for kind in KINDS})


@pytest.mark.usefixtures("on_processor")
def test_ranks_choose_what_one_process_chooses_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in range(2))
    for kind in KINDS:
        history, reached = trained(kind, slice(None), False)
        assert first[kind][0] == second[kind][0] == history
        assert {len(choices) for choices in history.values()} == {STEPS - 1}
        for ours, theirs, alone in zip(first[kind][1], second[kind][1], reached, strict=True):
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-12)
    assert len({str(first[kind][0]) for kind in KINDS}) == len(KINDS)
