"""Second moments of gradients at the outputs of layers, and p from both sides."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schattor.adaptive.auto import AutoP
from schattor.adaptive.criteria import curve, powers_of_grid
from schattor.adaptive.forms import forms_of
from schattor.adaptive.moments import Moments, Side
from schattor.adaptive.statistics import OutputMoments
from schattor.optim import Schattor
from schattor.theory import exponents

F64 = torch.float64
GRID = powers_of_grid(0.0, 1.0)
SOON = AutoP(warmup=1, interval=2, smoothing=0.0, statistics="kfac")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def truth(*rows: Tensor) -> Tensor:
    """The mean of ``e e'`` over rows ``[..., m]``."""
    e = torch.cat([part.detach().double().flatten(0, -2) for part in rows])
    return e.mT @ e / len(e)


def gain(step: Tensor, grad: Tensor, before: Tensor, behind: Tensor) -> Tensor:
    """Twice what the best length of a step gains."""
    return (grad * step).sum() ** 2 / (step @ before * (behind @ step)).sum()


def gains(momentum: Tensor, *sides: Tensor) -> Tensor:
    """The gain at every power of the grid, by singular values."""
    u, s, vh = torch.linalg.svd(momentum, full_matrices=False)
    steps = [u @ torch.diag((s / s[0]) ** power) @ vh for power in GRID]
    return torch.stack([gain(step, *sides) for step in steps])


def lost(chosen: float, found: Tensor) -> float:
    """Which share of the best gain a chosen p does not have."""
    return float(1 - found[round(exponents.power_of(chosen) * (len(GRID) - 1))] / found.max())


def recorded(model: nn.Module, run: Callable[[], Tensor], **options: Any) -> OutputMoments:
    """Moments after a pass forward and back."""
    moments = OutputMoments(model, model.parameters(), **options)
    moments.record(True)
    run().backward()
    moments.record(False)
    return moments


# What is recorded.


@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 5, 6)])
def test_linear(shape: tuple[int, ...]) -> None:
    model = nn.Linear(6, 4).to(F64)
    e = normal(*shape[:-1], 4, seed=1)

    moments = recorded(model, lambda: (model(normal(*shape)) * e).sum())

    torch.testing.assert_close(moments.moment(model.weight), truth(e[None]))
    assert moments.covers(model.weight) and not moments.covers(model.bias)


def test_conv1d_of_transformers() -> None:
    from transformers.pytorch_utils import Conv1D

    model = Conv1D(4, 6).to(F64)
    e = normal(5, 4, seed=1)

    moments = recorded(model, lambda: (model(normal(5, 6)) * e).sum())

    torch.testing.assert_close(moments.moment(model.weight), truth(e))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_places_of_a_convolution_are_samples(dims: int, batched: bool) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = kind(2, 4, 2).to(F64)
    lead = (3,) if batched else ()
    e = normal(*lead, 4, *(4,) * dims, seed=1)

    moments = recorded(model, lambda: (model(normal(*lead, 2, *(5,) * dims)) * e).sum())

    torch.testing.assert_close(moments.moment(model.weight), truth(e.movedim(-1 - dims, -1)))


def test_memory_formats_leave_the_order_of_outputs() -> None:
    model = nn.Conv2d(2, 4, 3).to(F64).to(memory_format=torch.channels_last)
    e = normal(3, 4, 2, 2, seed=1)

    moments = recorded(model, lambda: (model(normal(3, 2, 4, 4)) * e).sum())

    torch.testing.assert_close(moments.moment(model.weight), truth(e.movedim(1, -1)))


def test_calls_of_one_weight_add_up_until_cleared() -> None:
    """A layer called twice, two layers of one weight, two micro-batches."""
    first, second = nn.Linear(6, 4).to(F64), nn.Linear(6, 4).to(F64)
    second.weight = first.weight
    model = nn.ModuleList([first, second])
    e = [normal(5, 4, seed=seed) for seed in range(4)]
    moments = OutputMoments(model, model.parameters())
    moments.record(True)

    ((first(normal(5, 6)) * e[0]).sum() + (first(normal(5, 6)) * e[1]).sum()).backward()
    (second(normal(5, 6)) * e[2]).sum().backward()
    torch.testing.assert_close(moments.moment(first.weight), truth(*e[:3]))

    moments.clear()
    assert moments.moment(first.weight) is None
    (first(normal(5, 6)) * e[3]).sum().backward()
    torch.testing.assert_close(moments.moment(first.weight), truth(e[3]))


