"""What groups hold is checked again where it changed, before anything moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import problem, run, weights_of
from torch import Tensor, nn

from schattor.optim import SGD, AdamW, Muon, Schattor, Shampoo, create
from schattor.optim import _changes as changes

WORDS: list[tuple[str, Any, str]] = [
    ("lr", -1.0, "a finite number >= 0"),
    ("lr", math.nan, "a finite number >= 0"),
    ("lr", "1e-3", "a finite number >= 0"),
    ("momentum", 1.5, r"in \[0, 1\)"),
    ("momentum", -0.1, r"in \[0, 1\)"),
    ("weight_decay", -1.0, "a finite number >= 0"),
    ("eps", -1.0, "a finite number >= 0"),
    ("betas", (0.9, 1.5), r"two numbers in \[0, 1\)"),
    ("nesterov", "no", "a bool"),
    ("maximize", 1, "a bool"),
    ("precondition_frequency", 0, "None or an int >= 1"),
    ("shampoo_beta", 2.0, r"None or in \[0, 1\]"),
    ("pin_ratio", 0.0, "None or a number > 0"),
]


@pytest.mark.parametrize(("key", "value", "words"), WORDS)
@pytest.mark.parametrize("rule", ["matrix", "adamw"])
def test_a_value_set_between_steps_is_checked(rule: str, key: str, value: Any, words: str) -> None:
    made = problem()
    groups = [{"params": made.params[:2]}, {"params": made.params[2:], "rule": rule}]
    optimizer = Schattor(groups, lr=0.01)
    run(optimizer, made, 2)
    group = optimizer.param_groups[1]
    kept, before = group[key], weights_of(made)
    group[key] = value
    for _ in range(2):
        with pytest.raises(
            (TypeError, ValueError), match=f"Schattor: {key} must be {words}.*, got"
        ):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(made.params, before, strict=True))
    group[key] = kept
    run(optimizer, made, 1)


def test_keys_that_only_fail_together_are_checked() -> None:
    made = problem()
    optimizer = AdamW(made.params, lr=0.01)
    run(optimizer, made, 1)
    optimizer.param_groups[0]["betas"] = (0.9, 1)
    with pytest.raises(ValueError, match=r"betas\[1\] must be in \[0, 1\)"):
        run(optimizer, made, 1)


def test_refresh_checks_too() -> None:
    made = problem()
    optimizer = Schattor(made.params, lr=0.01)
    run(optimizer, made, 1)
    optimizer._stepper._captured = [bucket.plan for bucket in optimizer._stepper.buckets]
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be a finite number >= 0"):
        optimizer.refresh()


def test_a_step_asks_for_nothing_that_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    made = problem()
    optimizer = Schattor(made.params, lr=0.01)
    run(optimizer, made, 2)  # the first writes its routes
    monkeypatch.setattr(changes, "check", lambda who, key, value: asked.append(key))
    monkeypatch.setattr(changes, "check_group", lambda who, group: asked.append("all"))
    run(optimizer, made, 1)
    assert asked == []
    optimizer.param_groups[0]["lr"] = 0.02
    run(optimizer, made, 2)
    assert asked == ["lr"]
    optimizer.param_groups[0]["eps"] = 1e-3
    run(optimizer, made, 2)
    assert asked == ["lr", "all"]


def test_groups_may_hold_what_schedulers_leave() -> None:
    made = problem()
    first = torch.optim.SGD(made.params, lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(first, max_lr=0.1, total_steps=10)
    keys = {"max_momentum", "base_momentum", "initial_lr", "max_lr", "min_lr"}
    assert keys <= first.param_groups[0].keys()
    second = Schattor(first.param_groups)
    assert keys <= second.param_groups[0].keys()
    run(second, made, 2)


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_muon_takes_groups_of_torchs(adjust: str | None) -> None:
    theirs, ours = problem(), problem()
    given = torch.optim.Muon(theirs.params, lr=0.1, ns_steps=6, adjust_lr_fn=adjust)
    groups = [{**group, "params": ours.params} for group in given.param_groups]
    optimizer = Muon(groups)
    group = optimizer.param_groups[0]
    wanted = ("jordan", 6, "spectral" if adjust is None else "rms", 0.1)
    assert (group["coefficients"], group["steps"], group["scale"], group["lr"]) == wanted
    assert not {"ns_coefficients", "ns_steps", "adjust_lr_fn"} & group.keys()
    run(optimizer, ours, 1)
    with pytest.raises(ValueError, match="Muon: adjust_lr_fn must be"):
        Muon([{**groups[0], "adjust_lr_fn": "other"}])


def test_a_load_keeps_the_rule() -> None:
    made = problem()
    adamw, sgd = AdamW(made.params), SGD(made.params, momentum=0.9)
    run(sgd, made, 1)
    with pytest.raises(ValueError, match=r"AdamW\.load_state_dict: .* keep its rule .adamw., got"):
        adamw.load_state_dict(sgd.state_dict())
    assert adamw.param_groups[0]["rule"] == "adamw" and not adamw.state


@pytest.mark.parametrize(
    ("here", "there", "key"),
    [
        ("soap", "muadam", "preconditioner 'soap', got 'adam'"),
        ("muadam", "schattor", "preconditioner 'adam', got None"),
        ("schattor", "kl_shampoo", "preconditioner None, got 'kl_shampoo'"),
    ],
)
def test_a_load_keeps_the_member(here: str, there: str, key: str) -> None:
    made = problem()
    ours, other = (create(name, made.params) for name in (here, there))
    run(other, made, 2)
    before = [param.detach().clone() for param in made.params]
    with pytest.raises(ValueError, match=f"load_state_dict: a group must keep its {key}: load"):
        ours.load_state_dict(other.state_dict())
    assert not ours.state
    assert all(map(torch.equal, made.params, before))
    fresh = create(there, made.params)
    fresh.load_state_dict(other.state_dict())
    run(fresh, made, 1)


def test_a_load_minds_no_preconditioner_where_there_is_no_matrix() -> None:
    vectors = [nn.Parameter(torch.ones(3))]
    vectors[0].grad = torch.ones(3)
    saved = create("muadam", vectors)
    saved.step()
    loaded = Schattor(vectors)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.state[vectors[0]]["exp_avg"], saved.state[vectors[0]]["exp_avg"])


def test_a_load_keeps_the_norm() -> None:
    made = problem()
    entries, singular = (Schattor(made.params, norm=norm) for norm in ("entries", "schatten"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a group must keep its norm 'schatten', got 'entries'"):
        singular.load_state_dict(entries.state_dict())


def test_a_load_makes_no_p_from_data_where_it_was_given() -> None:
    made = problem()
    fixed, auto = Schattor(made.params, p=3.0), Schattor(made.params, p="auto")
    saved = auto.state_dict()
    with pytest.raises(ValueError, match="p must be 'auto' from the constructor where it was"):
        fixed.load_state_dict(saved)
    assert fixed.param_groups[0]["p"] == 3.0
    saved["param_groups"][0]["p"] = 3.0  # as the message says
    fixed.load_state_dict(saved)
    run(fixed, made, 1)


def test_a_load_tells_of_p_that_is_not_chosen_any_more() -> None:
    made = problem()
    fixed, auto = Schattor(made.params, p=3.0), Schattor(made.params, p="auto")
    saved = fixed.state_dict()
    with pytest.warns(UserWarning, match="p=3.0 was saved, and is not chosen from data any more"):
        auto.load_state_dict(saved)
    assert auto.param_groups[0]["p"] == 3.0
    saved["param_groups"][0]["p"] = "auto"  # as the message says
    auto.load_state_dict(saved)
    assert auto.param_groups[0]["p"] == "auto"
    run(auto, made, 1)


@pytest.mark.parametrize("name", ["shampoo", "soap", "kl_shampoo", "kl_soap"])
@pytest.mark.parametrize("betas", [3, (0.9,), (0.9, 2.0)])
def test_betas_are_two_numbers(name: str, betas: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r": betas must be two numbers in \[0, 1\)"):
        create(name, problem().params, betas=betas)


def test_a_schedule_gives_numbers() -> None:
    made = problem()
    words = "Schattor: p must be a function that gives a number, got None of .* after {} steps"
    with pytest.raises(TypeError, match=words.format(0)):
        Schattor(made.params, p=lambda step: None)  # type: ignore[arg-type,return-value]
    optimizer = Schattor(made.params, p=lambda step: None if step else 3.0)  # type: ignore[arg-type,return-value]
    run(optimizer, made, 1)
    with pytest.raises(TypeError, match=words.format(1)):
        run(optimizer, made, 1)


def test_a_parameter_without_its_name_is_refused() -> None:
    made = problem()
    optimizer = Schattor([(str(i), param) for i, param in enumerate(made.params[:-1])])
    run(optimizer, made, 1)
    optimizer.param_groups[0]["params"].append(made.params[-1])
    with pytest.raises(ValueError, match=r"param_groups\[0\]: param_names must be as many as"):
        run(optimizer, made, 1)


@pytest.mark.parametrize("make", [Schattor, Shampoo, AdamW, SGD])
def test_entries_that_share_memory_are_refused(make: Any) -> None:
    def expanded() -> Tensor:
        return torch.ones(1, 4).expand(3, 4)

    with pytest.raises(ValueError, match=r"have memory for each .* got strides \(0, 1\)"):
        make([nn.Parameter(expanded())])
    make([nn.Parameter(expanded(), requires_grad=False)])
    param = nn.Parameter(torch.ones(3, 4))
    optimizer = make([param])
    param.data, param.grad = expanded(), torch.ones(3, 4)
    with pytest.raises(ValueError, match="have memory for each"):
        optimizer.step()
