"""p from inputs against p from the noise of gradients, on scikit-learn's digits.

    python examples/auto_statistics.py

Trains with p from inputs; beside it, an optimizer that moves nothing is given the same gradients
and chooses p from them alone. At every choice the fall of the loss on fixed features is found by
singular values, with gradient and inputs of the whole training set: the first table says what each
choice loses of the best p's. The second compares training with either, over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from digits import load, make_model
from torch import Tensor, nn

import schattor
from schattor.adaptive.statistics import InputMoments
from schattor.blocks import block_views
from schattor.theory.exponents import power_of

EPOCHS, BATCH, SEEDS, LR, MOMENTUM = 6, 64, 3, 1e-2, 0.95
POWERS = [i / 64 for i in range(65)]
AUTO = {"warmup": 10, "interval": 10}
Fall = tuple[float, float]  # by a choice of p, and by the best p


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
    if isinstance(p, schattor.AutoP) and p.statistics == "inputs":
        optimizer.watch(model)
    return optimizer


def falls(momentum: Tensor, grad: Tensor, moment: Tensor) -> list[float]:
    """What steps along a momentum gain at every power, up to a factor, by singular values."""
    u, s, vh = torch.linalg.svd(momentum.double(), full_matrices=False)
    c = torch.einsum("mi,mn,in->i", u, grad.double(), vh)
    b = torch.einsum("in,nk,ik->i", vh, moment.double(), vh)
    raised = [(s / s[0]) ** power for power in POWERS]
    return [float((c @ r).clamp_min(0) ** 2 / (b @ r.square())) for r in raised]


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


def falls_of_choices(make: Callable[[], nn.Module], seed: int) -> dict[str, list[Fall]]:
    """The fall by each way to choose p beside the best, at every choice and layer."""
    torch.manual_seed(seed)
    model = make()
    optimizer = optimizer_of(model, schattor.AutoP(statistics="inputs", **AUTO))
    still = optimizer_of(model, schattor.AutoP(statistics="gradients", **AUTO), lr=0.0)
    train_x, train_y, _, _ = load()
    params = dict(model.named_parameters())
    lost: dict[str, list[Fall]] = {"inputs": [], "gradients": [], "p = inf": [], "p = 2": []}

    def on_step() -> None:
        recording = still.recording
        truth = whole_set(model, train_x, train_y) if recording else {}
        still.step()
        for name, (grad, moment) in truth.items():
            buffer, own = still.state[params[name]]["momentum_buffer"], params[name].grad
            applied = block_views(MOMENTUM * buffer + (1 - MOMENTUM) * own)[0]
            waiting.append((name, falls(applied, grad, moment)))

    waiting: list[tuple[str, list[float]]] = []
    train(model, optimizer, seed, on_step)
    chosen = {"inputs": optimizer.p_history(), "gradients": still.p_history()}
    seen: dict[str, int] = {}
    for name, curve in waiting:
        place = seen[name] = seen.get(name, -1) + 1
        best = max(curve)
        if best > 0:
            powers = {way: power_of(history[name][place][1]) for way, history in chosen.items()}
            for way, power in {**powers, "p = inf": 0.0, "p = 2": 1.0}.items():
                lost[way].append((curve[round(power * 64)], best))
    return lost


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)  # the networks are too small for more to help
    print("Lost of the best p's fall: of all falls together, and the median of choices and layers")
    for title, make in MODELS.items():
        runs = [falls_of_choices(make, seed) for seed in range(SEEDS)]
        for way in runs[0]:
            pairs = [pair for run in runs for pair in run[way]]
            total = 1 - sum(own for own, _ in pairs) / sum(best for _, best in pairs)
            middle = statistics.median(1 - own / best for own, best in pairs)
            print(f"  {title:<22} {way:<10} {total:7.1%} {middle:7.1%}")
    print(f"\nHeld-out loss after {EPOCHS} epochs, mean and deviation over {SEEDS} seeds")
    ways: dict[str, object] = {
        "inputs": schattor.AutoP(statistics="inputs", **AUTO),
        "gradients": schattor.AutoP(statistics="gradients", **AUTO),
        "p = inf": math.inf,
        "p = 2": 2.0,
    }
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