def test_calls_without_a_backward_pass_stay_out() -> None:
    model = nn.Linear(6, 4)
    moments = OutputMoments(model, model.parameters())
    moments.record(True)
    model(torch.randn(5, 6))
    with torch.no_grad():
        model(torch.randn(5, 6))
    with torch.inference_mode():
        model(torch.randn(5, 6))
    assert moments.moment(model.weight) is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).to(F64)
    x, e = normal(5, 6).requires_grad_(), normal(5, 4, seed=1)
    plain = recorded(model, lambda: (model(x) * e).sum())
    again = recorded(model, lambda: (checkpoint(model, x, use_reentrant=reentrant) * e).sum())

    for layer in (model[0], model[2]):
        expected, found = plain.samples(layer.weight), again.samples(layer.weight)
        assert expected is not None and found is not None
        torch.testing.assert_close(found.moment(), expected.moment())
        assert int(found.number) == int(expected.number) == 5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_rows_that_are_not_finite_are_left_out(bad: float) -> None:
    model = nn.Linear(6, 4)
    e = torch.randn(5, 4)
    sick = e.clone()
    sick[2, 1] = bad

    moments = recorded(model, lambda: (model(torch.randn(5, 6)) * sick).sum())

    found = moments.moment(model.weight)
    assert found is not None
    torch.testing.assert_close(found.double(), truth(e[:2], e[3:]), rtol=1e-5, atol=1e-6)


def test_half_precision_sums_in_float32() -> None:
    model = nn.Linear(6, 4).to(torch.bfloat16)
    e = torch.randn(5, 4).bfloat16()

    moments = recorded(model, lambda: (model(torch.randn(5, 6).bfloat16()) * e).sum())

    found = moments.moment(model.weight)
    assert found is not None and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth(e), rtol=1e-5, atol=1e-6)


def test_what_is_written_over_an_output_is_behind_it() -> None:
    """The gradient is that at the layer, not at what an activation in place leaves."""

    def moment(inplace: bool) -> Tensor | None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=inplace))
        x, e = torch.randn(5, 6), torch.randn(5, 4)
        return recorded(model, lambda: (model(x) * e).sum()).moment(model[0].weight)

    plain, over = moment(False), moment(True)
    assert plain is not None and over is not None and torch.equal(plain, over)


def test_compiled_and_autocast_models() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    x, e = torch.randn(300, 6), torch.randn(300, 4)
    plain = recorded(model, lambda: (model(x) * e).sum())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(x)
    again = recorded(model, lambda: (compiled(x) * e).sum())
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        half = recorded(model, lambda: (model(x) * e).sum())
    torch.compiler.reset()
    for layer in (model[0], model[2]):
        expected, found, rounded = (each.moment(layer.weight) for each in (plain, again, half))
        assert expected is not None and found is not None and rounded is not None
        assert torch.equal(found, expected) and rounded.dtype == torch.float32
        assert float((rounded - expected).norm() / expected.norm()) < 0.02


def test_at_most_so_many_samples() -> None:
    model = nn.Linear(6, 4)
    moments = recorded(model, lambda: model(torch.randn(4, 25, 6)).sum(), tokens=10)
    found = moments.samples(model.weight)
    assert found is not None and int(found.number) == 10


def test_outputs_that_are_no_tensor_of_the_layers_width_stay_out() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return (y,) if x.ndim == 1 else y[..., :2]

    model = Odd(6, 4)
    assert recorded(model, lambda: model(torch.randn(6))[0].sum()).moment(model.weight) is None
    assert recorded(model, lambda: model(torch.randn(5, 6)).sum()).moment(model.weight) is None


def test_gradients_stay_as_they_are_and_hooks_go() -> None:
    model = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    plain = torch.autograd.grad(model(x).square().sum(), model.weight)[0]
    recorded(model, lambda: model(x).square().sum())
    assert model.weight.grad is not None and torch.equal(model.weight.grad, plain)
    assert not model._forward_hooks


