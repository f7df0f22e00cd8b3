"""Names that a member's authors use, in groups as in the constructor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import schattor

# What a member is given in its constructor, or in a group under the same name.
OWN: list[tuple[str, dict[str, Any]]] = [
    ("soap", {"betas": (0.5, 0.6)}),
    ("soap", {"betas": (0.5, 0.6), "shampoo_beta": 0.7}),
    ("soap", {"shampoo_beta": -1, "correct_bias": False, "precondition_frequency": 3}),
    ("kl_shampoo", {"betas": (0.5, 0.6), "max_clamp_value": 20.0, "init_factor": 0.5}),
    ("kl_soap", {"betas": (0.5, 0.6), "shampoo_beta": -1, "stagger": True}),
    ("shampoo", {"betas": (0.5, 0.6), "epsilon": 1e-6, "adamw_betas": (0.7, 0.8)}),
    ("shampoo", {"grafting": "adam", "start_preconditioning_step": 2, "stagger": True}),
    ("shampoo", {"max_preconditioner_dim": 3, "use_bias_correction": False}),
    ("shampoo", {"start_preconditioning_step": -1, "grafting": None, "betas": (0.5, 1.0)}),
    ("splus", {"b1": 0.5, "b2": 0.6, "inverse_every": 2, "max_dim": 5}),
    ("splus", {"b2": 0.6, "nonstandard_constant": 0.1, "ema_rate": 0.5}),
    ("muadam", {"ns_steps": 6, "adamw_betas": (0.7, 0.8), "adamw_eps": 1e-4}),
    ("muadam_sania", {"momentum": 0.5, "adamw_eps": 1e-4}),
    ("muon", {"ns_steps": 6, "adjust_lr_fn": "match_rms_adamw", "ns_coefficients": "jordan"}),
]


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (6, 4), (7, 5), (3,))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def trained(optimizer: schattor.Schattor, params: list[nn.Parameter]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize(("member", "settings"), OWN, ids=lambda value: str(value))
def test_a_group_takes_what_the_constructor_takes(member: str, settings: dict[str, Any]) -> None:
    plain, first, second, third = weights(), weights(), weights(), weights()
    whole = schattor.create(member, first, lr=0.01, **settings)
    group = {"params": second, **settings}
    grouped = schattor.create(member, [group], lr=0.01)
    later = schattor.create(member, third[:1], lr=0.01, **settings)
    later.add_param_group({"params": third[1:], **settings})

    expected = trained(whole, first)
    assert all(map(torch.equal, expected, trained(grouped, second)))
    assert all(map(torch.equal, expected, trained(later, third)))
    # And the settings are no defaults, of which nothing would be seen.
    unset = trained(schattor.create(member, plain, lr=0.01), plain)
    defaults = {("soap", -1), ("shampoo", -1)}
    if (member, settings.get("start_preconditioning_step")) not in defaults:
        assert not all(map(torch.equal, expected, unset))
    # The caller's group is as it was.
    assert group == {"params": second, **settings}


def test_groups_of_an_optimizer_keep_what_they_say() -> None:
    params = weights()
    first = schattor.SOAP(params, betas=(0.5, 0.6), correct_bias=False)
    second = schattor.SOAP(first.param_groups)
    for old, new in zip(first.param_groups, second.param_groups, strict=True):
        assert old["momentum"] == new["momentum"] == 0.5 and new["betas"] == (0.5, 0.6)
        assert new["bias_correction"] is False
    shampoo = schattor.Shampoo(schattor.Shampoo(params, betas=(0.5, 0.9)).param_groups)
    assert [group["momentum"] for group in shampoo.param_groups] == [0.5, 0.5]
    assert [group["shampoo_beta"] for group in shampoo.param_groups] == [0.9, 0.9]
    assert [group["betas"] for group in shampoo.param_groups] == [(0.9, 0.999)] * 2


def test_betas_of_shampoos_adamw_are_adamws() -> None:
    params = weights()
    group = {"params": params[3:], "rule": "adamw", "betas": (0.5, 0.6)}
    optimizer = schattor.Shampoo([{"params": params[:3]}, group])
    assert optimizer.param_groups[1]["betas"] == (0.5, 0.6)


@pytest.mark.parametrize(
    ("member", "settings", "error", "message"),
    [
        ("shampoo", {"grafting": "rmsprop"}, ValueError, 'grafting must be None, "sgd" or "adam"'),
        ("soap", {"betas": 0.9}, TypeError, "SOAP: betas must be"),
        ("kl_shampoo", {"shampoo_beta": "x"}, TypeError, "KLShampoo: shampoo_beta must be"),
        ("shampoo", {"betas": (0.9, 1.5)}, ValueError, "Shampoo: betas must be"),
    ],
)
def test_what_a_group_may_not_say_is_refused_as_in_the_constructor(
    member: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        schattor.create(member, weights(), **settings)
    with pytest.raises(error, match=message):
        schattor.create(member, [{"params": weights(), **settings}])


@pytest.mark.parametrize(
    ("member", "name", "wrong"),
    [
        ("soap", "correct_bias", "yes"),
        ("kl_shampoo", "max_clamp_value", 0),
        ("shampoo", "epsilon", -1.0),
        ("shampoo", "use_bias_correction", 1),
        ("splus", "b1", 1.0),
        ("splus", "inverse_every", 0),
        ("splus", "max_dim", -1),
        ("muadam", "ns_steps", 0),
        ("muadam_sania", "adamw_betas", (0.9,)),
        ("muadam", "adamw_eps", "x"),
        ("muon", "ns_coefficients", "jordans"),
        ("soap", "precondition_frequency", 0),
    ],
)
def test_errors_call_an_argument_as_the_caller_did(member: str, name: str, wrong: Any) -> None:
    who = type(schattor.create(member, weights())).__name__
    for params, settings in (
        (weights(), {name: wrong}),
        ([{"params": weights(), name: wrong}], {}),
    ):
        with pytest.raises((TypeError, ValueError), match=f"{who}: {name} must be .*, got"):
            schattor.create(member, params, **settings)


def test_create_says_what_comes_first() -> None:
    for wrong in (None, nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="create: name, the first argument, must be a string"):
            schattor.create(wrong, weights())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="SPlus: ema_rate must be in"):
        schattor.create("splus", weights(), ema_rate="x")
    for constant in (-1.0, math.inf):  # also where no parameter would follow the sign
        with pytest.raises(ValueError, match="SPlus: nonstandard_constant must be a finite number"):
            schattor.create("splus", weights(), nonstandard_constant=constant)
