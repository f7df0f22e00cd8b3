"""Which computation a direction takes, and why: a pure function of numbers, and the only planner.

`plan(power, rows, cols, dtype, facts)` looks at nothing but its arguments, so that a resumed run
takes the same route. Shapes are those of a wide batch, `rows <= cols`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real
from typing import Literal, get_args

import torch

from schattor import measured
from schattor._constant import constant
from schattor.devices import DeviceFacts, device_facts
from schattor.theory import chains, exponents

__all__ = [
    "FLOATING",
    "DeviceFacts",
    "Method",
    "Plan",
    "Route",
    "chain_steps",
    "chain_weights",
    "device_facts",
    "plan",
    "power_of",
]

Method = Literal["auto", "chain", "exact", "partial_svd"]
Norm = Literal["schatten", "entries"]
Route = Literal["identity", "chain", "squarings", "partial_svd", "exact", "entries", "signs"]

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that matrices and chains may have."""

# Steps of the shared chain: in half precision the rounding of the input drowns what a deeper one
# would reach (measured in emulation).
_DEPTH = {torch.float64: 10, torch.float32: 8, torch.float16: 8, torch.bfloat16: 7}
# Steps of the published chains, as their authors run them.
_PUBLISHED_DEPTH = {"jordan": 5, "polar_express": 6, "newton_schulz": 10}

# The Gram side saves operations above these aspects; the lower one where symmetric products
# compute one triangle, as our kernels' do, and restarts are few (counted). In bfloat16 it is also
# the more exact side of a wide matrix, for it rounds X less often (measured).
_GRAM_ASPECT_SYMMETRIC = 1.5
_GRAM_ASPECT = 2.0
# Vectors of half precision serve the direct form, at nearly twice the rate of float32, in which the
# Gram side stays: equal there (counted).
_GRAM_ASPECT_HALVES = 2.5
# Levels that multiply bfloat16 faster than float32, up to an aspect: thin matrices leave AMX tiles
# mostly empty and lose most in bfloat16 (prototype, 4096 x 16).
_BFLOAT16 = {"amx": ("AMX tiles", 16), "avx512_bf16": ("bfloat16 vectors", 16)}
_THIN_ROWS = 32

# A processor's core takes the whole step of a matrix that its cache holds five times; products of
# more operations are divided among cores (csrc/cpu/team.h).
_MOST_CACHED = 2**17
_MOST_ALONE = 192**3

# On the Gram side a small eigenvalue grows by the square of the product of the steps' linear
# coefficients, and so does its rounding: that growth times the unit roundoff may reach this in the
# first segment, and this in later ones, whose eigenvalues start larger. Measured: 7 steps need no
# restart in float32, one after 3 in float16, two after 2 and 4 in bfloat16; 8 in float32 without
# one miss the polar factor by up to 4 % where s_min is 3.3e-4.
_FIRST_GROWTH, _LATER_GROWTH = 0.5, 2.5

# The subspace iteration for sharp powers: of a gaussian matrix, the flattest in practice, the
# leading `share sqrt(rows cols) + 8` singular values hold 0.998 of the squares of s^34 (the edge of
# Marchenko and Pastur, computed), and as many iterations as half that power separate them.
_PARTIAL_SHARE = 0.05
_PARTIAL_SPARE = 8
_PARTIAL_RANK = 32  # where power does not say: method "partial_svd"
_PARTIAL_ITERATIONS = 24


@dataclass(frozen=True)
class Plan:
    """One route and all that it needs. `print(plan)` tells which and why.

    dtype: of the wide batch. depth, coefficients, gram, restarts: of the chain. polynomial: of the
    squarings. rank: triples that the partial SVD keeps, of `columns` iterated `iterations` times.
    size: Frobenius norm that `gather_momentum` gives each matrix, a power of two. engine: of the
    chain's products. fused: whether an optimizer's step may be one `chain_update`.
    """

    route: Route
    dtype: torch.dtype
    depth: int = 0
    coefficients: str = ""
    gram: bool = False
    restarts: tuple[int, ...] = ()
    polynomial: tuple[float, ...] = ()
    rank: int = 0
    columns: int = 0
    iterations: int = 0
    size: float = 1.0
    engine: measured.Engine = "kernels"
    fused: bool = False
    reason: str = ""

    def __str__(self) -> str:
        """The route, its settings, and the reason, on one line."""
        details = [str(self.dtype).removeprefix("torch.")]
        if self.route == "chain":
            side = "Gram side" if self.gram else "direct"
            restarts = "".join(f", restart after {k}" for k in self.restarts)
            details += [f"{self.depth} steps of {self.coefficients!r}", side + restarts]
        elif self.route == "squarings":
            details += [f"{len(self.polynomial) - 2} squarings of the Gram matrix"]
        elif self.route == "partial_svd":
            details += [f"rank {self.rank}", f"{self.iterations} iterations"]
        return f"{self.route} ({'; '.join(details)}): {self.reason}"


