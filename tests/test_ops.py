"""The C++ operators against their twins in plain torch, and torch's own checks of operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from schattor import _C, ops, portable
from schattor.theory import chains

F64 = torch.float64
SIZES = [(1, 1), (1, 7), (2, 3), (5, 5), (16, 100), (17, 17), (31, 33), (64, 64), (65, 130)]
ROUNDING = {
    F64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
DTYPES = list(ROUNDING)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def wide_batch(batch: int, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(batch, rows, cols, dtype=F64)
    return (x / x.flatten(1).norm(dim=1)[:, None, None]).to(dtype)


def chain_inputs(batch: int, depth: int, powers: list[float]) -> tuple[list[float], Tensor, Tensor]:
    steps = [number for step in chains.steps("schattor", depth) for number in step]
    chosen = [powers[i % len(powers)] for i in range(batch)]
    weights = torch.tensor([chains.weights(power, depth) for power in chosen], dtype=F64)
    return steps, weights, torch.tensor(chosen, dtype=F64)


def errors_against_float64(
    function: Callable[..., Tensor], twin: Callable[..., Tensor], wide: Tensor, *args: object
) -> tuple[float, float]:
    """Relative errors of a kernel and of its twin, at the same precision, against float64."""
    truth = twin(wide.double(), *args)
    scale = max(float(truth.norm()), 1e-300)
    ours = float((function(wide, *args).double() - truth).norm()) / scale
    theirs = float((twin(wide, *args).double() - truth).norm()) / scale
    return ours, theirs


def split_views(batch: int, rows: int, cols: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """The same matrices as rows of one tensor, as transposed ones, and with gaps between rows."""
    values = torch.randn(batch, rows, cols, dtype=F64).to(dtype)
    contiguous = list(values.clone())
    transposed = [value.t().contiguous().t() for value in values]
    padded = []
    for value in values:
        roomy = torch.full((rows, cols + 3), 7.0, dtype=dtype)
        roomy[:, :cols] = value
        padded.append(roomy[:, :cols])
    spaced = [torch.stack([value, value], -1)[..., 0] for value in values]
    return [contiguous, transposed, padded, spaced]


@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_momentum_matches_its_twin(
    rows: int, cols: int, dtype: torch.dtype, cpu_level: str
) -> None:
    for grads, ema, nesterov in zip(
        split_views(3, rows, cols, dtype),
        (True, False, True, False),
        (False, True) * 2,
        strict=True,
    ):
        momenta = [torch.randn_like(grad) for grad in grads]
        outputs = []
        for function in (ops.gather_momentum, portable.gather_momentum):
            wide = torch.empty(3, rows, cols, dtype=dtype)
            norms, finite = torch.empty(3, dtype=F64), torch.empty(3, dtype=torch.bool)
            function(grads, momenta, number(0.9), ema, nesterov, 1.0, wide, norms, finite)
            outputs.append((wide, norms, finite))
        ours, theirs = outputs

        assert ours[2].all() and theirs[2].all()
        tolerance = 4 * max(ROUNDING[dtype], ROUNDING[torch.float32] if dtype != F64 else 0)
        torch.testing.assert_close(ours[1], theirs[1], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-18, 1e18, 1e30, 1e37])
@pytest.mark.parametrize("wide_dtype", DTYPES)
def test_gather_momentum_is_exact_for_tiny_and_huge_gradients(
    scale: float, wide_dtype: torch.dtype
) -> None:
    grad = (torch.randn(4, 6, dtype=F64) * scale).to(torch.float32)
    wide = torch.empty(1, 4, 6, dtype=wide_dtype)
    norms, finite = torch.empty(1, dtype=F64), torch.empty(1, dtype=torch.bool)

    ops.gather_momentum([grad], [], number(0.0), True, False, 1.0, wide, norms, finite)

    truth = grad.double()
    assert finite.item()
    assert norms.item() == pytest.approx(truth.norm().item(), rel=1e-6)
    error = (wide[0].double() - truth / truth.norm()).norm()
    assert error <= 4 * max(ROUNDING[wide_dtype], ROUNDING[torch.float32])


@pytest.mark.parametrize("wide_dtype", DTYPES)
def test_gather_momentum_of_another_size_moves_exponents_alone(wide_dtype: torch.dtype) -> None:
    grads = [torch.randn(9, 20) * scale for scale in (1.0, 1e-30, 1e30)]
    momenta = [torch.randn_like(grad) * grad.norm() for grad in grads]
    outputs = []
    for function, size in ((ops, 1.0), (ops, 8.0), (portable, 8.0)):
        wide = torch.empty(3, 9, 20, dtype=wide_dtype)
        norms, finite = torch.empty(3, dtype=F64), torch.empty(3, dtype=torch.bool)
        function.gather_momentum(grads, momenta, number(0.9), True, True, size, wide, norms, finite)
        outputs.append((wide, norms))
    (plain, norms), (sized, sized_norms), (twin, twin_norms) = outputs

    assert torch.equal(sized_norms * 8, norms)
    normal = plain.abs() > 1e-4  # float16 rounds what is below otherwise
    assert torch.equal(sized[normal], 8 * plain[normal])
    torch.testing.assert_close(sized_norms, twin_norms, rtol=1e-5, atol=0)
    tolerance = 4 * max(ROUNDING[wide_dtype], ROUNDING[torch.float32])
    torch.testing.assert_close(sized, twin, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_matrix_that_is_not_finite_changes_nothing(bad: float, cpu_level: str) -> None:
    grads = [torch.randn(9, 20) for _ in range(3)]
    grads[1][8, 19] = bad
    momenta = [torch.randn(9, 20) for _ in range(3)]
    params = [torch.randn(9, 20) for _ in range(3)]
    before = [p.clone() for p in params], [m.clone() for m in momenta]
    wide, norms = torch.empty(3, 9, 20), torch.empty(3, dtype=F64)
    finite = torch.empty(3, dtype=torch.bool)

    ops.gather_momentum(grads, momenta, number(0.9), True, True, 1.0, wide, norms, finite)
    ops.scatter_update(
        params,
        grads,
        momenta,
        wide,
        torch.ones(3, dtype=F64),
        number(0.5),
        number(0.9),
        True,
        finite,
    )

    assert finite.tolist() == [True, False, True]
    assert norms[1] == 0 and not wide[1].any()
    assert torch.equal(params[1], before[0][1]) and torch.equal(momenta[1], before[1][1])
    assert not torch.equal(params[0], before[0][0]) and not torch.equal(momenta[2], before[1][2])


@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_update_matches_its_twin(
    rows: int, cols: int, dtype: torch.dtype, cpu_level: str
) -> None:
    direction = wide_batch(3, rows, cols, torch.float32)
    scale = torch.tensor([0.1, 0.0, 2.0], dtype=F64)
    finite = torch.tensor([True, True, True])
    for grads in split_views(3, rows, cols, dtype):
        outputs = []
        for function in (ops.scatter_update, portable.scatter_update):
            generator = torch.Generator().manual_seed(1)
            params = [torch.randn(rows, cols, generator=generator).to(dtype) for _ in grads]
            momenta = [torch.randn(rows, cols, generator=generator).to(dtype) for _ in grads]
            momentum, decay = number(0.9), number(0.99)
            function(params, grads, momenta, direction, scale, decay, momentum, True, finite)
            outputs.append((torch.stack(params), torch.stack(momenta)))
        tolerance = 4 * max(ROUNDING[dtype], ROUNDING[torch.float32])

        torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gram", [False, True])
def test_chain_direction_is_as_exact_as_its_twin(
    rows: int, cols: int, dtype: torch.dtype, gram: bool, cpu_level: str
) -> None:
    # Several matrices, for the rounding of a small one is a matter of luck; restarts as planned.
    wide = wide_batch(12, rows, cols, dtype)
    steps, weights, powers = chain_inputs(12, 7, [0.0, 1 / 3, 0.5])
    restarts = {8: [], 4: [3], 2: [2, 4]}[dtype.itemsize] if gram else []

    ours, theirs = errors_against_float64(
        lambda *args: ops.chain_direction(*args)[0],
        lambda *args: portable.chain_direction(*args)[0],
        wide,
        steps,
        weights,
        powers,
        gram,
        restarts,
    )

    # Rounding that is small beside the chain's own error is no matter of ratios. In float64 the
    # twin is the truth itself, and a rounding grows with the steps' linear coefficients.
    small = 4 * math.prod(steps[::3]) * ROUNDING[F64] if dtype == F64 else chains.band(0.0, 7) / 100
    assert ours <= 2 * theirs + small


@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_squarings_direction_is_as_exact_as_its_twin(rows: int, cols: int, cpu_level: str) -> None:
    coefficients = list(chains.squarings(8.0))
    powers = torch.full((3,), 8.0, dtype=F64)
    for dtype in (F64, torch.float32):
        wide = wide_batch(3, rows, cols, dtype)

        ours, theirs = errors_against_float64(
            lambda *args: ops.squarings_direction(*args)[0],
            lambda *args: portable.squarings_direction(*args)[0],
            wide,
            coefficients,
            powers,
        )

        assert ours <= 2 * theirs + 16 * ROUNDING[dtype]


@pytest.mark.parametrize(
    ("rows", "cols", "rank"), [(1, 1, 1), (5, 9, 2), (33, 70, 8), (40, 40, 40)]
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_partial_svd_leaves_small_residuals(
    rows: int, cols: int, rank: int, dtype: torch.dtype
) -> None:
    # a spectrum that falls by two a value, so that few iterations converge
    u = torch.linalg.qr(torch.randn(2, rows, rows, dtype=F64))[0]
    v = torch.linalg.qr(torch.randn(2, cols, rows, dtype=F64))[0]
    wide = ((u * 0.5 ** torch.arange(rows, dtype=F64)) @ v.mT).to(dtype)

    u, s, v = ops.partial_svd(wide, rank, 40, torch.randn(2, cols, rank, dtype=dtype))

    limit = 50 * max(rows, cols) * ROUNDING[dtype]
    identity = torch.eye(rank, dtype=dtype)
    assert (v.mT @ v - identity).abs().max() <= limit
    assert (u.mT @ u - identity).abs().max() <= limit
    assert (wide @ v - u * s[:, None, :]).abs().max() <= limit
    exact = torch.linalg.svdvals(wide.double())[:, :rank]
    torch.testing.assert_close(s.double(), exact, rtol=0, atol=limit)


def test_inner_products_sum_in_double() -> None:
    x, y = torch.randn(3, 40, 50), torch.randn(3, 40, 50, dtype=torch.bfloat16)

    inner = ops.inner_products(x, y)

    torch.testing.assert_close(inner, (x.double() * y.double()).sum((1, 2)), rtol=1e-6, atol=1e-9)


def test_results_do_not_depend_on_threads_or_batch(cpu_level: str) -> None:
    wide = wide_batch(5, 70, 90, torch.float32)
    steps, weights, powers = chain_inputs(5, 6, [0.0, 0.5])
    threads = torch.get_num_threads()
    whole = ops.chain_direction(wide, steps, weights, powers, False, [])[0]
    try:
        torch.set_num_threads(1)
        single = ops.chain_direction(wide, steps, weights, powers, False, [])[0]
    finally:
        torch.set_num_threads(threads)
    alone = ops.chain_direction(wide[2:3], steps, weights[2:3], powers[2:3], False, [])[0]

    assert torch.equal(whole, single)
    assert torch.equal(whole[2:3], alone)


def test_zero_and_empty_batches() -> None:
    steps, weights, powers = chain_inputs(2, 5, [0.0, 0.5])
    direction, inner, square = ops.chain_direction(
        torch.zeros(2, 8, 9), steps, weights, powers, False, []
    )
    assert not direction.any() and not inner.any() and not square.any()

    for rows, cols in ((0, 4), (0, 0)):
        empty = ops.chain_direction(torch.zeros(2, rows, cols), steps, weights, powers, False, [])
        assert empty[0].shape == (2, rows, cols) and not empty[1].any()
    nothing = ops.chain_direction(torch.zeros(0, 3, 4), steps, weights[:0], powers[:0], False, [])
    assert nothing[0].shape == (0, 3, 4)


def cases() -> dict[str, tuple[object, tuple[object, ...]]]:
    steps, weights, powers = chain_inputs(2, 4, [0.5])
    wide = wide_batch(2, 4, 6, torch.float32)
    views = [torch.randn(4, 6) for _ in range(2)]
    moments = [torch.randn(4, 6) for _ in range(2)]
    finite = torch.ones(2, dtype=torch.bool)
    numbers = torch.ones(2, dtype=F64)
    decay, momentum = number(0.9), number(0.95)
    chain = (wide, steps, weights, powers, False, [])
    gather = (
        views,
        moments,
        momentum,
        True,
        True,
        1.0,
        wide.clone(),
        numbers.clone(),
        finite.clone(),
    )
    params = [torch.randn(4, 6) for _ in range(2)]
    scatter = (params, views, moments, wide, numbers, decay, momentum, True, finite)
    rules = (views, moments, momentum, True, True, 1.0, wide.clone())
    sizes = (number(0.1), numbers, numbers, numbers, True, False, decay)
    library = torch.ops.schattor
    return {
        "chain_direction": (library.chain_direction.default, chain),
        "squarings_direction": (
            library.squarings_direction.default,
            (wide, [0.1, 0.2, 0.3], powers + 4),
        ),
        "partial_svd": (library.partial_svd.default, (wide, 2, 3, torch.randn(2, 6, 2))),
        "inner_products": (library.inner_products.default, (wide, wide)),
        "gather_momentum": (library.gather_momentum.default, gather),
        "scatter_update": (library.scatter_update.default, scatter),
        "chain_update": (library.chain_update.default, (params, *rules, *chain[1:], *sizes)),
    }


def skip_unless_served(name: str) -> None:
    """`chain_update` is for matrices in a core's cache, and has no kernel elsewhere."""
    if name == "chain_update" and torch.get_default_device().type != "cpu":
        pytest.skip("an operator of processors alone")


