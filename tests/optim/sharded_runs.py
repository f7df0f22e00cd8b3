"""What two ranks do with weights in shards (FSDP2, DTensor), and one process with whole ones."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from ranks import join, leave
from torch import Tensor, nn
from torch.distributed import checkpoint

from schattor import AutoP, Schattor, create

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
    {"scale": "width", "weight_decay": 0.1},
    {"scale": "adam"},
    {"preconditioner": "adam", "second_moment": "factored"},
    {"preconditioner": "sania", "p": 2.0, "oracle": "regularized"},
    {"preconditioner": "kl_shampoo", "precondition_frequency": 2, "workspace_mb": 1e-4},
    {"preconditioner": "kl_soap", "precondition_frequency": 2, "p": 3.0},
    {"coupling": "l2", "workspace_mb": 1e-4},
    {"coupling": 3.0, "oracle": "regularized", "p": 3.0, "block_weights": {"0": 0.5, "3": 2.0}},
    {"coupling": "greedy", "preconditioner": "adam"},
    {"coupling": "block_diagonal", "p": 4.0},
    {"p": AutoP(warmup=1, interval=1)},
    {"p": AutoP(warmup=1, interval=2, statistics="kfac"), "workspace_mb": 1e-4},
    {"p": AutoP(warmup=1, interval=1, statistics="gradients"), "preconditioner": "adam"},
]

SPOILED = ("0.0.weight", "2.0.weight")

MEMBERS: dict[str, dict[str, Any]] = {
    "soap": {"precondition_frequency": 2, "weight_decay": 0.1},
    "shampoo": {"precondition_frequency": 2, "start_preconditioning_step": 2},
    "splus": {"inverse_every": 2},
    "muadam": {},
    "muon": {},
}


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


def optimizer_of(model: nn.Module, member: str = "", **settings: Any) -> Schattor:
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
    make = functools.partial(create, member) if member else Schattor
    optimizer: Schattor = make(groups, **{"lr": 0.02, **settings})
    if optimizer.wants_model:
        optimizer.watch(model)
    return optimizer


def go_on(
    model: nn.Module,
    optimizer: Schattor,
    steps: range,
    spoil: str = "",
    share: bool = False,
    without: Sequence[str] = (),
) -> None:
    """Ranks see the same, whose mean is that of one process to the bit, or each its share.

    The gradient of one weight is spoiled once, those of some are dropped.
    """
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(40, 6, generator=generator, dtype=next(model.parameters()).dtype)
        if share and torch.distributed.is_initialized():
            x = x[_rank() :: 2]
        model(x).square().mean().backward()
        for name, param in model.named_parameters():
            if name == spoil and step == 1:
                grad = param.grad.to_local() if hasattr(param.grad, "to_local") else param.grad
                if grad.numel() and (not torch.distributed.is_initialized() or _rank() == 1):
                    grad[-1, 0] = math.nan
            if name in without:
                param.grad = None
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
    for settings in (*SETTINGS, *({"member": name, **MEMBERS[name]} for name in MEMBERS)):
        model = model_of()
        called = shard(model) if sharded else model
        chosen = isinstance(settings.get("p"), AutoP)
        go_on(called, optimizer_of(model, **settings), range(5), share=chosen)
        found.append(weights(model))
    return found


def spoiled(sharded: bool, name: str) -> dict[str, Tensor]:
    """One block of a weight, which may have others."""
    model = model_of()
    called = shard(model) if sharded else model
    optimizer = optimizer_of(model)
    go_on(called, optimizer, range(3), spoil=name)
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
    go_on(model, optimizer, range(5))
    return weights(model)


def shares() -> dict[str, Any]:
    """What a rank keeps, computes and says."""
    model = model_of()
    shard(model)
    optimizer = optimizer_of(model)
    go_on(model, optimizer, range(2))
    soap = optimizer_of(model, "soap")
    go_on(model, soap, range(1))
    small = optimizer_of(model, workspace_mb=1e-4)
    go_on(model, small, range(1))
    packed = optimizer.state_dict()
    return {
        "rounds": (len(optimizer._sharded.rounds), len(small._sharded.rounds)),
        "kept": [
            {key for key, value in optimizer.state[param].items() if value is not None}
            for param in optimizer.param_groups[0]["params"]
        ],
        "moments": {
            name: packed["state"][key]["momentum_buffer"].to_local().shape
            for group in packed["param_groups"]
            if group["rule"] == "matrix"
            for name, key in zip(group["param_names"], group["params"], strict=True)
        },
        "shards": {name: param.to_local().shape for name, param in model.named_parameters()},
        "blocks": optimizer.stats(spectra=True)["blocks"],
        "explained": optimizer.explain(),
        "failed": soap.stats()["failed_refreshes"],
    }


RESUMED: list[dict[str, Any]] = [
    {"dtype": torch.bfloat16, "momentum_dtype": torch.float32},
    {"preconditioner": "soap", "precondition_frequency": 3, "workspace_mb": 1e-4},
    {"member": "shampoo", "precondition_frequency": 3},
    {"member": "splus", "inverse_every": 3},
    {"p": AutoP(warmup=1, interval=2), "scale": "adam"},
]
"""Interrupted after two of five steps."""


def resumed(dtype: torch.dtype = torch.float64, **settings: Any) -> dict[str, Any]:
    """By torch's distributed checkpoints, by hand, and as copies are made."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    ways = {
        "by torch": None,
        "gathered": StateDictOptions(full_state_dict=True),
        "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    }
    found = {}
    for kind in ("whole", *ways, "by hand", "copied"):
        model = model_of(dtype)
        shard(model)
        optimizer = optimizer_of(model, **settings)
        go_on(model, optimizer, range(2))
        fresh = optimizer_of(model, **settings)
        if kind in ways:
            saved = get_optimizer_state_dict(model, optimizer, options=ways[kind])
            set_optimizer_state_dict(model, fresh, saved, options=ways[kind])
        elif kind == "by hand":
            fresh.load_state_dict(optimizer.state_dict())
        elif kind == "copied":
            fresh = copy.copy(optimizer)
            if fresh.wants_model:
                fresh.watch(model)
        go_on(model, optimizer if kind == "whole" else fresh, range(2, 5))
        found[kind] = weights(model)
    return found


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soap": {"member": "soap", "precondition_frequency": 3},
    "shampoo": {"member": "shampoo", "precondition_frequency": 3},
    "auto": {
        "p": AutoP(warmup=1, interval=1),
        "preconditioner": "adam",
        "second_moment": "factored",
    },
}
"""What two ranks write after two steps, and one process goes on with; and the other way round."""


