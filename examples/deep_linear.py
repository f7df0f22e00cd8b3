"""Deep linear networks on a linear teacher: the best fixed p, and the p that is chosen from data.

    python examples/deep_linear.py [--fast] [--inputs white power-law] [--depths 1 2 5 10]
                                   [--out DIR]

The toy of From SGD to Muon (arXiv 2605.19781): networks of square layers without biases learn a
teacher whose singular values are 1/i. Inputs are Gaussian, fresh in every step, white or with
eigenvalues 1/i; weights begin as torch's layers do; the rate falls to zero by a cosine. The loss is
exact, of all inputs, and relative to that of the zero map.

Among the methods is one that only a toy can have, "both sides": p by the exact line search along
each layer's step. p="auto" looks at the loss of the layer alone, ``<D Axx, D>`` for a direction D;
the loss of the network has ``<D Axx, B D>``, where B = W'W for the product W of all later layers.
"auto, K-FAC" has W'EW in its place, with the second moment E of the residuals.

Each method tunes its learning rate with one seed, on a grid that grows while the best lies at its
edge; then fresh seeds run at the best. Finished runs are kept in DIR and not repeated. Writes
benchmarks/results/deep_linear.json and docs/deep_linear.png (--fast: into DIR).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "character_gpt"))

import torch
from deep_linear_report import BOTH_SIDES, WARMUP, losses_table, plot, rows_of, spectra_table
from report import commit
from rich.console import Console
from store import Store, environment, write_text
from studies import ROOT, WIDEST, OnStep, Study, Task
from torch import Tensor, nn
from training import Outcome, Run

import schattor

MOMENTUM = 0.95


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One network and its inputs; all of it is part of the key of a kept run."""

    inputs: str
    depth: int
    width: int = 100
    batch: int = 256
    steps: int = 1001
    every: int = 50  # steps from one evaluation to the next, and from one choice of p to the next
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    seeds: int = 3  # fresh ones, after the one that tunes

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.inputs}, depth {self.depth}"


@dataclass
class Traced(Outcome):
    """An outcome with what was chosen, and how flat the gradients were."""

    powers: list[list[float]] = field(default_factory=list)  # 1/(p-1), by choice and layer
    ranks: list[list[float]] = field(default_factory=list)  # |G|_1^2 / |G|_2^2, by step and layer


def methods(problem: Problem) -> dict[str, dict[str, Any]]:
    """The settings of every optimizer, by its name."""
    auto = schattor.AutoP(interval=problem.every, warmup=WARMUP)
    return {
        "p=2": {"p": 2.0},
        "p=3": {"p": 3.0},
        "p=5": {"p": 5.0},
        "p=inf": {"p": math.inf},
        "auto": {"p": auto},
        "auto, scale=unit": {"p": auto, "scale": "unit"},
        "auto, smoothing=0": {"p": replace(auto, smoothing=0.0)},
        "auto, K-FAC": {"p": replace(auto, statistics="kfac")},
        BOTH_SIDES: {"p": math.inf},
    }


def task(problem: Problem) -> tuple[Tensor, Tensor]:
    """The teacher, and a root R of the inputs' second moment R R'; the same for every run."""
    generator = torch.Generator().manual_seed(0)
    size, inverse = problem.width, 1 / torch.arange(1, problem.width + 1)
    left, right, axes = (
        torch.linalg.qr(torch.randn(size, size, generator=generator)).Q for _ in range(3)
    )
    teacher = (left * inverse) @ right.T
    return teacher, torch.eye(size) if problem.inputs == "white" else axes * inverse.sqrt()


def start(problem: Problem, run: Run) -> tuple[nn.Sequential, schattor.Schattor]:
    """A network with random weights, and its optimizer."""
    torch.manual_seed(run.seed)
    size = problem.width
    model = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(problem.depth)))
    optimizer = schattor.Schattor(
        [{"params": [layer.weight], "rule": "matrix"} for layer in model],
        lr=run.lr,
        momentum=MOMENTUM,
        **methods(problem)[run.optimizer],
    )
    if run.optimizer.startswith("auto"):
        optimizer.watch(model)
    return model, optimizer


def train(problem: Problem, run: Run, on_step: OnStep) -> Traced:
    """One network from random weights."""
    outcome, began = Traced(run.optimizer, run.lr, run.seed), time.perf_counter()
    teacher, root = task(problem)
    model, optimizer = start(problem, run)
    layers = [layer.weight for layer in model]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, problem.steps)
    for step in range(problem.steps + 1):
        inputs = torch.randn(problem.batch, problem.width) @ root.T
        optimizer.zero_grad()
        loss = (model(inputs) - inputs @ teacher.T).square().sum(1).mean() / 2
        loss.backward()
        if step % problem.every == 0 or step == problem.steps:
            evaluate(outcome, step, layers, teacher, root)
        if step == problem.steps or outcome.losses[-1] is None:
            break
        if run.optimizer == BOTH_SIDES and step % problem.every == WARMUP:
            outcome.powers.append(choose(optimizer, layers, root))
        optimizer.step()
        schedule.step()
        on_step(step + 1, outcome.losses[-1])
    histories = zip(*optimizer.p_history().values(), strict=True)
    outcome.powers += [[1 / (p - 1) for _, p in chosen] for chosen in histories]
    outcome.seconds = time.perf_counter() - began
    return outcome


