"""Optimizers side by side on a task: rates tuned with one seed, fresh seeds at the best.

What examples/family_study.py and examples/p_study.py share. Finished runs are kept on disk.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from members import rates
from report import Summary, commit, mean_curve
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from settings import Training
from store import Store, environment, write_text
from torch import Tensor, nn
from training import Outcome, Run
from transformers import get_cosine_schedule_with_warmup

ROOT = Path(__file__).resolve().parents[1]
WIDEST = 9  # learning rates of a grid, at most
ROUNDS, BLOCK = 10, 20  # of timing; a block of steps holds two refreshes of every basis
OnStep = Callable[[int, float | None], None]


@dataclass
class Classified(Outcome):
    """An outcome of a classifier."""

    accuracy: float | None = None  # held out, after the last step


@dataclass(frozen=True)
class Task:
    """One problem: its settings, how a run of it is made, and what of it is kept."""

    settings: Training
    seeds: int  # fresh ones, after the one that tunes
    start: Callable[[Run], tuple[nn.Module, torch.optim.Optimizer]]
    train: Callable[[Run, OnStep], Outcome]
    store: Store
    spec: Callable[[str], str] = str  # the optimizer's name as members.py has it, for its rates


def fit(
    run: Run,
    settings: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    next_loss: Callable[[], Tensor],
    held_out: Callable[[], tuple[float, float | None]],
    on_step: OnStep,
) -> Classified:
    """One model, with the schedule and clipping of Trainer; `held_out` gives loss and accuracy."""
    outcome = Classified(run.optimizer, run.lr, run.seed)
    outcome.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup, settings.steps)
    for step in range(settings.steps + 1):
        if step % settings.evaluate_every == 0 or step == settings.steps:
            loss, outcome.accuracy = held_out()
            outcome.steps.append(step)
            outcome.losses.append(loss if math.isfinite(loss) else None)
        if step == settings.steps:
            break
        began = time.perf_counter()
        model.zero_grad()
        next_loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        update_began = time.perf_counter()
        optimizer.step()
        outcome.optimizer_seconds += time.perf_counter() - update_began
        outcome.seconds += time.perf_counter() - began
        schedule.step()
        on_step(step + 1, outcome.losses[-1])
    return outcome


def neighbour(rate: float, direction: int) -> float:
    """The next rate of 1, 3, 10, 30, ... upwards (1) or downwards (-1)."""
    place = round(2 * math.log10(rate)) + direction
    return float(f"{3 if place % 2 else 1}e{place // 2}")


class Study:
    """One task's runs: what is finished of it, and the progress shown on the way."""

    def __init__(self, task: Task, labels: Mapping[str, str], console: Console) -> None:
        """``labels`` are the optimizers, by name, as tables call them. Nothing runs yet."""
        self.task, self.labels, self.console = task, labels, console
        self.sweeps: dict[str, list[Outcome]] = {}
        self.fresh: dict[str, list[Outcome]] = {}
        self._bars = Progress(
            TextColumn("{task.description:<50}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )

    def run_all(self) -> None:
        """Tune every optimizer, then run the fresh seeds at its best rate."""
        task = self.task
        grids = {name: list(rates(task.spec(name), task.settings)) for name in self.labels}
        self._planned = sum(map(len, grids.values())) + task.seeds * len(grids)
        title = f"{self.task.settings.name}, runs"
        self._overall = self._bars.add_task(title, total=self._planned)
        with self._bars:
            for name, grid in grids.items():
                best = self._tune(name, grid)
                seeds = range(1, self.task.seeds + 1)
                self.fresh[name] = [self._run(Run(name, best, seed)) for seed in seeds]

    def _tune(self, name: str, grid: list[float]) -> float:
        """The best rate; one beyond the grid is tried while the best ends it."""
        tried = {lr: self._run(Run(name, lr, 0)) for lr in grid}
        while True:
            best = min(tried, key=lambda lr: tried[lr].final_loss)
            self.sweeps[name] = [tried[lr] for lr in sorted(tried)]
            if len(tried) >= WIDEST or min(tried) < best < max(tried):
                return best
            further = neighbour(best, -1 if best == min(tried) else 1)
            self._planned += 1
            self._bars.update(self._overall, total=self._planned)
            tried[further] = self._run(Run(name, further, 0))

    def _run(self, run: Run) -> Outcome:
        outcome = self.task.store.load(run)
        if outcome is None:
            title = f"{self.labels[run.optimizer]} lr={run.lr:g} seed={run.seed}"
            bar = self._bars.add_task(title, total=self.task.settings.steps)
            try:
                outcome = self.task.train(run, lambda step, _: self._show(bar, step))
            finally:
                self._bars.remove_task(bar)
            self.task.store.save(run, outcome)
            self.console.print(
                f"{title:<50}loss {outcome.final_loss:.4f}  {outcome.seconds:.1f} s",
                highlight=False,
            )
        self._bars.advance(self._overall)
        return outcome

    def _show(self, bar: Any, step: int) -> None:
        self._bars.update(bar, completed=step)

    def rows(self) -> list[dict[str, Any]]:
        """The results, best loss first."""
        found = [Summary(name, self.fresh[name], self.sweeps[name]) for name in self.fresh]
        target = next((s.loss for s in found if s.optimizer == "adamw"), math.nan)
        updates = self._update_times()
        # Forward and backward pass are the same for all: those of the least disturbed run.
        runs = [run for summary in found for run in (*summary.runs, *summary.sweep)]
        passes = min(run.seconds - run.optimizer_seconds for run in runs)
        passes *= 1e3 / self.task.settings.steps
        rows = [
            {
                **self._row(summary, target),
                "ms_a_step": passes + updates[summary.optimizer],
                "ms_an_update": updates[summary.optimizer],
            }
            for summary in found
        ]
        return sorted(rows, key=lambda row: math.inf if row["loss"] is None else row["loss"])

    def _update_times(self) -> dict[str, float]:
        """Milliseconds of one core that an update takes, the least of several rounds.

        Optimizers take turns, so that other work on the machine disturbs all alike.
        """
        started = {
            name: self.task.start(Run(name, runs[0].lr, 0)) for name, runs in self.fresh.items()
        }
        least = dict.fromkeys(started, math.inf)
        for number in range(ROUNDS + 1):
            for name, (model, optimizer) in started.items():
                for parameter in model.parameters():
                    parameter.grad = 1e-3 * torch.randn_like(parameter)
                began = time.process_time()
                for _ in range(BLOCK):
                    optimizer.step()
                if number > 0:  # the first warms up
                    found = 1e3 * (time.process_time() - began) / BLOCK
                    least[name] = min(least[name], found)
        return least

    def _row(self, summary: Summary, target: float) -> dict[str, Any]:
        own = [run.accuracy for run in summary.runs if isinstance(run, Classified)]
        accuracies = [accuracy for accuracy in own if accuracy is not None]
        return {
            "optimizer": self.labels[summary.optimizer],
            "name": summary.optimizer,
            "lr": summary.lr,
            "lr_at_edge_of_grid": summary.at_the_edge,
            "loss": summary.loss if math.isfinite(summary.loss) else None,
            "spread": summary.spread,
            "accuracy": statistics.fmean(accuracies) if accuracies else None,
            "accuracy_spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "steps_to_adamw": summary.steps_to(target),
            "seeds": [run.seed for run in summary.runs],
            "curve": [(s, x if math.isfinite(x) else None) for s, x in mean_curve(summary.runs)],
        }


def run_all(
    tasks: Mapping[str, Task], labels: Mapping[str, str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The rows of every task's table, and the document of all runs."""
    torch.set_num_threads(1)  # the models are too small for more to help
    console = Console(width=None if sys.stdout.isatty() else 110)
    studies = {name: Study(task, labels, console) for name, task in tasks.items()}
    for study in studies.values():
        study.run_all()
    tables = {name: study.rows() for name, study in studies.items()}
    document = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(ROOT),
        "environment": environment(),
        "tuning": f"seed 0; rates 1, 3, 10, ... until the best is no edge, at most {WIDEST}",
        "settings": {name: asdict(study.task.settings) for name, study in studies.items()},
        "tables": tables,
        "runs": {
            name: [
                run.as_json()
                for runs in (*study.sweeps.values(), *study.fresh.values())
                for run in runs
            ]
            for name, study in studies.items()
        },
    }
    return tables, document


def write_document(path: Path, document: dict[str, Any]) -> None:
    """One line of JSON."""
    write_text(path, json.dumps(document) + "\n")
