"""p chosen from inputs that the user hands over."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from seen import choices, truth
from torch import Tensor, nn

from schattor import AutoP, Schattor
from schattor.adaptive.own import OwnMoments
from schattor.adaptive.samples import Samples

F64 = torch.float64
ALWAYS = AutoP(warmup=0, interval=1, smoothing=0.0, statistics="inputs", tokens=None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """Second moments that blocks were chosen by, in the order they were asked for."""
    return choices(monkeypatch, Samples.moment)


def stepped(optimizer: Schattor) -> None:
    for group in optimizer.param_groups:
        for index, param in enumerate(group["params"]):
            param.grad = normal(*param.shape, seed=index).to(param.dtype)
    optimizer.step()


def matrices(*shape: int, **blocks: Any) -> tuple[nn.Parameter, Schattor]:
    """One parameter under the matrix rule."""
    w = nn.Parameter(normal(*shape))
    group = {"params": [w], "param_names": ["w"], "rule": "matrix", "blocks": blocks or None}
    return w, Schattor([group], lr=1e-2, p=ALWAYS)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)], ids=str)
@pytest.mark.parametrize("out", [0, 1])
def test_calls_add_up(shape: tuple[int, int], out: int, moments: list[Tensor | None]) -> None:
    w, optimizer = matrices(*shape, out=out)
    n = shape[1 - out]
    first, second = normal(2, 5, n, seed=1), normal(n, seed=2)
    optimizer.observe(w, first)
    optimizer.observe(w, second.float())
    stepped(optimizer)
    expected = truth(first, second.float().double()[None])
    assert moments[0] is not None and torch.allclose(moments[0], expected)
    optimizer.observe(w, second)  # what came before the step is forgotten
    stepped(optimizer)
    assert moments[1] is not None and torch.allclose(moments[1], truth(second[None]))


def test_they_choose_what_a_watched_layer_chooses() -> None:
    def trained(own: bool) -> list[tuple[int, float]]:
        torch.manual_seed(0)
        layer = nn.Linear(8, 6, bias=False).to(F64)
        group = {"params": [layer.weight], "param_names": ["w"], "rule": "matrix"}
        optimizer = Schattor([group], lr=1e-2, p=ALWAYS)
        if not own:
            optimizer.watch(layer)
        for step in range(4):
            x = normal(16, 8, seed=step) * torch.arange(1.0, 9, dtype=F64) ** -1
            optimizer.zero_grad()
            (layer(x) - 1).square().sum().backward()
            if own:
                optimizer.observe(layer.weight, x)
            optimizer.step()
        return optimizer.p_history()["w"]

    assert trained(own=True) == trained(own=False)
    assert len({p for _, p in trained(own=True)}) > 1


def test_they_add_to_those_of_a_watched_layer(moments: list[Tensor | None]) -> None:
    layer = nn.Linear(4, 6, bias=False).to(F64)
    optimizer = Schattor([{"params": [layer.weight], "rule": "matrix"}], p=ALWAYS)
    optimizer.watch(layer)
    x, own = normal(7, 4, seed=1), normal(3, 4, seed=2)
    layer(x)
    optimizer.observe(layer.weight, own)
    stepped(optimizer)
    assert moments[0] is not None and torch.allclose(moments[0], truth(x, own))


def test_rows_that_are_not_finite_are_left_out(moments: list[Tensor | None]) -> None:
    w, optimizer = matrices(6, 4)
    x = normal(5, 4)
    sick = x.clone()
    sick[1, 2] = torch.nan
    optimizer.observe(w, sick)
    stepped(optimizer)
    assert moments[0] is not None and torch.allclose(moments[0], truth(x[:1], x[2:]))


@pytest.mark.parametrize("out", [0, 1])
def test_each_expert_has_its_own(out: int, moments: list[Tensor | None]) -> None:
    w, optimizer = matrices(3, 4, 6, batch=1, out=out)
    n = (6, 4)[out]
    common, own = normal(5, n, seed=1), normal(7, n, seed=2)
    optimizer.observe(w, common)
    optimizer.observe(w, own, block=1)
    stepped(optimizer)
    for found, expected in zip(
        moments, (truth(common), truth(common, own), truth(common)), strict=True
    ):
        assert found is not None and torch.allclose(found, expected)


def test_experts_without_tokens_keep_their_p(moments: list[Tensor | None]) -> None:
    w, optimizer = matrices(3, 4, 6, batch=1)
    optimizer.observe(w, normal(7, 6) * torch.arange(1.0, 7, dtype=F64) ** -2, block=2)
    with pytest.warns(UserWarning, match=r"saw nothing of what w\[0\] and 1 more multiplied"):
        stepped(optimizer)
    assert [found is None for found in moments] == [True, True, False]
    curves = [optimizer.state[w][f"auto_curve.{index}"] for index in range(3)]
    assert [bool(curve.isfinite().all()) for curve in curves] == [False, False, True]


def test_one_expert_that_lies_otherwise_in_memory(moments: list[Tensor | None]) -> None:
    w = nn.Parameter(normal(1, 6, 4).mT)
    group = {"params": [w], "rule": "matrix", "blocks": {"batch": 1}}
    optimizer = Schattor([group], p=ALWAYS)
    x = normal(7, 6)
    optimizer.observe(w, x)
    stepped(optimizer)
    assert moments[0] is not None and torch.allclose(moments[0], truth(x))


@pytest.mark.parametrize("out", [0, 1])
def test_split_inputs(out: int, moments: list[Tensor | None]) -> None:
    """Blocks along the inputs take their part of what all of them read."""
    shape, blocks = ((8, 6), {"rows": 2}) if out else ((6, 8), {"cols": 2})
    w, optimizer = matrices(*shape, out=out, **blocks)
    x, own = normal(9, 8, seed=1), normal(4, 4, seed=2)
    optimizer.observe(w, x)
    optimizer.observe(w, own, block=0)
    stepped(optimizer)
    expected = truth(x[:, :4], own), truth(x[:, 4:])
    for found, wanted in zip(moments, expected, strict=True):
        assert found is not None and torch.allclose(found, wanted)


def test_split_inputs_of_experts(moments: list[Tensor | None]) -> None:
    w, optimizer = matrices(2, 6, 8, batch=1, cols=2)
    x = normal(9, 8, seed=1)
    optimizer.observe(w, x)
    stepped(optimizer)
    expected = [truth(x[:, :4]), truth(x[:, 4:])] * 2
    for found, wanted in zip(moments, expected, strict=True):
        assert found is not None and torch.allclose(found, wanted)


def test_patches_of_a_convolution(moments: list[Tensor | None]) -> None:
    conv = nn.Conv2d(2, 5, 2, bias=False).to(F64).to(memory_format=torch.channels_last)
    optimizer = Schattor([{"params": [conv.weight], "rule": "matrix"}], p=ALWAYS)
    x = normal(3, 2, 5, 5)
    patches = nn.functional.unfold(x, 2).mT
    assert torch.allclose(patches @ conv.weight.flatten(1).mT, conv(x).flatten(2).mT)
    optimizer.observe(conv.weight, patches)
    stepped(optimizer)
    order = torch.arange(8).view(2, 2, 2).permute(1, 2, 0).flatten()
    assert moments[0] is not None and torch.allclose(moments[0], truth(patches[..., order]))


def test_other_steps_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = nn.Parameter(normal(6, 4))
    optimizer = Schattor([w], p=AutoP(warmup=1, statistics="inputs"))
    calls: list[Tensor] = []
    monkeypatch.setattr(OwnMoments, "add", lambda self, param, x, block: calls.append(x))
    optimizer.observe(w, normal(5, 4))
    assert calls == []


def test_recording_says_when() -> None:
    w = nn.Parameter(normal(6, 4))
    optimizer = Schattor([w], p=AutoP(warmup=2, interval=3, statistics="inputs"))
    asked = []
    for _ in range(7):
        asked.append(optimizer.recording)
        optimizer.observe(w, normal(5, 4))  # on other steps nothing
        stepped(optimizer)
    assert asked == [False, False, True, False, False, True, False]
    assert [taken for taken, _ in optimizer.p_history()["param_groups[0][0]"]] == [2, 5]
    assert not Schattor([w]).recording


def test_a_resumed_run_knows_its_next_recording() -> None:
    w = nn.Parameter(normal(6, 4))
    first, second = (
        Schattor([w], p=AutoP(warmup=2, interval=3, statistics="inputs")) for _ in range(2)
    )
    for _ in range(2):
        stepped(first)
    assert first.recording and not second.recording
    second.load_state_dict(first.state_dict())
    assert second.recording


def test_groups_that_come_later() -> None:
    w, optimizer = matrices(6, 4)
    later = nn.Parameter(normal(5, 3))
    optimizer.add_param_group({"params": [later], "param_names": ["later"], "rule": "matrix"})
    optimizer.observe(later, normal(4, 3))
    with pytest.warns(UserWarning, match="saw nothing of what w multiplied"):
        stepped(optimizer)
    assert optimizer.state[later]["auto_curve"].isfinite().all()


# What is refused.


def test_inputs_inside_a_transformation_are_refused() -> None:
    w, optimizer = matrices(6, 4)
    with pytest.raises(ValueError, match=r"of none of torch.func's transformations, got a"):
        torch.vmap(lambda x: optimizer.observe(w, x) or x)(normal(5, 4))
    optimizer.observe(w, normal(5, 4))
    stepped(optimizer)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((nn.Parameter(torch.ones(4, 6)), torch.ones(6)), ValueError, "param must be one with p"),
        (("w", torch.ones(6)), ValueError, 'param must be one with p="auto", got str'),
        ((None, torch.ones(2, 5)), ValueError, "inputs of w must be dense [..., 6], got a strided"),
        ((None, torch.tensor(1.0)), ValueError, "inputs of w must be dense [..., 6], got"),
        (
            (None, torch.ones(2, 6).to_sparse()),
            ValueError,
            "inputs of w must be dense [..., 6], got a sparse",
        ),
        ((None, torch.ones(2, 6).long()), TypeError, "inputs of w must be a tensor of floats, got"),
        ((None, [1.0]), TypeError, "inputs of w must be a tensor of floats, got list"),
        (
            (None, torch.ones(2, 6, device="meta")),
            ValueError,
            "inputs of w must be no meta or fake",
        ),
        ((None, torch.ones(6), 3), ValueError, "block of w must be None or an int in [0, 3), got"),
        ((None, torch.ones(6), -1), ValueError, "block of w must be None or an int in [0, 3)"),
        ((None, torch.ones(6), True), ValueError, "block of w must be None or an int in [0, 3)"),
    ],
    ids=range(11),
)
def test_arguments(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    w, optimizer = matrices(3, 4, 6, batch=1)
    param, inputs, *block = args
    with pytest.raises(error, match=re.escape(f"Schattor.observe: {message}")):
        optimizer.observe(w if param is None else param, inputs, block=block[0] if block else None)


def test_optimizers_that_take_no_inputs() -> None:
    w, optimizer = matrices(4, 6)
    with pytest.raises(ValueError, match=r"block of w must be None for a single block, got 0"):
        optimizer.observe(w, torch.ones(6), block=0)
    with pytest.raises(ValueError, match=r'observe: a group must have p="auto", got none'):
        Schattor([w]).observe(w, torch.ones(6))
    with pytest.raises(ValueError, match=r'observe: statistics of AutoP must be "inputs", got "gr'):
        Schattor([w], p="auto").observe(w, torch.ones(6))


def test_the_inputs_of_a_turned_layer_must_be_known() -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(4, 6)
    optimizer = Schattor([("w", layer.weight)], p=ALWAYS)
    with pytest.raises(ValueError, match=r'blocks of w must hold "out": 1 for a Conv1D and for no'):
        optimizer.watch(layer)
    group = {"params": [layer.weight], "rule": "matrix", "blocks": {"out": 1}}
    Schattor([group], p=ALWAYS).watch(layer)


def test_weights_whose_inputs_nobody_knows_are_told_of_once() -> None:
    params = [nn.Parameter(normal(3, 4, seed=i)) for i in range(3)]
    named = [*zip("abc", params, strict=True)]
    optimizer = Schattor(named, p=AutoP(statistics="inputs", warmup=0, interval=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for param in params:
            param.grad = torch.zeros_like(param)  # as where an expert had no tokens
        optimizer.observe(params[0], normal(5, 4))
        optimizer.step()
    assert optimizer.p_history().keys() == {"a"}
    for param in params:
        param.grad = normal(3, 4, seed=7)
    optimizer.observe(params[1], normal(5, 4))
    with pytest.warns(UserWarning, match="saw nothing of what a and 1 more multiplied"):
        optimizer.step()
    assert {name: len(each) for name, each in optimizer.p_history().items()} == {"a": 1, "b": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.observe(params[1], normal(5, 4))
        optimizer.step()