@pytest.mark.parametrize("name", cases())
def test_opcheck(name: str) -> None:
    skip_unless_served(name)
    function, arguments = cases()[name]
    torch.library.opcheck(function, arguments)


@pytest.mark.parametrize(
    ("name", "position", "replacement", "message"),
    [
        ("chain_direction", 0, torch.zeros(4, 6), "wide must have shape"),
        ("chain_direction", 0, torch.zeros(2, 6, 4), "wide must have rows <= cols"),
        ("chain_direction", 0, torch.zeros(2, 4, 6, dtype=torch.int64), "wide must be float64"),
        ("chain_direction", 0, torch.zeros(2, 6, 4).mT, "wide must be contiguous"),
        ("chain_direction", 1, [1.0, 2.0], "steps must hold three numbers"),
        ("chain_direction", 2, torch.zeros(2, 2, dtype=F64), r"weights must have shape \(2, 5\)"),
        ("chain_direction", 3, torch.zeros(2), "powers must be float64"),
        ("chain_direction", 5, [3, 2], "restarts must rise"),
        ("squarings_direction", 1, [1.0], "coefficients must be 3 to 6, got 1"),
        ("partial_svd", 1, 5, r"rank must be in 1 .. 4, got 5"),
        ("partial_svd", 2, 0, "iterations must be at least 1, got 0"),
        ("inner_products", 1, torch.zeros(2, 4, 5), r"y must have shape \(2, 4, 6\)"),
        ("gather_momentum", 0, [torch.zeros(4, 6)], "grads must hold 2 tensors"),
        ("gather_momentum", 0, [torch.zeros(4, 6), torch.zeros(6, 4)], r"grads\[1\] must have"),
        ("gather_momentum", 5, 3.0, "size must be a power of two, got 3"),
        ("gather_momentum", 8, torch.zeros(2), "finite must be bool"),
        (
            "scatter_update",
            0,
            [torch.zeros(4, 6), torch.zeros(4, 6).half()],
            r"params\[1\] must be",
        ),
        ("scatter_update", 4, torch.zeros(3, dtype=F64), r"scale must have shape \(2,\)"),
        ("chain_update", 1, [torch.zeros(4, 6)], "grads must hold 2 tensors"),
        ("chain_update", 2, [torch.zeros(6, 4)] * 2, r"momenta\[0\] must have shape \(4, 6\)"),
        ("chain_update", 6, 3.0, "size must be a power of two, got 3"),
        ("chain_update", 7, torch.zeros(3, 4, 6), "scratch must hold two matrices a worker, got 3"),
        ("chain_update", 8, [1.0], "steps must hold three numbers"),
        ("chain_update", 12, [9], "restarts must rise"),
        ("chain_update", 13, torch.zeros(2, dtype=F64), r"lr must have shape \(\)"),
        ("chain_update", 15, torch.zeros(3, dtype=F64), r"lengths must have shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(
    name: str, position: int, replacement: object, message: str
) -> None:
    skip_unless_served(name)
    function, arguments = cases()[name]
    changed = list(arguments)
    changed[position] = replacement

    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        function(*changed)


def test_levels_that_the_processor_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="avx512, avx512_bf16, avx512_fp16 or amx, got sse"):
        _C.force_cpu_level("sse")  # type: ignore[arg-type]
    if _C.detected_cpu_level() != "amx":
        with pytest.raises(ValueError, match="one that the processor has"):
            _C.force_cpu_level("amx")


def test_workspace_is_told_beforehand() -> None:
    asked = {"rows": 96, "cols": 128, "dtype": "float32", "depth": 8, "gram": False}
    one = _C.chain_workspace_bytes(batch=1, **asked, threads=1)
    assert one >= 3 * 4 * 96 * 128  # two iterates and the mixture
    assert _C.chain_workspace_bytes(batch=50, **asked, threads=1) == one
    assert _C.chain_workspace_bytes(batch=0, **asked, threads=1) == 0
    with pytest.raises(ValueError, match="dtype must be float64, float32, bfloat16 or float16"):
        _C.chain_workspace_bytes(batch=1, **{**asked, "dtype": "int8"}, threads=1)


def test_a_device_without_kernels_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ops._say_once.cache_clear()
    announced = ops._announced(lambda x: x + 1, "TEST")
    with pytest.warns(UserWarning, match="no kernels of ours for TEST tensors"):
        assert announced(1) == 2
    assert announced(2) == 3  # a second warning would be an error

    ops._say_once.cache_clear()
    monkeypatch.setenv("SCHATTOR_STRICT", "1")
    with pytest.raises(RuntimeError, match="SCHATTOR_STRICT=1 makes this an error"):
        announced(1)
