"""From what a caller passes as ``params`` to parameter groups that each follow one rule."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from schattor import routing
from schattor.blocks import block_shapes, block_views
from schattor.optim._settings import Group
from schattor.optim._shards import is_sharded, refuse_sharded
from schattor.planning import FLOATING
from schattor.theory.preconditioners import PRECONDITIONERS, Preconditioner

__all__ = [
    "block_weight",
    "name_of",
    "refuse_idle",
    "refuse_parameter",
    "refuse_step",
    "refuse_unmatched_weights",
    "split",
    "to_groups",
]

# Layers that are looked up or score a vocabulary, by the name before ".weight", in models at large.
_EMBEDDING_OR_HEAD = re.compile(r"(^|_)(embed|embeddings?|unembed|wte|wpe|lm_head)(_|$)")


def to_groups(who: str, params: Any, **keys: Any) -> list[Group]:
    """What an optimizer's ``params`` may be, as a list of groups; ``keys`` fill each group.

    A module is routed (:func:`schattor.route`), unless ``keys`` say which rule all of it follows;
    parameters and named parameters are one group.
    """
    if isinstance(params, nn.Module):
        if "rule" not in keys:
            return [{**keys, **group} for group in routing.route(params).groups()]
        params = params.named_parameters()
    if isinstance(params, Tensor):
        raise TypeError(
            f"{who}: params must be a module or an iterable of parameters, named parameters or"
            f" groups, got a tensor of shape {tuple(params.shape)}"
        )
    items = list(params)
    if items and isinstance(items[0], dict):
        return [{**keys, **group} for group in items]
    return [{**keys, "params": items}] if items else []


def split(who: str, group: Group) -> list[Group]:
    """A group that names no rule, as one of matrices and one for AdamW, in this order.

    At least two dimensions make a matrix, unless the parameter has the name of an embedding or a
    language model's head. Parameters keep their order, and names stay with them.
    """
    given = group["params"]
    if isinstance(given, set):
        raise TypeError(f"{who}: params must be ordered, got a set")
    members = [given] if isinstance(given, Tensor) else list(given)
    names = group.get("param_names")
    if members and isinstance(members[0], tuple):
        names, members = [name for name, _ in members], [param for _, param in members]
    if names and len(names) != len(members):
        raise ValueError(
            f"{who}: param_names must be as many as params, {len(members)}, got {len(names)};"
            " delete them from groups that ZeroRedundancyOptimizer divides"
        )
    full = {**group, "params": members, **({"param_names": list(names)} if names else {})}
    if "rule" in group:
        return [full]
    matrix = [
        isinstance(param, Tensor) and _is_matrix(names[i] if names else "", param)
        for i, param in enumerate(members)
    ]
    parts = []
    for rule, wanted in (("matrix", True), ("adamw", False)):
        chosen = [i for i, is_matrix in enumerate(matrix) if is_matrix == wanted]
        if chosen:
            part = {**full, "rule": rule, "params": [members[i] for i in chosen]}
            if names:
                part["param_names"] = [names[i] for i in chosen]
            parts.append(part)
    return parts or [{**full, "rule": "adamw"}]


def _is_matrix(name: str, param: Tensor) -> bool:
    layer = name.split(".")[-2] if name.count(".") else ""
    return param.ndim >= 2 and not _EMBEDDING_OR_HEAD.search(layer)


def name_of(group_index: int, group: Group, index: int) -> str:
    """A parameter's name, or its place where the caller gave none.

    Raises ValueError where parameters came or went without their names.
    """
    names = group.get("param_names")
    if names and len(names) != len(group["params"]):
        raise ValueError(
            f"param_groups[{group_index}]: param_names must be as many as params,"
            f" {len(group['params'])}, got {len(names)}: change both, or use add_param_group"
        )
    return str(names[index]) if names else f"param_groups[{group_index}][{index}]"


def refuse_parameter(who: str, name: str, param: Tensor, group: Group) -> None:
    """Raise TypeError or ValueError for a parameter that its rule cannot move rightly."""
    flat = getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False)
    if hasattr(param, "ds_shape") or hasattr(param, "ds_id"):
        shape = tuple(getattr(param, "ds_shape", ()))
        raise ValueError(
            f"{who}: {name} must be whole, got a DeepSpeed ZeRO-3 partition of a weight {shape};"
            " use ZeRO stage 0 or FSDP2"
        )
    if flat and param.ndim < 2:
        raise ValueError(
            f"{who}: {name} must be whole, got a flat FSDP1 shard of {param.numel()} elements;"
            " use FSDP2 (fully_shard)"
        )
    if param.dtype not in FLOATING and (param.requires_grad or param.grad is not None):
        raise TypeError(
            f"{who}: {name} must be float64, float32, bfloat16 or float16, got {param.dtype}"
        )
    repeated = any(
        step == 0 and size > 1 for step, size in zip(param.stride(), param.shape, strict=True)
    )
    if repeated and (param.requires_grad or param.grad is not None):
        raise ValueError(
            f"{who}: {name} must have memory for each of its entries, got strides"
            f" {param.stride()} of shape {tuple(param.shape)}, as expand gives: clone() it"
        )
    if group["rule"] != "matrix":
        return
    if param.ndim < 2:
        raise ValueError(
            f'{who}: {name} must have at least two dimensions under rule "matrix", got shape'
            f' {tuple(param.shape)}: a vector belongs to "adamw", and a flat shard of a weight'
            " holds no matrix"
        )
    if param.numel() == 0:
        return
    try:
        if is_sharded(param):
            block_shapes(param.shape, group.get("blocks"))
        else:
            block_views(param.detach(), group.get("blocks"))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: blocks of {name}: {error}") from None
    if is_sharded(param):
        refuse_sharded(who, name, param, group)


def refuse_step(who: str, name: str, param: Tensor, entry: Mapping[str, Any], group: Group) -> None:
    """Raise TypeError or ValueError for what a step of a parameter could not take rightly."""
    grad, remedy = param.grad, "build the optimizer after model.to(...)"
    if group["capturable"] and param.device.type == "cpu":
        raise ValueError(
            f"{who}: capturable must be False for parameters on the cpu, got True with {name} on"
            f" {param.device}"
        )
    if grad is None:
        return
    if grad.layout is not torch.strided:
        raise TypeError(f"{who}: gradient of {name} must be dense, got layout {grad.layout}")
    if grad.dtype not in FLOATING:
        raise TypeError(
            f"{who}: gradient of {name} must be float64, float32, bfloat16 or float16,"
            f" got {grad.dtype}"
        )
    for key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
        kept = entry.get(key)
        if kept is None:
            continue
        if kept.device != param.device:
            raise ValueError(
                f"{who}: {key} of {name} must be on {param.device} as its parameter is, got"
                f" {kept.device}: {remedy}"
            )
        if group["rule"] != "matrix" and kept.dtype != param.dtype:
            raise TypeError(
                f"{who}: {key} of {name} must be {param.dtype} as its parameter is, got"
                f" {kept.dtype}: {remedy}"
            )


def block_weight(group: Group, name: str) -> float:
    """The weight of a parameter's blocks: 1, the group's, or that of the first pattern it matches.

    A pattern is a glob over the parameter's name or that of a module it lies in.
    """
    weights = group["block_weights"]
    if weights is None:
        return 1.0
    if not isinstance(weights, dict):
        return float(weights)
    return next((float(w) for pattern, w in weights.items() if _matches(pattern, name)), 1.0)


def _matches(pattern: str, name: str) -> bool:
    words = name.split(".")
    prefixes = (".".join(words[:count]) for count in range(len(words), 0, -1))
    return any(fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes)


def refuse_unmatched_weights(who: str, groups: Iterable[Group]) -> None:
    """Raise ValueError where a pattern of ``block_weights`` matches no parameter of its groups."""
    found: dict[str, bool] = {}
    for group in groups:
        weights = group["block_weights"]
        if group["rule"] != "matrix" or not isinstance(weights, dict):
            continue
        if "param_names" not in group:
            raise ValueError(
                f"{who}: block_weights by name need named parameters: a module or"
                " named_parameters(), got parameters without names"
            )
        for pattern in weights:
            matched = any(_matches(pattern, name) for name in group["param_names"])
            found[pattern] = found.get(pattern, False) or matched
    for pattern, matched in found.items():
        if not matched:
            raise ValueError(
                f"{who}: block_weights[{pattern!r}] must match a parameter of the matrix rule,"
                " got none"
            )


# Arguments that only some preconditioners read, and what they are where none of these is there.
_IDLE: dict[str, tuple[Any, Callable[[Preconditioner], bool], str]] = {
    "second_moment": ("full", lambda spec: spec.weights == "moments", "second moments"),
    "stagger": (False, lambda spec: bool(spec.basis), "factors"),
    "precondition_frequency": (None, lambda spec: bool(spec.basis), "factors"),
    "shampoo_beta": (None, lambda spec: bool(spec.basis), "factors"),
}


def refuse_idle(who: str, arguments: Group, groups: Iterable[Group]) -> None:
    """Raise ValueError for an argument that no group of matrices would ever read."""
    names = [group["preconditioner"] for group in groups if group["rule"] == "matrix"]
    for key, (idle, reads, what) in _IDLE.items():
        used = any(name is not None and reads(PRECONDITIONERS[name]) for name in names)
        if names and not used and arguments[key] != idle:
            raise ValueError(
                f"{who}: {key} must be {idle!r} with preconditioner={names[0]!r}, which has no"
                f" {what}, got {arguments[key]!r}"
            )
