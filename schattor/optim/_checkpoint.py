"""State dicts: plain values going out; checks, dtypes and memory formats coming in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from schattor.optim._formats import check_format, with_columns
from schattor.optim._preconditioned import statistics_shapes
from schattor.optim._settings import Group, check_group, check_together, plain
from schattor.optim._sharded import ShardedSteps
from schattor.optim._shards import laid_as
from schattor.optim._stepper import Stepper

__all__ = ["FORMAT", "Checkpointed", "Schedule"]

Schedule = Callable[[int], float]

FORMAT = 1
"""Version of the layout of groups and states, kept in every group as ``format``."""

# Keys that a loaded group does not take from the one in its place.
_NOT_COMPLETED = ("params", "routes", "adamw_lr", "auto_taken")

# State that has the parameter's shape.
_SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "graft_sq", "ema", "kept")
# Of these, what torch's own functions move, in the parameter's dtype.
_TORCHS = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def plain_groups(groups: list[Group]) -> list[Group]:
    """Packed groups with plain values only, which ``torch.load(weights_only=True)`` reads.

    A dtype is its name: what gathers state dicts from ranks refuses all but numbers and strings.
    """
    return [
        {key: str(v) if isinstance(v, torch.dtype) else plain(v) for key, v in group.items()}
        for group in groups
    ]


def complete(loaded: Group, present: Group) -> Group:
    """A loaded group, with keys that its writer did not know taken from the group in its place.

    What was saved wins over the constructor, and keys that are not ours survive.
    """
    kept = {key: value for key, value in present.items() if key not in _NOT_COMPLETED}
    full = {**kept, "routes": "", **loaded}
    for key in ("chain_dtype", "momentum_dtype"):
        name = str(full[key]).removeprefix("torch.")
        if isinstance(full[key], str) and isinstance(getattr(torch, name, None), torch.dtype):
            full[key] = getattr(torch, name)
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
        _check_kind(who, old, merged[-1])
        check_group(who, merged[-1])
        for identity, param in zip(new["params"], old["params"], strict=True):
            entry = state_dict["state"].get(identity, {})
            _check_entry(who, identity, param, entry, statistics_shapes(param.shape, merged[-1]))
            if merged[-1]["rule"] == "matrix" and param.ndim > 2:
                entry = with_columns(param, entry, merged[-1])
                check_format(who, f"parameter {identity}", param, entry, merged[-1])
    check_together(who, merged)


def _check_kind(who: str, present: Group, loaded: Group) -> None:
    """Raise ValueError where loading would make another optimizer of a group."""
    for key in ("rule", "preconditioner", "norm"):
        if loaded[key] != present[key] and (key == "rule" or present["rule"] == "matrix"):
            raise ValueError(
                f"{who}: a group must keep its {key} {present[key]!r}, got {loaded[key]!r}: load"
                " what this optimizer saved"
            )


def _check_entry(
    who: str,
    identity: Any,
    param: Tensor,
    entry: Mapping[str, Any],
    statistics: Mapping[str, tuple[int, ...]],
) -> None:
    for key, shape in {**dict.fromkeys(_SHAPED, tuple(param.shape)), **statistics}.items():
        value = entry.get(key)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(
                f"{who}: {key} of parameter {identity} must have shape {shape},"
                f" got {tuple(value.shape)}"
            )
    step = entry.get("step")
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(
            f"{who}: step of parameter {identity} must be one number, got shape {tuple(step.shape)}"
        )


def restored(param: Tensor, entry: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """A saved state entry as copies beside the parameter, in its memory format.

    What it keeps by column stays in the order that it says until the next step, which follows.

    Moments of the matrix rule keep the dtype that they were saved in: torch's own loader would
    round float32 moments of a bfloat16 parameter. The other rules are torch's, whose moments have
    the parameter's dtype.
    """
    own: dict[str, Any] = {}
    if group["rule"] == "matrix":
        entry = with_columns(param, entry, group)
    for key, value in entry.items():
        if isinstance(value, Tensor) and key != "step":
            value = laid_as(param, value)
        if key == "step":
            device = param.device if group["capturable"] else torch.device("cpu")
            own[key] = torch.as_tensor(value, dtype=torch.float32).reshape(()).to(device).clone()
        elif key in _SHAPED and isinstance(value, Tensor):
            torchs = group["rule"] != "matrix" and key in _TORCHS
            dtype = param.dtype if torchs else value.dtype
            kept = torch.empty_like(param, dtype=dtype, memory_format=torch.preserve_format)
            own[key] = kept.detach().copy_(value)
        else:
            own[key] = value.to(param.device).clone() if isinstance(value, Tensor) else value
    return own


class Checkpointed(Optimizer):
    """What an optimizer of ours saves, loads, pickles and copies."""

    # Keys that a preset gives to every group that does not set them.
    _fixed: Group = {}
    # Attributes that pickling and copying keep beside torch's own.
    _kept: tuple[str, ...] = ("_schedules", "_fixed")
    _loading: list[tuple[int, Tensor, Mapping[str, Any]]]
    _schedules: dict[int, dict[str, Schedule]]  # of a group, by "p" or "power"
    _rates: dict[int, Tensor]
    _stepper: Stepper
    _sharded: ShardedSteps

    @property
    def _who(self) -> str:
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values, which ``torch.load(weights_only=True)`` reads.

        Of weights in shards it has shards: all ranks must call it, since owners send them.
        """
        with self._whole_state():
            packed = super().state_dict()
        packed["param_groups"] = plain_groups(packed["param_groups"])
        return packed

    @contextmanager
    def _whole_state(self) -> Iterator[None]:
        """With what owners of weights in shards keep, for a while."""
        without = {}
        try:
            for param, entry in self._sharded.shards():
                without[param] = self.state[param]
                self.state[param] = {**self.state[param], **entry}
            yield
        finally:
            self.state.update(without)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; hyperparameters in it win over the constructor's.

        Keys of groups that are not ours survive, moments of the matrix rule keep their dtype, and
        an empty state is one before the first step.

        Args:
            state_dict: what :meth:`state_dict` gave; tensors are copied.

        Raises ValueError or TypeError, before anything is changed, for groups or shapes that do not
        fit, values that are not allowed, another rule, preconditioner or norm than a group has
        here, p chosen from data where it is given here, statistics that cannot follow a weight into
        its memory format, or a format of another version. Warns of p that was given where it is
        chosen from data here.
        """
        handle = self.register_load_state_dict_pre_hook(self._before_loading)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = []

    def _before_loading(self, _: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Check, and keep the state from torch's loader, which would round it; see __setstate__."""
        check_state_dict(self._who, self.param_groups, state_dict)
        self._loading = []
        entries = dict(state_dict["state"])
        for index, saved in enumerate(state_dict["param_groups"]):
            for key, param in zip(saved["params"], self.param_groups[index]["params"], strict=True):
                if key in entries:
                    self._loading.append((index, param, entries.pop(key)))
        return {**state_dict, "state": entries}

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: torch's part, a preset's, and functions given as p."""
        with self._whole_state():
            found = super().__getstate__()
            kept = {key: getattr(self, key) for key in self._kept}
            return {**found, **kept, "state": self.state.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take loaded or unpickled groups and state; keys that they lack come from the present."""
        present = self.__dict__.get("param_groups")
        super().__setstate__(state)
        self._rates = {}
        self._stepper, self._sharded = Stepper(self._who), ShardedSteps(self._who)
        for index, group in enumerate(self.param_groups):
            group.update(complete(group, present[index] if present else self.defaults))
        for index, param, entry in self.__dict__.setdefault("_loading", []):
            self.state[param] = restored(param, entry, self.param_groups[index])
