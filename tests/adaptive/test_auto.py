"""p chosen from data while a model trains."""

from __future__ import annotations

import copy
import math
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schattor.adaptive import chooser
from schattor.adaptive.auto import AutoP
from schattor.adaptive.statistics import InputMoments
from schattor.optim import Schattor
from schattor.theory import criteria as exact
from schattor.theory import exponents

F64 = torch.float64
SOON = AutoP(warmup=1, interval=2, smoothing=0.0)


def model(seed: int = 0, dtype: torch.dtype = F64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3)
    ).to(dtype)


def data(count: int = 64, seed: int = 1, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 10, generator=generator, dtype=F64) * torch.arange(1.0, 11) ** -1.0
    return x.to(dtype), torch.randn(count, 3, generator=generator, dtype=F64).to(dtype)


def train(net: nn.Module, optimizer: Schattor, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x, y = data(seed=step, dtype=next(net.parameters()).dtype)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()


def best_power(momentum: Tensor, grad: Tensor, moment: Tensor) -> tuple[float, Any]:
    """By singular values, on a fine grid, and the criterion itself."""
    u, s, vh = torch.linalg.svd(momentum, full_matrices=False)
    c = torch.einsum("mi,mn,in->i", u, grad, vh).tolist()
    b = torch.einsum("in,nk,ik->i", vh, moment, vh).tolist()

    def fall(power: float) -> float:
        return exact.tightness(power, s.tolist(), c, b)

    powers = [i / 1000 for i in range(1001)]
    return max(powers, key=fall), fall


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_choice_loses_below_one_percent_of_the_surrogates_fall(momentum: float) -> None:
    net = model()
    optimizer = Schattor(net, lr=1e-2, p=SOON, momentum=momentum, nesterov=False)
    inputs: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs.update({name: args[0].detach()})
            )
    train(net, optimizer, 7)
    params = dict(net.named_parameters())
    moments = {
        name: optimizer.state[param].get("momentum_buffer", torch.zeros(())).clone()
        for name, param in params.items()
    }
    train(net, optimizer, 1, first=7)  # step 7 records
    history = optimizer.p_history()
    assert sorted(history) == ["0.weight", "2.weight"]
    for name, entries in history.items():
        taken, p = entries[-1]
        grad, x = params[name].grad, inputs[name.split(".")[0]]
        assert taken == 7 and grad is not None
        applied = momentum * moments[name] + (1 - momentum) * grad
        best, fall = best_power(applied, grad, x.mT @ x / len(x))
        assert fall(exponents.power_of(p)) > 0.99 * fall(best)


def test_p_is_the_upper_bound_until_the_first_recording() -> None:
    net = model()
    optimizer = Schattor(net, p=AutoP(warmup=3, interval=2))
    train(net, optimizer, 3)
    assert optimizer.p_history() == {}
    assert {block["p"] for block in optimizer.stats()["blocks"].values()} == {math.inf}
    train(net, optimizer, 3, first=3)
    assert [taken for taken, _ in optimizer.p_history()["0.weight"]] == [3, 5]
    (first,) = {block["p"] for name, block in optimizer.stats()["blocks"].items() if name[0] == "0"}
    assert first == pytest.approx(optimizer.p_history()["0.weight"][-1][1])


def test_a_chosen_p_steps_as_the_same_p_given() -> None:
    net = model()
    optimizer = Schattor(net, lr=1e-2, p=AutoP(warmup=2, interval=100))
    train(net, optimizer, 3)
    twin = copy.deepcopy(net)
    groups = []
    for name, (entry,) in optimizer.p_history().items():
        param = dict(twin.named_parameters())[name]
        groups.append({"params": [param], "rule": "matrix", "p": entry[1]})
    fixed = Schattor(groups, lr=1e-2, method="chain")
    params = dict(net.named_parameters())
    for name, group in zip(optimizer.p_history(), fixed.param_groups, strict=True):
        fixed.state[group["params"][0]] = {
            key: value.clone()
            for key, value in optimizer.state[params[name]].items()
            if not key.startswith("auto")
        }
    train(net, optimizer, 1, first=3)
    train(twin, fixed, 1, first=3)
    for name in optimizer.p_history():
        assert torch.allclose(params[name], dict(twin.named_parameters())[name], atol=1e-12)