# The criterion.


class Both:
    """A momentum ``[m, n]``, a gradient, and moments of both sides."""

    def __init__(self, rows: int, cols: int, decay: float) -> None:
        u, _, vh = torch.linalg.svd(normal(rows, cols), full_matrices=False)
        rank = min(rows, cols)
        self.momentum = u @ torch.diag(torch.arange(1.0, rank + 1, dtype=F64) ** -decay) @ vh
        self.grad = self.momentum + 0.02 * normal(rows, cols, seed=1)
        self.before = truth(normal(200, cols, seed=2) * torch.arange(1, cols + 1) ** -0.5)
        self.behind = truth(normal(200, rows, seed=3) * torch.arange(1, rows + 1) ** -0.8)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("through", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("shape", [(12, 20, 0.7), (16, 48, 1.4), (20, 20, 0.0)], ids=str)
def test_chains_find_what_singular_values_say(
    shape: tuple[int, int, float], through: bool, turned: bool
) -> None:
    """Wide and square, inputs along the columns or (of a tall weight) along the rows."""
    each = Both(*shape)
    x, grad = each.momentum[None], each.grad[None]
    moments = Moments(Side([each.before]), True, Side([each.behind]))
    if turned:  # the batch's rows are inputs
        moments = Moments(Side([each.behind]), False, Side([each.before]))
    forms = forms_of(x, grad, moments, (lambda steps: steps) if through else None, False, 0.0)
    found = curve("tightness", forms, GRID)[0]
    true = gains(each.momentum, each.grad, each.before, each.behind).log()
    assert float(((found - found[-1]) - (true - true[-1])).abs().max()) < 0.015
    assert float(true.max() - true[found.argmax()]) < 1e-3


def test_the_fall_is_that_of_a_network_that_is_linear_behind_the_layer() -> None:
    """``B = W'W`` of what lies behind: half of J is what the best step along D gains."""
    w, behind, x, y = normal(6, 9), normal(4, 6, seed=1), normal(9, 50, seed=2), normal(4, 50)

    def loss(weight: Tensor) -> float:
        return float((behind @ weight @ x - y).square().sum() / (2 * 50))

    grad = behind.mT @ (behind @ w @ x - y) @ x.mT / 50
    before, after = x @ x.mT / 50, behind.mT @ behind
    u, s, vh = torch.linalg.svd(grad, full_matrices=False)
    for power in (0.0, 0.4, 1.0):
        step = u @ torch.diag(s**power) @ vh
        length = (grad * step).sum() / (step @ before * (after @ step)).sum()
        gained = loss(w) - loss(w - length * step)
        assert gained == pytest.approx(float(gain(step, grad, before, after)) / 2, rel=1e-10)


# The choice.


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3)
    ).to(F64)


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = normal(64, 10, seed=step) * torch.arange(1, 11) ** -1.0
    return x, normal(64, 3, seed=100 + step)


