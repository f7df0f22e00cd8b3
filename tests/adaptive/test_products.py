"""What weights multiply inside modules that are no layers."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from seen import ALWAYS, Own, Seen, assert_same, choices, curves_of, normal, truth
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from schattor import AutoP, Schattor
from schattor.adaptive.samples import Samples
from schattor.blocks import BlockSpec

E, OUT, IN = 3, 8, 4  # grouped_mm wants rows of 16 bytes


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Samples | None]:
    """Samples that blocks were chosen by."""
    return choices(monkeypatch, lambda samples: samples)


@pytest.fixture(autouse=True)
def no_mode_is_left() -> Iterator[None]:
    yield
    assert _get_current_dispatch_mode() is None


# Ways to multiply. Tokens of experts lie one after the other, as many for each.

TOKENS = 5
X = normal(E, TOKENS, IN, seed=1)
ENDS = torch.tensor([TOKENS * (e + 1) for e in range(E)], dtype=torch.int32)

# The same tokens in another order, and whose they are; some counted from the last expert.
ORDER = torch.tensor([8, 1, 14, 0, 12, 3, 5, 10, 7, 2, 9, 4, 13, 6, 11])
WHOSE = ORDER // TOKENS - E * (ORDER % 2)


def mixed(x: Tensor) -> Tensor:
    return x.flatten(0, 1)[ORDER]


STORED_OUT_IN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "linear": lambda w, x: [F.linear(x[e], w[e]) for e in range(E)],
    "linear, by a tensor": lambda w, x: [F.linear(x[e], w[torch.tensor(e)]) for e in range(E)],
    "linear, three dimensions": lambda w, x: [F.linear(x[e, None], w[e]) for e in range(E)],
    "linear with bias": lambda w, x: [F.linear(x[e], w[e], x.new_ones(OUT)) for e in range(E)],
    "linear, tokens alone": lambda w, x: [F.linear(t, w[e]) for e in range(E) for t in x[e]],
    "mv": lambda w, x: [w[e] @ t for e in range(E) for t in x[e]],
    "addmv": lambda w, x: [torch.addmv(x.new_ones(OUT), w[e], t) for e in range(E) for t in x[e]],
    "w x": lambda w, x: [w[e] @ x[e].mT for e in range(E)],
    "x w'": lambda w, x: [x[e] @ w[e].mT for e in range(E)],
    "batches, w x": lambda w, x: w @ x.mT,
    "batches, x w'": lambda w, x: torch.bmm(x, w.mT),
    "batches with bias": lambda w, x: torch.baddbmm(x.new_ones(E, 1, OUT), x, w.mT),
    "einsum": lambda w, x: torch.einsum("eti,eoi->eto", x, w),
    "einsum, weights first": lambda w, x: torch.einsum("eoi,eti->toe", w, x),
    "groups": lambda w, x: F.grouped_mm(x.flatten(0, 1), w.mT, offs=ENDS),
    "a copy for each token": lambda w, x: torch.bmm(w[WHOSE], mixed(x).unsqueeze(-1)),
    "groups of one size": lambda w, x: F.grouped_mm(x, w.mT),
    "a cast of all": lambda w, x: [F.linear(x[e].double(), w.double()[e]) for e in range(E)],
    "halves": lambda w, x: [F.linear(x[e], half) for e in range(E) for half in w[e].chunk(2)],
    "every other output": lambda w, x: [F.linear(x[e], w[e, ::2]) for e in range(E)],
    "unbound": lambda w, x: [F.linear(t, one) for t, one in zip(x, w.unbind(), strict=True)],
    "flat": lambda w, x: [F.linear(x[e], w.flatten(0, 1)[e * OUT :][:OUT]) for e in range(E)],
}
STORED_IN_OUT: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "x w": lambda w, x: [x[e] @ w[e] for e in range(E)],
    "w' x": lambda w, x: [w[e].mT @ x[e].mT for e in range(E)],
    "a copy for each token": lambda w, x: torch.bmm(mixed(x).unsqueeze(1), w[WHOSE]),
    "addmm": lambda w, x: [torch.addmm(x.new_ones(OUT), x[e], w[e]) for e in range(E)],
    "batches": lambda w, x: torch.bmm(x, w),
    "einsum": lambda w, x: torch.einsum("eti,eio->eto", x, w),
    "groups": lambda w, x: F.grouped_mm(x.flatten(0, 1), w, offs=ENDS),
    "every other output": lambda w, x: [x[e] @ w[e, :, 1::2] for e in range(E)],
}


@pytest.mark.parametrize("spec", [{}, {"rows": 2}, {"rows": 2, "interleaved": True}], ids=str)
@pytest.mark.parametrize("way", STORED_OUT_IN)
def test_experts_stored_out_in(way: str, spec: BlockSpec) -> None:
    model = Own(normal(E, OUT, IN), STORED_OUT_IN[way])
    with Seen(model, {"weight": {"batch": 1, **spec}}) as seen:
        model(X)
    parts = spec.get("rows", 1)
    assert isinstance(parts, int)
    expected: list[Tensor | None] = [truth(X[e]) for e in range(E) for _ in range(parts)]
    if way == "every other output" and spec.get("interleaved"):
        expected[1::2] = [None] * E
    assert_same(seen.moments(), expected)


@pytest.mark.parametrize("spec", [{}, {"cols": 2}, {"cols": 2, "interleaved": True}], ids=str)
@pytest.mark.parametrize("way", STORED_IN_OUT)
def test_experts_stored_in_out(way: str, spec: BlockSpec) -> None:
    model = Own(normal(E, IN, OUT), STORED_IN_OUT[way])
    with Seen(model, {"weight": {"batch": 1, "out": 1, **spec}}) as seen:
        model(X)
    parts = spec.get("cols", 1)
    assert isinstance(parts, int)
    expected: list[Tensor | None] = [truth(X[e]) for e in range(E) for _ in range(parts)]
    if way == "every other output" and parts > 1:  # the odd ones begin in one of the two
        expected[0 if spec.get("interleaved") else 1 :: 2] = [None] * E
    assert_same(seen.moments(), expected)


def test_square_experts_are_told_apart_by_the_side_of_their_inputs() -> None:
    x = normal(E, 5, IN, seed=1)
    for out in (0, 1):
        model = Own(normal(E, IN, IN), lambda w, x: torch.bmm(x, w))
        with Seen(model, {"weight": {"batch": 1, "out": out}}) as seen:
            model(x)
        assert_same(seen.moments(), [truth(x[e]) if out else None for e in range(E)])


def test_weights_that_lie_otherwise_in_memory(chosen: list[Samples | None]) -> None:
    """What is handed over for a convolution is put in the order of its memory; not so here."""
    kernel = normal(OUT, 2, IN).mT.contiguous().mT
    model = Own(kernel, lambda w, x: F.linear(x, w.mT.flatten(1)))
    x = normal(5, 2 * IN, seed=1)
    one = Own(normal(1, IN, OUT).mT, lambda w, x: x @ w[0].mT)
    for each, spec, read in ((model, None, x), (one, {"batch": 1}, X[0])):
        group = {"params": [each.weight], "rule": "matrix", "blocks": spec}
        optimizer = Schattor([group], p=ALWAYS)
        optimizer.watch(each)
        each(read).sum().backward()
        optimizer.step()
    assert_same([found and found.moment() for found in chosen], [truth(x), truth(X[0])])


def test_copies_that_are_not_those_of_experts() -> None:
    some = torch.tensor([True, False, True])
    model = Own(
        normal(E, OUT, IN),
        lambda w, x: (
            torch.bmm(x[some], w[some].mT),
            torch.bmm(x[:, :1], w[torch.ones(E, dtype=torch.bool)].mT),
            torch.bmm(x[:1, :1], w[torch.tensor([[1]])].view(1, OUT, IN).mT),
            torch.bmm(x[:1, :1], w[:, torch.arange(OUT)][:1].mT),
            torch.bmm(x[:2], w[torch.tensor([0, 1])].mT),  # several tokens each
            torch.bmm(x[:1, :1], w[torch.tensor([0, 1])][1:].mT),
        ),
    )
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        model(X)
    assert_same(seen.moments(), [None] * E)


def test_parameters_of_a_users_own_kind() -> None:
    class Named(nn.Parameter):
        pass

    model = Own(normal(E, IN, OUT), STORED_IN_OUT["groups"])
    model.weight = Named(model.weight.detach())
    with Seen(model, {"weight": {"batch": 1, "out": 1}}) as seen:
        model(X)
    assert_same(seen.moments(), [truth(X[e]) for e in range(E)])


def test_blocks_share_what_they_read() -> None:
    model = Own(normal(E, OUT, IN), STORED_OUT_IN["linear"])
    with Seen(model, {"weight": {"batch": 1, "rows": 2}}) as seen:
        model(X)
        model(X + 1)
    assert_same(seen.moments(), [truth(X[e], X[e] + 1) for e in range(E) for _ in range(2)])
    kept = [seen.own.like(model.weight, block).samples for block in range(2 * E)]
    assert all(kept[2 * e] is kept[2 * e + 1] for e in range(E))


def test_experts_as_rows_of_one_matrix() -> None:
    model = Own(normal(E * OUT, IN), lambda w, x, e: x @ w.view(E, OUT, IN)[e].T)
    with Seen(model, {"weight": {"rows": E}}) as seen:
        for e in (2, 0):
            model(X[e], e)
    assert_same(seen.moments(), [truth(X[0]), None, truth(X[2])])


def test_experts_as_rows_of_one_matrix_stored_in_out() -> None:
    model = Own(normal(E * IN, OUT), lambda w, x, e: x @ w.view(E, IN, OUT)[e])
    with Seen(model, {"weight": {"rows": E, "out": 1}}) as seen:
        for e in (2, 0):
            model(X[e], e)
    assert_same(seen.moments(), [truth(X[0]), None, truth(X[2])])


def test_blocks_along_the_inputs() -> None:
    x = normal(5, 8, seed=1)
    model = Own(normal(6, 8), lambda w, x: F.linear(x, w))
    for spec in ({"cols": 2}, {"most": 4}):
        with Seen(model, {"weight": spec}) as seen:
            model(x)
        parts = [truth(x[:, :4]), truth(x[:, 4:])]
        assert_same(seen.moments(), parts if "cols" in spec else parts * 2)
    with Seen(model, {"weight": {"cols": 2, "interleaved": True}}) as seen:
        model(x)
    assert_same(seen.moments(), [None, None])  # every other input is no run of them
    with Seen(model, {"weight": {"cols": 2}}) as seen:
        model.apply_to = lambda w, x: F.linear(x[:, 4:], w[:, 4:])
        model(x)
    assert_same(seen.moments(), [None, truth(x[:, 4:])])
    with Seen(model, {"weight": {"cols": 2}}) as seen:
        model.apply_to = lambda w, x: F.linear(x[:, 2:], w[:, 2:])
        model(x)
    assert_same(seen.moments(), [None, truth(x[:, 4:])])


@pytest.mark.parametrize(
    ("shape", "spec", "apply"),
    [
        ((1, 8), None, lambda w, x: F.linear(x, w)),
        ((8, 1), None, lambda w, x: F.linear(x, w)),
        ((8, 1), None, lambda w, x: x @ w.view(1, 8)),
        ((8, 1), {"rows": 2}, lambda w, x: F.linear(x, w)),
    ],
    ids=["a row", "a column", "a column as a row", "parts of a column"],
)
def test_weights_of_one_column_or_row(
    shape: tuple[int, int], spec: BlockSpec | None, apply: Callable[..., Any]
) -> None:
    x = normal(5, shape[1], seed=1)
    model = Own(normal(*shape), apply)
    with Seen(model, {"weight": spec}) as seen:
        model(x)
    assert_same(seen.moments(), [truth(x)] * (2 if spec else 1))


def test_weights_in_one_memory() -> None:
    """Parameters that are views of one flat buffer, as some wrappers make them."""
    flat = normal(E * OUT * IN + OUT * IN)
    experts, shared = flat[: E * OUT * IN].view(E, OUT, IN), flat[E * OUT * IN :].view(OUT, IN)
    x = normal(7, IN, seed=2)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ParameterDict({"experts": experts, "shared": shared})

        def forward(self) -> None:
            F.linear(X[1], self.held["experts"][1])
            F.linear(x, self.held["shared"])

    model = Both()
    with Seen(model, {"held.experts": {"batch": 1}, "held.shared": None}) as seen:
        model()
    assert_same(seen.moments("held.experts"), [None, truth(X[1]), None])
    assert_same(seen.moments("held.shared"), [truth(x)])


# Attention.


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("same", ["all", "keys and values", "none"])
def test_attention(same: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first).double()
    query, key, value = (normal(3, 5, 8, seed=seed).double() for seed in range(3))
    key = query if same == "all" else key
    value = key if same != "none" else value
    specs: dict[str, BlockSpec | None] = {"in_proj_weight": {"rows": 3}, "out_proj.weight": None}
    before = attention(query, key, value)[0]
    with Seen(attention, specs) as seen:
        after = attention(query, key, value)[0]
    torch.testing.assert_close(before, after)
    assert_same(seen.moments("in_proj_weight"), [truth(x) for x in (query, key, value)])
    mixed = (after - attention.out_proj.bias) @ torch.linalg.inv(attention.out_proj.weight).mT
    assert_same(seen.moments("out_proj.weight"), [truth(mixed)])


def test_a_transformer_of_torch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    optimizer = Schattor(model, p=ALWAYS)
    x = torch.randn(4, 6, 16) * torch.arange(1.0, 17) ** -1
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    curves = curves_of(optimizer)
    assert len(curves) == 2 * (3 + 1 + 2) and all(bool(c.isfinite().all()) for c in curves)
    assert any(0 < p[1][1] < torch.inf for p in optimizer.p_history().values())


# What is seen of a call.


def test_tokens() -> None:
    sizes = [40, 0, 3]
    x = torch.arange(1.0, 1 + sum(sizes))[:, None] * torch.ones(1, 1000)
    ends = torch.tensor(sizes).cumsum(0).int()
    model = Own(normal(3, 2, 1000), lambda w, x: F.grouped_mm(x, w.mT, offs=ends))
    with Seen(model, {"weight": {"batch": 1}}, tokens=8) as seen:
        model(x)
    rows = []
    for block in range(3):
        samples = seen.own.like(model.weight, block).samples
        assert samples is not None and samples.total is None and len(samples.rows[0]) == 8
        rows.append([int(row[0]) for row in samples.rows[0]])
    assert seen.numbers() == [8, 0, 3]
    assert [(row - 1) // 5 for row in rows[0]] == [*range(8)]  # one of each stretch of five
    assert len({(row - 1) % 5 for row in rows[0]}) > 2
    assert rows[1:] == [[0] * 8, [41, 42, 43, 0, 0, 0, 0, 0]]


def test_of_a_batch_no_more_than_twice_the_mean_is_kept() -> None:
    ends = torch.tensor([40, 40, 40, 40]).int()
    model = Own(normal(4, 2, 1000), lambda w, x: F.grouped_mm(x, w.mT, offs=ends))
    with Seen(model, {"weight": {"batch": 1}}, tokens=512) as seen:
        model(normal(40, 1000))
    assert seen.numbers() == [20, 0, 0, 0]


def test_all_tokens_of_groups() -> None:
    x, ends = normal(9, IN, seed=3), torch.tensor([7, 7, 8]).int()  # one row is no group's
    model = Own(normal(E, OUT, IN), lambda w, x: F.grouped_mm(x, w.mT, offs=ends))
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        model(x)
    assert_same(seen.moments(), [truth(x[:7]), torch.zeros(IN, IN), truth(x[7:8])])
    assert seen.numbers() == [7, 0, 1]


def test_rows_that_are_not_finite_are_left_out() -> None:
    x = X.clone()
    x[1, 2, 0] = torch.nan
    for way in ("linear", "groups"):
        model = Own(normal(E, OUT, IN), STORED_OUT_IN[way])
        with Seen(model, {"weight": {"batch": 1}}) as seen:
            model(x)
        rest = torch.cat([X[1, :2], X[1, 3:]])
        assert_same(seen.moments(), [truth(X[0]), truth(rest), truth(X[2])])


def test_calls_without_tokens() -> None:
    for way in ("batches, x w'", "linear"):
        model = Own(normal(E, OUT, IN), STORED_OUT_IN[way])
        with Seen(model, {"weight": {"batch": 1}}) as seen:
            model(X[:, :0])
        assert_same(seen.moments(), [None] * E)
    model = Own(normal(E, OUT, IN), lambda w, x: F.grouped_mm(x, w.mT, offs=ENDS * 0))
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        model(X[0, :0])
    assert_same(seen.moments(), [None] * E)


@pytest.mark.parametrize(
    "apply",
    [
        lambda w, x: F.linear(x, w).detach() if torch.is_grad_enabled() else None,
        lambda w, x: torch.no_grad()(F.linear)(x, w),
        lambda w, x: F.linear(x, 1 * w),
        lambda w, x: x @ w[torch.tensor([1])].mT,
        lambda w, x: F.grouped_mm(x.expand(2, 5, 4), w.mT, offs=torch.tensor([4, 8]).int()),
        lambda w, x: w @ w.mT,
        lambda w, x: F.linear(x, w[:, :1].expand(-1, IN)),
        lambda w, x: F.linear(x[:, :2], w[:, :2]),
        lambda w, x: F.linear(x[:, :2], w[:, 1:3]),
        lambda w, x: F.linear(x[:, ::2], w[:, ::2]),
        lambda w, x: x.new_ones(OUT) @ w,
        lambda w, x: x.detach().to_sparse() @ w.mT,
        lambda w, x: F.embedding(torch.tensor([1]), w),
    ],
    ids=["0", "no_grad", "a function of it", "its rows",
         "groups of its rows", "its square", "one column", "the first inputs",
         "inputs in the middle", "every other input", "the other side", "sparse", "lookup"],
)  # fmt: skip
def test_what_is_no_sample(apply: Callable[..., Any], request: pytest.FixtureRequest) -> None:
    model = Own(normal(OUT, IN), apply)
    with Seen(model, {"weight": None}) as seen:
        model(X[0].requires_grad_())
    is_control = request.node.callspec.id == "0"
    assert_same(seen.moments(), [truth(X[0]) if is_control else None])


def test_derivatives_inside_a_forward_pass_are_no_samples() -> None:
    def apply(w: Tensor, x: Tensor) -> Tensor:
        y = F.linear(x, w).square().sum()
        return torch.autograd.grad(y, x, create_graph=True)[0].square().sum()

    model = Own(normal(IN, IN), apply)
    with Seen(model, {"weight": None}) as seen:
        model(X[0].requires_grad_()).backward()
    assert seen.numbers() == [TOKENS]


def test_evaluation_and_other_places_are_no_samples() -> None:
    model = Own(normal(E, OUT, IN), STORED_OUT_IN["linear"])
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        with torch.no_grad():
            model(X)
        with torch.inference_mode():
            model(X)
        model.apply_to(model.weight, X)
    model(X)
    assert_same(seen.moments(), [None] * E)


def test_reparametrised_layers_are_left_alone() -> None:
    for wrap in (torch.nn.utils.parametrizations.spectral_norm, torch.nn.utils.spectral_norm):
        layer = wrap(nn.Linear(IN, OUT))
        name = next(name for name, param in layer.named_parameters() if param.ndim == 2)
        with Seen(layer, {name: None}) as seen:
            layer(X)
        assert not seen.products.covers(layer.get_parameter(name))
        assert_same(seen.moments(name), [None])


@pytest.mark.parametrize(
    ("ways", "way"),
    [
        (STORED_OUT_IN, "linear"),
        (STORED_OUT_IN, "einsum"),
        (STORED_OUT_IN, "x w'"),
        (STORED_OUT_IN, "a copy for each token"),
        (STORED_IN_OUT, "batches"),  # the whole parameter, which autocast casts once
    ],
    ids=["linear", "einsum", "x w'", "copies", "whole"],
)
def test_autocast(ways: dict[str, Callable[..., Any]], way: str) -> None:
    out = int(ways is STORED_IN_OUT)
    model = Own(normal(E, *((IN, OUT) if out else (OUT, IN))), ways[way])
    x = X.bfloat16().float()
    with Seen(model, {"weight": {"batch": 1, "out": out}}) as seen:
        with torch.autocast(x.device.type, torch.bfloat16):
            model(x)
            model(x)
        held = seen.products._looking._origins._held
        assert held and all(memory.expired() for memory in held)
    assert seen.numbers() == [2 * TOKENS] * E
    assert_same(seen.moments(), [truth(x[e]) for e in range(E)])


def test_casts_of_parts_with_gaps_are_not_taken_for_others() -> None:
    model = Own(normal(E, OUT, IN), lambda w, x: F.linear(x, w[:, :4].double()[1]))
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        model(X[1].double())
    assert_same(seen.moments(), [None] * E)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    model = Own(normal(E, OUT, IN), lambda w, x: torch.stack(STORED_OUT_IN["linear"](w, x)))
    x = X.clone().requires_grad_()
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert_same(seen.moments(), [truth(X[e]) for e in range(E)])


def test_compiled_models_run_eagerly_while_they_are_watched() -> None:
    model = Own(normal(E, OUT, IN), lambda w, x: torch.bmm(x, w.mT))
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        compiled(X)
    compiled(X + 1)
    assert_same(seen.moments(), [truth(X[e]) for e in range(E)])


class Normed(nn.Linear):
    """A layer that changes its inputs first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean(0)) / x.std(0))