@pytest.mark.parametrize("cut_at", [5, 6])  # the sixth step records
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preconditioner": "adam"},
        {"preconditioner": "soap", "precondition_frequency": 3},
        {"preconditioner": "shampoo", "scale": "adam"},
        {"preconditioner": "sania", "second_moment": "factored"},
        {"coupling": "l2"},
        {"oracle": "regularized", "momentum": 0.0},
    ],
    ids=str,
)
def test_a_resumed_run_is_bit_exact(settings: dict[str, Any], cut_at: int) -> None:
    whole, cut = model(), model()
    auto = AutoP(warmup=2, interval=3)
    optimizers = [Schattor(net, lr=1e-2, p=auto, **settings) for net in (whole, cut)]
    train(whole, optimizers[0], 10)
    train(cut, optimizers[1], cut_at)
    resumed = model(seed=5)
    resumed.load_state_dict(cut.state_dict())
    again = Schattor(resumed, lr=1e-2, p=auto, **settings)
    again.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    train(resumed, again, 10 - cut_at, first=cut_at)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [t for t, _ in again.p_history()["0.weight"]] == [5, 8][cut_at - 5 :]


def test_preconditioned_choices_use_the_steps_that_are_taken() -> None:
    """``<G, D>^2 / <D Axx, D>`` of ``D = w * O(w * M)``, on a fine grid of exact directions."""
    net = model()
    settings: dict[str, Any] = {"momentum": 0.0, "betas": (0.9, 0.9), "eps": 1e-8}
    optimizer = Schattor(net, lr=1e-2, p=SOON, preconditioner="adam", **settings)
    train(net, optimizer, 7)
    param = net[2].weight
    v = optimizer.state[param]["exp_avg_sq"].clone()
    x, y = data(seed=7)
    inputs = torch.tanh(net[0](x)).detach()
    optimizer.zero_grad()
    nn.functional.mse_loss(net(x), y).backward()
    grad = param.grad.clone()
    optimizer.step()
    v = (0.9 * v + 0.1 * grad.square()) / (1 - 0.9**8)
    w = (v.sqrt() + 1e-8) ** -0.5
    u, s, vh = torch.linalg.svd(w * grad, full_matrices=False)
    moment = inputs.mT @ inputs / len(inputs)

    def fall(power: float) -> float:
        step = w * (u @ torch.diag(s**power) @ vh)
        return float((grad * step).sum() ** 2 / (step @ moment * step).sum())

    best = max(fall(i / 500) for i in range(501))
    chosen = exponents.power_of(optimizer.p_history()["2.weight"][-1][1])
    assert fall(chosen) > 0.99 * best


