"""Directions of wide batches: our kernels beside torch, gram-newton-schulz and Dion.

    python benchmarks/bench_directions.py [--device D] [--sets NAME ...] [--rounds N] [--out F]

On a GPU every function is captured in a graph that runs it on several inputs in turn, more than its
cache holds, and replays are timed by events. Errors are relative Frobenius distances from the
direction of one matrix in float64, sizes matched. The floor is the larger of operations over the
measured peak and bytes over the measured copy rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from command import read_command
from peers import muon_loop, polar_peers
from shapes import BATCHES, GPU_BATCHES
from timing import Peak, Timing, begin, end, interleaved, save
from torch import Tensor
from truth import distance, exact_directions

from schattor import _C, measured, ops, planning, portable
from schattor.planning import Plan
from schattor.theory import cost

Direct = Callable[[Tensor], Tensor]

# Inputs in turn hold so many bytes together: more than any cache.
ROTATED = 512 << 20
# By p.
POWERS = {"inf": 0.0, "3": 0.5}
# A graph of torch.optim.Muon's function has thirty nodes for each: capturing takes its time.
MATRICES_OF_MUON = 512
KERNELS = ("small", "thin", "tiles", "hopper")


def wide_batch(shape: tuple[int, int, int], plan: Plan | None, device: torch.device) -> Tensor:
    """Gaussian matrices whose rows shrink as 1/sqrt(i), stored as the plan wants or in bfloat16."""
    batch, rows, cols = shape
    x = torch.randn(batch, rows, cols, device=device)
    x = x / torch.arange(1, rows + 1, device=device)[:, None].sqrt()
    x = x / x.flatten(1).norm(dim=1)[:, None, None]
    return (x * plan.size).to(plan.dtype) if plan else x.bfloat16()


def ours(
    plan: Plan, power: float, batch: int, device: torch.device, engine: measured.Engine
) -> Direct:
    """Our chain as planned, by our kernels or by torch's products."""
    chain = ops.chain_direction if engine == "kernels" else portable.chain_direction
    weights = torch.tensor(
        [planning.chain_weights(power, plan)] * batch, dtype=torch.float64, device=device
    )
    powers = torch.full((batch,), power, dtype=torch.float64, device=device)
    steps, restarts = planning.chain_steps(plan), list(plan.restarts)

    def direct(wide: Tensor) -> Tensor:
        return chain(wide, steps, weights, powers, plan.gram, restarts)[0]

    return direct


def forced(kernel: Any, direct: Direct) -> Direct:
    """The same by one kernel."""

    def with_kernel(wide: Tensor) -> Tensor:
        _C.force_cuda_chain_kernel(kernel)
        try:
            return direct(wide)
        finally:
            _C.force_cuda_chain_kernel(None)

    return with_kernel


def serves(direct: Direct, wide: Tensor) -> bool:
    """Whether a forced kernel takes such a batch."""
    try:
        direct(wide)
    except RuntimeError as error:
        if "does not serve" in str(error):
            return False
        raise
    return True


class Truths:
    """One batch of a shape, as each plan wants it stored; exact directions of its first matrix."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        """Nothing is computed before it is asked for, and nothing twice."""
        self._shape, self._device = shape, device
        self._batches: dict[object, Tensor] = {}
        self._exact: dict[object, dict[float, Tensor]] = {}

    def error_of(self, direct: Direct, plan: Plan | None, power: float) -> float:
        """Relative distance of the first matrix's direction from the exact one, sizes matched."""
        stored = (plan.dtype, plan.size) if plan else None
        if stored not in self._batches:
            wide = wide_batch(self._shape, plan, self._device)
            self._batches[stored] = wide
            self._exact[stored] = exact_directions(wide[0], POWERS.values())
        return distance(direct(self._batches[stored])[0], self._exact[stored][power])


def rotating(direct: Direct, inputs: list[Tensor]) -> Callable[[], object]:
    """One call on every input in turn: captured as a graph on a GPU."""

    def all_inputs() -> None:
        for wide in inputs:
            direct(wide)

    if inputs[0].device.type != "cuda":
        return all_inputs
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # for the inputs
    with torch.cuda.stream(stream):
        for _ in range(2):
            all_inputs()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_inputs()
    return graph.replay


def contenders(
    shape: tuple[int, int, int], device: torch.device
) -> tuple[dict[str, tuple[Direct, float, Plan | None]], list[str]]:
    """Every function for a batch of this shape, with its power and, for ours, its plan."""
    batch, rows, cols = shape
    facts = planning.device_facts(device)
    found: dict[str, tuple[Direct, float, Plan | None]] = {}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for steps in (5, None):
        for p, power in POWERS.items():
            plan = planning.plan(power, rows, cols, dtype, facts, steps=steps)
            direct = ours(plan, power, batch, device, "kernels")
            name = f"ours p={p} K={plan.depth}"
            found[name] = (direct, power, plan)
            if device.type == "cuda":
                by_torch = ours(plan, power, batch, device, "torch")
                found[f"{name} torch"] = (by_torch, power, plan)
                wide = wide_batch(shape, plan, device)
                for kernel in KERNELS:
                    if serves(forced(kernel, direct), wide):
                        found[f"{name} {kernel}"] = (forced(kernel, direct), power, plan)
    peers, missing = polar_peers(device)
    found.update({name: (peer, 0.0, None) for name, peer in peers.items()})
    return found, missing


