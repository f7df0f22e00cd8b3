"""Weights split along two dimensions of a mesh: four ranks step as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import join, leave
from torch import Tensor, nn

from schattor import AutoP, Schattor, create

pytestmark = pytest.mark.usefixtures("on_processor")

SETTINGS: list[dict[str, Any]] = [
    {"weight_decay": 0.1},
    {"preconditioner": "adam", "second_moment": "factored", "p": 3.0},
    {"p": AutoP(warmup=1, interval=1)},
]


class Model(nn.Module):
    """Two layers, the first split by outputs and the second by inputs: tensor parallelism."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).tanh())
        return y


def spread(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    return fully_shard(model, mesh=mesh["data"])


def go_on(model: nn.Module, optimizer: Schattor, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(settings: dict[str, Any], ranks: bool) -> dict[str, Tensor]:
    """Interrupted after two of five steps."""
    torch.manual_seed(0)
    model = Model().double()
    if ranks:
        spread(model)
    optimizer = Schattor(model, lr=0.02, **settings)
    go_on(model, optimizer, range(2))
    fresh = Schattor(model, lr=0.02, **settings)
    fresh.load_state_dict(optimizer.state_dict())
    go_on(model, fresh, range(2, 5))
    found = {}
    for name, param in model.named_parameters():
        found[name] = (param.full_tensor() if ranks else param).detach()  # type: ignore[operator]
    return found


def placed(ranks: bool) -> list[Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    found = []
    for placements in ((Shard(0), Shard(1)), (Shard(1), Shard(1)), (Replicate(), Shard(0))):
        torch.manual_seed(1)
        start, grad = torch.randn(5, 3).double(), torch.randn(5, 3).double()
        if ranks:
            mesh = init_device_mesh("cpu", (2, 2))
            start, grad = (distribute_tensor(each, mesh, placements) for each in (start, grad))
        param = nn.Parameter(start)
        optimizer = create("soap", [param], lr=0.1, precondition_frequency=2)
        for step in range(4):
            param.grad = grad * (step - 1.5)
            optimizer.step()
        found.append((param.full_tensor() if ranks else param).detach())  # type: ignore[operator]
    return found


def rank(index: int, folder: str) -> None:
    join(index, folder, 4)
    torch.set_num_threads(1)
    found = [trained(settings, ranks=True) for settings in SETTINGS]
    leave(index, folder, {"trained": found, "placed": placed(ranks=True)})


def test_ranks_of_two_dimensions_step_as_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, args=(str(tmp_path),), nprocs=4)  # type: ignore[attr-defined]
    alone = [trained(settings, ranks=False) for settings in SETTINGS]
    for index in range(4):
        found = torch.load(tmp_path / f"rank{index}")
        torch.testing.assert_close(found["trained"], alone, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found["placed"], placed(ranks=False), rtol=1e-9, atol=1e-11)