def test_derived_layers_that_change_their_inputs() -> None:
    model, x = Normed(IN, OUT), X.flatten(0, 1) * torch.arange(1.0, IN + 1)
    with Seen(model, {"weight": None}) as seen:
        model(x)
    assert_same(seen.moments(), [truth((x - x.mean(0)) / x.std(0))])


def test_derived_layers_choose_as_modules_of_ones_own() -> None:
    def chosen_by(model: nn.Module) -> list[tuple[int, float]]:
        optimizer = Schattor([("w", model.weight)], lr=0.0, p=ALWAYS)
        optimizer.watch(model)
        x = normal(64, 16, seed=2) * torch.arange(1.0, 17) ** -2
        (model(x) - normal(64, 16, seed=3)).square().sum().backward()
        optimizer.step()
        return optimizer.p_history()["w"]

    derived = Normed(16, 16, bias=False)
    own = Own(derived.weight.detach().clone(), lambda w, x: F.linear((x - x.mean(0)) / x.std(0), w))
    assert chosen_by(derived) == chosen_by(own)
    assert chosen_by(derived)[0][1] != 2.0  # which is that of x itself


def test_threads_have_each_their_own() -> None:
    model = nn.Sequential(
        nn.Conv1d(8, 8, 3, groups=2, padding=1), nn.Tanh(), nn.ConvTranspose1d(8, 8, 3, padding=1)
    )
    xs = normal(40, 2, 8, 16)
    seen = Seen(model, {"0.weight": {"rows": 2}, "2.weight": {"out": 1}})
    with seen, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda x: model(x).sum().backward(), xs))
    assert seen.numbers("0.weight") == [2 * 40 * 16] * 2
    assert seen.numbers("2.weight") == [2 * 40 * 16]
    inputs = model[:2](xs.flatten(0, 1)).detach().mT
    assert_same(seen.moments("2.weight"), [truth(inputs)])


