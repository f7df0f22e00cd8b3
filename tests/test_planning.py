"""The planner: rules, settings, refusals, and what it tells."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from schattor import _C, planning
from schattor.planning import DeviceFacts, Plan, plan
from schattor.theory import chains

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
AVX = DeviceFacts("cpu", True, "avx512")
AMX = DeviceFacts("cpu", True, "amx")
GPU = DeviceFacts("cuda", True, "sm_90")
BARE_GPU = DeviceFacts("cuda", False, "")
MPS = DeviceFacts("mps", False, "")


def chain(rows: int, cols: int, facts: DeviceFacts = AVX, **settings: object) -> Plan:
    return plan(0.0, rows, cols, F32, facts, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("power", "route"),
    [
        (-0.3, "chain"),
        (0.0, "chain"),
        (0.999, "chain"),
        (1.0, "identity"),
        (1.001, "chain"),
        (chains.CHAIN_MAX_POWER, "chain"),
        (chains.CHAIN_MAX_POWER + 1e-6, "squarings"),
        (33.0, "squarings"),
        (33.001, "partial_svd"),
        (1e6, "partial_svd"),
        (math.inf, "partial_svd"),
    ],
)
def test_route_follows_the_power(power: float, route: str) -> None:
    assert plan(power, 64, 64, F32, AVX).route == route


@pytest.mark.parametrize("power", [-0.1, 0.0, 1.0, 5.0, math.inf])
def test_single_row_is_its_own_direction(power: float) -> None:
    assert plan(power, 1, 100, F32, AVX).route == "identity"


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 7.0, math.inf])
def test_exact_serves_every_power(power: float) -> None:
    assert plan(power, 8, 8, F32, AVX, method="exact").route == "exact"


@pytest.mark.parametrize(
    ("power", "route"), [(0.0, "signs"), (0.5, "entries"), (1.0, "identity"), (40.0, "entries")]
)
def test_entries_need_no_singular_values(power: float, route: str) -> None:
    found = planning.plan(power, 8, 16, torch.bfloat16, AVX, norm="entries")
    assert found.route == route and found.dtype == torch.float32
    assert planning.plan(power, 1, 16, torch.float64, AVX, norm="entries").dtype == torch.float64


@pytest.mark.parametrize(
    "settings", [{"method": "exact"}, {"steps": 5}, {"coefficients": "jordan"}]
)
def test_entries_refuse_settings_of_singular_values(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="plan: norm 'entries' takes no singular values"):
        planning.plan(0.0, 8, 16, torch.float32, AVX, norm="entries", **settings)  # type: ignore[arg-type]


def test_p_one_is_rank_one() -> None:
    sharp, sharper = plan(math.inf, 512, 512, F32, AVX), plan(40.0, 512, 512, F32, AVX)

    assert sharp.rank == 1 and sharp.columns > 1
    assert sharper.rank == sharper.columns == sharp.columns
    assert plan(math.inf, 4, 9, F32, AVX).columns == 4


@pytest.mark.parametrize(
    ("facts", "shape", "dtype", "expected"),
    [
        (AVX, (768, 768), F32, (F32, 8)),
        (AVX, (768, 768), BF16, (F32, 8)),
        (AVX, (768, 768), F64, (F64, 10)),
        (AMX, (768, 768), F32, (BF16, 7)),
        (AMX, (768, 768), F16, (BF16, 7)),
        (AMX, (768, 768), F64, (F64, 10)),
        (AMX, (16, 4096), F32, (F32, 8)),
        (AMX, (256, 4096), F32, (F32, 8)),
        (AMX, (32, 32), F32, (F32, 8)),
        (GPU, (768, 768), F32, (F16, 8)),
        (BARE_GPU, (768, 768), F32, (BF16, 7)),
        (MPS, (768, 768), F32, (F32, 8)),
    ],
)
def test_chain_dtype_and_depth(
    facts: DeviceFacts,
    shape: tuple[int, int],
    dtype: torch.dtype,
    expected: tuple[torch.dtype, int],
) -> None:
    found = plan(0.5, *shape, dtype, facts)

    assert (found.dtype, found.depth) == expected


def test_settings_win() -> None:
    found = chain(64, 64, AMX, steps=5, chain_dtype=F16)

    assert (found.dtype, found.depth) == (F16, 5)
    assert chain(64, 64, coefficients="jordan").depth == 5
    assert chain(64, 64, coefficients="polar_express").coefficients == "polar_express"
    assert chain(64, 64, coefficients="jordan", steps=3).depth == 3


def test_gram_side_of_wide_matrices() -> None:
    assert not chain(100, 149).gram
    assert chain(100, 150).gram
    assert not chain(100, 150, MPS).gram
    assert chain(100, 200, MPS).gram
    assert chain(256, 1024, AMX).gram
    assert not chain(256, 384, AMX).gram
    assert chain(256, 384, AMX, chain_dtype=F32).gram


@pytest.mark.parametrize(
    ("dtype", "depth", "restarts"),
    [
        (F64, 10, ()),
        (F32, 5, ()),
        (F32, 7, ()),
        (F32, 8, (3,)),
        (F32, 9, (4,)),
        (F16, 7, (3,)),
        (F16, 8, (2, 5)),
        (BF16, 7, (2, 4)),
    ],
)
def test_restarts_of_the_gram_side(
    dtype: torch.dtype, depth: int, restarts: tuple[int, ...]
) -> None:
    assert chain(64, 256, GPU, chain_dtype=dtype, steps=depth).restarts == restarts
    assert chain(64, 64, GPU, chain_dtype=dtype, steps=depth).restarts == ()


@pytest.mark.parametrize("coefficients", chains.names())
@pytest.mark.parametrize("dtype", planning.FLOATING)
def test_restarts_are_steps_of_the_chain(coefficients: str, dtype: torch.dtype) -> None:
    depths = chains.depths() if coefficients == "schattor" else range(1, 12)
    for depth in depths:
        settings = {"coefficients": coefficients, "steps": depth, "chain_dtype": dtype}
        restarts = chain(8, 80, GPU, **settings).restarts
        assert sorted(set(restarts)) == list(restarts)
        assert all(1 <= k < depth for k in restarts)


@pytest.mark.parametrize("steps", [5, 7, 8])
def test_restarts_are_those_of_the_dtype_that_is_iterated_in(steps: int) -> None:
    def restarts(facts: DeviceFacts, chain_dtype: torch.dtype) -> tuple[int, ...]:
        settings = {"steps": steps, "chain_dtype": chain_dtype}
        return planning.plan(0.0, 64, 320, F32, facts, **settings).restarts

    for dtype in (F16, torch.bfloat16):
        assert restarts(AVX, dtype) == restarts(AVX, F32)
        assert len(restarts(DeviceFacts("cuda", True, "sm_90"), dtype)) > len(restarts(AVX, F32))
    assert restarts(AMX, F16) == restarts(AVX, F32)
    assert len(restarts(AMX, torch.bfloat16)) > len(restarts(AVX, F32))


def test_float16_vectors_keep_to_the_direct_form_for_longer() -> None:
    vectors = DeviceFacts("cpu", True, "avx512_fp16")

    def found(facts: DeviceFacts, cols: int) -> planning.Plan:
        return planning.plan(0.0, 64, cols, F32, facts, chain_dtype=F16)

    assert found(AVX, 128).gram and not found(vectors, 128).gram
    assert found(vectors, 160) == replace(found(AVX, 160), reason=found(vectors, 160).reason)
    assert planning.plan(0.0, 64, 64, F32, vectors).dtype == F32


def test_bfloat16_products_are_taken_where_they_are_faster() -> None:
    vectors = DeviceFacts("cpu", True, "avx512_bf16")

    def found(rows: int, cols: int, **settings: Any) -> planning.Plan:
        return planning.plan(0.0, rows, cols, F32, vectors, **settings)

    for rows, cols in ((33, 33), (64, 159), (768, 768)):
        assert found(rows, cols).dtype == BF16 and not found(rows, cols).gram
        assert found(rows, cols, chain_dtype=F32) == chain(rows, cols, AVX, chain_dtype=F32)
    for rows, cols in ((32, 32), (64, 1024), (16, 4096)):
        assert found(rows, cols).dtype == F32
    # On the Gram side float32 computes with what is stored in bfloat16.
    wide = found(64, 160)
    assert (wide.dtype, wide.gram, wide.depth, wide.restarts) == (BF16, True, 7, ())
    assert planning.plan(0.0, 64, 64, F64, vectors).dtype == F64
    assert "has bfloat16 vectors" in found(64, 64).reason


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (63, 2.0), (65, 4.0)]
)
def test_float16_batches_have_the_power_of_two_nearest_the_fourth_root(
    rows: int, size: float
) -> None:
    settings = {"coefficients": "jordan", "chain_dtype": F16}  # a chain for a single row too
    assert chain(rows, 2 * rows, GPU, **settings).size == size
    assert chain(rows, 2 * rows, AVX, **settings).size == size
    assert chain(rows, 2 * rows, GPU, chain_dtype=BF16).size == 1.0
    assert plan(8.0, rows, rows, F32, GPU).size == 1.0
    assert chain(4096, 4096, GPU).size == 8.0


def test_engine_on_a_gpu_never_timed() -> None:
    assert chain(64, 64, GPU).engine == "kernels"
    assert "our kernels, never timed on sm_90" in chain(64, 64, GPU).reason
    for facts in (AVX, AMX, BARE_GPU, MPS):
        assert "timed" not in chain(64, 64, facts).reason


def test_squarings_carry_their_polynomial_and_no_half_precision() -> None:
    found = plan(8.0, 64, 64, BF16, AMX)

    assert found.polynomial == chains.squarings(8.0)
    assert found.dtype == F32
    assert plan(8.0, 64, 64, F64, AVX).dtype == F64


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"power": -0.31}, ValueError, r"who: power must be in \[-0.3, inf\], got -0.31"),
        ({"power": math.nan}, ValueError, "who: power must be in"),
        ({"method": "svd"}, ValueError, "who: method must be one of auto, chain, .* got 'svd'"),
        ({"coefficients": "muon"}, ValueError, "who: coefficients must be one .*'muon'"),
        ({"coefficients": "jordan"}, ValueError, r"'jordan' are for power 0 .* got power 0.5"),
        ({"power": 1.0, "coefficients": "jordan"}, ValueError, "are for power 0"),
        ({"chain_dtype": torch.int8}, ValueError, "who: chain_dtype must be .* got torch.int8"),
        ({"dtype": torch.complex64}, ValueError, "who: dtype must be .* got torch.complex64"),
        ({"steps": 3}, ValueError, r"who: steps must be in \[4, 10\], got 3"),
        ({"steps": 11}, ValueError, r"who: steps must be in \[4, 10\], got 11"),
        ({"steps": 5.0}, TypeError, "who: steps must be an int or None, got float"),
        ({"steps": True}, TypeError, "who: steps must be an int or None, got bool"),
        (
            {"power": 0.0, "steps": 0, "coefficients": "jordan"},
            ValueError,
            "who: steps must be at least 1, got 0",
        ),
        ({"power": 9.0, "method": "chain"}, ValueError, "'chain' takes power <= .* got 9"),
        ({"method": "exact", "steps": 5}, ValueError, "'exact' has no chain to be set by steps"),
        (
            {"method": "partial_svd", "chain_dtype": F32, "steps": 5},
            ValueError,
            "has no chain to be set by steps, chain_dtype",
        ),
    ],
)
def test_refuses(settings: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"power": 0.5, "rows": 8, "cols": 8, "dtype": F32, "facts": AVX, "who": "who"}

    with pytest.raises(error, match=message):
        plan(**{**arguments, **settings})  # type: ignore[arg-type]


def test_tells_which_route_and_why() -> None:
    text = str(plan(0.5, 256, 1024, F32, AVX))

    for words in (
        "chain (float32",
        "8 steps",
        "Gram side, restart after 3",
        "without bfloat16 products",
        "aspect 4",
    ):
        assert words in text
    assert "direct" in str(plan(0.5, 256, 256, BF16, AMX))
    assert "squarings" in str(plan(8.0, 256, 256, F32, AVX))
    assert "rank 1;" in str(plan(math.inf, 256, 256, F32, AVX))
    for power in (0.0, 1.0, 2.0, 8.0, 50.0):
        assert plan(power, 64, 64, F32, AVX).reason


def test_is_pure() -> None:
    first = plan(0.25, 96, 384, F32, AMX)
    plan.cache_clear()

    assert plan(0.25, 96, 384, F32, AMX) == first


def test_facts_follow_the_level_in_force(cpu_level: str) -> None:
    assert planning.device_facts(torch.device("cpu")) == DeviceFacts("cpu", True, cpu_level)
    assert _C.cpu_level() == cpu_level


def test_chain_weights_follow_the_power() -> None:
    shared, published = chain(8, 8, steps=6), chain(8, 8, steps=6, coefficients="jordan")

    assert planning.chain_weights(0.5, shared) == chains.weights(0.5, 6)
    assert planning.chain_weights(0.0, published) == (0, 0, 0, 0, 0, 0, 1)
    assert planning.chain_steps(shared)[:3] == list(chains.steps("schattor", 6)[0])


@pytest.mark.parametrize(
    ("p", "power", "expected"),
    [
        (None, None, 0.0),
        (math.inf, None, 0.0),
        (2, None, 1.0),
        (3.0, None, 0.5),
        (1, None, math.inf),
        (None, 0.25, 0.25),
        (None, -0.2, -0.2),
        (None, math.inf, math.inf),
    ],
)
def test_power_of(p: float | None, power: float | None, expected: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planning.power_of("who", p, power) == expected


@pytest.mark.parametrize(
    ("p", "power", "error", "message"),
    [
        (2.0, 1.0, ValueError, "who: give p or power, not both, got p=2.0 and power=1.0"),
        (0.5, None, ValueError, r"who: p must be in \[1, inf\], got 0.5"),
        (math.nan, None, ValueError, r"who: p must be in \[1, inf\], got nan"),
        (None, -0.31, ValueError, r"who: power must be in \[-0.3, inf\], got -0.31"),
        ("auto", None, TypeError, "who: p must be a number, got str"),
        (None, True, TypeError, "who: power must be a number, got bool"),
    ],
)
def test_power_of_refuses(p: object, power: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        planning.power_of("who", p, power)  # type: ignore[arg-type]


def test_power_of_warns_where_the_chain_is_wide() -> None:
    with pytest.warns(UserWarning, match="who: power is below -0.2"):
        planning.power_of("who", None, -0.25)
