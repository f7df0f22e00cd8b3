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
import os
import sys
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
from members import is_rival, optimizer_pair
from model import build_model
from rivals import BETAS, MuonWithAdamW
from settings import Settings, Training
from store import Store, environment
from studies import ROOT, Classified, OnStep, Task, fit, run_all, write_document
from torch import Tensor, nn
from training import Outcome, Run, train

from schattor import SPlus
from schattor.integrations.huggingface import parameter_groups

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
    """One classifier from random weights."""
    train_x, train_y, test_x, test_y = digits.load()
    model, optimizer = start_digits(run)
    order: list[Tensor] = []

    def next_loss() -> Tensor:
        nonlocal order
        order = order or list(torch.randperm(len(train_x)).split(DIGITS.batch))
        batch = order.pop()
        return nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])

    def evaluate() -> tuple[float, float]:
        return held_out(model, optimizer, test_x, test_y)

    return fit(run, DIGITS, model, optimizer, next_loss, evaluate, on_step)


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
    known = make_tasks(options.out)
    tables, document = run_all({name: known[name] for name in options.tasks}, OPTIMIZERS)
    for name, rows in tables.items():
        print(f"\n{name}, mean and standard deviation over seeds\n\n{markdown(rows)}")
    write_document(options.json, document)
    plot(options.plot, tables, OPTIMIZERS)
    print(f"\nwrote {options.json} and {options.plot}")


if __name__ == "__main__":
    main()
