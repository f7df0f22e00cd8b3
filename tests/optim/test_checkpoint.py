"""State dicts: every rule that a trainer, accelerate or torch.distributed relies on."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from cases import OPTIMIZERS, problem, run, weights_of
from torch import nn

from schattor.optim import PRamp, Schattor
from schattor.optim._checkpoint import FORMAT

Make = Callable[[Any], Schattor]
battery = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def saved(optimizer: Schattor) -> dict[str, Any]:
    """What torch.load(weights_only=True) makes of a saved state dict."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@battery
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_resume_is_bit_exact(make: Make, cut: int) -> None:
    whole, first = problem(), problem()
    run(make(whole.params), whole, 6)
    before = make(first.params)
    run(before, first, cut)
    second = problem()
    for param, value in zip(second.params, weights_of(first), strict=True):
        param.data.copy_(value)
    after = make(second.params)
    after.load_state_dict(saved(before))
    run(after, second, 6 - cut, cut)
    assert all(torch.equal(a, b) for a, b in zip(whole.params, second.params, strict=True))


@battery
def test_keys_are_those_of_the_first_step_in_every_save(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    for param in made.params[1:]:
        param.grad = None
    optimizer.step()
    first = {key: sorted(entry) for key, entry in optimizer.state_dict()["state"].items()}
    # torch's SGD, which these rules call, begins a momentum with its first gradient.
    begins_late = optimizer.param_groups[0]["rule"] in ("sgd", "sign")
    assert sorted(first) == list(range(1 if begins_late else len(made.params)))
    groups = [sorted(group) for group in optimizer.state_dict()["param_groups"]]
    run(optimizer, made, 3)
    packed = optimizer.state_dict()
    later = {key: sorted(entry) for key, entry in packed["state"].items()}
    assert {key: later[key] for key in first} == first
    assert sorted(later) == list(range(len(made.params)))
    assert [sorted(group) for group in packed["param_groups"]] == groups


@battery
def test_values_are_plain(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    for group in optimizer.param_groups:
        group["lr"] = numpy.float64(0.01) * numpy.float32(0.5)
        group["weight_decay"] = numpy.float32(0.25)
    run(optimizer, made, 2)
    for group in saved(optimizer)["param_groups"]:
        assert type(group["lr"]) is float and type(group["weight_decay"]) is float


@battery
def test_an_empty_state_loads_at_once(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    optimizer.load_state_dict(state_dict=optimizer.state_dict())
    run(optimizer, made, 1)


def test_moments_keep_their_dtype_and_the_step_its_own() -> None:
    made = problem(dtype=torch.bfloat16)
    optimizer = Schattor(made.params, lr=0.01, momentum_dtype=torch.float32)
    run(optimizer, made, 2)
    other = Schattor(problem(dtype=torch.bfloat16).params, lr=0.01)
    other.load_state_dict(saved(optimizer))
    for old, new in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert new["momentum_buffer"].dtype == torch.float32
        assert torch.equal(new["momentum_buffer"], old["momentum_buffer"])
        assert new["step"].dtype == torch.float32 and new["step"] == 2


def test_moments_of_adamw_follow_the_parameter_as_in_torch() -> None:
    single, half = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    for param in (single, half):
        param.grad = torch.ones_like(param)
    first, second = Schattor([single]), Schattor([half])
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.state[half]["exp_avg"].dtype == torch.bfloat16
    second.step()


def test_moments_take_the_memory_format_of_the_parameter() -> None:
    def made() -> nn.Parameter:
        weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        return nn.Parameter(weight)

    first, second = made(), made()
    first.grad = torch.randn(4, 3, 2, 2)
    optimizer, other = Schattor([first]), Schattor([second])
    optimizer.step()
    packed = optimizer.state_dict()
    packed["state"][0]["momentum_buffer"] = packed["state"][0]["momentum_buffer"].contiguous()
    other.load_state_dict(packed)
    assert other.state[second]["momentum_buffer"].stride() == second.stride()
    second.grad = torch.randn(4, 3, 2, 2)
    other.step()


def test_loaded_tensors_are_copies() -> None:
    made = problem()
    optimizer, other = (Schattor(made.params) for _ in range(2))
    run(optimizer, made, 1)
    other.load_state_dict(optimizer.state_dict())
    before = [entry["momentum_buffer"].clone() for entry in other.state.values()]
    run(optimizer, made, 1, first=1)
    for entry, value in zip(other.state.values(), before, strict=True):
        assert torch.equal(entry["momentum_buffer"], value) and entry["step"] == 1


def test_checkpointed_hyperparameters_win_and_foreign_keys_survive() -> None:
    made = problem()
    first = Schattor([{"params": made.params, "note": "mine"}], lr=0.5, p=3)
    second = Schattor([{"params": made.params}], lr=0.1, power=0.1, momentum=0.5)
    second.load_state_dict(first.state_dict())
    group = second.param_groups[0]
    assert (group["lr"], group["p"], group["power"], group["momentum"]) == (0.5, 3, None, 0.95)
    assert group["note"] == "mine"


def test_keys_unknown_to_the_writer_come_from_the_optimizer() -> None:
    made = problem()
    theirs = torch.optim.Muon(made.params[:2], lr=0.3)
    run(theirs, made, 1)
    optimizer = Schattor(made.params[:2], lr=0.1, p=3, scale="spectral")
    optimizer.load_state_dict(theirs.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["p"], group["scale"]) == (0.3, 3, "spectral")
    assert group["ns_steps"] == 5
    optimizer.step()


def test_unpickled_groups_gain_keys_added_since() -> None:
    made = problem()
    optimizer = Schattor(made.params)
    run(optimizer, made, 1)
    state = optimizer.__getstate__()
    old = [{k: v for k, v in g.items() if k != "workspace_mb"} for g in state["param_groups"]]
    revived = Schattor.__new__(Schattor)
    revived.__setstate__({**state, "param_groups": old})
    assert revived.param_groups[0]["workspace_mb"] == 256
    run(revived, made, 1, first=1)


@battery
def test_deepcopy_goes_on_alike(make: Make) -> None:
    made = problem()
    optimizer = make(made.params)
    run(optimizer, made, 2)
    params, copied = copy.deepcopy((made.params, optimizer))
    twin = problem()._replace(params=params)
    run(optimizer, made, 2, first=2)
    run(copied, twin, 2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(made.params, params, strict=True))


def test_pickle_keeps_a_function_of_the_step() -> None:
    made = problem()
    optimizer = Schattor(made.params, p=PRamp(2.0, math.inf, 4))
    run(optimizer, made, 2)
    revived = pickle.loads(pickle.dumps(optimizer))
    twin = problem()._replace(params=revived.param_groups[0]["params"])
    run(optimizer, made, 2, first=2)
    run(revived, twin, 2, first=2)
    assert revived.param_groups[0]["p"] == optimizer.param_groups[0]["p"] > 2
    assert all(torch.equal(a, b) for a, b in zip(made.params, twin.params, strict=True))


def test_a_function_of_the_step_goes_on_after_a_resume() -> None:
    made = problem()
    optimizer = Schattor(made.params, p=lambda step: 2.0 + step)
    run(optimizer, made, 3)
    assert optimizer.param_groups[0]["p"] == 4.0
    resumed = Schattor(made.params, p=lambda step: 2.0 + step)
    resumed.load_state_dict(saved(optimizer))
    run(resumed, made, 1, first=3)
    assert resumed.param_groups[0]["p"] == 5.0


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    made = problem()
    optimizer = Schattor(made.params, lr=0.5)
    run(optimizer, made, 1)
    packed = copy.deepcopy(optimizer.state_dict())
    change(packed)
    return packed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"][0].update(format=99), f"must be of format {FORMAT}, got 99"),
        (lambda s: s["param_groups"][0].update(p=0.5), r"load_state_dict: p must be in \[1, inf\]"),
        (lambda s: s["param_groups"][0].update(oracle="x"), "oracle must be"),
        (lambda s: s["param_groups"][0]["params"].pop(), r"1 groups of \[5\] .* got 1 of \[4\]"),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "got 2 of"),
        (lambda s: s.pop("state"), "must have the key 'state'"),
        (
            lambda s: s["state"][1].update(momentum_buffer=torch.zeros(9, 4)),
            r"momentum_buffer of parameter 1 must have shape \(4, 9\), got \(9, 4\)",
        ),
        (lambda s: s["state"][1].update(step=torch.zeros(2)), "step of parameter 1 must be one"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    made = problem()
    optimizer = Schattor(made.params, lr=0.1)
    run(optimizer, made, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(broken(change))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, entry in before["state"].items():
        assert all(torch.equal(after["state"][key][name], value) for name, value in entry.items())
    run(optimizer, made, 1, first=2)


def test_hooks_of_torch_see_the_state() -> None:
    made = problem()
    optimizer = Schattor(made.params)
    run(optimizer, made, 1)
    packed = optimizer.state_dict()
    seen: list[int] = []
    optimizer.register_load_state_dict_pre_hook(lambda _, s: seen.append(len(s["state"])))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    optimizer.register_state_dict_post_hook(lambda _, s: {**s, "extra": 1})
    optimizer.load_state_dict(packed)
    assert seen == [5, 5]
    assert optimizer.state_dict()["extra"] == 1


def test_torch_distributed_checkpoints_name_every_value() -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    def made() -> tuple[nn.Module, Schattor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
        return net, Schattor(net, lr=0.1, p=3, momentum_dtype=torch.float64)

    def advance(net: nn.Module, optimizer: Schattor) -> None:
        optimizer.zero_grad()
        net(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    options = StateDictOptions(flatten_optimizer_state_dict=True)
    net, optimizer = made()
    advance(net, optimizer)
    packed = get_optimizer_state_dict(net, optimizer, options=options)
    assert "state.0.weight.momentum_buffer" in packed
    twin, other = made()
    twin.load_state_dict(net.state_dict())
    wanted = get_optimizer_state_dict(twin, other, options=options)  # steps with zero gradients
    assert wanted.keys() == packed.keys()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    set_optimizer_state_dict(twin, other, copy.deepcopy(packed), options=options)
    for pair in ((net, optimizer), (twin, other)):
        advance(*pair)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_accelerate_prepares_and_steps() -> None:
    accelerate = pytest.importorskip("accelerate")
    net = nn.Linear(4, 4)
    optimizer = Schattor(net, lr=0.1)
    net, wrapped = accelerate.Accelerator(cpu=True).prepare(net, optimizer)
    net(torch.ones(1, 4)).sum().backward()
    before = [param.detach().clone() for param in net.parameters()]
    wrapped.step()
    wrapped.zero_grad(set_to_none=True)
    assert all(not torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))
