"""State dicts: plain values going out; checks, dtypes and memory formats coming in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from schattor.optim._settings import Group, check_group, check_together, plain

__all__ = ["FORMAT", "check_state_dict", "complete", "plain_groups", "restored"]

FORMAT = 1
"""Version of the layout of groups and states, kept in every group as ``format``."""

# Keys that a loaded group does not take from the one in its place.
_NOT_COMPLETED = ("params", "routes", "adamw_lr")

# State that has the parameter's shape.
_SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def plain_groups(groups: list[Group]) -> list[Group]:
    """Packed groups with plain values only, which ``torch.load(weights_only=True)`` reads."""
    return [{key: plain(value) for key, value in group.items()} for group in groups]


def complete(loaded: Group, present: Group) -> Group:
    """A loaded group, with keys that its writer did not know taken from the group in its place.

    What was saved wins over the constructor, and keys that are not ours survive.
    """
    kept = {key: value for key, value in present.items() if key not in _NOT_COMPLETED}
    full = {**kept, "routes": "", **loaded}
    if ("p" in loaded) != ("power" in loaded):
        full["power" if "p" in loaded else "p"] = None
    return full


def check_state_dict(who: str, groups: list[Group], state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError, before anything is changed, for a state dict that is not ours to load."""
    who = f"{who}.load_state_dict"
    missing = [key for key in ("state", "param_groups") if key not in state_dict]
    if missing:
        raise ValueError(f"{who}: state_dict must have the key {missing[0]!r}, got {[*state_dict]}")
    saved = state_dict["param_groups"]
    sizes, wanted = ([len(group["params"]) for group in each] for each in (saved, groups))
    if sizes != wanted:
        raise ValueError(
            f"{who}: state_dict must have {len(wanted)} groups of {wanted} parameters,"
            f" got {len(sizes)} of {sizes}"
        )
    merged = []
    for old, new in zip(groups, saved, strict=True):
        version = new.get("format", FORMAT)
        if version != FORMAT:
            raise ValueError(
                f"{who}: state_dict must be of format {FORMAT}, got {version!r}; it was written by"
                " another version of schattor"
            )
        merged.append(complete(new, old))
        check_group(who, merged[-1])
        for identity, param in zip(new["params"], old["params"], strict=True):
            _check_entry(who, identity, param, state_dict["state"].get(identity, {}))
    check_together(who, merged)


def _check_entry(who: str, identity: Any, param: Tensor, entry: Mapping[str, Any]) -> None:
    for key in _SHAPED:
        value = entry.get(key)
        if value is not None and tuple(value.shape) != tuple(param.shape):
            raise ValueError(
                f"{who}: {key} of parameter {identity} must have shape {tuple(param.shape)},"
                f" got {tuple(value.shape)}"
            )
    step = entry.get("step")
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(
            f"{who}: step of parameter {identity} must be one number, got shape {tuple(step.shape)}"
        )


def restored(param: Tensor, entry: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """A saved state entry as copies beside the parameter, in its memory format.

    Moments of the matrix rule keep the dtype that they were saved in: torch's own loader would
    round float32 moments of a bfloat16 parameter. The other rules are torch's, whose moments have
    the parameter's dtype.
    """
    own: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "step":
            device = param.device if group["capturable"] else torch.device("cpu")
            own[key] = torch.as_tensor(value, dtype=torch.float32).reshape(()).to(device).clone()
        elif key in _SHAPED and isinstance(value, Tensor):
            dtype = value.dtype if group["rule"] == "matrix" else param.dtype
            kept = torch.empty_like(param, dtype=dtype, memory_format=torch.preserve_format)
            own[key] = kept.detach().copy_(value)
        else:
            own[key] = value.to(param.device).clone() if isinstance(value, Tensor) else value
    return own
