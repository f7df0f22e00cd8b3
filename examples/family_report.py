"""The table and the plot of examples/family_study.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from members import is_rival

OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "muon": "torch.optim.Muon + AdamW",
    "sgd": "SGD, momentum 0.9, one rate",
    "schattor.muon": "Muon",
    "schattor:p=2,oracle=regularized": "Schattor p=2, regularized",
    "schattor:p=3": "Schattor p=3",
    "schattor:p=inf": "Schattor p=inf",
    "schattor:p=inf,momentum=0.9": "Schattor p=inf, momentum 0.9",
    "schattor:p=auto": "Schattor p=auto",
    "muadam": "MuAdam",
    "muadam_sania": "MuAdam-SANIA",
    "shampoo": "Shampoo, Adam grafting",
    "kl_shampoo": "KL-Shampoo",
    "soap": "SOAP",
    "kl_soap": "KL-SOAP",
    "splus": "SPlus",
    "schattor:preconditioner=soap,p=inf": "SOAP's bases, p=inf",
    "schattor:preconditioner=padam,p=3": "Adam's weights, p=3",
    "schattor:preconditioner=adam,p=inf": "MuAdam, AdamW's size",
    "schattor:preconditioner=adam,p=auto": "Adam's weights, p=auto",
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for docs."""
    head = ["optimizer", "best lr", "held-out loss", "accuracy, %", "steps to AdamW's loss"]
    lines = [[*head, "ms a step", "of these, update"], ["---"] * 7]
    for row in rows:
        loss = "diverged" if row["loss"] is None else f"{row['loss']:.3f}"
        spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
        steps = "-" if row["steps_to_adamw"] is None else f"{row['steps_to_adamw']:.0f}"
        accuracy = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}"
        if row["accuracy_spread"] is not None:
            accuracy += f" ± {100 * row['accuracy_spread']:.2f}"
        rate = f"{row['lr']:g}" + (" (edge)" if row["lr_at_edge_of_grid"] else "")
        times = [f"{row['ms_a_step']:.1f}", f"{row['ms_an_update']:.1f}"]
        lines.append([row["optimizer"], rate, loss + spread, accuracy, steps, *times])
    if not any(row["accuracy"] for row in rows):
        lines = [line[:3] + line[4:] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(path: Path, tables: dict[str, list[dict[str, Any]]], labels: Mapping[str, str]) -> None:
    """A row a task: loss over steps, and final losses with their spread, best on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (12, 4.6 * len(tables))
    figure, axes = plt.subplots(
        len(tables), 2, figsize=size, constrained_layout=True, squeeze=False
    )
    shades = matplotlib.colormaps["tab20"]
    colors: dict[str, Any] = {label: shades(i) for i, label in enumerate(labels.values())}
    colors |= {labels.get("adamw", ""): "black", labels.get("muon", ""): "dimgray"}
    for (curves, finals), (task, rows) in zip(axes, tables.items(), strict=True):
        shown = [row for row in rows if row["loss"] is not None]
        for place, row in enumerate(shown):
            color = colors[row["optimizer"]]
            dashes = "--" if is_rival(row["name"]) else "-"
            points = [point for point in row["curve"] if point[1] is not None]
            curves.plot(*zip(*points, strict=True), color=color, linestyle=dashes)
            finals.errorbar(row["loss"], place, xerr=row["spread"], fmt="o", color=color, capsize=3)
        finals.set_yticks(range(len(shown)), [row["optimizer"] for row in shown])
        for name in finals.get_yticklabels():  # they are the legend of the curves too
            name.set_color(colors[name.get_text()])
        finals.invert_yaxis()
        curves.set(title=task, xlabel="step", ylabel="held-out loss", yscale="log")
        finals.set(title=f"{task}: after the last step", xlabel="held-out loss, mean and spread")
        for axis in (curves, finals):
            axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=90)
    plt.close(figure)