def floor(shape: tuple[int, int, int], plan: Plan, peak: Peak) -> float:
    """Least seconds of a planned chain."""
    batch, rows, cols = shape
    segments = len(plan.restarts) + 1
    flops = cost.chain_flops(
        rows, cols, plan.depth, gram=plan.gram, segments=segments, symmetric=True
    )
    moved = cost.direction_bytes(rows * cols, plan.dtype.itemsize)
    rates = {"flops_per_second": peak.all_threads, "bytes_per_second": peak.copy}
    return cost.floor_seconds(batch * flops, batch * moved, **rates)


def measure(
    name: str, shape: tuple[int, int, int], device: torch.device, rounds: int, peak: Peak
) -> dict[str, Any]:
    """Time one batch, print its table and return what was measured."""
    found, missing = contenders(shape, device)
    calls, errors, counts = {}, {}, {}
    failed: dict[str, str] = {}
    truths = Truths(shape, device)
    for key, (direct, power, plan) in found.items():
        try:  # one that cannot run here is told of, and the others are timed
            errors[key] = truths.error_of(direct, plan, power)
            wide = wide_batch(shape, plan, device)
            count = min(16, ROTATED // wide.nbytes) if device.type == "cuda" else 1
            if direct is muon_loop:
                count = min(count, MATRICES_OF_MUON // shape[0])
            count = max(1, count)
            inputs = [wide] + [wide_batch(shape, plan, device) for _ in range(count - 1)]
            calls[key], counts[key] = rotating(direct, inputs), count
        except Exception as error:
            failed[key] = f"{type(error).__name__}: {error}"
            print(f"  {name}: {key} failed: {failed[key]}", flush=True)
    timings = interleaved(calls, rounds, device)
    peers = [key for key, (_, _, plan) in found.items() if plan is None and key in timings]
    best = min((timings[key].median / counts[key] for key in peers), default=math.nan)
    print(f"\n{name}  (best peer {1e6 * best:.1f} us)")
    heads = " ".join(f"{head:>10}" for head in ("us", "lower", "upper"))
    print(f"  {'':<28} {heads}  vs best   floor    error")
    results: dict[str, Any] = {"missing": missing, "failed": failed}
    for key, timing in timings.items():
        each = Timing(*(value / counts[key] for value in list(asdict(timing).values())[:4]), rounds)
        plan = found[key][2]
        least = floor(shape, plan, peak) if plan else None
        share = f"{100 * least / each.median:6.0f}%" if least else " " * 7
        print(
            f"  {key:<28} {1e6 * each.median:10.1f} {1e6 * each.lower:10.1f}"
            f" {1e6 * each.upper:10.1f} {best / each.median:7.2f}x {share} {errors[key]:8.2%}",
            flush=True,
        )
        results[key] = {
            **asdict(each),
            "error": errors[key],
            "floor": least,
            "plan": str(plan) if plan else None,
        }
    plan = next(plan for _, _, plan in found.values() if plan and plan.depth > 5)
    results["chain"] = {
        "dtype": str(plan.dtype).removeprefix("torch."),
        "rows": shape[1],
        "cols": shape[2],
        "gram": plan.gram,
        "milliseconds": {
            engine: 1e3 * results[f"ours p=inf K={plan.depth}{suffix}"]["median"]
            for engine, suffix in (("kernels", ""), ("torch", " torch"))
            if f"ours p=inf K={plan.depth}{suffix}" in results
        },
    }
    return results


def main() -> None:
    """Run the chosen sets and write the results."""
    command = read_command(
        __doc__, "directions", rounds=7, sets={"cpu": BATCHES, "cuda": GPU_BATCHES}
    )
    device, out = command.device, command.out
    batches = GPU_BATCHES if device.type == "cuda" else BATCHES

    torch.manual_seed(0)
    peak, facts = begin(device)
    results: dict[str, Any] = {}
    for name in command.sets:
        results[name] = measure(name, batches[name], device, command.rounds, peak)
        save(out, {"machine": facts, "sound": peak.sound, "batches": results})
    end(out, {"machine": facts, "batches": results}, peak, device)
    failed = [f"{name}, {key}" for name, each in results.items() for key in each["failed"]]
    if failed:
        raise SystemExit(f"bench_directions: these failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
