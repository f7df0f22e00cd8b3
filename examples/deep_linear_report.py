"""The tables and the plot of examples/deep_linear.py."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

BOTH_SIDES = "both sides"
WARMUP = 10  # steps before p is first chosen
FIXED = ("p=2", "p=3", "p=5", "p=inf")
TICKS = {"inf": 0.0, "8": 1 / 7, "5": 1 / 4, "4": 1 / 3, "3": 1 / 2, "2": 1.0}  # p, by 1/(p-1)


def rows_of(problem: Any, fresh: dict[str, Any], sweeps: dict[str, Any]) -> list[dict[str, Any]]:
    """What each method reached on one problem, over its fresh seeds."""
    rows = []
    for name, runs in fresh.items():
        curves = zip(*(run.losses for run in runs), strict=False)
        tried = {run.lr: run.losses[-1] for run in sweeps[name]}
        rows.append(
            {
                "inputs": problem.inputs,
                "depth": problem.depth,
                "method": name,
                "lr": runs[0].lr,
                "lr_at_edge_of_grid": runs[0].lr in (min(tried), max(tried)),
                "loss": geometric_mean([run.losses[-1] for run in runs]),
                "losses": [run.losses[-1] for run in runs],
                "sweep": list(tried.items()),
                "curve": list(zip(runs[0].steps, map(geometric_mean, curves), strict=False)),
                "chosen_at": [WARMUP + i * problem.every for i in range(len(runs[0].powers))],
                "powers": mean_over_runs([run.powers for run in runs]),
                "ranks": mean_over_runs([run.ranks for run in runs]),
            }
        )
    return rows


def geometric_mean(losses: Any) -> float | None:
    """None where one of them is None: it diverged."""
    if None in losses:
        return None
    return math.exp(statistics.fmean(math.log(max(loss, 1e-300)) for loss in losses))


def mean_over_runs(tables: list[list[list[float]]]) -> list[list[float]]:
    """The mean of tables of one shape, entry by entry."""
    return [
        [round(statistics.fmean(entry), 4) for entry in zip(*lines, strict=True)]
        for lines in zip(*tables, strict=False)
    ]


def by_problem(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """The rows by (inputs, depth), then by method."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["inputs"], row["depth"]), {})[row["method"]] = row
    return found


def reached(row: dict[str, Any]) -> float:
    """The final loss; infinite where a seed diverged."""
    return math.inf if row["loss"] is None else row["loss"]


