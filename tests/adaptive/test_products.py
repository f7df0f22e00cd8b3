"""What weights multiply inside modules that are no layers."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from schattor import AutoP, Schattor
from schattor.adaptive.chooser import Chooser, Inputs
from schattor.adaptive.own import OwnMoments
from schattor.adaptive.products import Products
from schattor.adaptive.samples import Samples
from schattor.blocks import BlockSpec
from schattor.optim._chosen import widths_of

E, OUT, IN = 3, 8, 4  # grouped_mm wants rows of 16 bytes
ALWAYS = AutoP(warmup=0, interval=1, smoothing=0.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def truth(*rows: Tensor) -> Tensor:
    x = torch.cat([part.flatten(0, -2) for part in rows]).double()
    return x.mT @ x / len(x)


class Own(nn.Module):
    """A weight, and any way to apply it."""

    def __init__(self, weight: Tensor, apply: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.apply_to = apply

    def forward(self, *args: Any) -> Any:
        return self.apply_to(self.weight, *args)


class Seen:
    """The moments of what blocks of some parameters of a model were seen to multiply."""

    def __init__(
        self,
        model: nn.Module,
        specs: dict[str, BlockSpec | None],
        tokens: int | None = None,
    ) -> None:
        self.params = {name: model.get_parameter(name) for name in specs}
        widths = [widths_of(self.params[name], name, spec) for name, spec in specs.items()]
        self.blocks = {each.name: range(len(each.blocks) or 1) for each in widths}
        self.own = OwnMoments(widths, tokens)
        self.products = Products(model, widths, self.own, tokens)

    def __enter__(self) -> Seen:
        self.products.record(True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.products.record(False)

    def moments(self, name: str = "weight") -> list[Tensor | None]:
        collections = [self.own.like(self.params[name], block) for block in self.blocks[name]]
        return [each.samples and each.samples.moment() for each in collections]

    def numbers(self, name: str = "weight") -> list[int]:
        collections = [self.own.like(self.params[name], block) for block in self.blocks[name]]
        return [0 if each.samples is None else int(each.samples.number) for each in collections]


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert [each is None for each in found] == [each is None for each in expected]
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Samples | None]:
    """Samples that blocks were chosen by."""
    found: list[Samples | None] = []
    samples = Chooser.samples

    def watched(self: Chooser, inputs: Inputs) -> Samples | None:
        found.append(samples(self, inputs))
        return found[-1]

    monkeypatch.setattr(Chooser, "samples", watched)
    return found


@pytest.fixture(autouse=True)
def no_mode_is_left() -> Iterator[None]:
    yield
    assert _get_current_dispatch_mode() is None


# Ways to multiply. Tokens of experts lie one after the other, as many for each.

TOKENS = 5
X = normal(E, TOKENS, IN, seed=1)
ENDS = torch.tensor([TOKENS * (e + 1) for e in range(E)], dtype=torch.int32)

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
    "halves": lambda w, x: [F.linear(x[e], half) for e in range(E) for half in w[e].chunk(2)],
    "every other output": lambda w, x: [F.linear(x[e], w[e, ::2]) for e in range(E)],
    "unbound": lambda w, x: [F.linear(t, one) for t, one in zip(x, w.unbind(), strict=True)],
    "flat": lambda w, x: [F.linear(x[e], w.flatten(0, 1)[e * OUT :][:OUT]) for e in range(E)],
}
STORED_IN_OUT: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "x w": lambda w, x: [x[e] @ w[e] for e in range(E)],
    "w' x": lambda w, x: [w[e].mT @ x[e].mT for e in range(E)],
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
    curves = _curves(optimizer)
    assert len(curves) == 2 * (3 + 1 + 2) and all(bool(c.isfinite().all()) for c in curves)
    assert any(0 < p[1][1] < torch.inf for p in optimizer.p_history().values())


# Convolutions.


def _patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """What the kernels of a convolution see, ``[places, in, height, width]``."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    height, width = conv.padding
    x = F.pad(x, (width, width, height, height), mode=mode)
    found = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride).mT
    return found.reshape(-1, conv.in_channels, *conv.kernel_size)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": (1, 2)},
        {"dilation": (2, 1), "padding": 1},
        {"padding": 1, "padding_mode": "circular"},
        {"bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_groups_of_a_convolution(
    settings: dict[str, Any], memory_format: torch.memory_format
) -> None:
    conv = nn.Conv2d(4, 6, (3, 2), groups=2, **settings).to(memory_format=memory_format)
    x = normal(3, 4, 7, 6, seed=1).to(memory_format=memory_format)
    with Seen(conv, {"weight": {"rows": 2}}) as seen:
        conv(x)
        conv(x[0] + 1)
    order = (0, 2, 3, 1) if memory_format is torch.channels_last else (0, 1, 2, 3)
    both = torch.cat([_patches(x, conv), _patches(x[:1] + 1, conv)]).chunk(2, 1)
    assert_same(seen.moments(), [truth(each.permute(order).flatten(1)) for each in both])


