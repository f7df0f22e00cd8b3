"""What is known of a DTensor, and which the matrix rule refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sharded_runs import go_on, model_of, optimizer_of, shard, weights
from torch import nn

from schattor import AutoP, Schattor
from schattor.optim._shards import ranks_of, refuse_sharded, spread_of


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    place = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def weight_of(mesh: Any, placement: Any) -> nn.Parameter:
    from torch.distributed.tensor import DTensor

    return nn.Parameter(DTensor.from_local(torch.zeros(4, 4, device="cpu"), mesh, (placement,)))


def test_no_graph_captures_an_exchange(mesh: Any) -> None:
    from torch.distributed.tensor import Shard

    message = "Schattor: param_groups[0][0] is a DTensor: capturable must be False, since no graph"
    with pytest.raises(ValueError, match=re.escape(message)):
        Schattor([weight_of(mesh, Shard(0))], capturable=True)


def test_sums_that_were_not_made_are_refused(mesh: Any) -> None:
    from torch.distributed.tensor import Partial

    with pytest.raises(ValueError, match="must be split or whole along each mesh dimension"):
        Schattor([weight_of(mesh, Partial())])


def made_up(placements: tuple[Any, ...], local: tuple[int, ...], device: str = "cpu") -> Any:
    """A 5 x 4 weight over two ranks in every dimension of a mesh, seen from the first."""
    mesh = SimpleNamespace(device_type=device, size=lambda _: 2)
    mesh.get_group = mesh.get_local_rank = lambda _: 0
    shard = torch.zeros(local, device="cpu")
    return SimpleNamespace(
        shape=(5, 4), ndim=2, placements=placements, device_mesh=mesh, to_local=lambda: shard
    )


def test_what_one_exchange_cannot_bring_together_is_refused() -> None:
    from torch.distributed.tensor import Replicate, Shard

    group = Schattor([nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    cases = {
        r"must have shape \(3, 4\), as torch.chunk gives it": made_up((Shard(0),), (2, 4)),
        "on the cuda of its mesh": made_up((Shard(0),), (3, 4), "cuda"),
    }
    for message, weight in cases.items():
        with pytest.raises(ValueError, match=message):
            refuse_sharded("Schattor", "w", weight, group)
    refuse_sharded("Schattor", "w", made_up((Replicate(), Shard(0)), (3, 4)), group)


def test_ranks_hold_what_chunk_gives_them() -> None:
    from torch.distributed.tensor import Shard

    weight = made_up((Shard(0),), (3, 4))
    spread = spread_of(weight, weight.shape, 0)
    assert spread.sizes(2) == [len(part) for part in torch.zeros(5, 4).chunk(2)]
    assert spread.dim == 0 and ranks_of(weight)[1:] == (0, 2)


@pytest.mark.usefixtures("on_processor", "mesh")
@pytest.mark.parametrize(
    "settings",
    [
        {"preconditioner": "soap", "precondition_frequency": 2},
        {"p": AutoP(warmup=1, interval=1)},
        {"coupling": "l2"},
    ],
    ids=str,
)
def test_one_rank_that_has_all(settings: dict[str, Any]) -> None:
    models = model_of(), shard(model_of())
    for model in models:
        optimizer, fresh = (optimizer_of(model, **settings) for _ in range(2))
        go_on(model, optimizer, range(2))
        fresh.load_state_dict(optimizer.state_dict())
        go_on(model, fresh, range(2, 4))
    alone, sharded = map(weights, models)
    torch.testing.assert_close(sharded, alone, rtol=0, atol=0)
