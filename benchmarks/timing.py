"""The only timer: interleaved runs, medians and quartiles, and the facts of the machine."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

# Two cores that give less than this multiple of one are not two cores at the moment.
SOUND_SPEEDUP = 0.85


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the first, then median and quartiles over ``rounds`` calls."""

    first: float
    median: float
    lower: float
    upper: float
    rounds: int


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every function once a round, so that a slow minute of the machine hits all alike."""
    first = {name: _seconds(function) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(_seconds(function))
    timings = {}
    for name, values in seconds.items():
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        timings[name] = Timing(first[name], median, lower, upper, rounds)
    return timings


def _rate(threads: int, size: int = 1024, rounds: int = 9) -> float:
    """float32 FLOP/s of torch's own product on ``threads`` threads, median."""
    torch.set_num_threads(threads)
    x, y = torch.randn(size, size), torch.randn(size, size)
    x @ y
    return 2 * size**3 / statistics.median(_seconds(lambda: x @ y) for _ in range(rounds))


@dataclass(frozen=True)
class Peak:
    """What the processor's threads give now, by a float32 product of 1024 x 1024."""

    threads: int
    one_thread: float  # FLOP/s
    all_threads: float  # FLOP/s

    @property
    def sound(self) -> bool:
        """Whether all threads really ran side by side."""
        return self.all_threads >= SOUND_SPEEDUP * self.threads * self.one_thread

    def __str__(self) -> str:
        """One line for the head of a report."""
        ratio = self.all_threads / self.one_thread
        verdict = "" if self.sound else "  ** threads do not run side by side: discard this run **"
        return (
            f"peak: {self.one_thread / 1e9:.0f} GFLOP/s on one thread,"
            f" {self.all_threads / 1e9:.0f} on {self.threads} ({ratio:.2f}x){verdict}"
        )


def measure_peak() -> Peak:
    """Measure the float32 rate on one thread and on all."""
    threads = torch.get_num_threads()
    try:
        return Peak(threads, _rate(1), _rate(threads))
    finally:
        torch.set_num_threads(threads)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    root = Path(__file__).parent
    try:
        commit = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(peak: Peak) -> dict[str, object]:
    """Device, versions and commit: what every result file begins with."""
    from schattor import _C

    return {
        "device": _processor(),
        "instruction_set": _C.cpu_level(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "peak": asdict(peak) | {"sound": peak.sound},
    }
