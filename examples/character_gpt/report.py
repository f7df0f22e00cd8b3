"""The table, the plot and the JSON of a demo."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from members import is_rival
from rich.table import Table
from settings import Settings
from store import write_text
from training import Outcome


@dataclass
class Summary:
    """One optimizer at the learning rate that was best for it."""

    optimizer: str
    runs: list[Outcome]  # all seeds at the best learning rate
    sweep: list[Outcome]  # all learning rates at the first seed

    @property
    def lr(self) -> float:
        """The best learning rate of the sweep."""
        return self.runs[0].lr

    @property
    def loss(self) -> float:
        """The final held-out loss, mean over seeds."""
        return statistics.fmean(run.final_loss for run in self.runs)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the final loss over seeds; None for one seed."""
        losses = [run.final_loss for run in self.runs]
        return statistics.stdev(losses) if len(losses) > 1 and math.isfinite(self.loss) else None

    @property
    def at_the_edge(self) -> bool:
        """Whether the best learning rate ends the grid: a better one may lie beyond it."""
        return len(self.sweep) > 1 and self.lr in (self.sweep[0].lr, self.sweep[-1].lr)

    def steps_to(self, target: float) -> float | None:
        """Steps until the mean curve first reaches a loss; None when it never does."""
        curve = mean_curve(self.runs)
        for (step_a, loss_a), (step_b, loss_b) in zip(curve, curve[1:], strict=False):
            if loss_b <= target:
                if not math.isfinite(loss_a) or loss_a <= loss_b:
                    return step_b
                return step_a + (step_b - step_a) * max(0.0, loss_a - target) / (loss_a - loss_b)
        return None


def mean_curve(runs: list[Outcome]) -> list[tuple[float, float]]:
    """(step, held-out loss), mean over seeds; infinite where a seed was not finite."""
    losses = zip(*(run.losses for run in runs), strict=True)
    means = [
        math.inf if None in at_step else statistics.fmean(x for x in at_step if x is not None)
        for at_step in losses
    ]
    return list(zip(map(float, runs[0].steps), means, strict=True))


def summarize(outcomes: list[Outcome]) -> list[Summary]:
    """One summary an optimizer, in the order in which the optimizers were asked for."""
    summaries = []
    for optimizer in dict.fromkeys(outcome.optimizer for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.optimizer == optimizer]
        sweep = sorted((o for o in own if o.seed == own[0].seed), key=lambda o: o.lr)
        best = min(sweep, key=lambda o: o.final_loss)
        summaries.append(Summary(optimizer, [o for o in own if o.lr == best.lr], sweep))
    return summaries


def target_loss(summaries: list[Summary]) -> tuple[float, str]:
    """The loss that steps are counted to, and its meaning: AdamW's final one when it ran."""
    for summary in summaries:
        if summary.optimizer == "adamw" and math.isfinite(summary.loss):
            return summary.loss, "AdamW's final loss"
    return max(summary.loss for summary in summaries), "the final loss of the worst"


def table(summaries: list[Summary]) -> Table:
    """The results, best loss first."""
    target, meaning = target_loss(summaries)
    view = Table(caption=f"steps to {target:.3f}: {meaning}; seconds are of training steps alone")
    view.add_column("optimizer")
    for column in ("best lr", "held-out loss", "steps to target", "seconds", "update cost"):
        view.add_column(column, justify="right")
    for summary in sorted(summaries, key=lambda s: s.loss):
        steps = summary.steps_to(target)
        spread = "" if summary.spread is None else f" ± {summary.spread:.3f}"
        view.add_row(
            summary.optimizer,
            f"{summary.lr:g}" + (" (edge)" if summary.at_the_edge else ""),
            f"{summary.loss:.3f}{spread}" if math.isfinite(summary.loss) else "diverged",
            "-" if steps is None else f"{steps:.0f}",
            f"{statistics.fmean(run.seconds for run in summary.runs):.1f}",
            f"{100 * statistics.fmean(run.update_share for run in summary.runs):.0f} %",
        )
    return view