@pytest.mark.parametrize("way", ["vmap", "grad", "jacrev", "hessian", "meta", "trace", "export"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_transformed_and_traced_passes_stay_out(way: str) -> None:
    model, x = Own(normal(OUT, IN), lambda w, x: F.linear(x, w).tanh()), X[0]
    meta = torch.empty(OUT, IN, device="meta")
    ways: dict[str, Callable[[], Any]] = {
        "vmap": lambda: torch.vmap(model)(x).sum().backward(),
        "grad": lambda: torch.func.grad(lambda x: model(x).sum())(x),
        "jacrev": lambda: torch.func.jacrev(model)(x).sum().backward(),
        "hessian": lambda: torch.func.hessian(lambda x: model(x).sum())(x),
        "meta": lambda: torch.func.functional_call(model, {"weight": meta}, (x.to("meta"),)),
        "trace": lambda: torch.jit.trace(model, x),
        "export": lambda: torch.export.export(model, (x,)),
    }
    with Seen(model, {"weight": None}) as seen:
        ways[way]()
        assert seen.numbers() == [0]
        model(x)
    assert seen.numbers() == [TOKENS]


def test_transformations_inside_a_module_are_seen() -> None:
    """There, a product is one of plain tensors."""
    model = Own(normal(E, OUT, IN), lambda w, x: torch.vmap(F.linear)(x, w))
    with Seen(model, {"weight": {"batch": 1}}) as seen:
        model(X)
    assert_same(seen.moments(), [truth(X[e]) for e in range(E)])


def test_modules_inside_modules_count_once() -> None:
    inner = Own(normal(E, OUT, IN), STORED_OUT_IN["linear"])
    outer = Own(normal(OUT, IN), lambda w, x: (inner(x), F.linear(x[0], w)))
    outer.inner = inner
    with Seen(outer, {"weight": None, "inner.weight": {"batch": 1}}) as seen:
        outer(X)
    assert seen.numbers("inner.weight") == [TOKENS] * E and seen.numbers() == [TOKENS]


def test_forward_passes_that_fail() -> None:
    def broken(w: Tensor, x: Tensor) -> None:
        F.linear(x, w)
        raise ValueError

    model = Own(normal(OUT, IN), broken)
    with Seen(model, {"weight": None}) as seen:
        with pytest.raises(ValueError):
            model(X[0])
        assert _get_current_dispatch_mode() is None
    assert seen.numbers() == [TOKENS]


def test_forward_passes_that_are_interrupted() -> None:
    def interrupted(w: Tensor, x: Tensor) -> None:
        raise KeyboardInterrupt

    model = Own(normal(OUT, IN), interrupted)
    seen = Seen(model, {"weight": None})
    seen.products.record(True)
    with pytest.raises(KeyboardInterrupt):
        model(X[0])
    assert _get_current_dispatch_mode() is not None
    other = Own(normal(OUT, IN), lambda w, x: F.linear(x, w))
    with Seen(other, {"weight": None}) as again:  # whatever records next ends it
        assert _get_current_dispatch_mode() is None
        other(X[0])
    assert again.numbers() == [TOKENS] and seen.numbers() == [0]
    seen.products.record(True)
    with pytest.raises(KeyboardInterrupt):
        model(X[0])
    seen.products.record(False)  # or its own end
    assert _get_current_dispatch_mode() is None


@pytest.mark.filterwarnings("error")
def test_hooks_of_others_may_fail() -> None:
    inner = Own(normal(OUT, IN), lambda w, x: F.linear(x, w))

    def tries(w: Tensor, x: Tensor) -> None:
        with contextlib.suppress(ValueError):
            inner(x)
        F.linear(x, w)

    outer = Own(normal(OUT, IN), tries)
    outer.inner = inner

    def fails(*_: Any) -> None:
        raise ValueError

    inner.register_forward_pre_hook(fails)
    with Seen(outer, {"weight": None, "inner.weight": None}) as seen:
        with pytest.raises(ValueError):
            inner(X[0])
        outer(X[0])
    assert seen.numbers() == [TOKENS] and seen.numbers("inner.weight") == [0]


def test_copies_of_a_model_are_not_watched() -> None:
    model, file = nn.MultiheadAttention(8, 2), io.BytesIO()
    x, other = normal(3, 5, 8), normal(3, 5, 8, seed=1)
    with Seen(model, {"in_proj_weight": {"rows": 3}}) as seen:
        with torch.autocast(x.device.type, torch.bfloat16):
            model(x, x, x)
            assert seen.products._looking._origins._held  # of casts, which no copy may let go
            torch.save(model, file)
            file.seek(0)
            for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
                twin(other, other, other)
            del twin
            model(x, x, x)
    assert seen.numbers("in_proj_weight") == [30] * 3
    expected = truth(x.bfloat16())
    assert_same(seen.moments("in_proj_weight"), [expected] * 3)


# As users have it.


def test_what_is_seen_chooses_what_handing_it_over_chooses() -> None:
    def trained(own: bool) -> dict[str, list[tuple[int, float]]]:
        model = Own(normal(E, OUT, IN), lambda w, x: torch.bmm(x, w.mT))
        group = {"params": [model.weight], "rule": "matrix", "blocks": {"batch": 1, "rows": 2}}
        auto = AutoP(warmup=0, interval=2, tokens=None, statistics="inputs")
        optimizer = Schattor([group], lr=1e-2, p=auto)
        if not own:
            optimizer.watch(model)
        for step in range(4):
            x = normal(E, 9, IN, seed=step) * torch.arange(1.0, 5) ** -1
            optimizer.zero_grad()
            (model(x) * normal(OUT, seed=9)).square().sum().backward()
            if own and optimizer.recording:
                for block in range(2 * E):
                    optimizer.observe(model.weight, x[block // 2], block=block)
            optimizer.step()
        return optimizer.p_history()

    seen = trained(own=False)
    assert seen == trained(own=True)
    assert len({p for each in seen.values() for _, p in each}) > 1


def test_what_hooks_see_counts_once(chosen: list[Samples | None]) -> None:
    layer = nn.Linear(IN, OUT, bias=False)
    model = Own(layer.weight, lambda w, x: layer(x))
    model.layer, model.weight = layer, layer.weight
    optimizer = Schattor([{"params": [layer.weight], "rule": "matrix"}], p=ALWAYS)
    optimizer.watch(model)
    model(X[0]).sum().backward()
    optimizer.step()
    assert [int(each.number) for each in chosen if each is not None] == [TOKENS]


def test_other_steps_cost_nothing() -> None:
    model = Own(normal(E, OUT, IN), lambda w, x: torch.bmm(x, w.mT))
    group = {"params": [model.weight], "rule": "matrix", "blocks": {"batch": 1}}
    optimizer = Schattor([group], p=AutoP(warmup=1, interval=2, statistics="inputs"))
    optimizer.watch(model)
    hooks = []
    for _ in range(4):
        hooks.append(len(model._forward_pre_hooks) + len(model._forward_hooks))
        model(X).sum().backward()
        optimizer.step()
    assert hooks == [0, 2, 0, 2]


def test_both_sides_of_a_layer_leave_them_alone() -> None:
    model = nn.Sequential(nn.Linear(IN, IN), Own(normal(OUT, IN), lambda w, x: F.linear(x, w)))
    groups = [{"params": [model[i].weight], "rule": "matrix"} for i in range(2)]
    optimizer = Schattor(groups, p=AutoP(warmup=0, statistics="kfac"))
    optimizer.watch(model)
    model(X).square().sum().backward()
    with pytest.warns(UserWarning, match=r"saw nothing of what param_groups\[1\]\[0\] multiplied"):
        optimizer.step()
    assert [bool(curve.isfinite().all()) for curve in curves_of(optimizer)] == [True, False]


def test_models_without_any_weight_of_the_optimizer() -> None:
    optimizer = Schattor([nn.Parameter(normal(OUT, IN))], p=ALWAYS)
    message = 'watch: model must have a layer whose weight has p="auto", got none'
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.watch(Own(normal(OUT, IN), F.linear))