@pytest.mark.parametrize(("conv", "shape"), [(F.conv1d, (7,)), (F.conv3d, (5, 4, 3))], ids=str)
def test_convolutions_of_other_dimensions(
    conv: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    kernels = normal(6, 2, *(2 for _ in shape))
    model = Own(kernels, lambda w, x: conv(x, w, groups=2))
    x = normal(3, 4, *shape, seed=1).requires_grad_()
    with Seen(model, {"weight": {"rows": 2}}) as seen:
        model(x)
    moments = seen.moments()
    # A kernel that is 1 at one place gives what it sees there.
    for group, found in enumerate(moments):
        part = x[:, 2 * group : 2 * group + 2].double()
        single = torch.eye(kernels[0].numel()).double().view(-1, *kernels.shape[1:])
        rows = conv(part, single).flatten(2).mT
        assert found is not None
        assert_same([found], [truth(rows)])


def test_convolutions_of_a_users_own() -> None:
    conv = nn.Conv2d(4, 6, 3, padding="same", padding_mode="zeros")
    model = Own(normal(6, 4, 3, 3), lambda w, x: F.conv2d(x, w, padding="same"))
    x = normal(2, 4, 5, 5, seed=1)
    conv.padding = (1, 1)
    for spec, parts in (({}, [slice(None)]), ({"most": 20}, [slice(20), slice(20, None)])):
        with Seen(model, {"weight": spec}) as seen:
            model(x)
        patches = _patches(x, conv).flatten(1)
        assert_same(seen.moments(), [truth(patches[:, part]) for part in parts])


def test_patches_that_are_looked_at() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    x = normal(2, 4, 9, 9, seed=1)
    x[:, :, 0] = torch.nan
    with Seen(conv, {"weight": {"rows": 2}}, tokens=14) as seen:
        conv(x)
    samples = seen.own.like(conv.weight, 1).samples
    assert samples is not None and len(samples.rows[0]) == 14
    known = {tuple(row) for row in _patches(x, conv).chunk(2, 1)[1].flatten(1).tolist()}
    found = [tuple(row) for row in samples.rows[0].tolist()]
    assert sum(row in known for row in found) == seen.numbers()[1] == 12


def test_convolutions_without_samples() -> None:
    x = normal(2, 4, 5, 5).requires_grad_()
    for conv, spec in (
        (nn.Conv2d(4, 4, 3, groups=4), None),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), {"rows": 2, "out": 1}),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), {"rows": 2}),
        (Own(normal(6, 4, 1, 1), lambda w, x: F.conv2d(x, w.expand(-1, -1, 3, 3))), None),
    ):
        with Seen(conv, {"weight": spec}) as seen:
            conv(x)
            conv(x[:0])
        assert_same(seen.moments(), [None] * len(seen.moments()))
    conv = nn.Conv2d(4, 6, 3, groups=2)
    with Seen(conv, {"weight": {"rows": 2}}) as seen:
        conv(x[:0])
        with torch.no_grad():
            conv(x)
    assert_same(seen.moments(), [None, None])


def test_a_network_of_grouped_convolutions() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 2))
    optimizer = Schattor(model, p=ALWAYS)
    for step in range(2):
        optimizer.zero_grad()
        model(normal(5, 3, 8, 8, seed=step)).square().mean().backward()
        optimizer.step()
    assert {len(found) for found in optimizer.p_history().values()} == {2}
    assert "2.weight[1]" in optimizer.p_history()
    assert all(bool(curve.isfinite().all()) for curve in _curves(optimizer))


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
        lambda w, x: w @ w.mT,
        lambda w, x: F.linear(x, w[:, :1].expand(-1, IN)),
        lambda w, x: F.linear(x[:, :2], w[:, :2]),
        lambda w, x: F.linear(x[:, :2], w[:, 1:3]),
        lambda w, x: F.linear(x[:, ::2], w[:, ::2]),
        lambda w, x: x.new_ones(OUT) @ w,
        lambda w, x: x.detach().to_sparse() @ w.mT,
        lambda w, x: F.embedding(torch.tensor([1]), w),
    ],
    ids=["0", "no_grad", "a function of it", "its square", "one column", "the first inputs",
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
    [*((STORED_OUT_IN, way) for way in ("linear", "einsum", "x w'")), (STORED_IN_OUT, "batches")],
    ids=["linear", "einsum", "x w'", "a whole parameter, which autocast casts once"],
)
def test_autocast(ways: dict[str, Callable[..., Any]], way: str) -> None:
    out = int(ways is STORED_IN_OUT)
    model = Own(normal(E, *((IN, OUT) if out else (OUT, IN))), ways[way])
    x = X.bfloat16().float()
    with Seen(model, {"weight": {"batch": 1, "out": out}}) as seen:
        with torch.autocast(x.device.type, torch.bfloat16):
            model(x)
            model(x)
        copies = list(seen.products._seeing._copies.values())
        assert copies and all(copy.memory.expired() for copy in copies)
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


def test_models_that_are_copied_while_they_are_watched() -> None:
    model = Own(normal(OUT, IN), lambda w, x: F.linear(x, w))
    with Seen(model, {"weight": None}) as seen:
        copy.deepcopy(model)(X[0])
        model(X[1])
    assert_same(seen.moments(), [truth(X[1])])


# As users have it.


def _curves(optimizer: Schattor) -> list[Tensor]:
    entries = (entry for state in optimizer.state.values() for entry in state.items())
    return [value for key, value in entries if key.startswith("auto_curve")]


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
    optimizer.step()
    assert [bool(curve.isfinite().all()) for curve in _curves(optimizer)] == [True, False]


def test_models_without_any_weight_of_the_optimizer() -> None:
    optimizer = Schattor([nn.Parameter(normal(OUT, IN))], p=ALWAYS)
    message = 'watch: model must have a layer whose weight has p="auto", got none'
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.watch(Own(normal(OUT, IN), F.linear))
