"""The whole family side by side on two small tasks, learning rates tuned, fresh seeds.

    python examples/family_study.py [--tasks digits gpt] [--out DIR]

* digits: the convolutional classifier of examples/digits.py on scikit-learn's digits;
* gpt: the demo's character GPT in a smaller size, through HuggingFace's Trainer.

Each optimizer tunes the learning rate of the hidden matrices with one seed, on a grid that grows
while the best lies at its edge; then fresh seeds run at the best. Embedding, head, first layer and
vectors follow AdamW at one rate under all (SPlus: the sign). Finished runs are kept in DIR and not
repeated. Writes benchmarks/results/family_study.json and docs/family_study.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # sizes for one core: a GPU would only wait
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "character_gpt"))

import digits
import torch
from data import Corpus, load_text
from family_report import OPTIMIZERS, markdown, plot
from members import is_rival, optimizer_pair, rates
from model import build_model
from report import Summary, commit, mean_curve
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rivals import BETAS, MuonWithAdamW
from settings import Settings, Training
from store import Store, environment, write_text
from torch import Tensor, nn
from training import Outcome, Run, train
from transformers import get_cosine_schedule_with_warmup

from schattor import SPlus
from schattor.integrations.huggingface import parameter_groups

ROOT = Path(__file__).resolve().parents[1]
WIDEST = 9  # learning rates of a grid, at most
ROUNDS, BLOCK = 10, 20  # of timing; a block of steps holds two refreshes of every basis
DIGITS = Training(
    name="digits",
    batch=64,
    steps=150,
    warmup=10,
    evaluate_every=10,
    rates=(1e-3, 3e-3, 1e-2),
    other_rate=1e-2,
)
GPT = Settings(
    name="gpt",
    width=64,
    layers=2,
    heads=4,
    context=64,
    batch=16,
    steps=200,
    warmup=20,
    evaluate_every=20,
    held_out=64,
    rates=(1e-3, 3e-3, 1e-2),
    other_rate=1e-2,
)
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


def rival(name: str, model: nn.Module, lr: float, settings: Training) -> torch.optim.Optimizer:
    """torch's AdamW, or its Muon on the convolutions as matrices, with AdamW for the rest."""
    groups = parameter_groups(model, weight_decay=settings.weight_decay)
    parts: tuple[list[Any], list[Any]] = ([], [])
    for group in groups:
        own = {"params": group["params"], "weight_decay": group["weight_decay"]}
        parts[group["rule"] != "matrix"].append(own)
    matrices, others = parts
    if name == "adamw":
        others = [{**group, "lr": settings.other_rate} for group in others]
        return torch.optim.AdamW(matrices + others, lr, betas=BETAS)
    weights = [weight for group in matrices for weight in group["params"]]
    for group in matrices:
        group["params"] = [nn.Parameter(weight.detach().flatten(1)) for weight in group["params"]]
    views = [view for group in matrices for view in group["params"]]
    optimizer = MuonWithAdamW(matrices, others, lr, settings.other_rate)

    def take_gradients(*_: Any) -> None:
        for view, weight in zip(views, weights, strict=True):
            view.grad = weight.grad.flatten(1)

    optimizer.register_step_pre_hook(take_gradients)
    return optimizer