@constant
def power_of(who: str, p: float | None, power: float | None) -> float:
    """The power of the singular values from either name of the dial; neither means p = inf.

    Raises ValueError, in the name of `who`, if both are given, if p is outside [1, inf] or power
    outside [-0.3, inf]; TypeError if either is not a number. Warns where power is below -0.2.

    >>> power_of("example", 3.0, None), power_of("example", None, -0.1)
    (0.5, -0.1)
    """
    if p is not None and power is not None:
        raise ValueError(f"{who}: give p or power, not both, got p={p} and power={power}")
    for name, value in (("p", p), ("power", power)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{who}: {name} must be a number, got {type(value).__name__}")
    if power is None:
        if p is not None and not p >= 1:
            raise ValueError(f"{who}: p must be in [1, inf], got {p}")
        return exponents.power_of(math.inf if p is None else float(p))
    if not power >= chains.MIN_POWER:
        raise ValueError(f"{who}: power must be in [{chains.MIN_POWER}, inf], got {power}")
    if power < chains.WARN_BELOW_POWER:
        # The same words for every power, so that a schedule's are said once.
        worst = chains.band(chains.MIN_POWER, _DEPTH[torch.float32])
        warnings.warn(
            f"{who}: power is below {chains.WARN_BELOW_POWER}: the chain's error grows, to"
            f" {worst:.0%} at {chains.MIN_POWER}",
            stacklevel=4,
        )
    return float(power)


def chain_steps(plan: Plan) -> list[float]:
    """The chain's coefficients in one list, three a step, as the operators take them."""
    steps = chains.steps(plan.coefficients, plan.depth)
    return [number for step in steps for number in step]


def chain_weights(power: float, plan: Plan) -> tuple[float, ...]:
    """Weights of the chain's iterates for `power`; plans of one shape may share one chain.

    >>> plan_ = plan(0.5, 4, 4, torch.float32, DeviceFacts("cpu", True, "avx2"), steps=4)
    >>> [round(w, 2) for w in chain_weights(1.0, plan_)]
    [1.0, 0.0, 0.0, 0.0, 0.0]
    """
    if plan.coefficients == "schattor":
        return chains.weights(power, plan.depth)
    return chains.final_weights(plan.depth)


@lru_cache(maxsize=4096, typed=True)
def plan(
    power: float,
    rows: int,
    cols: int,
    dtype: torch.dtype,
    facts: DeviceFacts,
    *,
    method: Method = "auto",
    steps: int | None = None,
    chain_dtype: torch.dtype | None = None,
    coefficients: str = "schattor",
    norm: Norm = "schatten",
    who: str = "plan",
) -> Plan:
    """The route for matrices of `rows <= cols` and `dtype` on a device, pure and cached.

    power: of the singular values, in [-0.3, inf]. method "auto" picks: a single row, or power 1,
    is its own direction (`identity`); up to `chains.CHAIN_MAX_POWER` the `chain`; up to
    `chains.SQUARINGS_MAX_POWER` a polynomial of the Gram matrix (`squarings`); above, the leading
    triples (`partial_svd`; one pair at inf). method "partial_svd" keeps the 32 leading triples.
    steps, chain_dtype and coefficients set the chain; coefficients other than "schattor" are for
    power 0. norm "entries" is that of all entries as one vector, l_p, and needs no route but its
    own (`entries`). Raises ValueError or TypeError, in the name of `who`, for what does not go
    together.

    >>> print(plan(0.5, 768, 3072, torch.float32, DeviceFacts("cpu", True, "avx2")).route)
    chain
    """
    _check(who, power, dtype, method, steps, chain_dtype, coefficients)
    widest = torch.float64 if dtype == torch.float64 else torch.float32
    if norm == "entries":
        _check_entries(who, power, method, steps, chain_dtype, coefficients)
        if power == 1:
            return Plan("identity", widest, reason="power 1 (p = 2) is the matrix itself")
        if power == 0:
            return Plan("signs", widest, reason="norm is 'entries', power 0 (p = inf): its signs")
        return Plan("entries", widest, reason="norm is 'entries': a power of each entry")
    if method == "exact":
        return Plan("exact", widest, reason="method is 'exact'")
    if method == "partial_svd":
        return _partial_svd(power, rows, cols, widest, "method is 'partial_svd'")
    if coefficients == "schattor":
        if rows <= 1:
            return Plan("identity", widest, reason="a single row is its own direction for every p")
        if power == 1:
            return Plan("identity", widest, reason="power 1 (p = 2) is the matrix itself")
    if power <= chains.CHAIN_MAX_POWER:
        return _chain(power, rows, cols, dtype, facts, steps, chain_dtype, coefficients)
    if method == "chain":
        raise ValueError(
            f"{who}: method 'chain' takes power <= {chains.CHAIN_MAX_POWER}, got {power};"
            " 'auto', 'exact' and 'partial_svd' take more"
        )
    if power <= chains.SQUARINGS_MAX_POWER:
        return Plan(
            "squarings",
            torch.float64 if torch.float64 in (dtype, chain_dtype) else torch.float32,
            polynomial=chains.squarings(power),
            reason=f"power {power:.4g} lies in ({chains.CHAIN_MAX_POWER}, "
            f"{chains.SQUARINGS_MAX_POWER:g}], where a polynomial of the Gram matrix is near it",
        )
    why = f"power {power:.4g} leaves little but the leading singular triples"
    return _partial_svd(power, rows, cols, widest, why)


def _check(
    who: str,
    power: float,
    dtype: torch.dtype,
    method: str,
    steps: int | None,
    chain_dtype: torch.dtype | None,
    coefficients: str,
) -> None:
    if not power >= chains.MIN_POWER:
        raise ValueError(f"{who}: power must be in [{chains.MIN_POWER}, inf], got {power}")
    if method not in get_args(Method):
        methods = ", ".join(get_args(Method))
        raise ValueError(f"{who}: method must be one of {methods}, got {method!r}")
    if coefficients not in chains.names():
        raise ValueError(
            f"{who}: coefficients must be one of {', '.join(chains.names())}, got {coefficients!r}"
        )
    if coefficients != "schattor" and power != 0:
        raise ValueError(
            f"{who}: coefficients {coefficients!r} are for power 0 (p = inf), got power {power}"
        )
    for name, value in (("dtype", dtype), ("chain_dtype", chain_dtype or dtype)):
        if value not in FLOATING:
            names = ", ".join(str(each).removeprefix("torch.") for each in FLOATING)
            raise ValueError(f"{who}: {name} must be one of {names}, got {value!r}")
    chosen = {"steps": steps is not None, "chain_dtype": chain_dtype is not None}
    chosen["coefficients"] = coefficients != "schattor"
    if method in ("exact", "partial_svd") and any(chosen.values()):
        given = ", ".join(name for name, is_given in chosen.items() if is_given)
        raise ValueError(f"{who}: method {method!r} has no chain to be set by {given}")
    _check_steps(who, steps, coefficients)


def _check_entries(
    who: str,
    power: float,
    method: str,
    steps: int | None,
    chain_dtype: torch.dtype | None,
    coefficients: str,
) -> None:
    if power < 0:
        raise ValueError(f"{who}: power must be >= 0 with norm 'entries', got {power}")
    if (method, steps, chain_dtype, coefficients) != ("auto", None, None, "schattor"):
        raise ValueError(
            f"{who}: norm 'entries' takes no singular values: method, steps, chain_dtype and"
            " coefficients must be left as they are"
        )


def _check_steps(who: str, steps: int | None, coefficients: str) -> None:
    if steps is None:
        return
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{who}: steps must be an int or None, got {type(steps).__name__}")
    low, high = chains.depths()[0], chains.depths()[-1]
    if coefficients == "schattor" and steps not in chains.depths():
        raise ValueError(f"{who}: steps must be in [{low}, {high}], got {steps}")
    if steps < 1:
        raise ValueError(f"{who}: steps must be at least 1, got {steps}")


def _partial_svd(power: float, rows: int, cols: int, dtype: torch.dtype, reason: str) -> Plan:
    if power > chains.SQUARINGS_MAX_POWER:
        columns = math.ceil(_PARTIAL_SHARE * math.sqrt(rows * cols)) + _PARTIAL_SPARE
        columns = min(rows, columns)
        rank = 1 if math.isinf(power) else columns
    else:
        rank = min(rows, _PARTIAL_RANK)
        columns = min(rows, rank + _PARTIAL_SPARE)
    return Plan(
        "partial_svd",
        dtype,
        rank=rank,
        columns=columns,
        iterations=_PARTIAL_ITERATIONS,
        reason=reason,
    )


def _chain(
    power: float,
    rows: int,
    cols: int,
    dtype: torch.dtype,
    facts: DeviceFacts,
    steps: int | None,
    chain_dtype: torch.dtype | None,
    coefficients: str,
) -> Plan:
    stored, why_dtype = _chain_dtype(rows, cols, dtype, facts, chain_dtype)
    published = coefficients != "schattor"
    depth = steps or (_PUBLISHED_DEPTH[coefficients] if published else _DEPTH[stored])
    gram, why_side = _gram_side(rows, cols, stored, facts)
    on_processor = facts.kind == "cpu" and facts.native
    widened = on_processor and (facts.level, stored) != ("amx", torch.bfloat16)  # not on AMX tiles
    iterated = torch.promote_types(stored, torch.float32) if widened else stored
    restarts = _restarts(chains.steps(coefficients, depth), iterated) if gram else ()
    reason = f"power {power:.4g} is at most {chains.CHAIN_MAX_POWER}; {why_dtype}; {why_side}"
    small = rows * cols <= _MOST_CACHED and rows * rows * cols < _MOST_ALONE
    settings = (stored, depth, coefficients, gram, restarts)
    size = _float16_size(rows) if stored == torch.float16 else 1.0
    found = Plan("chain", *settings, size=size, fused=on_processor and small, reason=reason)
    if facts.kind == "cuda" and facts.native:
        name = str(stored).removeprefix("torch.")
        engine, why_engine = measured.chain_engine(facts.level, name, rows, cols, gram)
        found = replace(found, engine=engine, reason=f"{reason}; {why_engine}")
    return found


def _chain_dtype(
    rows: int, cols: int, dtype: torch.dtype, facts: DeviceFacts, chain_dtype: torch.dtype | None
) -> tuple[torch.dtype, str]:
    if chain_dtype is not None:
        return chain_dtype, "chain_dtype was given"
    if dtype == torch.float64:
        return torch.float64, "the matrices are float64"
    if facts.kind == "cuda" and facts.native:
        return torch.float16, "float16 on a GPU: as fast as bfloat16, and more exact"
    if facts.kind == "cuda":
        return torch.bfloat16, "bfloat16 on a GPU without our kernels"
    if facts.level not in _BFLOAT16:
        where = "a processor without bfloat16 products" if facts.kind == "cpu" else facts.kind
        return torch.float32, f"float32 on {where}"
    products, aspect = _BFLOAT16[facts.level]
    if rows <= _THIN_ROWS or cols >= aspect * rows:
        return torch.float32, f"float32 since the matrix is small or thin for {products}"
    return torch.bfloat16, f"bfloat16 since the processor has {products}"


def _float16_size(rows: int) -> float:
    """The power of two nearest `rows^(1/4)`.

    Entries of a matrix of norm 1 are about `(rows cols)^-1/2`, and float16 loses digits below 6e-5.
    """
    return 2.0 ** round(math.log2(max(1, rows)) / 4)


def _gram_side(rows: int, cols: int, dtype: torch.dtype, facts: DeviceFacts) -> tuple[bool, str]:
    saves = facts.native and dtype != torch.bfloat16
    least = _GRAM_ASPECT_SYMMETRIC if saves else _GRAM_ASPECT
    if dtype in facts.half_vectors:
        least = _GRAM_ASPECT_HALVES
    aspect = cols / max(1, rows)
    relation = "at least" if aspect >= least else "below"
    return aspect >= least, f"aspect {aspect:.3g} is {relation} {least:g}"


def _restarts(steps: tuple[chains.Step, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """After which steps the Gram side returns to X: segments of equal growth, as few as allowed."""
    growth = [math.log(a) for a, _, _ in steps]
    unit = torch.finfo(dtype).eps / 2
    first, later = (math.log(limit / unit) / 2 for limit in (_FIRST_GROWTH, _LATER_GROWTH))
    segments, grown = 1, 0.0
    for rise in growth:
        if grown + rise > (first if segments == 1 else later):
            segments, grown = segments + 1, 0.0
        grown += rise
    total = sum(growth)
    marks = [total * index / segments for index in range(1, segments)]
    after = {max(1, sum(sum(growth[:k]) <= mark for k in range(1, len(steps)))) for mark in marks}
    return tuple(sorted(after))
