"""The operators of Kronecker factors beside torch's: rotations, and QR of a factor times its basis.

    python benchmarks/bench_factors.py [--device D] [--rounds N] [--out FILE]

The table has GFLOP/s of ``Q_L' X Q_R``, of the same back, and of ``qr(F Q)`` with its columns
sorted, by our operators and by torch (bmm, geqrf, householder_product, one batch a call). The last
column is how far the new bases are from orthonormal, ``|Q'Q - I|_F / sqrt(n)``, ours and torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from command import read_command
from timing import begin, end, interleaved
from torch import Tensor

from schattor import ops, portable_factors

SHAPES = [
    (256, 64, 64),
    (16, 128, 128),
    (12, 128, 344),
    (16, 256, 256),
    (8, 256, 1024),
    (4, 768, 768),
    (2, 768, 3072),
]
SIZES = [(64, 16), (64, 32), (256, 64), (44, 128), (12, 344), (8, 512), (8, 1024)]


def rotations(shape: tuple[int, int, int], rounds: int, device: torch.device) -> dict[str, float]:
    """Rates of both, there and back."""
    batch, rows, cols = shape
    x = torch.randn(shape, device=device)
    left = torch.randn(batch, rows, rows, device=device)
    right = torch.randn(batch, cols, cols, device=device)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.rotate(x, left, right),
        "torch": lambda: torch.bmm(torch.bmm(left.mT, x), right),
        "ours, back": lambda: ops.rotate(x, left, right, back=True),
        "torch, back": lambda: torch.bmm(torch.bmm(left, x), right.mT),
    }
    operations = 2.0 * batch * rows * cols * (rows + cols)
    timings = interleaved(calls, rounds, device)
    return {name: operations / timing.median for name, timing in timings.items()}


def off_orthonormal(bases: Tensor) -> float:
    """Root mean square over the batch."""
    bases = bases.double()
    eye = torch.eye(bases.shape[-1], dtype=bases.dtype, device=bases.device)
    return float((bases.mT @ bases - eye).norm() / (len(bases) * bases.shape[-1]) ** 0.5)


def power_steps(shape: tuple[int, int], rounds: int, device: torch.device) -> dict[str, float]:
    """Rates of both, and how far their bases are from orthonormal."""
    batch, size = shape
    x = torch.randn(batch, size, 2 * size, device=device)
    factors = torch.bmm(x, x.mT) / size
    factors = (factors + factors.mT) / 2
    bases = torch.linalg.qr(torch.randn(batch, size, size, device=device))[0].contiguous()
    found: dict[str, Tensor] = {}

    def kept(name: str, step: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], object]:
        return lambda: found.update({name: step(factors, bases, True)[0]})

    calls = {
        "ours": kept("ours", ops.power_step),
        "torch": kept("torch", portable_factors.power_step),
    }
    operations = (2 + 8 / 3) * batch * size**3
    timings = interleaved(calls, rounds, device)
    rates = {name: operations / timing.median for name, timing in timings.items()}
    return rates | {f"{name}, off": off_orthonormal(q) for name, q in found.items()}


def main() -> None:
    """Run everything, on one thread and on all, and write the results."""
    command = read_command(__doc__, "factors", rounds=9)
    device, out = command.device, command.out

    peak, facts = begin(device)
    document: dict[str, Any] = {"machine": facts, "sound": peak.sound, "threads": {}}
    every = torch.get_num_threads()
    for threads in sorted({1, every}) if device.type == "cpu" else [every]:
        torch.set_num_threads(threads)
        results: dict[str, Any] = {"rotations": {}, "power steps": {}}
        document["threads"][threads] = results
        print(f"\n{threads} threads; GFLOP/s{'':14} ours   torch    back   torch")
        for shape in SHAPES:
            rates = rotations(shape, command.rounds, device)
            results["rotations"]["x".join(map(str, shape))] = rates
            print(f"  {shape!s:<24}" + "".join(f" {rate / 1e9:7.0f}" for rate in rates.values()))
        for size in SIZES:
            found = power_steps(size, command.rounds, device)
            results["power steps"]["x".join(map(str, size))] = found
            print(
                f"  qr(F Q), {size!s:<15} {found['ours'] / 1e9:7.0f} {found['torch'] / 1e9:7.0f}"
                f"  {found['ours, off']:.1e} {found['torch, off']:.1e}",
                flush=True,
            )
    torch.set_num_threads(every)
    end(out, document, peak, device)


if __name__ == "__main__":
    main()