def remarks(summaries: list[Summary]) -> list[str]:
    """What a reader should know before quoting the table, good or bad."""
    lines = []
    ranked = sorted(summaries, key=lambda s: s.loss)
    ours = [s for s in ranked if not is_rival(s.optimizer)]
    rivals = [s for s in ranked if is_rival(s.optimizer)]
    if ours and rivals:
        gap = rivals[0].loss - ours[0].loss
        word = "below" if gap > 0 else "above"
        lines.append(
            f"The best of ours ({ours[0].optimizer}) ends {abs(gap):.3f} {word} "
            f"the best rival ({rivals[0].optimizer})."
        )
    spreads = [s.spread for s in summaries if s.spread is not None]
    if spreads:
        lines.append(
            f"Seeds differ by up to {max(spreads):.3f} (standard deviation of "
            f"{max(len(s.runs) for s in summaries)} runs): smaller gaps say nothing."
        )
    else:
        lines.append("One seed: gaps of about 0.02 say nothing (--seeds 3 tells more).")
    edges = [s.optimizer for s in summaries if s.at_the_edge]
    if edges:
        lines.append(
            f"The best learning rate is at the edge of the grid for {', '.join(edges)}: "
            "a better one may lie beyond."
        )
    lines.append("The learning rate was chosen on the same held-out text, for all alike.")
    return lines


def commit(folder: Path) -> str | None:
    """The commit of the source, "+changes" when the work tree differs from it; None outside git."""
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.decode().strip() + ("+changes" if status.stdout.strip() else "")


def write_json(
    path: Path, settings: Settings, text: dict[str, Any], environment: dict[str, Any],
    outcomes: list[Outcome],
) -> None:  # fmt: skip
    """All numbers behind the table and the plot."""
    import schattor

    summaries = summarize(outcomes)
    target, meaning = target_loss(summaries)
    document = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(Path(__file__).parent),
        "schattor": schattor.__version__,
        "environment": environment,
        "text": text,
        "settings": asdict(settings),
        "target": {"loss": target if math.isfinite(target) else None, "meaning": meaning},
        "summary": [
            {
                "optimizer": s.optimizer,
                "lr": s.lr,
                "loss": s.loss if math.isfinite(s.loss) else None,
                "spread": s.spread,
                "steps_to_target": s.steps_to(target),
                "seconds": statistics.fmean(run.seconds for run in s.runs),
                "update_share": statistics.fmean(run.update_share for run in s.runs),
                "seeds": [run.seed for run in s.runs],
                "lr_at_edge_of_grid": s.at_the_edge,
            }
            for s in summaries
        ],
        "runs": [outcome.as_json() for outcome in outcomes],
    }
    write_text(path, json.dumps(document, indent=1) + "\n")


def plot(path: Path, settings: Settings, device: str, summaries: list[Summary]) -> None:
    """Loss against steps at each optimizer's best learning rate; loss against learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, rates) = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    for summary, style in zip(summaries, _styles(summaries), strict=True):
        points = [point for point in mean_curve(summary.runs) if math.isfinite(point[1])]
        label = f"{summary.optimizer}, lr {summary.lr:g}"
        curves.plot(*zip(*points, strict=True), label=label, **style)
        sweep = [(o.lr, o.final_loss) for o in summary.sweep if math.isfinite(o.final_loss)]
        if sweep:
            rates.plot(*zip(*sweep, strict=True), marker="o", label=summary.optimizer, **style)
    lowest = min(summary.loss for summary in summaries)
    if math.isfinite(lowest):
        curves.set_ylim(lowest - 0.05, lowest + 1.6)
    curves.set(xlabel="step", ylabel="held-out loss (nats a character)", title="best learning rate")
    rates.set(
        xlabel="learning rate of hidden matrices",
        xscale="log",
        ylabel="final held-out loss",
        title="sweep",
    )
    grid = sorted({outcome.lr for summary in summaries for outcome in summary.sweep})
    rates.set_xticks(grid, [f"{rate:g}" for rate in grid])
    rates.minorticks_off()
    curves.legend(fontsize=8)
    for axes in (curves, rates):
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"character GPT, width {settings.width}, {settings.layers} layers, "
        f"{settings.steps} steps of {settings.batch} x {settings.context} characters, {device}"
    )
    partial = path.with_name("partial-" + path.name)
    try:
        figure.savefig(partial, dpi=120)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        plt.close(figure)


def _styles(summaries: list[Summary]) -> list[dict[str, Any]]:
    """Rivals dashed, members of the family from light to dark."""
    import matplotlib

    ours = [s.optimizer for s in summaries if not is_rival(s.optimizer)]
    shades = matplotlib.colormaps["viridis"]
    rivals = iter(("black", "tab:red"))
    return [
        {"color": shades(0.9 - 0.8 * ours.index(s.optimizer) / max(1, len(ours) - 1))}
        if s.optimizer in ours
        else {"color": next(rivals), "linestyle": "--"}
        for s in summaries
    ]
