"""p from inputs, from both sides of a layer and from gradients alone, on scikit-learn's digits.

    python examples/auto_statistics.py

Trains with p from inputs; beside it, optimizers that move nothing are given the same gradients and
choose p by other statistics. At every choice, for every layer,

* the fall of the loss on fixed features is found by singular values, with gradient and inputs of
  the whole training set: what the choice from gradients alone loses of it, beside that from inputs;
* the fall of the network's own loss over the whole training set, along the step of every p, is
  found by trying lengths: what each choice loses of the best p's.

The last table compares training with each, over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from digits import load, make_model
from torch import Tensor, nn

import schattor
from schattor.adaptive.auto import Statistics
from schattor.adaptive.statistics import InputMoments
from schattor.blocks import block_views
from schattor.optim import PRamp
from schattor.theory.exponents import p_of, power_of

EPOCHS, BATCH, SEEDS, LR, MOMENTUM = 6, 64, 3, 1e-2, 0.95
RISE = 70  # steps of a p that rises
POWERS = [i / 64 for i in range(65)]
TRIED = range(0, 65, 16)  # of these, along the network's own loss
LENGTHS = [2.0**-i for i in range(1, 9)]  # of a step, relative to the weight
WAYS: tuple[Statistics, ...] = get_args(Statistics)
Fall = tuple[float, float]  # by a choice of p, and by the best p


def auto(way: Statistics) -> schattor.AutoP:
    """p from data of one kind."""
    return schattor.AutoP(statistics=way, warmup=10, interval=10)


def make_mlp() -> nn.Module:
    """Two hidden layers of 128."""
    layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(nn.Flatten(), *layers)


MODELS = {"multilayer perceptron": make_mlp, "convolutions": make_model}


def groups_of(model: nn.Module, rule: str = "matrix") -> list[dict[str, object]]:
    """All weights under the matrix rule, biases with AdamW."""
    weights = [(name, p) for name, p in model.named_parameters() if p.ndim > 1]
    biases = [(name, p) for name, p in model.named_parameters() if p.ndim == 1]
    return [{"params": weights, "rule": rule}, {"params": biases, "rule": "adamw"}]


def optimizer_of(model: nn.Module, p: object, lr: float = LR) -> schattor.Schattor:
    """An optimizer of all weights; where p is from inputs it watches the model."""
    optimizer = schattor.Schattor(groups_of(model), lr=lr, p=p, momentum=MOMENTUM)
    if isinstance(p, schattor.AutoP) and p.statistics != "gradients":
        optimizer.watch(model)
    return optimizer


def falls(momentum: Tensor, grad: Tensor, moment: Tensor) -> list[float]:
    """What steps along a momentum gain at every power, up to a factor, by singular values."""
    u, s, vh = torch.linalg.svd(momentum.double(), full_matrices=False)
    c = torch.einsum("mi,mn,in->i", u, grad.double(), vh)
    b = torch.einsum("in,nk,ik->i", vh, moment.double(), vh)
    raised = [(s / s[0]) ** power for power in POWERS]
    return [float((c @ r).clamp_min(0) ** 2 / (b @ r.square())) for r in raised]


@torch.no_grad()
def network_falls(param: nn.Parameter, momentum: Tensor, loss: Callable[[], Tensor]) -> list[float]:
    """What the best length of a step of one layer takes off the network's loss, by power."""
    kept, before = param.clone(), float(loss())
    u, s, vh = torch.linalg.svd(momentum.double(), full_matrices=False)
    found = []
    for place in TRIED:
        step = (u * (s / s[0]) ** POWERS[place]) @ vh
        step = (step * (kept.norm() / step.norm())).to(kept.dtype)
        after = []
        for length in LENGTHS:
            block_views(param)[0].sub_(length * step)
            after.append(float(loss()))
            param.copy_(kept)
        found.append(max(0.0, before - min(after)))
    return found


