"""The only timer: interleaved runs, medians and quartiles, the facts of the machine, results."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

# Two cores that give less than this multiple of one are not two cores at the moment.
SOUND_SPEEDUP = 0.85
# On a GPU a call is repeated until a measurement is this long: events tick every half microsecond.
GPU_MEASUREMENT = 2e-3

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the first, then median and quartiles over ``rounds`` measurements."""

    first: float
    median: float
    lower: float
    upper: float
    rounds: int


def seconds(function: Callable[[], object], device: torch.device = CPU, calls: int = 1) -> float:
    """Seconds of one of so many calls in a row: by the clock, or by events on a GPU's stream."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


class _PassOfTraining:
    """What comes before an optimizer's step: all cores are busy, and then its data is in no cache.

    Else a step is measured as what ran before has left the machine: after much work on one core the
    other was slow for some milliseconds, and another optimizer of ours left some caches warm.
    """

    seconds = 0.05

    def __init__(self) -> None:
        self._factors = torch.randn(2, 1024, 1024)
        self._other = torch.zeros(128 << 20, dtype=torch.uint8)

    def __call__(self) -> None:
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            torch.mm(*self._factors)
        self._other.add_(1)


def interleaved(
    functions: dict[str, Callable[[], object]], rounds: int, device: torch.device = CPU
) -> dict[str, Timing]:
    """Time every function once a round, so that a slow minute of the machine hits all alike.

    On a processor each comes after what stands for the passes of a training step.
    """
    first = {name: seconds(function, device) for name, function in functions.items()}
    calls = dict.fromkeys(functions, 1)
    if device.type == "cuda":
        for name, function in functions.items():
            calls[name] = max(1, math.ceil(GPU_MEASUREMENT / seconds(function, device)))
    measured: dict[str, list[float]] = {name: [] for name in functions}
    before = _PassOfTraining() if device.type == "cpu" else None
    for _ in range(rounds):
        for name, function in functions.items():
            if before is not None:
                before()
            measured[name].append(seconds(function, device, calls[name]))
    timings = {}
    for name, values in measured.items():
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        timings[name] = Timing(first[name], median, lower, upper, rounds)
    return timings


_SIZE, _CHAIN = 256, 5


def _torch_products(x: torch.Tensor, y: torch.Tensor) -> float:
    for _ in range(3 * _CHAIN):
        torch.mm(x[0], x[1], out=y[0])
    return 3.0 * _CHAIN * 2 * _SIZE**3


def _our_products(x: torch.Tensor, y: torch.Tensor) -> float:
    from schattor import ops

    weights, powers = torch.ones(1, _CHAIN + 1).double(), torch.zeros(1).double()
    ops.chain_direction(x[:1], _CHAIN * [1.5, -0.5, 0.0], weights, powers, False, [])
    return 4.0 * _CHAIN * _SIZE**3  # two of the three products are of one triangle


def _rate(
    workers: int,
    multiply: Callable[[torch.Tensor, torch.Tensor], float],
    calls: int = 10,
    rounds: int = 9,
) -> float:
    """float32 FLOP/s of so many threads together, median.

    Each multiplies matrices of its own that stay in its core's cache, so that threads share nothing
    but the processor: what one gains less than the other is not two cores' time.
    """
    operands = [torch.randn(2, 2, _SIZE, _SIZE) for _ in range(workers)]

    def work(mine: torch.Tensor) -> float:
        return sum(multiply(*mine) for _ in range(calls))

    # How many threads a product takes is a setting of the thread that asks for it.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def together() -> float:
            return sum(pool.map(work, operands))

        flops = together()
        each = statistics.median(seconds(together) for _ in range(rounds))
    return flops / each


def _gpu_rate(device: torch.device, size: int = 8192, rounds: int = 9) -> float:
    """float16 FLOP/s of torch's own product on a GPU, median."""
    x, y = (torch.randn(size, size, device=device, dtype=torch.float16) for _ in range(2))
    for _ in range(3):
        x @ y
    return 2.0 * size**3 / statistics.median(seconds(lambda: x @ y, device) for _ in range(rounds))


@dataclass(frozen=True)
class Peak:
    """What the device gives now.

    By float32 products of 256 x 256 on each of a processor's threads, torch's or those of our
    chain, whichever are faster on one; or a float16 product of 8192 x 8192 on a GPU; and by a large
    copy, whose reads and writes both count.
    """

    threads: int
    one_thread: float  # FLOP/s
    all_threads: float  # FLOP/s
    copy: float  # bytes/s

    @property
    def sound(self) -> bool:
        """Whether all threads really ran side by side."""
        return self.all_threads >= SOUND_SPEEDUP * self.threads * self.one_thread

    def __str__(self) -> str:
        """One line for the head of a report."""
        copy = f"copy: {self.copy / 1e9:.1f} GB/s"
        if self.threads == 1:
            return f"peak: {self.all_threads / 1e12:.3g} TFLOP/s, {copy}"
        ratio = self.all_threads / self.one_thread
        verdict = "" if self.sound else "  ** threads do not run side by side: discard this run **"
        return (
            f"peak: {self.one_thread / 1e9:.0f} GFLOP/s on one thread,"
            f" {self.all_threads / 1e9:.0f} on {self.threads} ({ratio:.2f}x), {copy}{verdict}"
        )


def _copy_rate(device: torch.device) -> float:
    elements = 32 << 20 if device.type == "cpu" else 256 << 20
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, 7, device)["copy"]
    return 2 * source.nbytes / timing.median


def measure_peak(device: torch.device = CPU) -> Peak:
    """Measure the rates that floors are computed from."""
    if device.type == "cuda":
        rate = _gpu_rate(device)
        return Peak(1, rate, rate, _copy_rate(device))
    threads = torch.get_num_threads()
    alone = {multiply: _rate(1, multiply) for multiply in (_torch_products, _our_products)}
    faster = max(alone, key=alone.__getitem__)
    return Peak(threads, alone[faster], _rate(threads, faster), _copy_rate(device))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    """The commit that is measured, and whether files differ from it."""
    root = Path(__file__).parent
    if given := os.environ.get("SCHATTOR_COMMIT"):
        return given
    try:
        commit = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(peak: Peak, device: torch.device = CPU) -> dict[str, object]:
    """Device, versions and commit: what every result file begins with."""
    from schattor import planning

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "level": planning.device_facts(device).level,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "peak": asdict(peak) | {"sound": peak.sound},
    }


def save(file: Path, document: dict[str, Any]) -> None:
    """Write results; after every part of a run, so that one that is ended leaves what it has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n")


def begin(device: torch.device = CPU) -> tuple[Peak, dict[str, object]]:
    """Measure the peak and print what is measured on; the peak and the facts of the machine."""
    peak = measure_peak(device)
    facts = machine(peak, device)
    print(f"{facts['device']}, {facts['level']}, torch {facts['torch']}, commit {facts['commit']}")
    print(peak)
    return peak, facts


def end(file: Path, document: dict[str, Any], peak: Peak, device: torch.device = CPU) -> None:
    """Measure the peak again, and write what was sound only if it still is."""
    after = measure_peak(device)
    print(f"\nafter: {after}")
    save(file, document | {"sound": peak.sound and after.sound})
    print(f"written to {file}")
