"""Whole steps of the preconditioned family, beside pytorch-optimizer and heavyball.

    python benchmarks/bench_family.py [--device D] [--sets NAME ...] [--rounds N] [--out FILE]

Every optimizer steps the same weights with the same gradients. A measurement is a whole period of
refreshes, so that eigendecompositions and QR are in it by their share; SOAP, KL-SOAP, Shampoo and
KL-Shampoo refresh every 10 steps, SPlus every 100 (its authors' numbers). The table has the
milliseconds of one step, the worst step of a period, the time that our products alone would take at
the processor's peak, and the ratio to each peer. A peer that cannot be imported is named, and left
out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from command import read_command
from shapes import SETS, Shape, flattened, weights_of
from timing import Peak, begin, end, interleaved, save

import schattor

FREQUENCY, SPLUS_FREQUENCY = 10, 100
# A GPT of four layers, width 256, and one of GPT-2's layers.
FAMILY_SETS: dict[str, list[Shape]] = {
    "small GPT": [(256, 256)] * 16 + [(1024, 256)] * 4 + [(256, 1024)] * 4,
    "character GPT": [(128, 128)] * 16 + [(344, 128)] * 8 + [(128, 344)] * 4,
    "gpt2-small, one layer": [(768, 768)] * 4 + [(3072, 768), (768, 3072)],
    "256 of 64 x 64": SETS["256 of 64 x 64"],
}

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def ours() -> dict[str, Make]:
    """Members with their authors' settings."""
    every: dict[str, Any] = {"precondition_frequency": FREQUENCY}
    return {
        "SOAP": lambda w: schattor.SOAP(w, **every),
        "SOAP staggered": lambda w: schattor.SOAP(w, stagger=True, **every),
        "SPlus": lambda w: schattor.SPlus(w),
        "Shampoo": lambda w: schattor.Shampoo(w, lr=1e-3, **every),
        "KL-Shampoo": lambda w: schattor.KLShampoo(w, **every),
        "KL-SOAP": lambda w: schattor.KLSOAP(w, **every),
        "MuAdam": lambda w: schattor.MuAdam(w),
        "Muon": lambda w: schattor.Muon(w),
    }


def peers() -> tuple[dict[str, Make], list[str]]:
    """What others have of the family, under "member / package", and why some are missing."""
    found: dict[str, Make] = {"AdamW / torch": lambda w: torch.optim.AdamW(w, foreach=True)}
    missing = []
    try:
        import pytorch_optimizer as others

        found |= {
            "SOAP / pytorch-optimizer": lambda w: others.SOAP(w, precondition_frequency=FREQUENCY),
            "SPlus / pytorch-optimizer": lambda w: others.SPlus(w),
            "Shampoo / pytorch-optimizer": lambda w: others.Shampoo(
                w, preconditioning_compute_steps=FREQUENCY
            ),
        }
    except ImportError as error:
        missing.append(f"pytorch-optimizer: {error}")
    try:
        import heavyball

        heavyball.utils.compile_mode = None
        settings: dict[str, Any] = {
            "precondition_frequency": FREQUENCY,
            "merge_dims": False,
            "max_precond_dim": 10000,
        }
        found["SOAP / heavyball"] = lambda w: heavyball.SOAP(w, **settings)
        found["KL-SOAP / heavyball"] = lambda w: heavyball.KLSOAP(w, **settings)
        found["KL-Shampoo / heavyball"] = lambda w: heavyball.KLShampoo(w, **settings)
    except ImportError as error:
        missing.append(f"heavyball: {error}")
    return found, missing