def whole_set(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradient and second moment of inputs of every weight, over all training images."""
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    moments = InputMoments(model, weights.values(), tokens=None)
    moments.record(True)
    loss = nn.functional.cross_entropy(model(x), y)
    moments.record(False)
    grads = torch.autograd.grad(loss, list(weights.values()))
    found = {}
    for (name, param), grad in zip(weights.items(), grads, strict=True):
        moment = moments.moment(param)
        assert moment is not None
        found[name] = block_views(grad, like=param)[0], moment
    return found


def train(
    model: nn.Module, optimizer: schattor.Schattor, seed: int, on_step: Callable[[], None]
) -> float:
    """Train with a falling learning rate; the loss on held-out images."""
    train_x, train_y, test_x, test_y = load()
    generator = torch.Generator().manual_seed(seed)
    steps = EPOCHS * -(-len(train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train_x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
            on_step()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(test_x), test_y))


class Falls(NamedTuple):
    """The fall by each way to choose p beside the best, at every choice and layer."""

    on_features: dict[str, list[Fall]]
    of_network: dict[str, list[Fall]]
    by_step: dict[int, list[list[float]]]  # of the network, by layer and power


def falls_of_choices(make: Callable[[], nn.Module], seed: int) -> Falls:
    """The falls of one training run."""
    torch.manual_seed(seed)
    model = make()
    optimizers = {
        way: optimizer_of(model, auto(way), 0.0 if way != "inputs" else LR) for way in WAYS
    }
    moving, still = optimizers["inputs"], [o for way, o in optimizers.items() if way != "inputs"]
    train_x, train_y, _, _ = load()
    params = dict(model.named_parameters())
    waiting: list[tuple[str, list[float], list[float]]] = []

    def on_step() -> None:
        recording = moving.recording
        truth = whole_set(model, train_x, train_y) if recording else {}
        for optimizer in still:
            optimizer.step()
        for name, (grad, moment) in truth.items():
            buffer, own = still[0].state[params[name]]["momentum_buffer"], params[name].grad
            applied = block_views(MOMENTUM * buffer + (1 - MOMENTUM) * own)[0]
            own_loss = network_falls(
                params[name],
                applied,
                lambda: nn.functional.cross_entropy(model(train_x), train_y),
            )
            waiting.append((name, falls(applied, grad, moment), own_loss))

    train(model, moving, seed, on_step)
    chosen = {way: optimizer.p_history() for way, optimizer in optimizers.items()}
    names = [*WAYS, "p = inf", "p = 2"]
    found = Falls({name: [] for name in names}, {name: [] for name in names}, {})
    seen: dict[str, int] = {}
    for name, on_features, of_network in waiting:
        place = seen[name] = seen.get(name, -1) + 1
        step = chosen["inputs"][name][place][0]
        found.by_step.setdefault(step, []).append(of_network)
        powers = {way: power_of(history[name][place][1]) for way, history in chosen.items()}
        for way, power in {**powers, "p = inf": 0.0, "p = 2": 1.0}.items():
            here = round(power * 64), round(power * (len(TRIED) - 1))
            found.on_features[way].append((on_features[here[0]], max(on_features)))
            found.of_network[way].append((of_network[here[1]], max(of_network)))
    return found


def print_lost(title: str, runs: list[dict[str, list[Fall]]]) -> None:
    """What ways to choose p lose of all falls together, and the median of choices and layers."""
    for way in runs[0]:
        pairs = [pair for run in runs for pair in run[way] if pair[1] > 0]
        total = 1 - sum(own for own, _ in pairs) / sum(best for _, best in pairs)
        middle = statistics.median(1 - own / best for own, best in pairs)
        print(f"  {title:<22} {way:<10} {total:7.1%} {middle:7.1%}", flush=True)


def print_best(title: str, runs: list[dict[int, list[list[float]]]]) -> None:
    """At every step the one p of TRIED whose falls are together the largest."""
    best = []
    for step in runs[0]:
        totals = [sum(falls) for falls in zip(*(f for run in runs for f in run[step]), strict=True)]
        best.append(f"{step}: {p_of(POWERS[TRIED[totals.index(max(totals))]]):.2g}")
    print(f"  {title:<22} {', '.join(best)}", flush=True)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)  # the networks are too small for more to help
    found = {
        title: [falls_of_choices(make, seed) for seed in range(SEEDS)]
        for title, make in MODELS.items()
    }
    for place, what in enumerate(("the loss on fixed features", "the network's loss")):
        print(f"\nLost of the best p's fall of {what}: of all falls together, and the median")
        for title, runs in found.items():
            print_lost(title, [run[place] for run in runs])
    print("\nThe p by which the network's loss falls most, over all layers and seeds, by step")
    for title, runs in found.items():
        print_best(title, [run.by_step for run in runs])
    print(f"\nHeld-out loss after {EPOCHS} epochs, mean and deviation over {SEEDS} seeds")
    ways = {**{way: auto(way) for way in WAYS}, "p = inf": math.inf, "p = 2": 2.0}
    ways["2.3 to inf"] = PRamp(2.3, math.inf, steps=RISE)
    for title, make in MODELS.items():
        for way, p in ways.items():
            found = []
            for seed in range(SEEDS):
                torch.manual_seed(seed)
                model = make()
                found.append(train(model, optimizer_of(model, p), seed, lambda: None))
            mean, spread = statistics.fmean(found), statistics.stdev(found)
            print(f"  {title:<22} {way:<10} {mean:7.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main()