def saved(folder: str) -> None:
    for name, settings in CHECKPOINTS.items():
        model = model_of()
        shard(model)
        optimizer = optimizer_of(model, **settings)
        go_on(model, optimizer, range(2))
        checkpoint.save(states_of(model, optimizer), checkpoint_id=f"{folder}/{name}")


def states_of(model: nn.Module, optimizer: Schattor) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def handed_over(to_shards: bool) -> list[dict[str, Tensor]]:
    """Begun with whole weights and gone on with in shards, or the other way round."""
    found = []
    for settings in CHECKPOINTS.values():
        first, second = model_of(), model_of()
        if not to_shards:
            shard(first)
        optimizer = optimizer_of(first, **settings)
        go_on(first, optimizer, range(2))
        second.load_state_dict(weights(first))
        if to_shards:
            shard(second)
        other = optimizer_of(second, **settings)
        other.load_state_dict(optimizer.state_dict())
        go_on(second, other, range(2, 5))
        found.append(weights(second))
    return found


def changed(sharded: bool) -> dict[str, Tensor]:
    """Gradients that come late and go, weights that are frozen, and another preconditioner."""
    model = model_of()
    model.get_parameter("4.0.weight").requires_grad_(False)
    called = shard(model) if sharded else model
    optimizer = optimizer_of(
        model, preconditioner="soap", precondition_frequency=2, workspace_mb=1e-4
    )
    go_on(called, optimizer, range(1), without=("3.0.weight",))
    optimizer.load_state_dict(optimizer.state_dict())
    go_on(called, optimizer, range(1, 3))
    frozen = model.get_parameter("0.0.weight")
    frozen.requires_grad_(False)
    go_on(called, optimizer, range(3, 5), without=("0.0.weight", "1.0.weight"))
    frozen.requires_grad_(True)
    go_on(called, optimizer, range(5, 7))
    for group in optimizer.param_groups[:2]:
        group["preconditioner"] = "shampoo"
    go_on(called, optimizer, range(7, 10))
    optimizer.load_state_dict(optimizer.state_dict())
    go_on(called, optimizer, range(10, 11))
    return weights(model)


