"""Every wrong value and every wrong combination, with its message."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from schattor.optim import SGD, AdamW, Muon, Schattor
from schattor.optim._settings import outer_exponent, plain, resolve, scale_of


def make(**keys: Any) -> Schattor:
    return Schattor([nn.Parameter(torch.zeros(2, 2))], **keys)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"p": 0.5}, ValueError, "Schattor: p must be in [1, inf], got 0.5"),
    ({"p": math.nan}, ValueError, "Schattor: p must be in [1, inf], got nan"),
    ({"p": "automatic"}, TypeError, "Schattor: p must be a number, got str"),
    ({"p": lambda step: 0.5}, ValueError, "Schattor: p must be in [1, inf], got 0.5"),
    ({"p": lambda step: 3.0, "capturable": True}, ValueError, "p must be a number with capturable"),
    ({"power": -0.4}, ValueError, "Schattor: power must be in [-0.3, inf], got -0.4"),
    ({"p": 3, "power": 0.5}, ValueError, "give p or power, not both, got p=3 and power=0.5"),
    ({"lr": -1.0}, ValueError, "Schattor: lr must be a finite number >= 0"),
    ({"lr": math.inf}, ValueError, "got inf"),
    ({"lr": "1"}, TypeError, "got '1' (str)"),
    ({"lr": torch.zeros(2)}, ValueError, "lr must be"),
    ({"adamw_lr": -1}, ValueError, "Schattor: adamw_lr must be None or a finite number >= 0"),
    ({"oracle": "sphere"}, ValueError, 'oracle must be "ball" or "regularized", got \'sphere\''),
    ({"coupling": "sum"}, ValueError, "coupling must be None, "),
    ({"coupling": 0.5}, ValueError, "or a number >= 1, got 0.5"),
    ({"coupling": True}, ValueError, "got True"),
    ({"block_weights": 0.0}, ValueError, "block_weights must be None or positive"),
    ({"block_weights": {"a": -1.0}}, ValueError, "got {'a': -1.0}"),
    ({"block_weights": {"a": 1.0}}, ValueError, "block_weights by name need named parameters"),
    ({"momentum": 1.0}, ValueError, "momentum must be in [0, 1), got 1.0"),
    ({"momentum_form": "polyak"}, ValueError, "momentum_form must be"),
    ({"nesterov": 1}, TypeError, "nesterov must be a bool, got 1 (int)"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be a finite number >= 0, got -0.1"),
    ({"scale": "rmse"}, ValueError, 'scale must be None or "unit", "spectral", "rms"'),
    ({"oracle": "regularized", "scale": "rms"}, ValueError, "whose length is its own, got 'rms'"),
    ({"method": "svd"}, ValueError, "method must be"),
    ({"steps": 3}, ValueError, "Schattor: steps must be in [4, 10], got 3"),
    ({"steps": 5.0}, TypeError, "steps must be None or an int >= 1, got 5.0 (float)"),
    ({"method": "exact", "steps": 5}, ValueError, "Schattor: method 'exact' has no chain"),
    ({"coefficients": "muon"}, ValueError, "coefficients must be"),
    ({"p": 3, "coefficients": "jordan"}, ValueError, "Schattor: coefficients 'jordan' are for"),
    ({"chain_dtype": torch.int8}, ValueError, "chain_dtype must be None or torch.float64"),
    ({"chain_dtype": "float16"}, TypeError, "got 'float16' (str)"),
    ({"momentum_dtype": torch.complex64}, ValueError, "momentum_dtype must be"),
    ({"betas": (1.0, 0.9)}, ValueError, "betas must be two numbers in [0, 1)"),
    ({"betas": (0.9,)}, ValueError, "got (0.9,)"),
    ({"eps": -1e-8}, ValueError, "eps must be a finite number >= 0"),
    ({"maximize": "no"}, TypeError, "maximize must be a bool"),
    ({"workspace_mb": 0}, ValueError, "workspace_mb must be a number > 0, got 0"),
    (
        {"coupling": "block_diagonal", "block_weights": 2.0},
        ValueError,
        'block_weights must be None with coupling="block_diagonal"',
    ),
    ({"coupling": "block_diagonal", "power": -0.1}, ValueError, "power must be >= 0 with coupling"),
    ({"preconditioner": "sopa"}, ValueError, 'preconditioner must be None or "adam", "sania"'),
    ({"preconditioner": "soap", "capturable": True}, ValueError, "capturable must be False"),
    (
        {"preconditioner": "splus", "second_moment": "factored"},
        ValueError,
        "second_moment must be \"full\" with preconditioner='splus', which keeps none",
    ),
    (
        {"preconditioner": "shampoo", "max_precond_dim": 0},
        ValueError,
        "max_precond_dim must be >= 1 with preconditioner='shampoo', got 0",
    ),
    ({"norm": "entries", "scale": "spectral"}, ValueError, "which has no singular values"),
    ({"norm": "entries", "steps": 5}, ValueError, "must be left as they are"),
    ({"norm": "entries", "power": -0.1}, ValueError, "power must be >= 0 with norm 'entries'"),
    ({"norm": "max"}, ValueError, 'norm must be "schatten" or "entries"'),
    ({"precondition_frequency": 0}, ValueError, "precondition_frequency must be None or an int"),
    ({"shampoo_beta": 1.5}, ValueError, "shampoo_beta must be None or in [0, 1], got 1.5"),
    ({"stagger": 1}, TypeError, "stagger must be a bool"),
]


WRONG_NAMES = [f"{index}: {message[:40]}" for index, (*_, message) in enumerate(WRONG)]


@pytest.mark.parametrize(("keys", "error", "message"), WRONG, ids=WRONG_NAMES)
def test_wrong_values_say_who_what_and_which(
    keys: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make(**keys)


@pytest.mark.parametrize(("keys", "error", "message"), WRONG, ids=WRONG_NAMES)
def test_groups_are_held_to_the_same(
    keys: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error):
        Schattor([{"params": [nn.Parameter(torch.zeros(2, 2))], **keys}])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"second_moment": "factored"}, "second_moment must be 'full' with preconditioner=None"),
        ({"stagger": True}, "stagger must be False with preconditioner=None, which has no factors"),
        (
            {"preconditioner": "adam", "precondition_frequency": 5},
            "precondition_frequency must be None with preconditioner='adam', which has no factors",
        ),
        ({"preconditioner": "padam", "shampoo_beta": 0.9}, "shampoo_beta must be None with"),
        ({"preconditioner": "sania", "stagger": True}, "stagger must be False with preconditioner"),
    ],
)
def test_arguments_without_effect_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**keys)


def test_arguments_that_one_group_of_matrices_reads_are_taken() -> None:
    one, other, vector = (nn.Parameter(torch.ones(*shape)) for shape in ((2, 2), (3, 3), (4,)))
    groups = [{"params": [one], "preconditioner": "soap"}, {"params": [other]}]
    Schattor(groups, stagger=True, precondition_frequency=5, second_moment="factored")
    Schattor([vector], stagger=True)  # no matrix is there yet


def test_a_wrong_value_set_between_steps_is_refused_before_anything_moves() -> None:
    params = [nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    for param in params:
        param.grad = torch.eye(2)
    optimizer = Schattor([{"params": [param]} for param in params], p=3)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[1]["p"] = 0.5
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape("p must be in [1, inf], got 0.5")):
            optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))
    optimizer.param_groups[1]["p"] = 4.0
    optimizer.step()
    assert not torch.equal(params[1], before[1])


def test_block_diagonal_takes_one_p() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2, 2))], "p": p} for p in (3.0, 4.0)]
    with pytest.raises(ValueError, match=r"one for all groups .* got powers 0.333333, 0.5"):
        Schattor(groups, coupling="block_diagonal")


def test_block_diagonal_is_held_to_one_p_while_it_is_scheduled() -> None:
    params = [nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    for param in params:
        param.grad = torch.eye(2)
    optimizer = Schattor([{"params": [p]} for p in params], p=3, coupling="block_diagonal")
    optimizer.step()
    optimizer.param_groups[0]["p"] = 4.0
    for _ in range(2):
        with pytest.raises(ValueError, match="one for all groups"):
            optimizer.step()


@pytest.mark.parametrize("key", ["weight_decy", "momentom", "block", "nesterow"])
def test_misspelt_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown key '{key}' in a group; did you mean"):
        Schattor([{"params": [nn.Parameter(torch.zeros(2, 2))], key: 1}])


def test_foreign_keys_stay() -> None:
    group = {"params": [nn.Parameter(torch.zeros(2, 2))], "lr_scale": 0.5, "note": "mine"}
    optimizer = Schattor([group])
    assert optimizer.param_groups[0]["lr_scale"] == 0.5
    assert optimizer.param_groups[0]["note"] == "mine"
    assert "rule" not in group  # the caller's dict is left alone


def test_power_below_the_reliable_range_warns() -> None:
    with pytest.warns(UserWarning, match="power is below -0.2"):
        make(power=-0.25)


def test_presets_speak_in_their_own_name() -> None:
    params = [nn.Parameter(torch.zeros(2, 2))]
    for preset in (Muon, SGD, AdamW):
        with pytest.raises(ValueError, match=rf"{preset.__name__}: lr must be"):
            preset(params, lr=-1.0)


def test_resolve_lets_one_name_of_the_dial_replace_the_other() -> None:
    assert resolve({"p": 3.0, "power": None}, {"power": 0.1})["p"] is None
    assert resolve({"p": None, "power": 0.1}, {"p": 2.0})["power"] is None
    assert resolve({"p": None, "power": None}, {})["p"] == math.inf
    assert resolve({"p": 3.0, "power": None}, {})["p"] == 3.0


def test_scale_and_coupling_have_defaults_by_oracle() -> None:
    ball = {"scale": None, "oracle": "ball", "coupling": None}
    regularized = {**ball, "oracle": "regularized"}
    assert (scale_of(ball), scale_of(regularized)) == ("rms", "unit")
    independent = [(ball, None), (ball, "max"), (ball, math.inf), (regularized, "l2")]
    for group, coupling in independent:
        assert outer_exponent("", {**group, "coupling": coupling}, 0.5) is None
    assert outer_exponent("", {**regularized, "coupling": "max"}, 0.5) == math.inf
    assert outer_exponent("", {**ball, "coupling": "block_diagonal"}, 0.5) == 3.0
    assert outer_exponent("", {**ball, "coupling": "block_diagonal"}, 0.0) is None


def test_plain_turns_numpy_into_python() -> None:
    value = {"a": numpy.float64(0.1), "b": (numpy.float32(0.5), 1), "c": [numpy.int64(3), True]}
    result = plain(value)
    assert result == {"a": 0.1, "b": (0.5, 1), "c": [3, True]}
    assert [type(result["a"]), type(result["b"][0]), type(result["c"][0])] == [float, float, int]
    assert type(plain(True)) is bool and plain(None) is None and plain("x") == "x"


def test_a_second_beta_of_one_is_a_sum_and_not_for_adamw() -> None:
    """AdaGrad's sum is a matter of the matrix rule: torch's AdamW would divide by zero."""
    matrix = {"params": [nn.Parameter(torch.zeros(2, 2))], "rule": "matrix"}
    Schattor([matrix], preconditioner="adam", betas=(0.9, 1.0))
    with pytest.raises(
        ValueError, match=r'betas\[1\] must be in \[0, 1\) with rule="adamw", got 1'
    ):
        Schattor([nn.Parameter(torch.zeros(2))], betas=(0.9, 1.0))
