"""When a model is watched, and which steps record: p by hand, an end, and a run that is resumed."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schattor import AutoP, Schattor

OFTEN = AutoP(warmup=2, interval=3)


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def batch(step: int) -> Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(step))


def train(net: nn.Module, optimizer: Schattor, steps: Iterable[int]) -> list[int]:
    """How many hooks were on each step's forward pass."""
    hooks = []
    for step in steps:
        hooks.append(count_hooks(net))
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        optimizer.step()
    return hooks


def count_hooks(net: nn.Module) -> int:
    return sum(len(each._forward_pre_hooks) + len(each._forward_hooks) for each in net.modules())


def recorded(optimizer: Schattor) -> list[int]:
    return sorted({taken for each in optimizer.p_history().values() for taken, _ in each})


def stance() -> str:
    """The compiler's, which setting it tells."""
    probe = torch.compiler.set_stance("default")
    probe.__exit__(None, None, None)
    return str(probe.prev.stance)


# p by hand.


def test_p_by_hand_ends_a_recording_and_auto_goes_on() -> None:
    net = model()
    optimizer = Schattor(net, p=OFTEN)
    train(net, optimizer, range(2))
    assert optimizer.recording and stance() == "force_eager"
    optimizer.param_groups[0]["p"] = 4.0
    assert train(net, optimizer, range(2, 8)) == [2, 0, 0, 0, 0, 0]
    assert stance() == "default" and not optimizer.recording and optimizer.p_history() == {}
    optimizer.param_groups[0]["p"] = "auto"
    assert train(net, optimizer, range(8, 13)) == [0, 0, 0, 2, 0]
    assert recorded(optimizer) == [11]


def test_a_state_dict_with_p_by_hand_is_not_recorded() -> None:
    net, other = model(), model()
    fixed = Schattor(net, p=4.0)
    train(net, fixed, range(2))
    optimizer = Schattor(other, p=OFTEN)
    with pytest.warns(UserWarning, match="not chosen from data any more"):
        optimizer.load_state_dict(fixed.state_dict())
    assert not optimizer.recording and count_hooks(other) == 0 and stance() == "default"


# The end of a training.


def test_a_model_that_is_no_longer_watched_is_as_before() -> None:
    net = model()
    optimizer = Schattor(net, lr=1e-2, p=OFTEN)
    train(net, optimizer, range(5))
    assert optimizer.recording and count_hooks(net) == 2 and stance() == "force_eager"
    chosen = optimizer.p_history()
    optimizer.unwatch()
    optimizer.unwatch()
    assert not optimizer.recording and count_hooks(net) == 0 and stance() == "default"
    assert train(net, optimizer, range(5, 10)) == [0] * 5
    assert optimizer.p_history() == chosen and recorded(optimizer) == [2]
    found = {name: block["p"] for name, block in optimizer.stats()["blocks"].items()}
    assert found == {name: pytest.approx(each[-1][1]) for name, each in chosen.items()}
    assert min(found.values()) < math.inf


def test_watching_begins_again_after_as_many_steps() -> None:
    net = model()
    optimizer = Schattor(net, p=OFTEN)
    train(net, optimizer, range(5))
    optimizer.unwatch()
    train(net, optimizer, range(5, 7))
    late = nn.Linear(8, 8)
    optimizer.add_param_group({"params": [("late", late.weight)], "rule": "matrix"})
    optimizer.load_state_dict(optimizer.state_dict())
    assert train(net, optimizer, range(7, 9)) == [0, 0]
    optimizer.watch(net)
    assert train(net, optimizer, range(9, 12)) == [0, 0, 2]
    assert recorded(optimizer) == [2, 11]


@pytest.mark.parametrize("statistics", ["gradients", "inputs"])
def test_without_a_model_there_is_nothing_to_end(statistics: Any) -> None:
    net = model()
    optimizer = Schattor(net.parameters(), p=AutoP(warmup=1, interval=2, statistics=statistics))
    optimizer.unwatch()
    for step in range(4):
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        if optimizer.recording and statistics == "inputs":
            optimizer.observe(net[0].weight, batch(step))
        optimizer.step()
        optimizer.unwatch()
    assert recorded(optimizer) == [1, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_scripting_says_what_to_do() -> None:
    net, x = model(), batch(0)
    optimizer = Schattor(net, p=AutoP(warmup=0))
    with pytest.raises(AttributeError, match=r"call the optimizer's unwatch\(\) before"):
        torch.jit.script(net)
    optimizer.unwatch()
    assert torch.equal(torch.jit.script(net)(x), net(x))


# Which steps record.


class Turns(nn.Module):
    """Two layers of which no step moves both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.layers[self.calls % 2](x) - x.roll(1, 1)
        return found


def turns(first: int = 0) -> tuple[Turns, Schattor]:
    net = Turns()
    net.calls = first
    return net, Schattor(net, lr=1e-2, p=AutoP(warmup=3, interval=4))


def test_a_resumed_run_records_the_same_steps_where_parameters_take_turns() -> None:
    whole, optimizer = turns()
    train(whole, optimizer, range(10))
    assert recorded(optimizer) == [3, 7]
    weights, state = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, range(10, 20))
    resumed, again = turns(10)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    train(resumed, again, range(10, 20))
    assert recorded(again) == [11, 15, 19]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_count_on(copied: Any) -> None:
    net, optimizer = turns()
    train(net, optimizer, range(10))
    twin, other = copied((net, optimizer))
    assert other.p_history() == {}
    other.watch(twin)
    train(twin, other, range(10, 20))
    assert recorded(other) == [11, 15, 19]


def test_state_dicts_without_the_count_go_on_from_the_steps_of_parameters() -> None:
    net = model()
    optimizer = Schattor(net, p=OFTEN)
    train(net, optimizer, range(4))
    old = copy.deepcopy(optimizer.state_dict())
    assert {group.pop("auto_taken") for group in old["param_groups"]} == {4}
    train(net, optimizer, range(4, 10))
    for present in (optimizer, Schattor(net, p=OFTEN)):
        present.load_state_dict(old)
        assert train(net, present, range(4, 7)) == [0, 2, 0]


@pytest.mark.parametrize("count", [-1, True, "4"])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    net = model()
    optimizer = Schattor(net, p=OFTEN)
    train(net, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["auto_taken"] = count
    with pytest.raises((ValueError, TypeError), match="auto_taken must be an int >= 0, got"):
        optimizer.load_state_dict(state)
    assert train(net, optimizer, range(3, 6)) == [0, 0, 2]


def test_groups_of_another_optimizer_bring_no_count() -> None:
    net = model()
    optimizer = Schattor(net, p=OFTEN)
    train(net, optimizer, range(4))
    again = Schattor([{**group, "p": OFTEN} for group in optimizer.param_groups])
    again.watch(net)
    assert train(net, again, range(4)) == [0, 0, 2, 0]


def test_only_groups_of_optimizers_that_choose_have_a_count() -> None:
    net = model()
    optimizer = Schattor(net, p=4.0)
    train(net, optimizer, range(2))
    assert not any("auto_taken" in group for group in optimizer.param_groups)