def test_blocks_choose_by_the_inputs_that_are_theirs() -> None:
    """Columns of a split layer see their own inputs; rows all see the same."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8, bias=False)).to(F64)
    group = {"params": [net[0].weight], "param_names": ["w"], "rule": "matrix"}
    fused = Schattor([{**group, "blocks": {"cols": 2}}], p=SOON, momentum=0.0)
    fused.watch(net)
    x = torch.randn(40, 12, dtype=F64) * torch.arange(1.0, 13) ** -1.0
    for _ in range(2):
        fused.zero_grad()
        (net(x) ** 2).sum().backward()
        fused.step()
    grad = net[0].weight.grad
    for index in range(2):
        part = slice(6 * index, 6 * index + 6)
        moment = x[:, part].mT @ x[:, part] / 40
        best, fall = best_power(grad[:, part], grad[:, part], moment)
        chosen = exponents.power_of(fused.p_history()[f"w[{index}]"][-1][1])
        assert fall(chosen) > 0.99 * fall(best)


def test_convolutions_and_layers_that_cannot_be_watched() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.free = nn.Parameter(torch.randn(6, 6))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.conv(x).mean((2, 3)) @ self.free).relu())

    torch.manual_seed(0)
    net = Net()
    params = [net.conv.weight, net.free]
    names = ["conv", "free"]
    optimizer = Schattor([{"params": params, "param_names": names, "rule": "matrix"}], p=SOON)
    optimizer.watch(net)
    for step in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().sum().backward()
        told = pytest.warns(UserWarning, match="saw nothing of what free multiplied")
        with told if step == 1 else nullcontext():
            optimizer.step()
        assert net.conv._forward_pre_hooks == {} if step else True
    assert optimizer.p_history()["conv"][-1][1] < math.inf
    assert (
        "free" not in optimizer.p_history() and optimizer.stats()["blocks"]["free"]["p"] == math.inf
    )


def test_smoothing_and_hysteresis_hold_p_back() -> None:
    def way(auto: AutoP) -> float:
        """How far the power went, there and back."""
        net = model()
        optimizer = Schattor(net, lr=3e-2, p=auto)
        train(net, optimizer, 30)
        chosen = [exponents.power_of(p) for _, p in optimizer.p_history()["0.weight"]]
        return sum(abs(a - b) for a, b in zip(chosen, chosen[1:], strict=False))

    free = way(AutoP(warmup=1, interval=1, smoothing=0.0))
    assert way(AutoP(warmup=1, interval=1, smoothing=0.95)) < 0.5 * free
    assert way(AutoP(warmup=1, interval=1, smoothing=0.0, hysteresis=100.0)) == 0


def test_one_recording_of_low_rank_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The averaged curve is that of J relative to its largest value, by hand."""
    w = nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    auto = AutoP(warmup=0, interval=1, smoothing=0.5, statistics="inputs")
    optimizer = Schattor([w], lr=1e-3, p=auto)
    grid = torch.linspace(0, 1, 65, dtype=torch.float64)
    usual, extreme = -((grid - 0.25) ** 2), -1e3 * (1 - grid)  # logarithms, up to a constant
    past, found = None, []
    for step, logarithm in enumerate([usual, extreme, usual, usual, usual]):
        shown = (logarithm + step).expand(1, -1)
        monkeypatch.setattr(chooser, "curve", lambda *_, shown=shown: shown)
        optimizer.observe(w, torch.randn(16, 8))
        w.grad = torch.randn(6, 8)
        optimizer.step()
        now = (logarithm - logarithm.max()).exp()
        past = now if past is None else 0.5 * past + 0.5 * now
        torch.testing.assert_close(optimizer.state[w]["auto_curve"].double(), past)
        found.append(float(optimizer.state[w]["auto_power"]))
    assert found[1] == 1.0 and found[-1] == pytest.approx(0.25, abs=0.02)


def test_hooks_are_there_on_recording_steps_alone() -> None:
    net = model()
    optimizer = Schattor(net, p=AutoP(warmup=2, interval=3))
    hooks = []
    for step in range(7):
        hooks.append(any(module._forward_pre_hooks for module in net.modules()))
        train(net, optimizer, 1, first=step)
    assert hooks == [False, False, True, False, False, True, False]


def test_an_optimizer_that_watches_again_leaves_no_hooks() -> None:
    net = model()
    optimizer = Schattor(net, p=AutoP(warmup=0, interval=2))
    optimizer.watch(net)
    optimizer.add_param_group(
        {"params": [("late", nn.Parameter(torch.ones(3, 4)))], "rule": "matrix"}
    )
    hooks = [len(net[i]._forward_pre_hooks) for i in (0, 2)]
    train(net, optimizer, 1)
    assert hooks == [1, 1] and not any(module._forward_pre_hooks for module in net)


def test_layers_that_read_the_same_share_one_moment() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 4, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x) + self.b(x)
            x.mul_(2)  # the same tensor, but not the same inputs
            return first + self.c(x)

    net = Net()
    moments = InputMoments(net, net.parameters())
    moments.record(True)
    x = torch.randn(5, 6)
    net(x)
    a, b, c = (moments.samples(layer.weight) for layer in (net.a, net.b, net.c))
    assert a is not None and b is not None and c is not None
    assert a is b and torch.allclose(c.moment(), 4 * a.moment())
    net(x)
    d, e = moments.samples(net.a.weight), moments.samples(net.b.weight)
    assert d is not None and e is not None
    assert d is e and torch.allclose(d.moment(), 2.5 * a.moment())