def start_digits(run: Run) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A classifier with random weights, and its optimizer."""
    torch.manual_seed(run.seed)
    model = digits.make_model()
    if is_rival(run.optimizer):
        return model, rival(run.optimizer, model, run.lr, DIGITS)
    factory, keywords = optimizer_pair(run.optimizer, run.lr, DIGITS)
    return model, factory()(model, **keywords)


def train_digits(run: Run, on_step: OnStep) -> Classified:
    """One classifier from random weights, with the schedule and clipping of Trainer."""
    settings, outcome = DIGITS, Classified(run.optimizer, run.lr, run.seed)
    train_x, train_y, test_x, test_y = digits.load()
    model, optimizer = start_digits(run)
    outcome.parameters = sum(p.numel() for p in model.parameters())
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup, settings.steps)
    order: list[Tensor] = []
    for step in range(settings.steps + 1):
        if step % settings.evaluate_every == 0 or step == settings.steps:
            loss, outcome.accuracy = held_out(model, optimizer, test_x, test_y)
            outcome.steps.append(step)
            outcome.losses.append(loss if math.isfinite(loss) else None)
        if step == settings.steps:
            break
        order = order or list(torch.randperm(len(train_x)).split(settings.batch))
        batch, began = order.pop(), time.perf_counter()
        model.zero_grad()
        nn.functional.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        update_began = time.perf_counter()
        optimizer.step()
        outcome.optimizer_seconds += time.perf_counter() - update_began
        outcome.seconds += time.perf_counter() - began
        schedule.step()
        on_step(step + 1, outcome.losses[-1])
    return outcome


@torch.no_grad()
def held_out(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Loss and accuracy, of the averaged weights where the optimizer keeps an average."""
    if isinstance(optimizer, SPlus):
        optimizer.eval()
    scores = model(images)
    if isinstance(optimizer, SPlus):
        optimizer.train()
    loss = nn.functional.cross_entropy(scores, labels)
    return float(loss), float((scores.argmax(1) == labels).float().mean())


def neighbour(rate: float, direction: int) -> float:
    """The next rate of 1, 3, 10, 30, ... upwards (1) or downwards (-1)."""
    place = round(2 * math.log10(rate)) + direction
    return float(f"{3 if place % 2 else 1}e{place // 2}")


class Study:
    """One task's runs: what is finished of it, and the progress shown on the way."""

    def __init__(self, task: Task, console: Console) -> None:
        """Nothing runs yet."""
        self.task, self.console = task, console
        self.sweeps: dict[str, list[Outcome]] = {}
        self.fresh: dict[str, list[Outcome]] = {}
        self._bars = Progress(
            TextColumn("{task.description:<50}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )

    def run_all(self, optimizers: list[str]) -> None:
        """Tune every optimizer, then run the fresh seeds at its best rate."""
        grids = {name: list(rates(name, self.task.settings)) for name in optimizers}
        self._planned = sum(map(len, grids.values())) + self.task.seeds * len(optimizers)
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
            title = f"{OPTIMIZERS[run.optimizer]} lr={run.lr:g} seed={run.seed}"
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
            "optimizer": OPTIMIZERS[summary.optimizer],
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


def make_tasks(out: Path) -> dict[str, Task]:
    """Both tasks, with their stores of finished runs."""
    text, facts = load_text(), environment()
    corpus = Corpus.of(text)
    stores = {
        "digits": Store(out / "digits", DIGITS, "sklearn", facts, Classified),
        "gpt": Store(out / "gpt", GPT, text.digest, facts),
    }
    for store in stores.values():
        store.check_writable()

    def start_gpt(run: Run) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = build_model(GPT, len(corpus.vocabulary), run.seed)
        factory, keywords = optimizer_pair(run.optimizer, run.lr, GPT)
        return model, factory()(model, **keywords)

    def train_gpt(run: Run, on_step: OnStep) -> Outcome:
        return train(run, GPT, corpus, str(out), on_step)

    return {
        "digits": Task(DIGITS, 5, start_digits, train_digits, stores["digits"]),
        "gpt": Task(GPT, 3, start_gpt, train_gpt, stores["gpt"]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the study, print the tables, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["digits", "gpt"]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("demo") / "family")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "family_study.json"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "family_study.png")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are too small for more to help
    console = Console(width=None if sys.stdout.isatty() else 110)
    tasks = make_tasks(options.out)
    studies = {name: Study(tasks[name], console) for name in options.tasks}
    for study in studies.values():
        study.run_all(list(OPTIMIZERS))
    tables = {name: study.rows() for name, study in studies.items()}
    for name, rows in tables.items():
        print(f"\n{name}, mean and standard deviation over seeds\n\n{markdown(rows)}")
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
    write_text(options.json, json.dumps(document) + "\n")
    plot(options.plot, tables)
    print(f"\nwrote {options.json} and {options.plot}")


if __name__ == "__main__":
    main()
