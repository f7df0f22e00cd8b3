"""Optimizers by name."""

from __future__ import annotations

import difflib
from typing import Any

from schattor.optim.muadam import MuAdam, MuAdamSania
from schattor.optim.presets import SGD, AdamW, Muon
from schattor.optim.schattor import Params, Schattor
from schattor.optim.shampoo import KLSOAP, SOAP, KLShampoo, Shampoo
from schattor.optim.splus import SPlus

__all__ = ["available", "create"]

_MEMBERS: dict[str, type[Schattor]] = {
    "adamw": AdamW,
    "kl_shampoo": KLShampoo,
    "kl_soap": KLSOAP,
    "muadam": MuAdam,
    "muadam_sania": MuAdamSania,
    "muon": Muon,
    "schattor": Schattor,
    "sgd": SGD,
    "shampoo": Shampoo,
    "soap": SOAP,
    "splus": SPlus,
}


def available() -> list[str]:
    """Names that `create` takes, in alphabetical order.

    >>> available()[:3]
    ['adamw', 'kl_shampoo', 'kl_soap']
    """
    return list(_MEMBERS)


def create(name: str, params: Params, **settings: Any) -> Schattor:
    """The optimizer of a name, as ``create("soap", model, lr=3e-3)``.

    Args:
        name: one of `available()`; capitals and hyphens do not matter.
        params: a module, tensors, named tensors or groups, as `Schattor` takes them.
        settings: the member's own arguments.

    Raises ValueError for another name, TypeError for what is no string, and what the member raises.

    >>> from torch import nn
    >>> type(create("MuAdam-SANIA", nn.Linear(4, 4), lr=1e-3)).__name__
    'MuAdamSania'
    """
    if not isinstance(name, str):
        raise TypeError(f"create: name, the first argument, must be a string, got {name!r}")
    key = name.lower().replace("-", "_")
    if key not in _MEMBERS:
        near = difflib.get_close_matches(key, _MEMBERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"create: name must be one of {', '.join(_MEMBERS)}, got {name!r}{hint}")
    return _MEMBERS[key](params, **settings)
