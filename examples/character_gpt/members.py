"""Every optimizer of the demo by its name, as the pair that HuggingFace's Trainer takes.

``adamw`` and ``muon`` are torch's own, the rivals, and take no settings. Every other name of
schattor.available() is a member of the family, with its settings behind a colon:
``soap:precondition_frequency=5``. Our own AdamW and Muon are ``schattor.adamw`` and
``schattor.muon``; the prefix may stand before any member.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from rivals import BETAS, MOMENTUM, AdamWFactory, MuonFactory
from settings import Training
from torch import nn

import schattor
from schattor.integrations.huggingface import parameter_groups, trainer_optimizer

RIVALS = {"adamw": AdamWFactory, "muon": MuonFactory}

# What a member gets here unless its name says otherwise; all else is as published. Averages and
# refreshes that are published for tens of thousands of steps are shorter here, where a run has
# hundreds, and lengths of steps are AdamW's where the member leaves the choice.
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": BETAS},
    # Its eigenvalues forget where they began at a rate of 0.98 a step: 0.1, as published, stands
    # for gradients far larger than a small model has, and nothing moves for hundreds of steps.
    "kl_shampoo": {"init_factor": 1e-3},
    "muadam": {"adamw_betas": BETAS},
    "muadam_sania": {"adamw_betas": BETAS},
    "muon": {"betas": BETAS, "momentum": MOMENTUM, "adjust_lr_fn": "match_rms_adamw"},
    "schattor": {"betas": BETAS, "momentum": MOMENTUM},
    "sgd": {"momentum": 0.9},
    "shampoo": {"grafting": "adam", "precondition_frequency": 10},
    # The sign's entries are 1 where AdamW's have a root mean square of about 0.2.
    "splus": {"inverse_every": 10, "ema_rate": 0.9, "nonstandard_constant": 0.2},
}

# Powers of ten by which the grid of a size of the demo is multiplied, where it is not AdamW's.
# MuAdam's and SANIA's steps grow with the inverse (root) of the gradients' size.
FACTORS = {"kl_shampoo": 10.0, "muadam": 0.1, "muadam_sania": 1e-3, "sgd": 100.0, "splus": 100.0}


def is_rival(name: str) -> bool:
    """Whether an optimizer is torch's own, which no change of ours can change."""
    return name in RIVALS


def canonical(name: str) -> str:
    """One spelling for one optimizer: ``Schattor.MuAdam-SANIA`` is ``muadam_sania``.

    Raises ValueError, with all names, for one that is none.
    """
    kind, colon, options = name.partition(":")
    kind = kind.lower().replace("-", "_")
    member = kind.removeprefix("schattor.")
    members = schattor.available()
    if member not in members:
        names = [f"schattor.{own}" if own in RIVALS else own for own in members]
        near = difflib.get_close_matches(member, members, n=1)
        raise ValueError(
            f"demo: --optimizers: one of {', '.join(RIVALS)} (torch's), {', '.join(names)} (ours) "
            f"is required, got {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if kind in RIVALS and colon:
        raise ValueError(
            f"demo: --optimizers: settings must be of ours, got {name!r}: {kind} is torch's own; "
            f'"schattor.{name}" is required'
        )
    return (kind if member in RIVALS else member) + colon + options


def member_of(name: str) -> str:
    """The name of a member without prefix and settings."""
    return canonical(name).partition(":")[0].removeprefix("schattor.")


def rates(name: str, settings: Training) -> tuple[float, ...]:
    """The learning rates of the hidden matrices that an optimizer sweeps."""
    factor = FACTORS["sgd"] if _follows_length(name) else FACTORS.get(member_of(name), 1.0)
    return tuple(float(f"{factor * rate:.3g}") for rate in settings.rates)


def _follows_length(name: str) -> bool:
    """Whether a step is as long as the gradient, as SGD's."""
    options, member = keywords(name), member_of(name)
    regularized = options.get("oracle") == "regularized" and "preconditioner" not in options
    return member == "sgd" or (member == "schattor" and regularized)


class MemberFactory:
    """No Optimizer itself, so Trainer hands over the whole model."""

    def __call__(
        self,
        model: nn.Module,
        *,
        member: str,
        lr: float,
        other_lr: float,
        weight_decay: float,
        **own: Any,
    ) -> schattor.Schattor:
        """Hidden matrices by the member's rule at `lr`; all else at `other_lr`, by AdamW.

        SPlus has the sign for AdamW. SGD is one rule at one rate, with decay as an L2 penalty.
        """
        groups = parameter_groups(model, weight_decay=weight_decay)
        for group in groups:
            if group["rule"] != "matrix" and member != "sgd":
                group.update(lr=other_lr, betas=BETAS)
        return schattor.create(member, groups, lr=lr, **own)


def optimizer_pair(name: str, lr: float, settings: Training) -> tuple[Any, dict[str, Any]]:
    """(class or factory, keyword arguments) for `Trainer(optimizer_cls_and_kwargs=...)`.

    Raises ValueError or TypeError at once for a name or settings that no optimizer takes.
    """
    name = canonical(name)
    decay = settings.weight_decay
    if _follows_length(name):  # or weights would fade a hundred times as fast as AdamW's
        decay /= FACTORS["sgd"]
    common: dict[str, Any] = {"lr": lr, "weight_decay": decay}
    if is_rival(name):
        return RIVALS[name], {**common, "other_lr": settings.other_rate}
    member = member_of(name)
    own = {**SETTINGS.get(member, {}), **keywords(name)}
    if member == "schattor":
        return trainer_optimizer(**common, **own, adamw_lr=settings.other_rate)
    schattor.create(member, [nn.Parameter(torch.zeros(1, 1))], lr=lr, **own)  # refuses bad settings
    return MemberFactory, {**common, **own, "member": member, "other_lr": settings.other_rate}


def keywords(name: str) -> dict[str, Any]:
    """The settings behind the colon of a name; numbers, true, false and none have their meaning."""
    found: dict[str, Any] = {}
    for option in filter(None, name.partition(":")[2].split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"demo: --optimizers: {name!r}: key=value is required, got {option!r}")
        if key in ("lr", "weight_decay", "adamw_lr"):
            raise ValueError(
                f"demo: --optimizers: {name!r}: {key} must be left to the demo, "
                "which sweeps or shares it"
            )
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
