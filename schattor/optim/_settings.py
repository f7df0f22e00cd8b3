"""What a parameter group may hold: one requirement a key, and what the keys mean together."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schattor import planning
from schattor.planning import FLOATING
from schattor.theory import chains, exponents
from schattor.theory.preconditioners import PRECONDITIONERS

__all__ = [
    "Group",
    "State",
    "check",
    "check_group",
    "check_keys",
    "check_together",
    "number_of",
    "outer_exponent",
    "pin_ratio",
    "plain",
    "planning_settings",
    "power_of",
    "resolve",
    "scale_of",
]

Group = dict[str, Any]
State = MutableMapping[Tensor, dict[str, Any]]

_ANY_DEVICE = planning.DeviceFacts("cpu", True, "baseline")

# Keys of a group that are checked elsewhere, or that other code puts there.
_OTHER_KEYS = (
    *("params", "param_names", "p", "power", "blocks", "format"),
    *("initial_lr", "initial_momentum", "name", "lr_scale"),
    # What torch's schedulers leave there.
    *("max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"),
)


class Requirement(NamedTuple):
    """What one key must be: its types, what must hold of its value, and both in words."""

    types: tuple[type, ...]
    holds: Callable[[Any], bool]
    words: str


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _below(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: not _is_flag(value) and low <= float(value) < high


def _in_unit(value: Any) -> bool:
    return not _is_flag(value) and 0 <= float(value) <= 1


def _choice(*names: str) -> Requirement:
    words = ", ".join(f'"{name}"' for name in names[:-1]) + f' or "{names[-1]}"'
    return Requirement((str,), lambda value: value in names, words)


def _optional(requirement: Requirement) -> Requirement:
    types, holds, words = requirement
    return Requirement(
        (*types, type(None)), lambda value: value is None or holds(value), f"None or {words}"
    )


def _is_rate(value: Any) -> bool:
    if isinstance(value, Tensor):  # one on another device is not read: it may be captured
        return value.numel() == 1 and (not value.is_cpu or 0 <= float(value) < math.inf)
    return not _is_flag(value) and 0 <= float(value) < math.inf


def _is_coupling(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return value in (None, "max", "l2", "greedy", "block_diagonal")
    return not _is_flag(value) and float(value) >= 1


def _are_weights(value: Any) -> bool:
    weights = list(value.values()) if isinstance(value, Mapping) else [value]
    return all(isinstance(w, Real) and not _is_flag(w) and 0 < float(w) < math.inf for w in weights)


def _are_betas(value: Any) -> bool:
    numbers = len(value) == 2 and all(isinstance(b, Real) and not _is_flag(b) for b in value)
    return numbers and 0 <= float(value[0]) < 1 and 0 <= float(value[1]) <= 1


_FLAG = Requirement((bool,), lambda value: True, "a bool")
_DTYPE = Requirement(
    (torch.dtype,),
    lambda value: value in FLOATING,
    "torch.float64, torch.float32, torch.bfloat16 or torch.float16",
)
_POSITIVE = Requirement((Real,), lambda value: 0 < float(value) < math.inf, "a number > 0")
_COUNT = Requirement((Integral,), lambda value: not _is_flag(value) and value >= 1, "an int >= 1")
_RATE = Requirement((Real, Tensor), _is_rate, "a finite number >= 0 (or a tensor of one element)")

REQUIREMENTS: dict[str, Requirement] = {
    "lr": _RATE,
    "rule": _choice("matrix", "adamw", "sgd", "sign"),
    "oracle": _choice("ball", "regularized"),
    "coupling": Requirement(
        (str, Real, type(None)),
        _is_coupling,
        'None, "max", "l2", "greedy", "block_diagonal" or a number >= 1',
    ),
    "block_weights": _optional(
        Requirement((Real, Mapping), _are_weights, "positive: a number, or one a name pattern")
    ),
    "momentum": Requirement((Real,), _below(0, 1), "in [0, 1)"),
    "momentum_form": _choice("ema", "heavy_ball"),
    "nesterov": _FLAG,
    "dampening": Requirement((Real,), _below(0, math.inf), "a finite number >= 0"),
    "weight_decay": Requirement((Real,), _below(0, math.inf), "a finite number >= 0"),
    "scale": _optional(_choice("unit", "spectral", "rms", "pin", "width", "sgd", "adam")),
    "pin_ratio": _optional(_POSITIVE),
    "norm": _choice("schatten", "entries"),
    "preconditioner": _optional(_choice(*PRECONDITIONERS)),
    "second_moment": _choice("full", "factored"),
    "bias_correction": _optional(_FLAG),
    "shampoo_beta": _optional(Requirement((Real,), _in_unit, "in [0, 1]")),
    "precondition_frequency": _optional(_COUNT),
    "start_preconditioning_step": _optional(_COUNT),
    "max_precond_dim": Requirement((Integral,), lambda value: value >= 0, "an int >= 0"),
    "stagger": _FLAG,
    "init_factor": _POSITIVE,
    "max_clamp": _POSITIVE,
    "ema_rate": Requirement((Real,), _below(0, 1), "in [0, 1)"),
    "train_mode": _FLAG,
    "nonstandard_constant": Requirement((Real,), _below(0, math.inf), "a finite number >= 0"),
    "method": _choice("auto", "chain", "exact", "partial_svd"),
    "steps": _optional(Requirement((Integral,), lambda value: value >= 1, "an int >= 1")),
    "chain_dtype": _optional(_DTYPE),
    "coefficients": _choice(*chains.names()),
    "betas": Requirement((tuple, list), _are_betas, "two numbers in [0, 1), or 1 as the second"),
    "eps": Requirement((Real,), _below(0, math.inf), "a finite number >= 0"),
    "adamw_lr": _optional(_RATE),
    "maximize": _FLAG,
    "capturable": _FLAG,
    "workspace_mb": _POSITIVE,
    "momentum_dtype": _optional(_DTYPE),
    "routes": Requirement((str,), lambda value: True, "a str"),
    "auto_taken": Requirement(
        (Integral,), lambda value: not _is_flag(value) and value >= 0, "an int >= 0"
    ),
}


def check(who: str, key: str, value: Any, called: str | None = None) -> None:
    """Raise TypeError or ValueError in the library's form where a value is not what a key takes.

    ``called`` is the key's name in the message.
    """
    requirement, key = REQUIREMENTS[key], called or key
    if not isinstance(value, requirement.types):
        got = f"{value!r} ({type(value).__name__})"
        raise TypeError(f"{who}: {key} must be {requirement.words}, got {got}")
    if not requirement.holds(value):
        raise ValueError(f"{who}: {key} must be {requirement.words}, got {value!r}")


def check_keys(who: str, group: Group) -> None:
    """Raise ValueError for a key that is a near miss of one of ours: a misspelt ``weight_decay``.

    Other keys are the caller's own, and stay.
    """
    for key in group:
        if key not in REQUIREMENTS and key not in _OTHER_KEYS:
            near = difflib.get_close_matches(str(key), (*REQUIREMENTS, "blocks"), n=1, cutoff=0.8)
            if near:
                raise ValueError(
                    f"{who}: unknown key {key!r} in a group; did you mean {near[0]!r}?"
                )


def check_group(who: str, group: Group, called: Mapping[str, str] | None = None) -> None:
    """Check every key of a group, and what the keys of a matrix group mean together.

    ``called`` are names of single keys in messages, where they are others than ours.
    """
    for key in filter(group.__contains__, REQUIREMENTS):
        check(who, key, group[key], (called or {}).get(key))
    power_of(who, group)
    if group["rule"] == "sgd" and group["capturable"]:
        raise ValueError(
            f'{who}: capturable must be False with rule="sgd", whose learning rate torch\'s own'
            " function reads on the host, got True"
        )
    if group["rule"] == "adamw" and float(group["betas"][1]) == 1:
        raise ValueError(f'{who}: betas[1] must be in [0, 1) with rule="adamw", got 1')
    if group["rule"] == "matrix":
        _check_auto(who, group)
        _check_matrix_group(who, group)
        _check_preconditioner(who, group)


def _check_matrix_group(who: str, group: Group) -> None:
    power = power_of(who, group)
    if group["oracle"] == "regularized" and group["scale"] not in (None, "unit"):
        raise ValueError(
            f'{who}: scale must be None or "unit" with oracle="regularized", whose length is its'
            f" own, got {group['scale']!r}"
        )
    if group["coupling"] == "block_diagonal" and group["block_weights"] is not None:
        raise ValueError(
            f'{who}: block_weights must be None with coupling="block_diagonal", whose weights are'
            f" one, got {group['block_weights']!r}"
        )
    outer_exponent(who, group, power)
    try:  # what p and the settings of the chain allow together is the planner's to say
        planning.plan(power, 8, 8, torch.float32, _ANY_DEVICE, **planning_settings(group))
    except ValueError as error:
        raise ValueError(str(error).replace("plan:", f"{who}:", 1)) from None


# What p chosen from data goes with: settings that need p on the host are not among them.
_WITH_AUTO: dict[str, tuple[Any, ...]] = {
    "power": (None,),
    "method": ("auto", "chain"),
    "coefficients": ("schattor",),
    "norm": ("schatten",),
    "scale": (None, "unit", "rms", "width", "sgd", "adam"),
    "capturable": (False,),
}


def _check_auto(who: str, group: Group) -> None:
    if group["p"] != "auto":
        return
    for key, allowed in _WITH_AUTO.items():
        if group[key] not in allowed:
            words = " or ".join(repr(value) for value in allowed)
            raise ValueError(f'{who}: {key} must be {words} with p="auto", got {group[key]!r}')
    if group["coupling"] == "block_diagonal":
        raise ValueError(
            f'{who}: coupling must need no p of its own with p="auto", got {group["coupling"]!r}'
        )


def _check_preconditioner(who: str, group: Group) -> None:
    name = group["preconditioner"]
    if group["norm"] == "entries" and group["scale"] == "spectral":
        raise ValueError(
            f'{who}: scale must be None, "unit", "rms", "pin", "width", "sgd" or "adam" with'
            " norm=\"entries\", which has no singular values, got 'spectral'"
        )
    if name is None:
        return
    spec = PRECONDITIONERS[name]
    if spec.basis and group["capturable"]:
        raise ValueError(
            f"{who}: capturable must be False with preconditioner={name!r}, whose eigenbases are"
            " decomposed by torch.linalg outside of any graph, got True"
        )
    if spec.weights != "moments" and group["second_moment"] != "full":
        raise ValueError(
            f'{who}: second_moment must be "full" with preconditioner={name!r}, which keeps none,'
            f" got {group['second_moment']!r}"
        )
    if group["max_precond_dim"] < 1 and spec.weights in ("roots", "tracked"):
        raise ValueError(
            f"{who}: max_precond_dim must be >= 1 with preconditioner={name!r},"
            f" got {group['max_precond_dim']}"
        )


def check_together(who: str, groups: Iterable[Group]) -> None:
    """Raise ValueError where ``coupling="block_diagonal"`` meets more than one p."""
    powers = {
        power_of(who, group)
        for group in groups
        if group["rule"] == "matrix" and group["coupling"] == "block_diagonal"
    }
    if len(powers) > 1:
        found = ", ".join(f"{power:g}" for power in sorted(powers))
        raise ValueError(
            f'{who}: p must be one for all groups with coupling="block_diagonal",'
            f" got powers {found}"
        )


def planning_settings(group: Group) -> dict[str, Any]:
    """The keys of a group that the planner reads."""
    settings = {
        "method": group["method"],
        "steps": plain(group["steps"]),
        "chain_dtype": group["chain_dtype"],
        "coefficients": group["coefficients"],
    }
    return settings if group["norm"] == "schatten" else {**settings, "norm": group["norm"]}


def power_of(who: str, group: Group) -> float:
    """The exponent on the singular values of a group: ``power``, or ``1/(p-1)``.

    Where p is chosen from data, a power that takes the same route as all that may be chosen.
    """
    if group["p"] == "auto":
        return 0.0
    return planning.power_of(who, group["p"], group["power"])


def number_of(who: str, dial: str, schedule: Callable[[int], Any], taken: int) -> float:
    """What a function given as p or power gives after so many steps; TypeError for no number."""
    found = schedule(taken)
    try:
        return float(found)
    except (TypeError, ValueError):
        raise TypeError(
            f"{who}: {dial} must be a function that gives a number, got {found!r} of"
            f" {schedule!r} after {taken} steps"
        ) from None


def scale_of(group: Group) -> str:
    """The group's ``scale``, with None resolved by its oracle."""
    scale: str | None = group["scale"]
    return scale or ("rms" if group["oracle"] == "ball" else "unit")