def test_groups_of_fixed_p_beside_chosen_ones() -> None:
    net = model()
    groups = [
        {"params": [net[0].weight], "p": "auto", "rule": "matrix", "param_names": ["auto"]},
        {"params": [net[2].weight], "p": 4.0, "rule": "matrix", "param_names": ["fixed"]},
    ]
    optimizer = Schattor(groups, lr=1e-2)
    optimizer.watch(net)
    train(net, optimizer, 12)
    assert list(optimizer.p_history()) == ["auto"]
    assert optimizer.stats()["blocks"]["fixed"]["p"] == 4.0


# What is refused.


def test_without_a_model_or_inputs_a_recording_says_what_to_do() -> None:
    param = nn.Parameter(torch.ones(3, 3))
    param.grad = torch.ones(3, 3)
    optimizer = Schattor([param], p=AutoP(statistics="inputs", warmup=0))
    with pytest.raises(ValueError, match=r"needs the model whose inputs it watches"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3, 3))
    with pytest.raises(ValueError, match="model must have a layer whose weight"):
        optimizer.watch(nn.Linear(3, 3))
    with pytest.raises(ValueError, match='a group must have p="auto", got none'):
        Schattor([param]).watch(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": 0.1}, 'power must be None with p="auto", got 0.1'),
        ({"method": "exact"}, "method must be 'auto' or 'chain' with p=\"auto\", got 'exact'"),
        ({"norm": "entries"}, "norm must be 'schatten' with p=\"auto\""),
        ({"scale": "spectral"}, "scale must be None or 'unit' or 'rms'"),
        ({"coefficients": "jordan"}, "coefficients must be 'schattor' with p"),
        ({"coupling": "block_diagonal"}, "coupling must need no p of its own"),
        ({"capturable": True}, "capturable must be False with p"),
    ],
    ids=str,
)
def test_settings_that_need_p_on_the_host_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Schattor(model(), p="auto", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "tight"}, "criterion must be one of tightness, momentum_aligned, hoelder"),
        ({"interval": 0}, "interval must be an int >= 1, got 0"),
        ({"warmup": -1}, "warmup must be an int >= 0"),
        ({"smoothing": 1.0}, "smoothing must be in [0, 1), got 1.0"),
        ({"hysteresis": -1.0}, "hysteresis must be a number >= 0"),
        ({"bounds": (1.5, 4.0)}, "bounds must rise within [2, inf]"),
        ({"lowest_power": -0.3}, "lowest_power must be in [-0.2, 0]"),
        ({"lowest_power": -0.1, "bounds": (2, 8)}, "lowest_power below 0 needs bounds up to inf"),
        ({"tokens": 0}, "tokens must be None or >= 1"),
        ({"statistics": "noise"}, 'statistics must be None, "inputs", "kfac" or "gradients", got'),
    ],
    ids=str,
)
def test_settings_of_the_search_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AutoP(**settings)


@pytest.mark.parametrize("preconditioner", [None, "adam"])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_p_pinned_at_a_bound_is_that_p(p: float, preconditioner: str | None) -> None:
    """SGD's direction, Muon, Adam, MuAdam: to the bit where both take the chain."""
    weights = []
    for given in (AutoP(warmup=1, interval=2, bounds=(p, p)), p):
        net = model()
        settings: dict[str, Any] = {} if p == 2 else {"method": "chain"}
        optimizer = Schattor(net, lr=1e-2, p=given, preconditioner=preconditioner, **settings)
        train(net, optimizer, 8)
        weights.append([param.detach().clone() for param in net.parameters()])
    chosen, fixed = weights
    for a, b in zip(chosen, fixed, strict=True):
        if p == 2:  # fixed, the momentum itself is the direction
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        else:
            assert torch.equal(a, b)
