"""Weights in shards (FSDP2, DTensor): two ranks step as one process does, and keep shards alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import join, leave
from torch import Tensor, nn
from torch.distributed import checkpoint

from schattor import Schattor

pytestmark = pytest.mark.usefixtures("on_processor")

SETTINGS: list[dict[str, Any]] = [
    {},
    {"p": 3.0, "scale": "spectral", "weight_decay": 0.1},
    {"p": 2.5, "oracle": "regularized", "bias_correction": True},
    {"power": -0.1, "momentum_form": "heavy_ball", "nesterov": False},
    {"momentum": 0.0, "maximize": True},
    {"nesterov": False, "bias_correction": True, "oracle": "regularized"},
    {"p": lambda step: 2.0 + step, "lr": torch.tensor(0.02), "scale": "pin"},
    {"block_weights": {"0": 0.5}, "oracle": "regularized"},
    {"workspace_mb": 1e-4},  # several rounds
]


def model_of(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Sides that two ranks cannot halve, a fused weight, and one row, of which a rank has none."""
    torch.manual_seed(0)
    sizes = (6, 5, 9, 12, 3, 1)
    layers = [nn.Linear(*each) for each in itertools.pairwise(sizes)]
    return nn.Sequential(*(nn.Sequential(each, nn.Tanh()) for each in layers)).to(dtype)


