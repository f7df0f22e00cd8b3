"""A whole optimizer step, beside torch.optim.Muon and torch.optim.AdamW.

    python benchmarks/bench_step.py [--device D] [--sets NAME ...] [--rounds N] [--out FILE]

Every optimizer steps the same weights with the same gradients, in turn, in one run; the table has
medians, quartiles, the ratio to Muon and the floor, and the error of the direction against the
polar factor in float64. The floor is the larger of operations over the measured peak and
bytes over the measured copy rate. On a GPU weights are bfloat16, and our step is also timed as a
replayed graph.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from command import read_command
from shapes import GPU_SETS, SETS, Shape, flattened, weights_of
from timing import CPU, Peak, Timing, begin, end, interleaved, save
from truth import distance, exact_directions

import schattor
from schattor import planning
from schattor.theory import cost

# Without steps: the default depth of the chain's dtype; without that: as planned for the device.
OURS: dict[str, dict[str, Any]] = {
    "Schattor p=inf K=5": {"steps": 5},
    "Schattor p=inf K=5 float32": {"steps": 5, "chain_dtype": torch.float32},
    "Schattor p=inf K=5 float16": {"steps": 5, "chain_dtype": torch.float16},
    "Schattor p=3 K=5": {"steps": 5, "p": 3.0},
    "Schattor p=inf": {},
    "Schattor p=3": {"p": 3.0},
}


def _weights(shapes: list[Shape], flatten: bool, device: torch.device) -> list[torch.nn.Parameter]:
    sizes = [flattened(shape) for shape in shapes] if flatten else shapes
    return weights_of(sizes, device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def optimizers(shapes: list[Shape], device: torch.device = CPU) -> dict[str, torch.optim.Optimizer]:
    """Each on weights of its own; convolutions are flattened by hand for Muon, which needs it."""
    made: dict[str, torch.optim.Optimizer] = {
        "AdamW": torch.optim.AdamW(_weights(shapes, False, device), lr=1e-3, foreach=True),
        "Muon": torch.optim.Muon(_weights(shapes, True, device), lr=1e-3),
    }
    for name, options in OURS.items():
        made[name] = schattor.Schattor(_weights(shapes, False, device), lr=1e-3, **options)
    return made


def captured(shapes: list[Shape], options: dict[str, Any], device: torch.device) -> Any:
    """Our step as one graph, which follows learning rate and p; returns its replay."""
    optimizer = schattor.Schattor(
        _weights(shapes, False, device), lr=1e-3, capturable=True, **options
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # for weights and gradients
    with torch.cuda.stream(stream):
        for _ in range(2):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()

    def replay() -> None:
        graph.replay()

    # The graph writes to these; they live as long as it does.
    replay.optimizer = optimizer  # type: ignore[attr-defined]
    return replay


def _direction(optimizer: torch.optim.Optimizer, like: torch.Tensor) -> torch.Tensor:
    """The direction that a fresh step takes, as a float64 matrix of the same shape."""
    weight = optimizer.param_groups[0]["params"][0]
    before = weight.detach().double().clone()
    optimizer.step()
    return (before - weight.detach().double()).reshape(like.shape)


def polar_error(name: str, shape: Shape, polar: torch.Tensor, device: torch.device) -> float:
    """Distance of a step's direction from the polar factor of the gradient that all share."""
    made = optimizers([shape], device)[name]
    weight = made.param_groups[0]["params"][0]
    weight.data.zero_()  # nothing to decay, nothing lost to rounding
    return distance(_direction(made, polar), polar)


def _rate_of(plan: planning.Plan, device: torch.device) -> float:
    """Of products, in units of `measure_peak`: a vector holds twice as many in half precision."""
    halves = plan.dtype in planning.device_facts(device).half_vectors
    return 2.0 if halves and not plan.gram else 1.0  # float32 on the Gram side


@dataclass(frozen=True)
class Floor:
    """The least that a step of this depth must do; two flops in half precision count as one."""

    flops: float
    bytes: float
    seconds: float


def floor(shapes: list[Shape], options: dict[str, Any], peak: Peak, device: torch.device) -> Floor:
    """Operations of the planned chains, and bytes of one read and one write of everything."""
    facts = planning.device_facts(device)
    itemsize = 2 if device.type == "cuda" else 4
    flops = moved = 0.0
    for shape, count in Counter(shapes).items():
        rows, cols = sorted(flattened(shape))
        chosen = {name: options.get(name) for name in ("steps", "chain_dtype")}
        plan = planning.plan(0.0, rows, cols, torch.float32, facts, **chosen)
        segments = len(plan.restarts) + 1
        chain = cost.chain_flops(
            rows, cols, plan.depth, gram=plan.gram, segments=segments, symmetric=True
        )
        flops += count * chain / _rate_of(plan, device)
        moved += count * cost.scatter_bytes(
            rows * cols, param=itemsize, grad=itemsize, momentum=itemsize, wide=0
        )
    rates = {"flops_per_second": peak.all_threads, "bytes_per_second": peak.copy}
    return Floor(flops, moved, cost.floor_seconds(flops, moved, **rates))


