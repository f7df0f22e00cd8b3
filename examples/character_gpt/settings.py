"""What is trained, for how long, and at which learning rates."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = (
    "adamw",
    "muon",
    "schattor:p=2",
    "schattor:p=3",
    "schattor:p=4",
    "schattor:p=8",
    "schattor:p=inf",
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and at which rates; all of it is part of the key of a cached run."""

    name: str
    batch: int  # examples a step
    steps: int
    warmup: int  # steps of linear warm-up, then a cosine down to zero
    evaluate_every: int
    rates: tuple[float, ...]  # of the hidden matrices, swept; members.py has each one's multiple
    # Embedding, head and norms follow AdamW at this learning rate under every optimizer, so that
    # the sweeps compare what is done to matrices alone. With one rate for everything AdamW and
    # small p come out far worse: their matrices want a lower rate than the embedding does.
    other_rate: float
    weight_decay: float = 0.1  # decoupled, on matrices and embeddings, the same for all
    clip: float = 1.0  # Trainer's max_grad_norm, the same for all


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """One size of the demo; an example is a window of `context` characters."""

    width: int
    layers: int
    heads: int
    context: int  # characters that the model sees at once
    held_out: int  # windows of the held-out text that an evaluation reads


# The full size is set by the slowest rival on two cores without a GPU: torch.optim.Muon, whose
# bfloat16 iteration takes more than half as long there as the forward and backward pass of this
# model. 35 runs (7 optimizers, 4 learning rates, a second seed at the best) then end in well under
# twelve minutes, and 240 steps take most optimizers well past the statistics of letter pairs.
FULL = Settings(
    name="full",
    width=128,
    layers=2,
    heads=4,
    context=64,
    batch=16,
    steps=240,
    warmup=20,
    evaluate_every=20,
    held_out=192,
    rates=(1e-3, 3e-3, 1e-2, 3e-2),
    other_rate=1e-2,
)

# Every optimizer runs in full, none learns thoroughly: for trying the harness, not for comparing.
# Fewer steps want larger learning rates.
FAST = Settings(
    name="fast",
    width=64,
    layers=2,
    heads=2,
    context=32,
    batch=16,
    steps=60,
    warmup=6,
    evaluate_every=10,
    held_out=128,
    rates=(3e-3, 1e-2, 3e-2),
    other_rate=1e-2,
)
