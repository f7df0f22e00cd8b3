"""The operators with weights and second moments: kernels, plain torch, and float64 formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import test_ops
import torch
from torch import Tensor
from weighted_calls import F64, Gathered, Weighing, formula, gathered, number, random_lists

from schattor import ops, portable_weighted

ROUNDING = {dtype: torch.finfo(dtype).eps for dtype in test_ops.DTYPES}
SIZES = [(1, 1), (2, 3), (5, 17), (31, 33), (65, 130)]


def limit(dtype: torch.dtype, compute: torch.dtype) -> float:
    return 4 * ROUNDING[dtype] + 20 * ROUNDING[compute]


@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("dtype", test_ops.DTYPES)
@pytest.mark.parametrize("tall", [(False, False), (True, True), (False, True), (True, False)])
def test_gather_weighted_matches_its_twin_and_its_formula(
    rows: int, cols: int, dtype: torch.dtype, tall: tuple[bool, bool], cpu_level: str
) -> None:
    square = F64 if dtype == F64 else torch.float32
    lists = random_lists(3, rows, cols, dtype, square, tall)
    kept = [x.clone() for moments in lists[:3] for x in moments]

    ours = gathered(ops.gather_weighted, lists, dtype, size=4.0)
    theirs = gathered(portable_weighted.gather_weighted, lists, dtype, size=4.0)
    truth = formula(lists, size=4.0)

    tolerance = {"rtol": limit(dtype, square), "atol": 4 * limit(dtype, square)}
    for result in (ours, theirs):
        assert result.weights.dtype == square and result.finite.all()
        weights = 20 * ROUNDING[square]
        torch.testing.assert_close(result.weights.double(), truth.weights, rtol=weights, atol=0)
        torch.testing.assert_close(result.wide.double(), truth.wide, **tolerance)
        torch.testing.assert_close(result.norms, truth.norms, rtol=weights, atol=0)
    assert torch.equal(torch.cat(kept), torch.cat([x for moments in lists[:3] for x in moments]))


def gathered_by_the_formula(
    function: Callable[..., None], lists: Weighing, dtype: torch.dtype
) -> Gathered:
    result, truth = gathered(function, lists, dtype), formula(lists)
    # Plain torch rounds the exponent, which a weight multiplies by its logarithm.
    rtol = 100 * ROUNDING[dtype]
    torch.testing.assert_close(result.weights.double(), truth.weights, rtol=rtol, atol=0)
    torch.testing.assert_close(result.wide.double(), truth.wide, rtol=rtol, atol=rtol)
    return result


@pytest.mark.parametrize("root", [0.5, 1.0])
@pytest.mark.parametrize("exponent", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_weights_follow_their_numbers(
    dtype: torch.dtype, beta: float, exponent: float, root: float, cpu_level: str
) -> None:
    lists = random_lists(2, 9, 33, dtype, dtype)._replace(
        beta=beta, exponents=(exponent,), root=root, eps=1e-8
    )
    for function in (ops.gather_weighted, portable_weighted.gather_weighted):
        gathered_by_the_formula(function, lists, dtype)


@pytest.mark.parametrize("root", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("rows", "cols"), [(9, 33), (70, 130)])
def test_every_matrix_has_its_own_exponent(
    rows: int, cols: int, dtype: torch.dtype, root: float, cpu_level: str
) -> None:
    exponents = (0.5, 0.0, 0.125, 0.25, 0.3)
    lists = random_lists(5, rows, cols, dtype, dtype)._replace(exponents=exponents, root=root)
    lists = lists._replace(corrections=(0.7,))
    for function in (ops.gather_weighted, portable_weighted.gather_weighted):
        together = gathered_by_the_formula(function, lists, dtype)
        for i, exponent in enumerate(exponents):
            matrix = [[x[i]] for x in lists[:3]]
            alone = gathered(
                function, Weighing(*matrix, *lists[3:])._replace(exponents=(exponent,)), dtype
            )
            for one, several in zip(alone, together, strict=True):
                torch.testing.assert_close(one[0], several[i], rtol=0, atol=0)


@pytest.mark.parametrize("square", test_ops.DTYPES)
@pytest.mark.parametrize("grad", test_ops.DTYPES)
@pytest.mark.parametrize("wide", test_ops.DTYPES)
def test_dtypes_mix(grad: torch.dtype, square: torch.dtype, wide: torch.dtype) -> None:
    lists = random_lists(2, 6, 10, grad, square, (True, False))
    compute = lists.dtype(wide)
    read = gathered(ops.gather_weighted, lists, wide)
    truth = formula(lists)
    torch.testing.assert_close(
        read.weights.double(), truth.weights, rtol=20 * ROUNDING[compute], atol=0
    )
    tolerance = limit(wide, compute)
    torch.testing.assert_close(read.wide.double(), truth.wide, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", test_ops.DTYPES)
@pytest.mark.parametrize("tall", [False, True])
def test_weights_are_read_where_there_are_no_squares(
    dtype: torch.dtype, tall: bool, cpu_level: str
) -> None:
    for momentum in (True, False):
        lists = random_lists(3, 7, 20, dtype, dtype, (tall, tall))._replace(squares=[])
        lists = lists if momentum else lists._replace(momenta=[])
        weights = torch.randn(3, 7, 20, dtype=lists.dtype(dtype))
        truth = formula(lists, weights)
        for function in (ops.gather_weighted, portable_weighted.gather_weighted):
            result = gathered(function, lists, dtype, weights)
            tolerance = limit(dtype, weights.dtype)
            assert torch.equal(result.weights, weights)
            torch.testing.assert_close(
                result.wide.double(), truth.wide, rtol=tolerance, atol=tolerance
            )
            torch.testing.assert_close(result.norms, truth.norms, rtol=1e-5, atol=0)


def test_weights_of_ones_change_nothing(cpu_level: str) -> None:
    lists = random_lists(3, 40, 50, torch.float32, torch.float32)._replace(squares=[])
    plain = torch.empty(3, 40, 50)
    norms, finite = torch.empty(3, dtype=F64), torch.empty(3, dtype=torch.bool)
    ops.gather_momentum(
        lists.grads, lists.momenta, number(0.9), True, True, 1.0, plain, norms, finite
    )
    weighted = gathered(ops.gather_weighted, lists, torch.float32, torch.ones(3, 40, 50))
    assert torch.equal(weighted.wide, plain) and torch.equal(weighted.norms, norms)


@pytest.mark.parametrize("function", [ops.gather_weighted, portable_weighted.gather_weighted])
def test_a_moment_of_zero_weighs_nothing(function: Callable[..., None]) -> None:
    for exponent in (0.0, 0.3, 0.5):
        lists = random_lists(2, 4, 6, torch.float32, torch.float32)
        for values in (lists.grads, lists.squares):
            values[0].zero_()
            values[1][1, 2] = 0
        lists = lists._replace(eps=0.0, exponents=(exponent,))
        result = gathered(function, lists, torch.float32)
        assert result.finite.all() and result.norms[0] == 0 and result.norms[1] > 0
        assert not result.weights[0].any() and not result.wide[0].any()
        assert result.weights[1, 1, 2] == 0 and result.wide[1, 1, 2] == 0
        assert result.weights[1].count_nonzero() == 23


# (list, entry): 3e19 is a float32 number, its square is not.
BAD = [
    (0, float("nan")),
    (0, float("-inf")),
    (0, 3e19),
    (1, float("inf")),
    (2, float("nan")),
    (2, float("inf")),
]


@pytest.mark.parametrize(("place", "bad"), BAD)
@pytest.mark.parametrize("exponent", [0.5, 0.0, 0.3])
def test_what_is_not_finite_changes_nothing(
    place: int, bad: float, exponent: float, cpu_level: str
) -> None:
    for module in (ops, portable_weighted):
        lists = random_lists(3, 9, 20, torch.float32, torch.float32)
        lists = lists._replace(exponents=(exponent,))
        clean = gathered(module.gather_weighted, lists, torch.float32)
        lists[place][1][8, 19] = bad
        result = gathered(module.gather_weighted, lists, torch.float32)

        assert result.finite.tolist() == [True, False, True]
        assert result.norms[1] == 0 and not result.wide[1].any()
        assert torch.equal(result.wide[::2], clean.wide[::2])
        params = [torch.randn(9, 20) for _ in range(3)]
        before = [[x.clone() for x in some] for some in (params, lists.momenta, lists.squares)]
        scale = torch.ones(3, dtype=F64)
        module.scatter_moments(
            params,
            *lists[:3],
            result.wide,
            scale,
            number(0.9),
            number(0.9),
            number(0.98),
            True,
            result.finite,
        )
        for old, new in zip(before, (params, lists.momenta, lists.squares), strict=True):
            torch.testing.assert_close(new[1], old[1], rtol=0, atol=0, equal_nan=True)
            assert not torch.equal(new[0], old[0]) and not torch.equal(new[2], old[2])


def test_a_weight_may_leave_the_range() -> None:
    lists = Weighing(
        [torch.full((1, 2), 1e-30)], [], [torch.full((1, 2), 1e-42)], beta=1.0, corrections=(1.0,)
    )
    for function in (ops.gather_weighted, portable_weighted.gather_weighted):
        within = lists._replace(root=1.0, exponents=(0.5,), eps=0.0)
        assert gathered(function, within, torch.float32).finite.item()
        beyond = lists._replace(root=1.0, exponents=(1.0,), eps=0.0)
        assert not gathered(function, beyond, torch.float32).finite.item()


@pytest.mark.parametrize("dtype", test_ops.DTYPES)
@pytest.mark.parametrize("compute", [torch.float32, F64])
def test_weigh_multiplies_in_place(
    dtype: torch.dtype, compute: torch.dtype, cpu_level: str
) -> None:
    for shape in ((3, 5, 7), (2, 300, 301), (2, 0, 4), (0, 3, 4)):
        weights, direction = torch.randn(shape, dtype=compute), torch.randn(shape).to(dtype)
        product = weights * direction.to(compute)
        for function in (ops.weigh, portable_weighted.weigh):
            out = weights.clone()
            square = function(out, direction)
            torch.testing.assert_close(out, product, rtol=0, atol=0)
            truth = product.double().square().sum((1, 2))
            torch.testing.assert_close(square, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", test_ops.DTYPES)
@pytest.mark.parametrize("beta", [0.9, 1.0])
@pytest.mark.parametrize("tall", [(False, False), (True, True), (False, True), (True, False)])
def test_scatter_moments_matches_its_formula(
    dtype: torch.dtype, beta: float, tall: tuple[bool, bool], cpu_level: str
) -> None:
    direction = torch.randn(3, 6, 19)
    scale, finite = torch.tensor([0.1, 0.0, 2.0], dtype=F64), torch.tensor([True, True, False])
    for square in test_ops.DTYPES:
        lists = random_lists(3, 6, 19, dtype, square, tall)
        start = [torch.randn(6, 19).to(dtype) for _ in range(3)]
        outputs = []
        for function in (ops.scatter_moments, portable_weighted.scatter_moments):
            params, momenta, squares = (
                [x.clone() for x in some] for some in (start, lists.momenta, lists.squares)
            )
            function(
                params,
                lists.grads,
                momenta,
                squares,
                direction,
                scale,
                number(0.99),
                number(0.9),
                number(beta),
                True,
                finite,
            )
            outputs.append((torch.stack(params), torch.stack(momenta), torch.stack(squares)))
        grads, share = torch.stack(lists.grads).double(), 1.0 if beta == 1 else 1 - beta
        truth = (
            0.99 * torch.stack(start).double() - scale[:, None, None] * direction.double(),
            0.9 * torch.stack(lists.momenta).double() + 0.1 * grads,
            beta * torch.stack(lists.squares).double() + share * grads**2,
        )
        for result in outputs:
            for got, expected, old in zip(
                result, truth, (start, lists.momenta, lists.squares), strict=True
            ):
                compute = F64 if dtype == got.dtype == F64 else torch.float32
                rounding = ROUNDING[got.dtype] + 4 * ROUNDING[compute]
                torch.testing.assert_close(
                    got[:2].double(), expected[:2], rtol=rounding, atol=rounding
                )
                assert torch.equal(got[2], old[2])


def test_scatter_without_second_moments_is_scatter_update() -> None:
    lists = random_lists(2, 6, 10, torch.float32, torch.float32)
    direction, scale = torch.randn(2, 6, 10), torch.ones(2, dtype=F64)
    rest = (direction, scale, number(0.9), number(0.8))
    finite = torch.ones(2, dtype=torch.bool)
    for momenta in (lists.momenta, []):
        params = [torch.ones(6, 10) for _ in range(2)]
        twins, moments = [p.clone() for p in params], [m.clone() for m in momenta]
        ops.scatter_moments(params, lists.grads, momenta, [], *rest, number(0.5), True, finite)
        ops.scatter_update(twins, lists.grads, moments, *rest, True, finite)
        torch.testing.assert_close((params, momenta), (twins, moments), rtol=0, atol=0)


GRAMS = [(1, 1), (3, 5), (17, 33), (48, 49), (64, 200), (200, 430)]


@pytest.mark.parametrize(("rows", "cols"), GRAMS)
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_average_grams_is_as_exact_as_its_twin(
    rows: int, cols: int, right: bool, dtype: torch.dtype, cpu_level: str
) -> None:
    side = cols if right else rows
    wide, old = torch.randn(3, rows, cols, dtype=dtype), torch.randn(3, side, side, dtype=dtype)
    old = old + old.mT
    decay, share = torch.rand(3, dtype=F64), torch.tensor([0.1, 0.0, 1.0], dtype=F64)
    x = wide.mT.double() if right else wide.double()
    truth = decay[:, None, None] * old.double() + share[:, None, None] * (x @ x.mT)

    errors = []
    for function in (ops.average_grams, portable_weighted.average_grams):
        factors = old.clone()
        function(factors, wide, right, decay, share)
        assert torch.equal(factors, factors.mT)
        errors.append(float((factors.double() - truth).norm() / truth.norm()))
    # In float64 the twin is the truth itself.
    assert errors[0] <= 2 * errors[1] + (32 if dtype == F64 else 1) * ROUNDING[dtype]


def average(wide: Tensor, right: bool, decay: Tensor) -> Tensor:
    side = wide.shape[2 if right else 1]
    factors = torch.ones(len(wide), side, side)
    ops.average_grams(factors, wide, right, decay, decay)
    return factors


def test_results_do_not_depend_on_threads_or_batch(cpu_level: str) -> None:
    lists = random_lists(5, 250, 300, torch.float32, torch.float32)
    direction, decay = torch.randn(5, 250, 300), torch.rand(5, dtype=F64)

    def results(lists: Weighing, part: slice) -> list[Tensor]:
        lists = lists._replace(
            **{n: getattr(lists, n)[part] for n in ("grads", "momenta", "squares")}
        )
        lists = lists._replace(corrections=(0.5,))
        out = gathered(ops.gather_weighted, lists, torch.bfloat16)
        square = ops.weigh(out.weights, direction[part])
        grams = [average(direction[part], right, decay[part]) for right in (False, True)]
        return [*out, square, *grams]

    whole, threads = results(lists, slice(None)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = results(lists, slice(None))
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(whole, single, results(lists, slice(2, 3)), strict=True):
        assert torch.equal(a, b) and torch.equal(a[2:3], c)


def test_empty_lists_and_sizes() -> None:
    nothing, none = torch.zeros(0, 3, 4), torch.zeros(0, dtype=F64)
    flags = torch.zeros(0, dtype=torch.bool)
    for module in (ops, portable_weighted):
        module.gather_weighted(
            [],
            [],
            [],
            number(0.9),
            True,
            True,
            number(0.9),
            none,
            none,
            0.5,
            none,
            1.0,
            nothing,
            nothing.clone(),
            none.clone(),
            flags,
        )
        assert module.weigh(nothing, nothing.half()).shape == (0,)
        rest = (nothing, none, number(1), number(0), number(0), True, flags)
        module.scatter_moments([], [], [], [], *rest)
        module.average_grams(torch.zeros(0, 3, 3), nothing, False, none, none)

        empty = random_lists(2, 0, 4, torch.float32, torch.float32)
        out = gathered(module.gather_weighted, empty, torch.float32)
        assert out.finite.all() and not out.norms.any()
        half = torch.full((2,), 0.5, dtype=F64)
        factors = torch.ones(2, 4, 4)
        module.average_grams(factors, torch.zeros(2, 0, 4), True, half, half)
        assert factors.eq(0.5).all()
        module.average_grams(torch.zeros(2, 0, 0), torch.zeros(2, 0, 4), False, half, half)
