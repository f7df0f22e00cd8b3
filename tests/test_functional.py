"""Directions, oracles and norms against float64 singular value decompositions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from errors import band, cosine, orthogonality, relative, within_ratio
from matrices import (
    F64,
    Decomposed,
    gaussian,
    half_rank,
    harmonic,
    log_uniform,
    rank_one,
    repeated,
)
from torch import Tensor

from schattor import functional, planning, portable
from schattor.functional import (
    ball_oracle,
    explain,
    partial_svd,
    polar,
    regularized_oracle,
    schatten_direction,
    schatten_norm,
)
from schattor.theory import chains, exponents

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(48, 48), (40, 130), (130, 40), (16, 300)]
DIALS = [2.0, 2.5, 3.0, 4.0, 8.0, math.inf]
SHARP = [1.03, 1.06, 1.125, 1.25, 4 / 3, 1.4, 1.5, 1.75, 1.95]
CALLS: list[Callable[..., object]] = [
    schatten_direction,
    polar,
    lambda x: ball_oracle(x, 3.0),
    lambda x: regularized_oracle(x, 3.0),
    lambda x: schatten_norm(x, 3.0),
    lambda x: partial_svd(x, 1),
    explain,
]


def polar_exactly(x: Tensor) -> Tensor:
    return polar(x, method="exact")


def power(p: float) -> float:
    return exponents.power_of(p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", DIALS)
def test_float32_chain_is_within_one_per_cent(p: float, shape: tuple[int, int]) -> None:
    for matrix in (log_uniform(*shape, 3.31e-4), log_uniform(*shape, 1e-2), gaussian(*shape)):
        found = schatten_direction(matrix.value.float(), p, chain_dtype=torch.float32)

        assert relative(found, matrix.direction(power(p))) < 0.01


@pytest.mark.parametrize("shape", [(96, 96), (96, 144), (144, 96)])
@pytest.mark.parametrize("p", DIALS)
def test_bfloat16_chain_is_within_three_per_cent(
    p: float, shape: tuple[int, int], cpu_level: str
) -> None:
    for matrix in (log_uniform(*shape, 4e-3), log_uniform(*shape, 5e-2), repeated(*shape)):
        found = schatten_direction(matrix.value.float(), p, chain_dtype=torch.bfloat16)

        assert relative(found, matrix.direction(power(p))) < 0.03


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_chain_adds_little_to_the_rounding_of_its_input(
    shape: tuple[int, int], cpu_level: str
) -> None:
    """Wide or small matrices may lose more than three per cent when they are stored at all."""
    matrix = log_uniform(*shape, 4e-3)
    x = matrix.value.float() / matrix.norm(2)
    rounded = polar(x.bfloat16().double(), method="exact")

    found = polar(x, chain_dtype=torch.bfloat16)

    truth = matrix.direction(0.0)
    assert relative(found, truth) < 1.6 * relative(rounded, truth) + 0.005


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [2.5, 4.0, math.inf])
def test_half_precision_chain_errs_as_plain_torch(
    p: float, shape: tuple[int, int], dtype: torch.dtype, cpu_level: str
) -> None:
    for matrix in (log_uniform(*shape, 3.31e-4), harmonic(*shape), half_rank(*shape)):
        x = matrix.scaled(1 / matrix.norm(2)).value.float()
        found = schatten_direction(x, p, chain_dtype=dtype)

        wide = (x.mT if shape[0] > shape[1] else x).to(dtype)[None].contiguous()
        plan = planning.plan(
            power(p),
            *wide.shape[1:],
            x.dtype,
            planning.device_facts(x.device),
            chain_dtype=dtype,
        )
        weights = torch.tensor([planning.chain_weights(power(p), plan)], dtype=F64)
        powers = torch.tensor([power(p)], dtype=F64)
        twin, _, _ = portable.chain_direction(
            wide, planning.chain_steps(plan), weights, powers, False, []
        )
        twin = twin[0].mT if shape[0] > shape[1] else twin[0]
        truth = matrix.scaled(1 / matrix.norm(2)).direction(power(p))
        assert within_ratio(found, twin, truth)


@pytest.mark.parametrize("shape", [(64, 64), (250, 250), (96, 144), (64, 300), (300, 1000)])
@pytest.mark.parametrize("p", [3.0, math.inf])
def test_float16_chain_is_within_three_per_cent(
    p: float, shape: tuple[int, int], cpu_level: str
) -> None:
    for matrix in (log_uniform(*shape, 4e-3), log_uniform(*shape, 5e-2), repeated(*shape)):
        x = matrix.value.float()
        found = schatten_direction(x, p, chain_dtype=torch.float16)

        error = relative(found, matrix.direction(power(p)))
        assert error < 0.015
        if shape[0] == shape[1]:  # sums of 192 terms at once, rounded to float16, leave more
            assert error < 0.0055


@pytest.mark.parametrize("shape", [(64, 64), (200, 260), (64, 256), (96, 1600)])
def test_float16_sums_err_at_most_twice_as_plain_torch(shape: tuple[int, int]) -> None:
    """Also where the smallest singular values are lost in the rounding of the input."""
    for matrix in (log_uniform(*shape, 3.31e-4), harmonic(*shape)):
        x = matrix.scaled(1 / matrix.norm(2)).value.float()
        plan = planning.plan(
            0.0, *shape, x.dtype, planning.device_facts(x.device), chain_dtype=torch.float16
        )
        found = schatten_direction(x, chain_dtype=torch.float16)

        weights = torch.tensor([planning.chain_weights(0.0, plan)], dtype=F64)
        wide = (plan.size * x)[None].half()
        steps, powers = planning.chain_steps(plan), torch.zeros(1, dtype=F64)
        twin, _, _ = portable.chain_direction(wide, steps, weights, powers, False, [])
        assert within_ratio(found, twin[0], matrix.direction(0.0))


@pytest.mark.parametrize("p", DIALS)
def test_chain_keeps_its_band(p: float) -> None:
    for depth in chains.depths():
        matrix = log_uniform(30, 44, 1.01 * chains.smallest(depth))
        found = schatten_direction(matrix.value, p, steps=depth)

        values = torch.diagonal(matrix.u.mT @ found @ matrix.v) / matrix.s ** power(p)
        assert float((values - 1).abs().max()) <= band(power(p), depth, F64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", SHARP)
def test_sharp_directions_have_their_cosine(p: float, shape: tuple[int, int]) -> None:
    for matrix in (log_uniform(*shape, 3.31e-4), log_uniform(*shape, 0.05), gaussian(*shape)):
        x = matrix.scaled(1 / matrix.norm(math.inf))
        found = schatten_direction(x.value.float(), p)

        assert cosine(found, x.direction(power(p))) >= 0.999


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (9, 400), (24, 24)])
@pytest.mark.parametrize("dial", [-0.3, -0.1, 0.0, 0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_is_exact(dtype: torch.dtype, dial: float, shape: tuple[int, int]) -> None:
    for matrix in (gaussian(*shape), harmonic(*shape), rank_one(*shape), repeated(*shape)):
        x = matrix.scaled(1 / matrix.norm(math.inf))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = schatten_direction(x.value.to(dtype), power=dial, method="exact")

        # Rounding of the input moves singular vectors by its condition, and values by the power.
        growth = float(x.s[0] / x.s[-1]) if dial < 1 else 1 + dial
        assert relative(found, x.direction(dial)) < 30 * growth * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 3, 5, 8), (6, 6), (1, 9), (9, 1), (2, 1, 1)])
@pytest.mark.parametrize("p", [1.0, 1.02, 1.1, 1.6, 2.0, 3.0, math.inf])
def test_shapes_and_dtypes(p: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    kept = x.clone()

    found = schatten_direction(x, p)
    ball = ball_oracle(x, p, 2.0)

    assert found.dtype == ball.dtype == dtype and found.shape == ball.shape == x.shape
    assert found.is_contiguous() and torch.equal(x, kept)
    exact = ball_oracle(x.double(), p, 2.0, method="exact")
    assert cosine(ball, exact) > 0.999
    assert relative(ball, exact) < 0.07


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 3, 4), (2, 0, 5)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)

    for p in (1.0, 1.5, 2.0, 3.0, math.inf):
        assert schatten_direction(x, p).shape == x.shape
        assert ball_oracle(x, p).shape == regularized_oracle(x, p).shape == x.shape
        for method in ("exact", "chain"):
            assert schatten_norm(x, p, method=method).shape == x.shape[:-2]  # type: ignore[arg-type]
    assert polar(x, coefficients="jordan").shape == x.shape


def test_layouts_give_the_same() -> None:
    x = torch.randn(5, 7, 6)
    strided = torch.stack([x, x], -1)[..., 0]
    turned = x.mT.contiguous().mT

    expected = schatten_direction(x, 3.0)

    assert torch.equal(schatten_direction(strided, 3.0), expected)
    assert relative(schatten_direction(turned, 3.0), expected) < 1e-6
    assert relative(schatten_direction(x.mT, 3.0).mT, expected) < 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("p", [1.0, 1.02, 1.1, 1.5, 2.0, 3.0, math.inf])
def test_tiny_and_huge(p: float, scale: float) -> None:
    matrix = gaussian(12, 17)
    x = matrix.value.float()

    assert relative(ball_oracle(x * scale, p), ball_oracle(x, p)) < 1e-3
    norms = schatten_norm(x * scale, p, method="chain") / scale
    assert float(norms) == pytest.approx(matrix.norm(p), rel=0.02)


@pytest.mark.parametrize("p", [1.0, 1.1, 1.5, 2.0, 3.0, math.inf])
def test_zero_is_zero(p: float) -> None:
    x = torch.zeros(2, 4, 6)
    x[1] = torch.randn(4, 6)

    for method in ("auto", "exact"):
        for function in (schatten_direction, ball_oracle, regularized_oracle):
            found = function(x, p, method=method)  # type: ignore[operator]
            assert found[0].eq(0).all() and found[1].ne(0).any() and found.isfinite().all()
    assert schatten_norm(x, p)[0] == schatten_norm(x, p, method="chain")[0] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("p", [1.0, 1.1, 1.5, 2.0, 3.0, math.inf])
def test_matrices_that_are_not_finite_give_nan_and_spare_the_others(p: float, bad: float) -> None:
    x = torch.randn(2, 5, 4)
    x[0, 2, 3] = bad

    for function in (schatten_direction, ball_oracle, regularized_oracle):
        for method in ("auto", "exact"):
            found = function(x, p, method=method)  # type: ignore[operator]
            assert found[0].isnan().all()
            assert torch.equal(found[1:], function(x[1:], p, method=method))  # type: ignore[operator]
    for method in ("exact", "chain"):
        norms = schatten_norm(x, p, method=method)  # type: ignore[arg-type]
        assert norms[0].isnan() and norms[1].isfinite()
    for part in partial_svd(x, 2):
        assert part[0].isnan().all() and part[1].isfinite().all()


@pytest.mark.parametrize("p", [1.0, 1.1, 1.5, 2.0, 3.0, 9.0, math.inf])
def test_ball_oracle_is_optimal(p: float) -> None:
    matrix = gaussian(12, 20)
    q = exponents.dual(p)

    exact = ball_oracle(matrix.value, p, 3.0, method="exact")
    planned = ball_oracle(matrix.value.float(), p, 3.0).double()

    assert float(schatten_norm(exact, p)) == pytest.approx(3.0)
    assert float((matrix.value * exact).sum()) == pytest.approx(-3.0 * matrix.norm(q))
    assert float(schatten_norm(planned, p)) == pytest.approx(3.0, rel=0.02)
    value = float((matrix.value * planned).sum())
    assert value == pytest.approx(-3.0 * matrix.norm(q), rel=0.02)


def test_ball_oracle_beats_random_competitors() -> None:
    x = gaussian(4, 6).value
    for p in (1.0, 1.5, 3.0, math.inf):
        best = float((x * ball_oracle(x, p, method="exact")).sum())
        rivals = torch.randn(500, 4, 6, dtype=F64)
        rivals = rivals / schatten_norm(rivals, p)[:, None, None]
        assert best <= float((x * rivals).flatten(1).sum(1).min())


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_regularized_oracle_is_the_ball_oracle_at_the_dual_norm(p: float) -> None:
    matrix = gaussian(8, 5)
    dual = matrix.norm(exponents.dual(p))

    found = regularized_oracle(matrix.value, p, 0.5, method="exact")

    assert relative(found, ball_oracle(matrix.value, p, 0.5 * dual, method="exact")) < 1e-12
    value = float((matrix.value * found).sum() + schatten_norm(found, p) ** 2 / (2 * 0.5))
    assert value == pytest.approx(-0.25 * dual**2)


def test_regularized_oracle_at_two_is_the_gradient_itself() -> None:
    x = torch.randn(3, 6, 5)

    assert torch.equal(regularized_oracle(x, 2.0, 0.3), -0.3 * x)


def test_p_one_is_rank_one() -> None:
    for matrix in (gaussian(20, 33), repeated(20, 33)):
        for method in ("auto", "exact", "partial_svd"):
            found = schatten_direction(matrix.value, 1.0, method=method)  # type: ignore[arg-type]
            s = torch.linalg.svdvals(found)
            assert float(s[0]) == pytest.approx(1.0) and float(s[1]) < 1e-12
            inner = float((found * matrix.value).sum())
            assert inner == pytest.approx(float(matrix.s[0]), rel=1e-3)


def test_polar_is_p_inf() -> None:
    x = torch.randn(7, 7)

    assert torch.equal(polar(x), schatten_direction(x))
    assert torch.equal(polar(x, steps=5), schatten_direction(x, math.inf, steps=5))
    exact = polar(x.double(), method="exact")
    assert relative(polar(x, coefficients="polar_express", steps=8), exact) < 0.02
    assert relative(polar(x, coefficients="jordan"), exact) < 0.35


@pytest.mark.parametrize("dial", [-0.3, -0.2, -0.1])
def test_powers_beyond_muon(dial: float) -> None:
    matrix = log_uniform(30, 50, 3.31e-4)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = schatten_direction(matrix.value, power=dial, steps=8)

    assert relative(found, matrix.direction(dial)) <= band(dial, 8, F64)


def test_warns_below_minus_a_fifth() -> None:
    with pytest.warns(UserWarning, match="schatten_direction: power is below -0.2"):
        schatten_direction(torch.randn(3, 4), power=-0.25)


@pytest.mark.parametrize("method", ["exact", "chain"])
@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (16, 200)])
@pytest.mark.parametrize("p", [1, 1.5, 2, 2.5, 4, 12, 40, math.inf])
def test_schatten_norm(p: float, shape: tuple[int, int], method: str) -> None:
    for matrix in (gaussian(*shape), harmonic(*shape), log_uniform(*shape, 1e-3)):
        found = schatten_norm(matrix.value.float(), p, method=method)  # type: ignore[arg-type]

        tolerance = 1e-5 if method == "exact" else 0.01
        assert float(found) == pytest.approx(matrix.norm(p), rel=tolerance)


def test_schatten_norm_is_batched_and_keeps_its_dtype() -> None:
    x = torch.randn(2, 3, 5, 4)

    assert schatten_norm(x, 1).shape == (2, 3)
    assert schatten_norm(x.double(), 1).dtype == F64
    assert schatten_norm(x.bfloat16(), 1, method="chain").dtype == torch.float32


@pytest.mark.parametrize("shape", [(30, 44), (44, 30), (25, 25)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_partial_svd(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    matrix = harmonic(*shape)
    x = torch.stack([matrix.value, 3 * matrix.value]).to(dtype)

    u, s, v = partial_svd(x, 4, iterations=40)

    eps = torch.finfo(dtype).eps
    assert u.shape == (2, shape[0], 4) and s.shape == (2, 4) and v.shape == (2, shape[1], 4)
    assert orthogonality(u) < 50 and orthogonality(v) < 50
    truth = torch.stack([matrix.s[:4], 3 * matrix.s[:4]])
    assert relative(s[..., None], truth[..., None]) < 50 * eps
    assert relative(x @ v, u * s[:, None, :]) < 1000 * eps


def test_partial_svd_starts_where_it_is_told() -> None:
    for shape in ((40, 60), (60, 40)):
        matrix = gaussian(*shape)
        x = matrix.value
        cold = partial_svd(x, 3, iterations=1)[1]

        warm = partial_svd(x, 3, iterations=1, start=matrix.v[:, :3] + 1e-3)[1]

        assert relative(warm[:, None], matrix.s[:3, None]) < 1e-4
        assert relative(cold[:, None], matrix.s[:3, None]) > 1e-3
        assert torch.equal(cold, partial_svd(x, 3, iterations=1)[1])
        drawn = [
            partial_svd(x, 3, iterations=1, generator=torch.Generator().manual_seed(seed))[1]
            for seed in (1, 1, 2)
        ]
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_partial_svd_refuses() -> None:
    x = torch.randn(4, 6)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=rf"rank must be in \[1, 4\], got {rank}"):
            partial_svd(x, rank)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        partial_svd(x, 1, iterations=0)
    with pytest.raises(ValueError, match=r"start must have shape .* got \(4, 2\)"):
        partial_svd(x, 1, start=torch.randn(4, 2))
    with pytest.raises(ValueError, match="give start or generator, got both"):
        partial_svd(x, 1, start=torch.randn(6, 2), generator=torch.Generator())


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64), TypeError, "x must be float64, .*complex64"),
        (torch.zeros(3, 3, dtype=torch.int64), TypeError, "x must be float64, .*int64"),
        (torch.eye(3).to_sparse(), TypeError, "x must be a dense tensor, got layout .*sparse"),
        (torch.zeros(3), ValueError, r"x must have shape \[..., m, n\], got \(3,\)"),
    ],
)
def test_refuses_tensors(
    function: Callable[..., object], x: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(x)


@pytest.mark.parametrize("function", CALLS[:-1])
def test_is_not_differentiable_and_says_so(function: Callable[..., object]) -> None:
    x = torch.randn(3, 4, requires_grad=True)

    with pytest.raises(ValueError, match="x must not require grad, .* not differentiable"):
        function(x)
    with torch.no_grad():
        function(x)
    function(x.detach())
    with pytest.raises(ValueError, match="x must have no tangent, .* not differentiable"):
        torch.func.jvp(lambda y: function(y), (x.detach(),), (torch.randn(3, 4),))


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.parametrize(
    "function",
    [*CALLS[:-1], lambda x: ball_oracle(x, 1.2), lambda x: ball_oracle(x, 1.0), polar_exactly],
)
def test_compiles_whole_for_several_sizes(function: Callable[..., object]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for shape in ((6, 5), (4, 9), (2, 3, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), function(x), rtol=0, atol=0)


def test_compiles_whole_for_several_settings() -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 5)
    compiled = torch.compile(schatten_direction, backend="eager", fullgraph=True)
    for p, steps in ((3.0, 4), (4.5, 5), (2.7, 6)):
        assert torch.equal(compiled(x, p, steps=steps), schatten_direction(x, p, steps=steps))


def test_refuses_settings_in_its_own_name() -> None:
    x = torch.randn(3, 3)
    with pytest.raises(TypeError, match="schatten_direction: x must be a tensor, got list"):
        schatten_direction([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"schatten_direction: p must be in \[1, inf\], got 0.5"):
        schatten_direction(x, 0.5)
    with pytest.raises(ValueError, match="schatten_direction: give p or power, not both"):
        schatten_direction(x, 2.0, power=1.0)
    with pytest.raises(ValueError, match=r"ball_oracle: steps must be in \[4, 10\], got 2"):
        ball_oracle(x, 3.0, steps=2)
    with pytest.raises(ValueError, match="ball_oracle: radius must be finite and .* got -1.0"):
        ball_oracle(x, 3.0, -1.0)
    with pytest.raises(ValueError, match="regularized_oracle: eta must be finite and .* got inf"):
        regularized_oracle(x, 3.0, math.inf)
    with pytest.raises(ValueError, match="schatten_norm: method must be one of exact, chain"):
        schatten_norm(x, 1, method="auto")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"schatten_norm: p must be in \[1, inf\], got 0.9"):
        schatten_norm(x, 0.9)


@pytest.mark.parametrize(
    ("p", "route"),
    [(1, "partial_svd"), (1.01, "partial_svd"), (1.1, "squarings"), (1.8, "chain"), (2, "identity")]
    + [(3, "chain"), (math.inf, "chain")],
)
def test_explain_names_the_route(p: float, route: str) -> None:
    text = explain((2, 64, 48), p)

    assert text.startswith(f"{route} (") and len(text.splitlines()) == 1
    assert text == explain(torch.empty(2, 64, 48, device="cpu"), p)  # where a shape alone is taken


def test_explain_follows_the_settings() -> None:
    assert "5 steps of 'jordan'" in explain((64, 64), coefficients="jordan")
    assert "bfloat16" in explain((64, 64), chain_dtype=torch.bfloat16)
    assert "float64" in explain((64, 64), dtype=F64)
    assert explain((64, 64), p=1.1, method="exact").startswith("exact")


def test_wide_direction_is_at_hand() -> None:
    matrix = Decomposed(torch.eye(2, dtype=F64), torch.tensor([0.8, 0.6], dtype=F64), torch.eye(2))
    wide = matrix.s.diag()[None].to(F64)
    plan = planning.plan(0.5, 2, 2, F64, planning.device_facts(wide.device), method="exact")

    found = functional.wide_direction(wide, torch.tensor([0.5], dtype=F64), None, plan)

    assert float(found.dual) == pytest.approx((0.8**1.5 + 0.6**1.5) ** (1 / 1.5))
