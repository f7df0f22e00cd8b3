"""Train a character-level GPT with AdamW, Muon and members of the family, and compare them.

    python examples/character_gpt/run.py [--fast] [--out DIR] [--seeds N]
                                         [--optimizers "adamw soap muadam schattor:p=3"]

"adamw" and "muon" are torch's own; every other name of schattor.available() is ours, with settings
behind a colon (soap:precondition_frequency=5); ours of the same names are schattor.adamw and
schattor.muon. Every optimizer sweeps its learning rates with the first seed; its best one is run
again with the other seeds. Finished runs are kept as JSON in DIR/runs and not repeated, so the same
command goes on after an interruption (the run under way starts over).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Before torch and transformers are imported. Threads that spin while they wait would cost more than
# ten times the step as soon as another process wants a core. One GPU at most, no download.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

from data import Corpus, Text, load_text
from members import RIVALS, canonical, optimizer_pair, rates
from report import plot, remarks, summarize, table, write_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import FAST, FULL, OPTIMIZERS, Settings
from store import Store, Unwritable, environment
from training import Outcome, Run, train

import schattor


class Demo:
    """The plan of runs, what is finished of it, and the progress shown on the way."""

    def __init__(self, settings: Settings, text: Text, store: Store, console: Console) -> None:
        """Nothing runs yet."""
        self.settings, self.store, self.console = settings, store, console
        self.corpus = Corpus.of(text)
        self.outcomes: list[Outcome] = []
        self.unsaved: list[str] = []
        self._planned = self._steps_to_make = 0
        self._bars = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._overall = self._bars.add_task("all runs, steps", total=None, note="")

    def run_all(self, optimizers: list[str], seeds: int) -> None:
        """The sweep, then the other seeds at the best learning rates."""
        sweep = [Run(name, lr, 0) for name in optimizers for lr in rates(name, self.settings)]
        self._planned = len(sweep) + len(optimizers) * (seeds - 1)
        self._steps_to_make = self._planned * self.settings.steps
        self._bars.update(self._overall, total=self._steps_to_make)
        with self._bars:
            for run in sweep:
                self._run(run)
            best = {summary.optimizer: summary.lr for summary in summarize(self.outcomes)}
            for seed in range(1, seeds):
                for name in optimizers:
                    self._run(Run(name, best[name], seed))

    def _run(self, run: Run) -> None:
        outcome = self.store.load(run)
        if outcome is None:
            outcome = self._train(run)
            origin = f"{outcome.seconds:.1f} s, update {100 * outcome.update_share:.0f} %"
        else:
            # Taken out of the total: the time that remains is estimated from runs made now.
            self._steps_to_make -= self.settings.steps
            self._bars.update(self._overall, total=self._steps_to_make)
            origin = "kept from before"
        self.outcomes.append(outcome)
        self.console.print(
            f"{len(self.outcomes):>3}/{self._planned}  {_name(run):<32}"
            f"loss {outcome.final_loss:.3f}  ({origin})",
            highlight=False,
        )

    def _train(self, run: Run) -> Outcome:
        bar = self._bars.add_task(_name(run), total=self.settings.steps, note="")

        def on_step(step: int, loss: float | None) -> None:
            note = "" if loss is None else f"loss {loss:.3f}"
            self._bars.update(bar, completed=step, note=note)
            self._bars.advance(self._overall)

        try:
            outcome = train(run, self.settings, self.corpus, str(self.store.folder), on_step)
        finally:
            self._bars.remove_task(bar)
        try:
            self.store.save(run, outcome)
        except OSError as error:
            self.unsaved.append(f"{self.store.path(run)}: {error.strerror}")
        return outcome


def _name(run: Run) -> str:
    return f"{run.optimizer} lr={run.lr:g} seed={run.seed}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="small and short, under two minutes")
    parser.add_argument("--out", type=Path, help="directory of results (demo/full or demo/fast)")
    parser.add_argument("--seeds", type=int, help="seeds at the best rate (full: 2, fast: 1)")
    parser.add_argument("--optimizers", default=" ".join(OPTIMIZERS), help=_names())
    options = parser.parse_args(arguments)
    if options.seeds is None:
        options.seeds = 1 if options.fast else 2
    if options.seeds < 1:
        parser.error(f"--seeds: at least 1 is required, got {options.seeds}")
    if options.out is None:
        options.out = Path("demo") / ("fast" if options.fast else "full")
    try:
        options.optimizers = list(dict.fromkeys(map(canonical, options.optimizers.split())))
        for name in options.optimizers:
            optimizer_pair(name, 1e-3, FULL)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    if not options.optimizers:
        parser.error("--optimizers: at least one name is required")
    return options


def _names() -> str:
    ours = [name for name in schattor.available() if name not in RIVALS]
    both = ", ".join(f"schattor.{name}" for name in RIVALS)
    return (
        f"names, spaces between: {', '.join(RIVALS)} (torch's), {', '.join(ours)}, {both} (ours, "
        "settings behind a colon: schattor:p=3 soap:precondition_frequency=5)"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status is 0 when every result is on disk."""
    options = parse_arguments(arguments)
    settings = FAST if options.fast else FULL
    console = Console(width=None if sys.stdout.isatty() else 110)
    text, facts = load_text(), environment()
    store = Store(options.out, settings, text.digest, facts)
    try:
        store.check_writable()
    except Unwritable as error:
        console.print(str(error), style="bold red", highlight=False)
        return 2
    console.print(
        f"Text: {text.origin}, {len(text.characters):,} characters.\n"
        f"Device: {facts['device']}, {facts['threads']} threads.\n"
        f"Model: Llama, width {settings.width}, {settings.layers} layers, context "
        f"{settings.context}; {settings.steps} steps of {settings.batch} windows, "
        f"{options.seeds} seed(s).\n"
        f"Learning rates of the hidden matrices: {_grids(options.optimizers, settings)}; "
        f"all else: AdamW at {settings.other_rate:g}.\n"
        f"Results go to {options.out}; finished runs in {store.folder} are not repeated.",
        highlight=False,
    )
    demo = Demo(settings, text, store, console)
    began = time.perf_counter()
    try:
        demo.run_all(options.optimizers, options.seeds)
    except KeyboardInterrupt:
        console.print(
            f"Stopped. {len(demo.outcomes) - len(demo.unsaved)} finished runs are kept in "
            f"{store.folder}; the same command goes on from there.",
            highlight=False,
        )
        return 130
    conclude(demo, text, facts, options.out)
    console.print(f"{(time.perf_counter() - began) / 60:.1f} minutes.", highlight=False)
    for line in demo.unsaved:
        console.print(f"demo: not written: {line}", style="bold red", highlight=False)
    return 1 if demo.unsaved else 0


def _grids(optimizers: list[str], settings: Settings) -> str:
    """Each grid, and whose it is; of one that all share, the grid alone."""
    owners: dict[str, list[str]] = {}
    for name in optimizers:
        grid = ", ".join(f"{rate:g}" for rate in rates(name, settings))
        owners.setdefault(grid, []).append(name)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{grid} ({', '.join(names)})" for grid, names in owners.items())


def conclude(demo: Demo, text: Text, facts: dict[str, object], out: Path) -> None:
    """Print the table and what to know of it; write the plot and the JSON."""
    summaries = summarize(demo.outcomes)
    demo.console.print(table(summaries))
    for line in remarks(summaries):
        demo.console.print(line, highlight=False)
    origin = {"origin": text.origin, "sha256": text.digest, "characters": len(text.characters)}
    results, picture = out / "results.json", out / "results.png"
    try:
        write_json(results, demo.settings, origin, facts, demo.outcomes)
        plot(picture, demo.settings, str(facts["device"]), summaries)
        demo.console.print(f"Plot: {picture}. All numbers: {results}.", highlight=False)
    except OSError as error:
        demo.unsaved.append(f"{results} or {picture}: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())