def shard(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def optimizer_of(model: nn.Module, **settings: Any) -> Schattor:
    weights, vectors = [], []
    for name, param in model.named_parameters():
        (weights if param.ndim == 2 else vectors).append((name, param))
    fused = [each for each in weights if each[0] == "2.0.weight"]
    others = [each for each in weights if each[0] != "2.0.weight"]
    groups = [
        {"params": others, "rule": "matrix"},
        {"params": fused, "rule": "matrix", "blocks": {"rows": 3}},
        {"params": vectors, "rule": "adamw"},
    ]
    if isinstance(settings.get("block_weights"), dict):
        groups[1]["block_weights"] = None
    return Schattor(groups, **{"lr": 0.02, **settings})


def go_on(model: nn.Module, optimizer: Schattor, steps: range, spoil: str = "") -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(40, 6, generator=generator, dtype=next(model.parameters()).dtype)
        model(x).square().mean().backward()
        for name, param in model.named_parameters():
            if name == spoil and step == 1:
                grad = param.grad.to_local() if hasattr(param.grad, "to_local") else param.grad
                if grad.numel() and (not torch.distributed.is_initialized() or _rank() == 1):
                    grad[-1, 0] = math.nan
        optimizer.step()
        optimizer.zero_grad()


def _rank() -> int:
    return torch.distributed.get_rank()


def weights(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, param in model.named_parameters():
        whole = param.full_tensor() if hasattr(param, "full_tensor") else param
        found[name] = whole.detach().clone()
    return found


# What both ranks do, in one process each for all tests: joining takes seconds.


def trained(sharded: bool) -> list[dict[str, Tensor]]:
    found = []
    for settings in SETTINGS:
        model = model_of()
        called = shard(model) if sharded else model
        go_on(called, optimizer_of(model, **settings), range(4))
        found.append(weights(model))
    return found


def spoiled(sharded: bool) -> dict[str, Tensor]:
    model = model_of()
    called = shard(model) if sharded else model
    optimizer = optimizer_of(model)
    go_on(called, optimizer, range(3), spoil="0.0.weight")
    counts = torch.tensor(optimizer.stats()["nonfinite"])
    if sharded:
        torch.distributed.all_reduce(counts)
    return {**weights(model), "nonfinite": counts}


def rounded(sharded: bool) -> dict[str, Tensor]:
    """bfloat16 weights with float32 momentum, in which they are exchanged."""
    model = model_of(torch.bfloat16)
    called = shard(model) if sharded else model
    go_on(called, optimizer_of(model, momentum_dtype=torch.float32), range(3))
    return weights(model)


def applied() -> tuple[Tensor, Tensor]:
    """What a rank sends of a bfloat16 weight, and the same in float64."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(2)
    drawn = torch.randn(16, 8, dtype=torch.bfloat16)
    param = nn.Parameter(distribute_tensor(drawn, init_device_mesh("cpu", (2,)), (Shard(0),)))
    optimizer = Schattor([param], lr=0.1)
    for _ in range(2):
        param.grad = torch.randn_like(param)
        optimizer.step()
    (only,) = optimizer._sharded.rounds
    grad = torch.randn_like(param)
    param.grad = grad
    group = optimizer.param_groups[0]
    sent = only._applied(grad.to_local(), group, only._rule(group), optimizer.state[param])
    moment, mu = optimizer.state[param]["momentum_buffer"].to_local().double(), 0.95
    mine = grad.to_local().double()
    return sent, mu * (mu * moment + (1 - mu) * mine) + (1 - mu) * mine


def swapped() -> dict[str, Tensor]:
    """Shards that take their place in the groups of an optimizer after it was built."""
    model = model_of()
    before = dict(model.named_parameters())
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(optimizer.state_dict())
    shard(model)
    after = {id(before[name]): param for name, param in model.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [after[id(param)] for param in group["params"]]
    go_on(model, optimizer, range(4))
    return weights(model)


def shares() -> dict[str, Any]:
    """What a rank keeps, computes and says."""
    model = model_of()
    shard(model)
    optimizer = optimizer_of(model)
    go_on(model, optimizer, range(2))
    buffers = {}
    for name, param in model.named_parameters():
        state = optimizer.state[param]
        if "momentum_buffer" in state:
            buffers[name] = (state["momentum_buffer"].to_local().shape, float(state["step"]))
    small = optimizer_of(model, workspace_mb=1e-4)
    go_on(model, small, range(1))
    return {
        "rounds": (len(optimizer._sharded.rounds), len(small._sharded.rounds)),
        "buffers": buffers,
        "shards": {name: param.to_local().shape for name, param in model.named_parameters()},
        "blocks": optimizer.stats(spectra=True)["blocks"],
        "explained": optimizer.explain(),
    }


def resumed() -> dict[str, dict[str, Tensor]]:
    """Interrupted after two of four steps; by torch's distributed checkpoints, and by hand."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    found = {}
    for kind in ("whole", "by torch", "by hand"):
        model = model_of(torch.bfloat16)
        shard(model)
        optimizer = optimizer_of(model, momentum_dtype=torch.float32)
        go_on(model, optimizer, range(2))
        if kind != "whole":
            fresh = optimizer_of(model, momentum_dtype=torch.float32)
            if kind == "by torch":
                saved = get_optimizer_state_dict(model, optimizer)
                set_optimizer_state_dict(model, fresh, saved)
            else:
                fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        go_on(model, optimizer, range(2, 4))
        found[kind] = weights(model)
    return found


def saved(folder: str) -> None:
    """A checkpoint after two steps."""
    model = model_of()
    shard(model)
    optimizer = optimizer_of(model)
    go_on(model, optimizer, range(2))
    checkpoint.save(states_of(model, optimizer), checkpoint_id=f"{folder}/checkpoint")


def states_of(model: nn.Module, optimizer: Schattor) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def placed() -> dict[str, tuple[Tensor, Tensor]]:
    """Split along columns, whole on every rank, and over two dimensions of a mesh."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    pairs = {}
    flat, square = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    cases = {
        "columns": (flat, (Shard(1),)),
        "last": (flat, (Shard(-1),)),
        "whole": (flat, (Replicate(),)),
        "hybrid": (square, (Replicate(), Shard(0))),
        "thin": (square, (Shard(0), Shard(1))),
    }
    for name, (mesh, placements) in cases.items():
        made: list[Tensor] = []
        for distributed in (True, False):
            torch.manual_seed(1)
            start, grad = torch.randn(5, 3).double(), torch.randn(5, 3).double()
            if distributed:
                start = distribute_tensor(start, mesh, placements)
                grad = distribute_tensor(grad, mesh, placements)
            param = nn.Parameter(start)
            optimizer = Schattor([param], lr=0.1, weight_decay=0.1)
            for _ in range(2):
                param.grad = grad.clone()
                optimizer.step()
            made.append(param.full_tensor() if distributed else param)
        pairs[name] = (made[0].detach(), made[1].detach())
    return pairs


def rank(index: int, folder: str) -> None:
    join(index, folder)
    saved(folder)
    found = {
        "trained": trained(sharded=True),
        "spoiled": spoiled(sharded=True),
        "rounded": rounded(sharded=True),
        "applied": applied(),
        "swapped": swapped(),
        "shares": shares(),
        "resumed": resumed(),
        "placed": placed(),
    }
    leave(index, folder, found)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    start: Callable[..., Any] = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    start(rank, args=(str(folder),), nprocs=2, start_method="spawn")
    found = [torch.load(folder / f"rank{index}", weights_only=False) for index in range(2)]
    yield [{**each, "folder": folder} for each in found]


@pytest.mark.parametrize("index", range(len(SETTINGS)), ids=lambda index: str([*SETTINGS[index]]))
def test_ranks_step_as_one_process(ranks: list[dict[str, Any]], index: int) -> None:
    alone = trained(sharded=False)[index]
    for found in ranks:
        torch.testing.assert_close(found["trained"][index], alone, rtol=1e-9, atol=1e-11)


def test_a_weight_whose_gradient_is_not_finite_anywhere_stays(ranks: list[dict[str, Any]]) -> None:
    alone = spoiled(sharded=False)
    for found in ranks:
        torch.testing.assert_close(found["spoiled"], alone, rtol=1e-9, atol=1e-11)
    assert alone["nonfinite"] == 1


def test_bfloat16_is_rounded_for_the_exchange_alone(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        torch.testing.assert_close(found["rounded"], rounded(sharded=False), rtol=0.01, atol=1e-3)
        sent, exact = found["applied"]
        assert sent.dtype == torch.bfloat16
        torch.testing.assert_close(sent.double(), exact, rtol=2.0**-8, atol=0)


def test_weights_may_become_shards_before_the_first_step(ranks: list[dict[str, Any]]) -> None:
    alone = trained(sharded=False)[0]
    for found in ranks:
        torch.testing.assert_close(found["swapped"], alone, rtol=1e-9, atol=1e-11)


def test_ranks_keep_shards_and_share_the_work(ranks: list[dict[str, Any]]) -> None:
    owned = [set(found["shares"]["blocks"]) for found in ranks]
    assert all(owned) and not owned[0] & owned[1]
    names = {f"{i}.0.weight" for i in (0, 1, 3, 4)} | {f"2.0.weight[{i}]" for i in range(3)}
    assert owned[0] | owned[1] == names
    for found in (each["shares"] for each in ranks):
        for name, (shape, steps) in found["buffers"].items():
            assert shape == found["shards"][name] and steps == 2
        assert len(found["buffers"]) == 5
        assert found["rounds"][0] == 1 < found["rounds"][1]
        assert all({"p", "dual_norm", "update_rms"} == {*row} for row in found["blocks"].values())
        assert found["explained"].count("for all ranks") >= 1


def test_a_run_is_resumed_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    for found in (each["resumed"] for each in ranks):
        for kind in ("by torch", "by hand"):
            torch.testing.assert_close(found[kind], found["whole"], rtol=0, atol=0)


def test_one_process_goes_on_from_a_checkpoint_of_two(ranks: list[dict[str, Any]]) -> None:
    from torch.distributed.checkpoint.state_dict import set_state_dict

    model = model_of()
    for param in model.parameters():
        param.data.zero_()
    optimizer = optimizer_of(model)
    states = states_of(model, optimizer)
    checkpoint.load(states, checkpoint_id=ranks[0]["folder"] / "checkpoint")
    given = {"model_state_dict": states["model"], "optim_state_dict": states["optimizer"]}
    set_state_dict(model, optimizer, **given)
    go_on(model, optimizer, range(2, 4))
    alone = trained(sharded=False)[0]
    torch.testing.assert_close(weights(model), alone, rtol=1e-9, atol=1e-11)


def test_any_single_split_moves_as_the_whole(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        for sharded, alone in found["placed"].values():
            torch.testing.assert_close(sharded, alone, rtol=1e-9, atol=1e-11)
