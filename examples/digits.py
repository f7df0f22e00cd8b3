"""An image classifier: a small convolutional network on scikit-learn's digits, one optimizer each.

    python examples/digits.py

1,797 images of 8 x 8 pixels that come with scikit-learn. Convolutions enter as matrices of
(output channels, all else); the first layer, the classifier and biases follow AdamW.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import schattor

EPOCHS, BATCH, SEEDS = 4, 64, 2
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
Images = tuple[Tensor, Tensor, Tensor, Tensor]  # to train on, their labels, held out, their labels
Maker = Callable[[nn.Module, float], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Maker] = {
    "AdamW": lambda model, lr: torch.optim.AdamW(model.parameters(), lr),
    "Schattor p=2": lambda model, lr: schattor.Schattor(model, lr, p=2.0),
    "Schattor p=4": lambda model, lr: schattor.Schattor(model, lr, p=4.0),
    "Schattor p=inf": lambda model, lr: schattor.Schattor(model, lr),
}


def make_model() -> nn.Module:
    """Three convolutions and a linear classifier, 19 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def load() -> Images:
    """The images that come with scikit-learn, a quarter held out."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(x / 16 - 0.3).float().view(-1, 1, 8, 8) for x in parts[:2])
    return train_x, torch.tensor(parts[2]), test_x, torch.tensor(parts[3])


def accuracy_of(make: Maker, lr: float, seed: int) -> float:
    """Held-out accuracy after training with one optimizer."""
    train_x, train_y, test_x, test_y = load()
    torch.manual_seed(seed)
    model = make_model()
    optimizer = make(model, lr)
    steps = EPOCHS * -(-len(train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train_x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((model(test_x).argmax(1) == test_y).float().mean())


def main() -> None:
    """Print the held-out accuracy of every optimizer at every learning rate."""
    torch.set_num_threads(1)  # the network is too small for more to help
    print(schattor.route(make_model()))
    print(f"\nHeld-out accuracy, {EPOCHS} epochs, mean of {SEEDS} seeds, at learning rate")
    print(" " * 15 + "".join(f"{rate:>8g}" for rate in RATES))
    for name, make in OPTIMIZERS.items():
        began = time.perf_counter()
        found = [
            statistics.fmean(accuracy_of(make, rate, seed) for seed in range(SEEDS))
            for rate in RATES
        ]
        seconds = time.perf_counter() - began
        print(f"{name:<15}" + "".join(f"{x:>8.3f}" for x in found) + f"   {seconds:.1f} s")


if __name__ == "__main__":
    main()