def operations(member: str, shapes: list[Shape]) -> float:
    """Multiplications and additions of a member's products in one step, refreshes by their share.

    A side of n rows takes 8/3 n^3 for the Q of a QR, 9 n^3 for its eigenvectors (Golub and Van
    Loan), 2 n^3 for a product of two squares. Symmetric products count one triangle. 0: not known.
    """
    total = 0.0
    for shape in shapes:
        m, n = sorted(flattened(shape))
        both = 2.0 * (m * m * n + m * n * n)  # a product with each side's matrix
        grams, cubes = both / 2, float(m**3 + n**3)
        turn = 2 * m**3 + 2 * m * m * n + 4 * m * n * n  # moments, from bases to bases
        total += {
            "SOAP": 2 * both + grams + ((2 + 8 / 3) * cubes + turn) / FREQUENCY,
            "KL-Shampoo": 3 * both + grams + ((2 + 8 / 3) * cubes + turn) / FREQUENCY,
            "KL-SOAP": 3 * both + grams + ((2 + 8 / 3) * cubes + turn) / FREQUENCY,
            "SPlus": 2 * both + grams + (9 * cubes + turn) / SPLUS_FREQUENCY,
            "Shampoo": both + grams + (9 + 2 + 2) * cubes / FREQUENCY,
        }.get(member.removesuffix(" staggered"), 0.0)
    return total


class Period:
    """A whole period of steps as one call, which remembers its slowest step."""

    def __init__(self, name: str, make: Make, shapes: list[Shape], device: torch.device) -> None:
        """``name`` says how long the period is."""
        self.steps = SPLUS_FREQUENCY if name.startswith("SPlus") else FREQUENCY
        self.worst: list[float] = []
        self.weights = weights_of(shapes, device)
        self._optimizer, self._device = make(self.weights), device
        # heavyball takes gradients away.
        self._grads = [weight.grad for weight in self.weights]

    def __call__(self) -> None:
        """All steps of one period, each after the gradients have been put back in place."""
        worst = 0.0
        for _ in range(self.steps):
            for weight, grad in zip(self.weights, self._grads, strict=True):
                weight.grad = grad
            start = time.perf_counter()
            self._optimizer.step()
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            worst = max(worst, time.perf_counter() - start)
        self.worst.append(worst)


def measure(
    shapes: list[Shape], rounds: int, peak: Peak, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Time everything on one set, print the table, and return the numbers."""
    others, _ = peers()
    calls = {
        name: Period(name, make, shapes, device) for name, make in {**ours(), **others}.items()
    }
    timings = interleaved(dict(calls), rounds, device)
    results: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        steps = calls[name].steps
        one = {key: value / steps for key, value in asdict(timing).items() if key != "rounds"}
        worst = sorted(calls[name].worst[1:])[len(calls[name].worst[1:]) // 2]
        results[name] = {**one, "rounds": rounds, "worst_step": worst}
    for name, result in results.items():
        member = name.split(" / ")[0].removesuffix(" staggered")
        ratios = {
            peer.split(" / ")[1]: value["median"] / result["median"]
            for peer, value in results.items()
            if " / " in peer and " / " not in name and peer.split(" / ")[0] == member
        }
        result["ratios"] = ratios
        floor = 0.0
        if " / " not in name and device.type == "cpu":  # a GPU's peak is another dtype's
            floor = operations(name, shapes) / peak.all_threads
        result["floor"] = floor or None
        shown = f"{1e3 * floor:9.2f}" if floor else " " * 9
        text = ", ".join(f"{ratio:.2f}x of {package}" for package, ratio in ratios.items())
        print(
            f"  {name:<28} {1e3 * result['median']:9.2f} {1e3 * result['lower']:9.2f}"
            f" {1e3 * result['upper']:9.2f} {1e3 * result['worst_step']:9.2f} {shown}  {text}",
            flush=True,
        )
    return results


def main() -> None:
    """Run the chosen sets and write the results."""
    command = read_command(
        __doc__, "family", rounds=5, sets={"cpu": FAMILY_SETS, "cuda": FAMILY_SETS}
    )
    device, out = command.device, command.out

    peak, facts = begin(device)
    _, missing = peers()
    for each in missing:
        print(f"left out: {each}")
    document: dict[str, Any] = {"machine": facts, "sound": peak.sound, "missing": missing}
    sets = document["sets"] = {}
    for name in command.sets:
        shapes = FAMILY_SETS[name]
        print(f"\n{name}: {len(shapes)} weights; milliseconds of a step")
        print(f"  {'':<28} {'median':>9} {'lower':>9} {'upper':>9} {'worst':>9} {'floor':>9}")
        sets[name] = measure(shapes, command.rounds, peak, device)
        save(out, document)
    end(out, document, peak, device)


if __name__ == "__main__":
    main()