def pin_ratio(group: Group) -> float:
    """The size of an update of scale "pin" at power 1 over the learning rate.

    None is that of Adam's update under noise alone, ``sqrt((1 - b1) / (1 + b1))``.
    """
    given = group["pin_ratio"]
    beta = float(group["betas"][0])
    return math.sqrt((1 - beta) / (1 + beta)) if given is None else float(given)


def outer_exponent(who: str, group: Group, power: float) -> float | None:
    """A of the norm over blocks, or None where the coupling leaves every block independent."""
    coupling = group["coupling"]
    if coupling is None:
        return None
    if coupling == "block_diagonal":
        if power < 0:
            raise ValueError(
                f'{who}: power must be >= 0 with coupling="block_diagonal", which needs a norm,'
                f" got {power:g}"
            )
        outer = exponents.p_of(power)
    else:
        named = {"max": math.inf, "l2": 2.0, "greedy": 1.0}
        outer = named[coupling] if coupling in named else float(coupling)
    independent = math.inf if group["oracle"] == "ball" else 2.0
    return None if outer == independent else outer


def resolve(defaults: Group, group: Group) -> Group:
    """A group over its defaults, where one of p and power replaces the other; p=inf for neither."""
    full = {**defaults, **group}
    given = [key for key in ("p", "power") if group.get(key) is not None]
    if len(given) == 1:
        full["power" if given == ["p"] else "p"] = None
    elif full["p"] is None and full["power"] is None:
        full["p"] = math.inf
    return full


def plain(value: Any) -> Any:
    """A value with numpy scalars made Python numbers, and all else as it is.

    A learning rate out of a numpy schedule would otherwise keep a checkpoint from being read with
    ``torch.load(weights_only=True)``.
    """
    if isinstance(value, (bool, Tensor)) or type(value) in (int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return value
