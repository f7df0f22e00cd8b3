"""State of the matrix rule: what parameters begin with, and what a plan depends on."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from schattor.adaptive.chooser import Chooser
from schattor.blocks import block_shapes
from schattor.optim._chosen import create_choice
from schattor.optim._entries import zeros_as
from schattor.optim._preconditioned import create_statistics
from schattor.optim._settings import Group, State
from schattor.optim._shards import is_sharded

__all__ = [
    "create_state",
    "joined_counters",
    "keeps_momentum",
    "may_move",
    "signature",
    "structure_of",
]

# Keys of a group that a plan is built from: p, lr, momentum and decay may change freely between
# steps, any of these means planning again.
_structure = itemgetter(
    "rule",
    "oracle",
    "coupling",
    "scale",
    "method",
    "steps",
    "chain_dtype",
    "coefficients",
    "capturable",
    "workspace_mb",
    "momentum_dtype",
    "norm",
    "preconditioner",
    "second_moment",
    "max_precond_dim",
)


def keeps_momentum(group: Group) -> bool:
    """Whether parameters of a group have a buffer; also where a scheduler begins at momentum 0."""
    return group["momentum"] != 0 or "initial_momentum" in group


def may_move(param: Tensor) -> bool:
    """Whether a parameter has state: one with a gradient, or that may get one."""
    return param.requires_grad or param.grad is not None


def structure_of(group: Group) -> tuple[Any, ...]:
    """What a group's plan is built from."""
    return (_structure(group), keeps_momentum(group), group["p"] == "auto")


def signature(groups: list[Group], state: State) -> list[Any]:
    """What a plan is built from. Compared at every step, so it asks each parameter for little."""
    sign: list[Any] = []
    for group in groups:
        sign.append((structure_of(group), len(group["params"])))
        sign.append((repr(group.get("blocks")), repr(group["block_weights"])))
        for param in group["params"]:
            grad = param.grad
            if grad is not None:
                entry = state.get(param, _EMPTY)
                momentum = entry.get("momentum_buffer")
                sign.append(
                    (
                        id(param),
                        param.data_ptr(),
                        id(entry.get("step")),  # another one where the state was cleared
                        grad.dtype,
                        grad.layout,
                        0 if momentum is None else momentum.data_ptr(),
                    )
                )
    return sign


_EMPTY: dict[str, Any] = {}


def create_state(groups: list[Group], state: State, chooser: Chooser | None) -> None:
    """State for every parameter that may move, with a gradient or not.

    Checkpoints of all ranks and all runs then hold the same keys.
    """
    for group in groups:
        for param in group["params"]:
            if group["rule"] != "matrix" or not may_move(param):
                continue
            entry = state[param]
            if "step" not in entry:
                device = param.device if group["capturable"] else torch.device("cpu")
                entry["step"] = torch.zeros((), dtype=torch.float32, device=device)
            if is_sharded(param):  # their owners have the rest
                continue
            if keeps_momentum(group) and "momentum_buffer" not in entry:
                entry["momentum_buffer"] = zeros_as(param, group["momentum_dtype"])
            create_statistics(param, entry, group)
            if group["p"] == "auto" and chooser is not None and param.numel():
                blocks = len(block_shapes(param.shape, group.get("blocks")))
                create_choice(entry, blocks, len(chooser.powers), param.device)


def joined_counters(moving: list[Tensor], state: State) -> list[Tensor]:
    """Step counters as views of one vector a device: one call advances them all."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for param in moving:
        by_device.setdefault(state[param]["step"].device, []).append(param)
    vectors = []
    for params in by_device.values():
        vector = torch.stack([state[param]["step"].float() for param in params])
        for param, counter in zip(params, vector.unbind(), strict=True):
            state[param]["step"] = counter
        vectors.append(vector)
    return vectors
