"""ZeroRedundancyOptimizer around ours: ranks share the work of copies of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import join, leave
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

import schattor
from schattor import AutoP, Schattor

pytestmark = pytest.mark.usefixtures("on_processor")

STEPS = 5
MEMBERS: list[tuple[str, dict[str, Any]]] = [
    ("schattor", {"p": 3.0, "scale": "spectral", "weight_decay": 0.1}),
    ("schattor", {"p": AutoP(statistics="gradients", warmup=1, interval=1)}),
    ("muadam", {}),
    ("soap", {}),
    ("shampoo", {}),
    ("splus", {}),
]


def model_of() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Embedding(20, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    groups = schattor.route(model).groups()
    for group in groups:
        del group["param_names"]
    return groups


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(20, (2, 10), generator=generator)[rank]
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        optimizer.step()
        schedule.step()


def trained(rank: int, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Weights with and without sharing, whose state this rank keeps, and all states."""
    alone, shared = model_of(), model_of()
    first = schattor.create(name, groups_of(alone), lr=1e-2, **settings)
    second = ZeroRedundancyOptimizer(groups_of(shared), type(first), lr=1e-2, **settings)
    train(DistributedDataParallel(alone), first, rank)
    train(DistributedDataParallel(shared), second, rank)
    kept = {name for name, param in shared.named_parameters() if second.optim.state.get(param)}
    second.consolidate_state_dict(0)
    states = [first.state_dict(), second.state_dict()] if rank == 0 else []
    return {"weights": [alone.state_dict(), shared.state_dict()], "kept": kept, "states": states}


def refused(rank: int) -> str:
    """The error of ranks that gather statistics of their own parameters alone."""
    model = model_of()
    auto = AutoP(statistics="inputs", warmup=0)
    optimizer = ZeroRedundancyOptimizer(groups_of(model), Schattor, lr=1e-2, p=auto)
    optimizer.optim.watch(model)
    with pytest.raises(ValueError) as error:
        train(model, optimizer, rank)
    return str(error.value)


def run_rank(rank: int, folder: str) -> None:
    join(rank, folder)
    found = [trained(rank, name, settings) for name, settings in MEMBERS]
    leave(rank, folder, (found, refused(rank)))


def test_ranks_share_the_work(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}", weights_only=False) for rank in range(2)]
    for index in range(len(MEMBERS)):
        first, second = (found[index] for found, _ in ranks)
        alone, shared = first["weights"]
        for name, expected in alone.items():
            assert torch.equal(shared[name], expected)
            assert torch.equal(second["weights"][1][name], expected)
        assert first["kept"] and second["kept"] and not first["kept"] & second["kept"]
        assert first["kept"] | second["kept"] == {*alone}
        own, whole = (each["state"] for each in first["states"])  # what a checkpoint holds
        assert [{*own[key]} for key in own] == [{*whole[key]} for key in own]
        for key, entry in own.items():
            for name, value in entry.items():
                torch.testing.assert_close(value, whole[key][name], rtol=0, atol=0, equal_nan=True)
    for _, message in ranks:
        assert "every rank must choose p of the same parameters, got [" in message


def test_names_that_are_not_divided_with_their_parameters_are_refused() -> None:
    group = schattor.route(model_of()).groups()[0]
    group["params"] = group["params"][1:]
    message = "Schattor: param_names must be as many as params, 2, got 3; delete them from groups"
    with pytest.raises(ValueError, match=message):
        Schattor([group])