def train(net: nn.Module, optimizer: Schattor, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        x, y = batch(step)
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("layer", [0, 2])
def test_the_choice_loses_below_one_percent(layer: int) -> None:
    net = model()
    optimizer = Schattor(net, lr=1e-2, p=SOON, momentum=0.0)
    train(net, optimizer, range(7))
    x, y = batch(7)
    inputs = net[:layer](x)
    output = net[layer](inputs)
    (e,) = torch.autograd.grad(nn.functional.mse_loss(net[layer + 1 :](output), y), output)
    grad = e.mT @ inputs.detach()
    train(net, optimizer, range(7, 8))  # step 7 records
    taken, p = optimizer.p_history()[f"{layer}.weight"][-1]
    assert taken == 7 and lost(p, gains(grad, grad, truth(inputs), truth(e))) < 0.01


@pytest.mark.parametrize("out", [0, 1])
@pytest.mark.parametrize("split", ["rows", "cols"])
def test_blocks_choose_by_the_sides_that_are_theirs(split: str, out: int) -> None:
    """A fused layer's blocks of outputs have gradients of their own, blocks of inputs inputs."""
    from transformers.pytorch_utils import Conv1D

    net: Any = nn.Sequential(Conv1D(8, 12) if out else nn.Linear(12, 8, bias=False)).to(F64)
    group = {"params": [("w", net[0].weight)], "rule": "matrix"}
    fused = Schattor([{**group, "blocks": {split: 2, "out": out}}], p=SOON, momentum=0.0)
    fused.watch(net)
    scales = torch.cat([torch.ones(4), 4.0 ** -torch.arange(4)])
    for step in range(2):
        x = normal(40, 12, seed=step) * torch.arange(1, 13) ** -1.0
        e = (normal(40, 8, seed=9) + x[:, :8]) * scales
        fused.zero_grad()
        (net(x) * e).sum().backward()
        fused.step()
    weight_grad = net[0].weight.grad
    for index in range(2):
        inputs, outputs = slice(None), slice(None)
        if (split == "rows") == (out == 0):
            outputs = slice(4 * index, 4 * index + 4)
        else:
            inputs = slice(6 * index, 6 * index + 6)
        grad = (weight_grad.mT if out else weight_grad)[outputs, inputs]
        found = gains(grad, grad, truth(x[:, inputs]), truth(e[:, outputs]))
        assert lost(fused.p_history()[f"w[{index}]"][-1][1], found) < 0.01


@pytest.mark.parametrize("cut_at", [5, 6])  # the sixth step records
def test_a_resumed_run_is_bit_exact(cut_at: int) -> None:
    whole, cut = model(), model()
    auto = AutoP(warmup=2, interval=3, statistics="kfac")
    optimizers = [Schattor(net, lr=1e-2, p=auto, preconditioner="adam") for net in (whole, cut)]
    train(whole, optimizers[0], range(10))
    train(cut, optimizers[1], range(cut_at))
    resumed = model(seed=5)
    resumed.load_state_dict(cut.state_dict())
    again = Schattor(resumed, lr=1e-2, p=auto, preconditioner="adam")
    again.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    train(resumed, again, range(cut_at, 10))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_layers_whose_outputs_reach_no_loss_keep_their_p() -> None:
    """A gradient by other ways than the layer's output."""
    net = model()
    optimizer = Schattor(net, p=SOON)
    for step in range(2):
        optimizer.zero_grad()
        net[0](normal(5, 10, seed=step))
        net[0].weight.square().sum().backward()
        told = pytest.warns(UserWarning, match=r"saw nothing of what 0\.weight multiplied")
        with told if step == 1 else nullcontext():
            optimizer.step()
    assert optimizer.p_history() == {}
    assert optimizer.stats()["blocks"]["0.weight"]["p"] == math.inf


def test_tiny_gradients_choose_as_large_ones() -> None:
    chosen = []
    for factor in (1.0, 1e-12):
        net = model(seed=5).float()
        optimizer = Schattor(net, p=AutoP(warmup=0, statistics="kfac"), momentum=0.0)
        x, y = (part.float() for part in batch(0))
        (factor * nn.functional.mse_loss(net(x), y)).backward()
        optimizer.step()
        chosen.append([exponents.power_of(p) for ((_, p),) in optimizer.p_history().values()])
    assert chosen[0] == pytest.approx(chosen[1], abs=0.02) and max(chosen[0]) > 0


def test_what_is_refused() -> None:
    net = model()
    with pytest.raises(ValueError, match='criterion must be "tightness" with statistics="kfac"'):
        AutoP("hoelder", statistics="kfac")
    optimizer = Schattor(net, p=SOON)
    with pytest.raises(ValueError, match='statistics of AutoP must be "inputs", got "kfac"'):
        optimizer.observe(net[0].weight, normal(3, 10))
    alone = Schattor([net[0].weight], p=AutoP(statistics="kfac", warmup=0))
    net[0].weight.grad = torch.ones_like(net[0].weight)
    with pytest.raises(ValueError, match='"kfac" needs the model whose inputs it watches'):
        alone.step()
    alone.watch(net)
    net(normal(5, 10)).sum().backward()
    alone.step()
    assert len(alone.p_history()) == 1