def _resident(field: str) -> int:
    """A size of this process from Linux's own account, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _step_memory(name: str, options: dict[str, Any]) -> int:
    """Bytes that a step holds beyond weights, gradients and moments, at most."""
    made = schattor.Schattor(_weights(SETS[name], False, CPU), lr=1e-3, **options)
    made.step()
    Path("/proc/self/clear_refs").write_text("5")  # the largest size is the present one again
    before = _resident("VmRSS")
    made.step()
    return _resident("VmHWM") - before


def step_memory(name: str, options: dict[str, Any], device: torch.device) -> int:
    """As above; on a processor in a fresh process, where nothing else is freed and taken again."""
    if device.type == "cuda":
        made = schattor.Schattor(_weights(GPU_SETS[name], False, device), lr=1e-3, **options)
        made.step()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        made.step()
        return torch.cuda.max_memory_allocated(device) - before
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_step_memory, name, options).result()


def _row(name: str, timing: Timing, muon: Timing, least: Floor | None, error: float | None) -> str:
    floor_text = f"{1e3 * least.seconds:9.2f}" if least else " " * 9
    error_text = f"{100 * error:8.2f}%" if error is not None else " " * 9
    return (
        f"  {name:<26} {1e3 * timing.median:9.2f} {1e3 * timing.lower:9.2f}"
        f" {1e3 * timing.upper:9.2f} {muon.median / timing.median:7.2f}x {floor_text} {error_text}"
    )


def measure(name: str, rounds: int, peak: Peak, device: torch.device) -> dict[str, object]:
    """Time one set, print its table and return what was measured."""
    shapes = sets_for(device)[name]
    made = optimizers(shapes, device)
    calls: dict[str, Callable[[], object]] = {key: value.step for key, value in made.items()}
    settings = dict(OURS)
    if device.type == "cuda":
        for key, options in OURS.items():
            settings[f"{key} graph"] = options
            calls[f"{key} graph"] = captured(shapes, options, device)
    timings = interleaved(calls, rounds, device)
    del made, calls
    gc.collect()  # optimizers hold themselves, and a GPU's memory is for what follows
    largest = max(set(shapes), key=lambda shape: min(flattened(shape)))
    gradient = _weights([largest], True, device)[0].grad
    assert gradient is not None
    polar = exact_directions(gradient, [0.0])[0.0]
    print(f"\n{name}: {len(shapes)} weights")
    print(
        f"  {'':<26} {'ms':>9} {'lower':>9} {'upper':>9} {'vs Muon':>8} {'floor':>9} {'error':>9}"
    )
    results: dict[str, dict[str, Any]] = {}
    for key, timing in timings.items():
        least = floor(shapes, settings[key], peak, device) if key in settings else None
        measured = key == "Muon" or (key in OURS and "inf" in key)
        error = polar_error(key, largest, polar, device) if measured else None
        print(_row(key, timing, timings["Muon"], least, error), flush=True)
        memory = step_memory(name, OURS[key], device) if key in OURS else None
        results[key] = {
            **asdict(timing),
            "ratio_to_muon": timings["Muon"].median / timing.median,
            "floor": asdict(least) if least else None,
            "polar_error": error,
            "step_memory_bytes": memory,
        }
    ours = [value for key, value in results.items() if key in OURS]
    first = max(value["first"] - value["median"] for value in ours)
    memory = max(value["step_memory_bytes"] for value in ours)
    print(
        f"  first step {first:.2f} s above a later one at most, memory of a step"
        f" {memory / 2**20:.0f} MiB at most"
    )
    return results


def sets_for(device: torch.device) -> dict[str, list[Shape]]:
    """The named sets that suit a device."""
    return GPU_SETS if device.type == "cuda" else SETS


def main() -> None:
    """Run the chosen sets and write the results."""
    command = read_command(__doc__, "step", rounds=5, sets={"cpu": SETS, "cuda": GPU_SETS})
    device, out = command.device, command.out

    peak, facts = begin(device)
    results: dict[str, Any] = {}
    for name in command.sets:
        results[name] = measure(name, command.rounds, peak, device)
        save(out, {"machine": facts, "sound": peak.sound, "sets": results})
    end(out, {"machine": facts, "sets": results}, peak, device)


if __name__ == "__main__":
    main()
