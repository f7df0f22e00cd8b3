"""Which p a language model's layers choose, and how it moves: a heatmap of layers and steps.

    python examples/p_by_layer.py [--fast] [--statistics inputs|kfac|gradients] [--out DIR]

The demo's character GPT with four layers, trained with p = "auto". `plot_history` draws what any
optimizer's ``p_history()`` gives; copy it. Writes benchmarks/results/p_by_layer.json and
docs/p_by_layer.png; of other statistics than those of inputs p_by_layer_kfac.json, and the plot
into DIR (--fast: a small model, a few steps, all into DIR).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parent / "character_gpt"))

import torch
from data import Corpus, Text, load_text
from model import build_model
from report import commit
from rich.progress import track
from rivals import BETAS
from settings import FAST, FULL, Settings
from store import environment, write_text
from torch import nn
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

import schattor
from schattor.adaptive.auto import Statistics

ROOT = Path(__file__).resolve().parents[1]
LR, SEED = 1e-2, 0
History = dict[str, list[tuple[int, float]]]


def plot_history(history: History, path: Path) -> None:
    """Draw ``optimizer.p_history()``: a row a block in the order of the dict, from the top.

    Each choice fills the steps until the next one. Colours are linear in the power ``1/(p-1)``,
    because steps are: p = 2 is 1, p = 3 a half, p = inf 0. Powers below 0, beyond p = inf, which
    the history gives as they are, have colours of their own.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    powers = {
        name: [p if p <= 0 else 1 / (p - 1) for _, p in chosen] for name, chosen in history.items()
    }
    lowest = min(0.0, *(min(row) for row in powers.values()))
    size = (9, 1.2 + 0.2 * len(history))
    figure, axis = plt.subplots(figsize=size, constrained_layout=True)
    for row, (name, chosen) in enumerate(history.items()):
        steps = [step for step, _ in chosen]
        edges = [*steps, 2 * steps[-1] - steps[-2] if steps[1:] else steps[-1] + 1]
        mesh = axis.pcolormesh(
            edges, [row, row + 1], [powers[name]], cmap="viridis_r", vmin=lowest, vmax=1
        )
    axis.set_yticks([row + 0.5 for row in range(len(history))], list(history), fontsize=8)
    axis.set(xlabel="step", ylim=(len(history), 0))
    bar = figure.colorbar(mesh, label="p", pad=0.01)
    marks = (2, 3, 4, 5, 8, math.inf)
    bar.set_ticks([1 / (p - 1) for p in marks], labels=[f"{p:g}" for p in marks])
    figure.savefig(path, dpi=80)
    plt.close(figure)


def train(settings: Settings, text: Text, kind: Statistics) -> tuple[History, float]:
    """The history of p of one run, in the order of the model, and the held-out loss at its end."""
    corpus = Corpus.of(text)
    model = build_model(settings, len(corpus.vocabulary), SEED)
    auto = schattor.AutoP(interval=settings.evaluate_every, statistics=kind)
    optimizer = schattor.Schattor(
        model,
        LR,
        p=auto,
        adamw_lr=settings.other_rate,
        betas=BETAS,
        weight_decay=settings.weight_decay,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup, settings.steps)
    windows = corpus.training_windows(settings.steps * settings.batch, settings.context, SEED)
    batches = DataLoader(windows, settings.batch)
    for batch in track(batches, f"p=auto, {settings.layers} layers, steps"):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
    held_out = DataLoader(corpus.held_out_windows(settings.held_out, settings.context), 64)
    with torch.no_grad():
        loss = statistics.fmean(float(model(**batch).loss) for batch in held_out)
    history = optimizer.p_history()
    names = [name for name, _ in model.named_parameters() if name in history]
    return {name: history[name] for name in names}, loss


def table(history: History) -> str:
    """The least p of each kind of layer at the first, the middle and the last choice."""
    kinds: dict[str, list[list[float]]] = {}
    for name, chosen in history.items():
        kind = name.removesuffix(".weight").rpartition(".")[2]
        kinds.setdefault(kind, []).append([p for _, p in chosen])
    steps = [step for step, _ in next(iter(history.values()))]
    places = sorted({0, len(steps) // 2, len(steps) - 1})  # a short run has fewer choices
    head = ["layer", *(f"step {steps[place]}" for place in places)]
    lines = [head, ["---"] * len(head)]
    for kind, rows in kinds.items():
        lines.append([kind, *(f"{min(row[i] for row in rows):.1f}" for i in places)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shares(history: History) -> str:
    """How many choices are at the end of the search, and near it."""
    chosen = [p for row in history.values() for _, p in row]
    at_end, near = (sum(p >= least for p in chosen) / len(chosen) for least in (math.inf, 8))
    return f"of {len(chosen)} choices {at_end:.0%} are p = inf and {near:.0%} above 8"


def main(arguments: list[str] | None = None) -> None:
    """Train, print the table, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="small and short, seconds")
    parser.add_argument("--statistics", choices=get_args(Statistics), default="inputs")
    parser.add_argument("--out", type=Path, default=Path("demo") / "p_by_layer")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the model is too small for more to help
    settings = replace(FULL, layers=4, steps=400)
    if options.fast:
        settings = replace(FAST, width=32, steps=30)
    options.out.mkdir(parents=True, exist_ok=True)
    shown = options.statistics == "inputs"
    name = "p_by_layer" if shown else f"p_by_layer_{options.statistics}"
    numbers = (options.out if options.fast else ROOT / "benchmarks" / "results") / f"{name}.json"
    picture = (ROOT / "docs" if shown and not options.fast else options.out) / f"{name}.png"
    text = load_text()
    began = time.perf_counter()
    history, loss = train(settings, text, options.statistics)
    print(f"\nheld-out loss {loss:.3f}; {shares(history)}")
    print(f"\nleast p of each kind of layer\n\n{table(history)}")
    document = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(ROOT),
        "environment": environment(),
        "text": {"origin": text.origin, "sha256": text.digest},
        "settings": {**asdict(settings), "lr": LR, "seed": SEED, "statistics": options.statistics},
        "held_out_loss": loss,
        "seconds": time.perf_counter() - began,
        # JSON has no infinity: 1/(p-1), which is 0 at p = inf.
        "powers": {
            name: [(step, p if p <= 0 else 1 / (p - 1)) for step, p in chosen]
            for name, chosen in history.items()
        },
    }
    write_text(numbers, json.dumps(document) + "\n")
    short = {
        name.removeprefix("model.layers.").removesuffix(".weight"): chosen
        for name, chosen in history.items()
    }
    plot_history(short, picture)
    print(f"\nwrote {numbers} and {picture}")


if __name__ == "__main__":
    main()