def averaged(sharded: bool) -> list[dict[str, Tensor]]:
    """SPlus's average of the weights, and the weights back in place."""
    model = model_of()
    called = shard(model) if sharded else model
    optimizer = optimizer_of(model, "splus", ema_rate=0.5)
    go_on(called, optimizer, range(3))
    optimizer.eval()  # type: ignore[attr-defined]
    found = [weights(model)]
    optimizer.train()  # type: ignore[attr-defined]
    return [*found, weights(model)]


class Mixed(nn.Module):
    """A convolution, and two experts in one tensor, in a module that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(2, 5, 2)
        self.experts = nn.Parameter(torch.randn(2, 6, 10) / 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x.view(-1, 2, 3)).tanh().flatten(1)
        first = x[:, 0] > 0
        y = x.new_zeros(len(x), 6)
        y = y.index_put((first,), x[first] @ self.experts[0].mT)
        y = y.index_put((~first,), x[~first] @ self.experts[1].mT)
        return self.head(y.tanh())


def mixed(sharded: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """p from what is seen of all ranks' inputs; also where shards take their places later."""
    found, history = {}, {}
    for kind in ("before", "after"):
        torch.manual_seed(0)
        model = Mixed().double()
        before = dict(model.named_parameters())
        called = shard(model) if sharded and kind == "before" else model
        groups = [
            {"params": [each], "rule": "matrix" if each[1].ndim > 1 else "adamw"}
            for each in model.named_parameters()
        ]
        groups[[name for name, _ in model.named_parameters()].index("experts")]["blocks"] = {
            "batch": 1
        }
        optimizer = Schattor(groups, lr=0.02, p=AutoP(warmup=1, interval=1, smoothing=0.0))
        optimizer.watch(model)
        if sharded and kind == "after":
            called = shard(model)
            after = {id(before[name]): param for name, param in model.named_parameters()}
            for group in optimizer.param_groups:
                group["params"] = [after[id(param)] for param in group["params"]]
        go_on(called, optimizer, range(3), share=True)
        optimizer.watch(model)  # again
        go_on(called, optimizer, range(3, 5), share=True)
        found |= {f"{kind} {name}": weight for name, weight in weights(model).items()}
        history |= {f"{kind} {name}": each for name, each in optimizer.p_history().items()}
    return found, history


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


def together(sharded: bool, coupling: str, *, whole: bool = False) -> list[Tensor]:
    """One weight that each rank has, and two in shards, whose blocks share their steps."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(1)
    starts = [torch.randn(5, 3).double() for _ in range(3)]
    grads = [(1 + index) * torch.randn(5, 3).double() for index in (1, 0, 2)]
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        placements = (Replicate() if whole else Shard(0), Shard(1))
        for index, placement in enumerate(placements, 1):
            starts[index] = distribute_tensor(starts[index], mesh, (placement,))
            grads[index] = distribute_tensor(grads[index], mesh, (placement,))
    params = [nn.Parameter(start) for start in starts]
    optimizer = Schattor(params, lr=0.1, coupling=coupling, oracle="ball", scale="unit", p=3.0)
    for _ in range(2):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for p in params]


def refusal() -> str:
    """Of a coupling between a weight that one rank computes, and one that all do."""
    try:
        together(sharded=True, coupling="l2", whole=True)
    except ValueError as error:
        return str(error)
    return ""


def rank(index: int, folder: str) -> None:
    join(index, folder)
    saved(folder)
    found = {
        "trained": trained(sharded=True),
        "spoiled": {name: spoiled(sharded=True, name=name) for name in SPOILED},
        "rounded": rounded(sharded=True),
        "changed": changed(sharded=True),
        "averaged": averaged(sharded=True),
        "mixed": mixed(sharded=True),
        "together": {each: together(sharded=True, coupling=each) for each in ("l2", "greedy")},
        "refusal": refusal(),
        "swapped": swapped(),
        "handed over": [handed_over(to_shards) for to_shards in (True, False)],
        "shares": shares(),
        "resumed": [resumed(**settings) for settings in RESUMED],
        "placed": placed(),
    }
    leave(index, folder, found)