@torch.no_grad()
def evaluate(
    outcome: Traced, step: int, layers: list[nn.Parameter], teacher: Tensor, root: Tensor
) -> None:
    """Keep the loss, None once it exceeds any use, and the ranks of the gradients."""
    product = torch.linalg.multi_dot([*reversed(layers), root]) if layers[1:] else layers[0] @ root
    loss = float((product - teacher @ root).square().sum() / (teacher @ root).square().sum())
    outcome.steps.append(step)
    outcome.losses.append(loss if loss < 1e6 else None)
    if outcome.losses[-1] is not None:
        values = torch.linalg.svdvals(torch.stack([w.grad for w in layers]))
        ranks = values.sum(1).square() / values.square().sum(1).clamp_min(1e-30)
        outcome.ranks.append([round(rank, 2) for rank in ranks.tolist()])


@torch.no_grad()
def choose(optimizer: schattor.Schattor, layers: list[nn.Parameter], root: Tensor) -> list[float]:
    """Set p of every layer by the exact line search along its step; gives the powers."""
    ahead, behind = [(root @ root.T).double()], [torch.eye(len(root)).double()]
    for weight in layers[:-1]:
        ahead.append(weight.double() @ ahead[-1] @ weight.double().T)
    for weight in reversed(layers[1:]):
        behind.insert(0, weight.double().T @ behind[0] @ weight.double())
    chosen = []
    for group, weight, before, after in zip(
        optimizer.param_groups, layers, ahead, behind, strict=True
    ):
        average = optimizer.state[weight]["momentum_buffer"]
        average = torch.lerp(weight.grad, average, MOMENTUM)
        momentum = torch.lerp(weight.grad, average, MOMENTUM)  # Nesterov's, as will be applied
        power = best_power(momentum.double(), weight.grad.double(), before, after)
        group["p"] = 1 + 1 / power if power > 0 else math.inf
        chosen.append(power)
    return chosen


def best_power(momentum: Tensor, grad: Tensor, before: Tensor, after: Tensor) -> float:
    """The power in [0, 1] along whose direction D = U s^power V' the loss can fall farthest.

    That is ``<G, D>^2 / (2 <D before, after D>)``, a ratio of forms in the singular values.
    """
    powers = torch.linspace(0, 1, 65, dtype=torch.float64)
    left, values, right = torch.linalg.svd(momentum)
    curves = (left.T @ after @ left) * (right @ before @ right.T)
    weights = (values[:, None] / values[0]) ** powers
    falls = ((left.T @ grad) * right).sum(1) @ weights
    gains = falls.clamp_min(0).square() / (weights * (curves @ weights)).sum(0)
    return float(powers[gains.argmax()])


def study_of(problem: Problem, store: Store, console: Console) -> Study:
    """The runs of one problem, to be tuned and made."""
    task = Task(
        settings=problem,
        seeds=problem.seeds,
        start=lambda run: start(problem, run),
        train=lambda run, on_step: train(problem, run, on_step),
        store=store,
        spec=lambda name: "schattor",  # all begin with the same rates
    )
    return Study(task, {name: f"{problem.name}: {name}" for name in methods(problem)}, console)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options; files go to the places of the project, those of --fast to its directory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds, depths = ["white", "power-law"], [1, 2, 5, 10]
    parser.add_argument("--fast", action="store_true", help="small and short, seconds")
    parser.add_argument("--inputs", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--depths", nargs="+", type=int, default=depths)
    parser.add_argument("--out", type=Path, default=Path("demo") / "deep_linear")
    options = parser.parse_args(arguments)
    results, docs = ROOT / "benchmarks" / "results", ROOT / "docs"
    options.json = (options.out if options.fast else results) / "deep_linear.json"
    options.plot = (options.out if options.fast else docs) / "deep_linear.png"
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run all, print the tables, write the JSON and the plot."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)  # the matrices are too small for more to help
    problems = [Problem(inputs=i, depth=d) for i in options.inputs for d in options.depths]
    if options.fast:
        small = {"width": 12, "steps": 41, "every": 20, "rates": (1e-2, 3e-2), "seeds": 1}
        problems = [replace(problem, **small) for problem in problems]
    facts, rows = environment(), []
    console = Console(width=None if sys.stdout.isatty() else 110)
    for problem in problems:
        store = Store(options.out, problem, "", facts, Traced)
        store.check_writable()
        study = study_of(problem, store, console)
        study.run_all()
        rows += rows_of(problem, study.fresh, study.sweeps)
    print(f"\nloss relative to the zero map\n\n{losses_table(rows)}\n\n{spectra_table(rows)}")
    document = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(ROOT),
        "environment": facts,
        "tuning": f"seed 0; rates 1, 3, 10, ... until the best is no edge, at most {WIDEST}",
        "problems": [asdict(problem) for problem in problems],
        "rows": rows,
    }
    write_text(options.json, json.dumps(document) + "\n")
    plot(options.plot, rows)
    print(f"\nwrote {options.json} and {options.plot}")


if __name__ == "__main__":
    main()
