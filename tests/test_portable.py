"""The plain-torch operators against formulas in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from errors import band, cosine, orthogonality, relative
from matrices import F64, Decomposed, gaussian, harmonic, log_uniform
from torch import Tensor

from schattor import ops, portable
from schattor.theory import chains

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def unit(matrix: Decomposed) -> Decomposed:
    return matrix.scaled(1 / matrix.norm(2))


def steps_of(depth: int, coefficients: str = "schattor") -> list[float]:
    return [number for step in chains.steps(coefficients, depth) for number in step]


def weights_of(powers: list[float], depth: int) -> Tensor:
    return torch.tensor([chains.weights(power, depth) for power in powers], dtype=F64)


def batch_of(*matrices: Decomposed, dtype: torch.dtype = F64) -> Tensor:
    return torch.stack([unit(matrix).value for matrix in matrices]).to(dtype)


@pytest.mark.parametrize("function", ops._OPERATORS, ids=lambda function: function.__name__)
def test_arguments_are_those_of_ops(function: Callable[..., object]) -> None:
    ours = inspect.signature(function).parameters
    theirs = inspect.signature(getattr(ops, function.__name__)).parameters

    assert list(ours) == list(theirs)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_follows_the_momentum_rule(dtype: torch.dtype, nesterov: bool, ema: bool) -> None:
    grads = [torch.randn(6, 9).to(dtype), torch.randn(9, 6).to(dtype).t()]
    momenta = [torch.randn(6, 9), torch.randn(6, 9)]
    kept = [moment.clone() for moment in momenta]
    wide = torch.empty(2, 6, 9, dtype=dtype)
    norms, finite = torch.empty(2, dtype=F64), torch.empty(2, dtype=torch.bool)

    portable.gather_momentum(grads, momenta, number(0.9), ema, nesterov, 1.0, wide, norms, finite)

    share = 0.1 if ema else 1.0
    for i in range(2):
        new = 0.9 * momenta[i].double() + share * grads[i].double()
        applied = 0.9 * new + share * grads[i].double() if nesterov else new
        assert float(norms[i]) == pytest.approx(float(applied.norm()), rel=1e-6)
        assert relative(wide[i], applied / applied.norm()) < 2 * ROUNDING[dtype] + 1e-6
        assert torch.equal(momenta[i], kept[i])
    assert finite.all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_gather_norms_of_tiny_and_huge_matrices(scale: float) -> None:
    grad = torch.randn(5, 7) * scale
    wide, norms = torch.empty(1, 5, 7), torch.empty(1, dtype=F64)
    finite = torch.empty(1, dtype=torch.bool)

    portable.gather_momentum([grad], [], number(0.0), False, False, 1.0, wide, norms, finite)

    assert float(norms[0]) == pytest.approx(float(grad.double().norm()), rel=1e-6)
    assert relative(wide[0], grad.double() / grad.double().norm()) < 1e-6


def test_gather_marks_what_is_not_finite_and_leaves_zero_alone() -> None:
    grads = [torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3)]
    grads[2][1, 1] = float("nan")
    grads[3][0, 2] = float("inf")
    wide, norms = torch.full((4, 2, 3), 7.0), torch.full((4,), 7.0, dtype=F64)
    finite = torch.empty(4, dtype=torch.bool)

    portable.gather_momentum(grads, [], number(0.0), False, False, 1.0, wide, norms, finite)

    assert finite.tolist() == [True, True, False, False]
    assert norms.tolist() == pytest.approx([6**0.5, 0.0, 0.0, 0.0])
    assert wide[1:].eq(0).all()


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("power", [-0.2, 0.0, 1 / 3, 0.5, 0.9, 1.0])
def test_chain_stays_in_its_band(power: float, gram: bool) -> None:
    depth = 7
    matrix = unit(log_uniform(24, 40, 1.001 * chains.smallest(depth)))

    weights, powers = weights_of([power], depth), number(power)[None]
    direction, inner, square = portable.chain_direction(
        matrix.value[None], steps_of(depth), weights, powers, gram, []
    )

    values = torch.diagonal(matrix.u.mT @ direction[0] @ matrix.v) / matrix.s**power
    assert float((values - 1).abs().max()) <= chains.band(power, depth) + 1e-9
    assert float(inner[0]) == pytest.approx(float((matrix.value * direction[0]).sum()))
    assert float(square[0]) == pytest.approx(float(direction.square().sum()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gram", [False, True])
def test_chain_in_lower_precision(dtype: torch.dtype, gram: bool) -> None:
    depth, powers = 7, [0.0, 0.5]
    matrix = unit(log_uniform(32, 80, 1e-2))
    restarts = {torch.float32: [], torch.float16: [3], torch.bfloat16: [2, 4]}[dtype]
    wide = matrix.value.to(dtype).expand(2, -1, -1).contiguous()

    weights, exponents = weights_of(powers, depth), torch.tensor(powers, dtype=F64)
    direction, _, _ = portable.chain_direction(
        wide, steps_of(depth), weights, exponents, gram, restarts
    )

    assert direction.dtype == dtype
    for i, power in enumerate(powers):
        assert relative(direction[i], matrix.direction(power)) <= band(power, depth, dtype)


def test_chain_forms_agree_in_float64() -> None:
    wide = batch_of(gaussian(12, 20), harmonic(12, 20))
    arguments = (steps_of(8), weights_of([0.0, 0.7], 8), torch.tensor([0.0, 0.7], dtype=F64))

    direct = portable.chain_direction(wide, *arguments, False, [])[0]

    for restarts in ([], [3], [2, 4], [1, 2, 3, 4, 5, 6, 7]):
        gram = portable.chain_direction(wide, *arguments, True, restarts)[0]
        assert relative(gram, direct) < 1e-9


def test_chain_at_power_one_is_the_matrix() -> None:
    wide = batch_of(gaussian(5, 8))

    direction, _, _ = portable.chain_direction(
        wide, steps_of(6), weights_of([1.0], 6), torch.ones(1, dtype=F64), False, []
    )

    assert relative(direction, wide) < 1e-14


@pytest.mark.parametrize("coefficients", ["jordan", "polar_express", "newton_schulz"])
def test_chain_runs_published_rows(coefficients: str) -> None:
    matrix = unit(gaussian(9, 14))
    depth = 12 if coefficients == "newton_schulz" else 6
    final = torch.tensor([chains.final_weights(depth)], dtype=F64)

    steps, powers = steps_of(depth, coefficients), torch.zeros(1, dtype=F64)
    direction, _, _ = portable.chain_direction(matrix.value[None], steps, final, powers, False, [])

    s = matrix.s / matrix.norm(4)
    for a, b, c in chains.steps(coefficients, depth):
        s = a * s + b * s**3 + c * s**5
    assert relative(direction[0], (matrix.u * s) @ matrix.v.mT) < 1e-12


def test_zero_matrices_have_zero_directions() -> None:
    wide, zero = torch.zeros(1, 3, 4), torch.zeros(1, dtype=F64)

    found = [
        portable.chain_direction(wide, steps_of(5), weights_of([0.0], 5), zero, False, []),
        portable.chain_direction(wide, steps_of(5), weights_of([0.0], 5), zero, True, [2]),
        portable.squarings_direction(wide, chains.squarings(8.0), zero + 8),
    ]

    for direction, inner, square in found:
        assert direction.eq(0).all() and inner.eq(0).all() and square.eq(0).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_squarings_is_its_polynomial(scale: float) -> None:
    matrix = gaussian(10, 16)
    matrix = matrix.scaled(scale / matrix.norm(2))
    coefficients = [0.3, -0.2, 0.5, 0.1, 0.2]

    direction, inner, square = portable.squarings_direction(
        matrix.value[None], coefficients, torch.tensor([6.0], dtype=F64)
    )

    bound = float(matrix.s.pow(32).sum() ** (1 / 32))  # |A^8|_F^(1/16)
    s = matrix.s / bound
    polynomial = sum(c * s**k for c, k in zip(coefficients, (1, 3, 5, 9, 17), strict=True))
    expected = bound**6 * (matrix.u * polynomial) @ matrix.v.mT
    assert relative(direction[0], expected) < 1e-12
    assert float(inner[0]) == pytest.approx(float((matrix.value * expected).sum()))
    assert float(square[0]) == pytest.approx(float(expected.square().sum()))


@pytest.mark.parametrize("power", [3.0, 6.0, 12.0, 33.0])
def test_squarings_sharpen(power: float) -> None:
    for matrix in (unit(gaussian(32, 48)), unit(harmonic(32, 48)), unit(log_uniform(32, 48, 1e-2))):
        wide = matrix.value.float()[None] * 32**0.25
        coefficients = list(chains.squarings(power))
        direction, _, _ = portable.squarings_direction(wide, coefficients, number(power)[None])

        assert cosine(direction[0], matrix.direction(power)) > 0.999


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_partial_svd_finds_the_leading_triples(dtype: torch.dtype) -> None:
    matrix = harmonic(20, 30)
    start = torch.randn(1, 30, 8, dtype=dtype)

    u, s, v = portable.partial_svd(matrix.value.to(dtype)[None], 8, 30, start)

    assert orthogonality(u) < 50 and orthogonality(v) < 50
    assert relative(s[:, None, :4], matrix.s[None, None, :4]) < 50 * ROUNDING[dtype]
    truth = (matrix.u[:, :4] * matrix.s[:4]) @ matrix.v[:, :4].mT
    assert relative((u[0, :, :4] * s[0, :4]) @ v[0, :, :4].mT, truth) < 1000 * ROUNDING[dtype]


def test_inner_products_sum_in_float64() -> None:
    x = torch.full((2, 100, 1000), 0.1)
    y = torch.ones(2, 100, 1000, dtype=torch.bfloat16)

    inner = portable.inner_products(x, y)

    assert inner.dtype == F64
    assert inner.tolist() == pytest.approx([float(x[0].double().sum())] * 2, rel=1e-12)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_updates_weights_and_moments(dtype: torch.dtype, ema: bool) -> None:
    params = [torch.randn(4, 6).to(dtype), torch.randn(6, 4).to(dtype).t()]
    grads, momenta = [torch.randn(4, 6) for _ in range(2)], [torch.randn(4, 6) for _ in range(2)]
    old = [(p.to(F64, copy=True), m.double()) for p, m in zip(params, momenta, strict=True)]
    direction, scale = torch.randn(2, 4, 6), torch.tensor([0.5, 2.0], dtype=F64)
    finite = torch.tensor([True, True])

    portable.scatter_update(
        params, grads, momenta, direction, scale, number(0.99), number(0.8), ema, finite
    )

    for i, (param, moment) in enumerate(old):
        stepped = 0.99 * param - scale[i] * direction[i].double()
        averaged = 0.8 * moment + (0.2 if ema else 1.0) * grads[i].double()
        assert relative(params[i], stepped) < ROUNDING[dtype] + 1e-6
        assert relative(momenta[i], averaged) < 1e-6


def test_scatter_leaves_what_is_not_finite() -> None:
    param, grad, moment = torch.ones(2, 2), torch.full((2, 2), float("nan")), torch.ones(2, 2)
    direction, scale = torch.full((1, 2, 2), float("nan")), torch.ones(1, dtype=F64)
    flag = torch.tensor([False])

    portable.scatter_update(
        [param], [grad], [moment], direction, scale, number(0.5), number(0.9), True, flag
    )

    assert param.eq(1).all() and moment.eq(1).all()


def test_scatter_without_momentum() -> None:
    param, grad = torch.ones(2, 3), torch.ones(2, 3)
    direction, scale = torch.ones(1, 2, 3), torch.tensor([0.25], dtype=F64)

    portable.scatter_update(
        [param], [grad], [], direction, scale, number(1.0), number(0.0), False, torch.tensor([True])
    )

    assert param.eq(0.75).all()
