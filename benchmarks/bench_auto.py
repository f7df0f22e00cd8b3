"""What p from data costs a training step of the demo's model.

    python benchmarks/bench_auto.py [--device D] [--rounds N] [--out FILE]

Times a whole training step (forward, backward, optimizer) with p fixed, with p="auto" on a step
that does not record, and on one that does, for each criterion, and by other statistics than those
of inputs; the table gives the share that recordings every 10 and every 100 steps add to training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from command import read_command
from timing import begin, interleaved, save

import schattor
from schattor.adaptive.criteria import CRITERIA

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "character_gpt"))
from model import build_model
from settings import FULL

NEVER = 10**9


def training_step(p: Any, device: torch.device) -> Callable[[], None]:
    """One step of training on a batch of the demo's size, with a model of its own."""
    model = build_model(FULL, vocabulary=96, seed=0).to(device)
    optimizer = schattor.Schattor(model, lr=1e-3, p=p)
    tokens = torch.randint(96, (FULL.batch, FULL.context), device=device)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure, print the table, write the results."""
    command = read_command(__doc__, "auto", rounds=15)
    device, out = command.device, command.out

    calls = {
        "fixed p": training_step(4.0, device),
        "auto, not recording": training_step(schattor.AutoP(warmup=NEVER), device),
    }
    for criterion in CRITERIA:
        auto = schattor.AutoP(criterion, interval=1, warmup=0)
        calls[f"auto, recording, {criterion}"] = training_step(auto, device)
    for statistics in ("kfac", "gradients"):
        auto = schattor.AutoP(interval=1, warmup=0, statistics=statistics)
        calls[f"auto, recording, {statistics}"] = training_step(auto, device)
    _, facts = begin(device)
    timings = interleaved(calls, command.rounds, device)
    plain = timings["fixed p"].median
    print(f"  {'':<36} {'ms':>9} {'lower':>9} {'upper':>9} {'every 10':>9} {'every 100':>9}")
    results: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        extra = timing.median / plain - 1
        every = {10: extra / 10, 100: extra / 100} if "recording," in name else {}
        shares = "".join(f" {100 * share:8.2f}%" for share in every.values())
        times = [1e3 * each for each in (timing.median, timing.lower, timing.upper)]
        print(f"  {name:<36} {times[0]:9.2f} {times[1]:9.2f} {times[2]:9.2f}{shares}", flush=True)
        results[name] = {**asdict(timing), "extra": extra, "share_every": every}
    save(out, {"machine": facts, "steps": results})
    print(f"written to {out}")


if __name__ == "__main__":
    main()