def losses_table(rows: list[dict[str, Any]]) -> str:
    """Final losses, a line a problem; the best fixed p is bold."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    lines = [["inputs", "depth", *names, "auto / best fixed"], ["---"] * (len(names) + 3)]
    for (inputs, depth), own in by_problem(rows).items():
        best = min(FIXED, key=lambda name: reached(own[name]))
        cells = [f"{reached(own[name]):.1e}" for name in names]
        cells = [f"**{x}**" if n == best else x for n, x in zip(names, cells, strict=True)]
        ratio = reached(own["auto"]) / reached(own[best])
        lines.append([inputs, str(depth), *cells, f"{ratio:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spectra_table(rows: list[dict[str, Any]]) -> str:
    """How flat gradients are, and which p is chosen: the first and the last layer, by time."""
    lines = [
        ["inputs", "depth", "layer", "nuclear rank of the gradient at start, at half, at end"]
        + [f"p of {name} at first, at half, at end" for name in ("auto", BOTH_SIDES)]
    ]
    lines.append(["---"] * len(lines[0]))
    for (inputs, depth), own in by_problem(rows).items():
        for layer in sorted({0, depth - 1}):
            ranks = [f"{rank:.1f}" for rank in at_times(own["auto"]["ranks"], layer)]
            cells = [
                [name_of(power) for power in at_times(own[name]["powers"], layer)]
                for name in ("auto", BOTH_SIDES)
            ]
            texts = [", ".join(cell) for cell in (ranks, *cells)]
            lines.append([inputs, str(depth), str(layer + 1), *texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def at_times(table: list[list[float]], layer: int) -> list[float]:
    """The first, the middle and the last entry of a layer."""
    return [table[place][layer] for place in (0, len(table) // 2, -1)]


def name_of(power: float) -> str:
    """P as it is read: 2.5, 12, inf."""
    p = 1 + 1 / power if power > 0 else math.inf
    return f"{p:.1f}" if p < 10 else f"{p:.0f}" if p < 100 else "inf" if p == math.inf else "> 100"


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """A column a depth; for each kind of inputs a row of losses and a row of choices of p."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = by_problem(rows)
    kinds = list(dict.fromkeys(inputs for inputs, _ in problems))
    depths = list(dict.fromkeys(depth for _, depth in problems))
    size = (3.6 * len(depths) + 1.2, 6.2 * len(kinds))
    figure, axes = plt.subplots(
        2 * len(kinds), len(depths), figsize=size, constrained_layout=True, squeeze=False
    )
    for (inputs, depth), own in problems.items():
        row, column = 2 * kinds.index(inputs), depths.index(depth)
        draw_losses(axes[row][column], own)
        image = draw_powers(axes[row + 1][column], own)
        axes[row][column].set_title(f"{inputs} inputs, depth {depth}")
    for axis in axes[::2, 0]:
        axis.set_ylabel("loss relative to the zero map")
    for axis in axes[1::2, 0]:
        axis.set_ylabel("layer")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    for row in axes[1::2]:
        bar = figure.colorbar(image, ax=list(row), label="p that was chosen", aspect=15, pad=0.01)
        bar.set_ticks(list(TICKS.values()), labels=list(TICKS))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_losses(axis: Any, own: dict[str, dict[str, Any]]) -> None:
    """Loss over steps: fixed p from dark to light, choices from data in their own colours."""
    import matplotlib

    shades = matplotlib.colormaps["viridis"]
    styles = {name: {"color": shades(0.9 * i / 3)} for i, name in enumerate(FIXED)}
    styles["auto"] = {"color": "tab:red", "linewidth": 2.2}
    styles["auto, scale=unit"] = {"color": "tab:red", "linestyle": "--"}
    styles["auto, smoothing=0"] = {"color": "tab:orange", "linestyle": "-."}
    styles["auto, K-FAC"] = {"color": "tab:blue", "linestyle": "--"}
    styles[BOTH_SIDES] = {"color": "black", "linestyle": ":", "linewidth": 2.2}
    for name, row in own.items():
        points = [point for point in row["curve"] if point[1] is not None]
        axis.plot(*zip(*points, strict=True), label=name, **styles[name])
    axis.set(yscale="log", xlabel="step")
    axis.grid(alpha=0.3)


def draw_powers(axis: Any, own: dict[str, dict[str, Any]]) -> Any:
    """Layers from input to output: above as auto chooses p for them, below as both sides do."""
    depth, places, names = len(own["auto"]["powers"][0]), [], []
    for name, top in (("auto", 0.0), (BOTH_SIDES, 1.1 * depth)):
        layers = list(zip(*own[name]["powers"], strict=True))
        steps = own[name]["chosen_at"]
        extent = (steps[0], 2 * steps[-1] - steps[-2], top + depth, top)
        image = axis.imshow(
            layers, aspect="auto", interpolation="nearest", cmap="viridis_r", vmin=0, vmax=1,
            extent=extent,
        )  # fmt: skip
        for layer in sorted({1, depth}):
            places.append(top + layer - 0.5)
            names.append(f"{name.split()[0]} {layer}")
    axis.set_yticks(places, names, fontsize=8)
    axis.set(xlabel="step", xlim=(0, own["auto"]["curve"][-1][0]), ylim=(2.1 * depth, 0))
    return image
