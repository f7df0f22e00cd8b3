"""The optimizer: every weight matrix along the oracle of a Schatten norm, the rest with AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable imports all of dynamo at once

from schattor.adaptive.auto import AutoP
from schattor.devices import without_autocast
from schattor.optim import elementwise
from schattor.optim._checkpoint import FORMAT, Schedule
from schattor.optim._groups import (
    name_of,
    refuse_idle,
    refuse_parameter,
    refuse_unmatched_weights,
    split,
    to_groups,
)
from schattor.optim._settings import (
    Group,
    check_group,
    check_keys,
    check_together,
    number_of,
    plain,
    resolve,
)
from schattor.optim._sharded import ShardedSteps
from schattor.optim._source import Source
from schattor.optim._stats import describe, statistics
from schattor.optim._stepper import Stepper
from schattor.optim._watching import Watching

__all__ = ["Params", "Schattor"]

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
Closure = Callable[[], Any]
Scale = Literal["unit", "spectral", "rms", "pin", "width", "sgd", "adam"]


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Schattor(Watching):
    r"""Moves every weight matrix along a linear minimisation oracle of a norm: Schatten-p, or any
    of the preconditioned family.

    .. math::
       \begin{aligned}
       &\textbf{for}\ t = 1, 2, \ldots\ \textbf{do, for every block of every matrix parameter} \\
       &\hspace{5mm} m_t = \mu m_{t-1} + c\, g_t, \quad
          c = 1 - \mu \text{ (ema)},\ 1 \text{ (heavy\_ball)} \\
       &\hspace{5mm} M_t = \mu m_t + c\, g_t \text{ (nesterov)},\ m_t \text{ (else)};
          \quad M_t = U \operatorname{diag}(s) V^\top \\
       &\hspace{5mm} O_t = U \operatorname{diag}(s^{q-1}) V^\top, \quad q = p/(p-1),
          \quad \|M_t\|_q^q = \langle M_t, O_t \rangle \\
       &\hspace{5mm} u_t = O_t / \|M_t\|_q^{q-1} \text{ (ball)}, \quad
          \|M_t\|_q^{2-q}\, O_t \text{ (regularized)}, \text{ sized by } \textit{scale} \\
       &\hspace{5mm} w_t = (1 - \gamma\lambda)\, w_{t-1} - \gamma\, c_t\, u_t,
          \quad c_t \text{ of the coupling}
       \end{aligned}

    p = 2 is SGD, p = inf is Muon. With a preconditioner the oracle is that of the norm
    ``|(Q_L' X Q_R) / w|_p``: it sees ``w * (Q_L' M Q_R)``, and its direction comes back by the same
    weights and bases (docs/family.md has the table).

    A zero gradient gives a zero step. Where a gradient is not finite, the weights and moments of
    its block stay bit for bit as they were, the block counts as zero in the dual norms, and
    :meth:`stats` counts it (matrix rule; the others are torch's).
    Parameters without a gradient are left alone. ``p.grad`` is never written.

    Args:
        params: a module, whose trained parameters are routed (:func:`schattor.route`: hidden
            matrices here, all others to AdamW); or named parameters, parameters, or groups, as for
            any optimizer of torch. A group may set every argument below, ``rule`` (``"matrix"``,
            ``"adamw"``, ``"sgd"``, ``"sign"``) and ``blocks`` (:mod:`schattor.blocks`). A group
            that names no rule is split in two, matrices first: parameters with at least two
            dimensions follow the matrix rule and all others AdamW; of those with names, embeddings
            and ``lm_head`` too go to AdamW. Without names an embedding counts as a matrix.
        lr: learning rate >= 0; the unit of every length below. A tensor of one element stays on
            its device, so that a captured graph follows it.
        p: Schatten index in [1, inf]; a function of the number of steps taken that gives one; or
            ``"auto"`` (`AutoP` for its settings): chosen from data, for each block its own; from
            the inputs of a module's layers, or without a module from the noise of gradients.
        power: ``1/(p-1)`` itself, in [-0.3, inf], or a function of the number of steps taken that
            gives it; below 0 lies beyond Muon. Neither: p = inf.
        oracle: ``"ball"`` (a step of given length) or ``"regularized"`` (as long as the dual norm
            of the momentum; at p = 2 it is SGD).
        coupling: how blocks share one step: ``"max"``, ``"l2"``, ``"greedy"`` (the largest alone),
            any number A >= 1 (outer exponent of the norm over blocks), or ``"block_diagonal"``
            (A = p: one matrix with all blocks on its diagonal). None leaves every block alone:
            ``"max"`` of the ball, ``"l2"`` of the regularized oracle.
        block_weights: w of the norm over blocks: a number, or a dict of globs over names.
        momentum: mu in [0, 1); 0 keeps no buffer.
        momentum_form: ``"ema"`` or ``"heavy_ball"``.
        nesterov: whether to look ahead by one step of momentum.
        weight_decay: decoupled, ``w <- (1 - lr weight_decay) w``.
        scale: None, ``"rms"`` for the ball and ``"unit"`` for regularized. ``"unit"``: the paper's
            oracle, radius lr. ``"spectral"``: radius ``lr min(m,n)^(1/p) sqrt(max(1, m/n))`` for m
            outputs and n inputs, Muon's at p = inf. ``"rms"``: entries of the update have root mean
            square 0.2 lr for every p, so that AdamW's learning rate and decay carry over.
            ``"pin"``: Frobenius norm ``lr sqrt(min(m,n)) (r sqrt(max(m,n)))^power``, from Muon's to
            AdamW's at p = 2 and below (group key ``pin_ratio`` is r). ``"width"``: radius
            ``2 lr / (m + n)``, SPlus's.
            ``"sgd"``, ``"adam"``: the Frobenius norm of the block's step by SGD or Adam (grafting).
        norm: ``"schatten"``, or ``"entries"``: the l_p norm of all entries as one vector, whose
            direction at p = inf is the sign.
        preconditioner: None, ``"adam"`` (``w = (sqrt(v^) + eps)^-1/2`` of squared gradients v:
            MuAdam at p = inf, Adam at p = 2 regularized), ``"sania"`` (``(v^ + eps)^-1/2``),
            ``"padam"`` (``(v^ + eps)^(-1/2p)``, from Adam at p = 2 to Muon), ``"shampoo"``,
            ``"kl_shampoo"``, ``"kl_soap"``, ``"soap"``, ``"splus"``. v decays by ``betas[1]``, a
            sum at 1.
        second_moment: ``"full"``, or ``"factored"``: v from means over rows and columns.
        bias_correction: whether averages are corrected for their start at zero. None: as the
            member's authors do; without a preconditioner False.
        shampoo_beta: of Kronecker factors, 1 for their sum; None: ``betas[1]``.
        precondition_frequency: steps between refreshes of bases and roots. None: the member's own.
        max_precond_dim: longer sides of a block have no factor.
        stagger: whether blocks of one shape take turns with their refreshes, so that no step is
            slower than others.
        method: ``"auto"``, ``"chain"``, ``"exact"`` (SVD, slow) or ``"partial_svd"``.
        steps: of the chain, 4 to 10. None: planned.
        chain_dtype: of the chain. None: planned.
        coefficients: ``"schattor"``, or a published row, for p = inf alone: ``"jordan"``,
            ``"polar_express"``, ``"newton_schulz"``.
        betas, eps: of the AdamW rule. Schedulers that cycle momentum, as OneCycleLR does, cycle the
            first of betas, not ``momentum``.
        adamw_lr: learning rate of parameters that are split off to AdamW, or of groups of that rule
            without their own. None: ``lr``. Schedulers keep the ratio.
        maximize: ascend instead.
        capturable: whether steps may be captured in a CUDA graph; parameters must be on a GPU.
            Take one step, capture the next, and call :meth:`refresh` before a replay where a
            value changed.
        workspace_mb: size of the batches of matrices that are worked on at once; no result
            depends on it. Coupled blocks keep all their directions besides.
        momentum_dtype: dtype of momentum buffers. None: the parameter's.

    Raises:
        ValueError, TypeError: a value outside these, both p and power, a misspelt key in a group;
            at a step, before anything is changed: gradients that are sparse, complex or of
            integers, flat shards of matrices (FSDP1, DeepSpeed), DTensors (FSDP2) that are to be
            captured or are not on the device of their mesh.

    Pickling or copying an optimizer keeps a function given as ``p``, if it can be pickled. State
    dicts hold the number that it gave last; a resumed run goes on with its own function.

    Source: Schattor (arXiv 2606.15702), oracles and several blocks; Preconditioned matrix norms
    (arXiv 2510.10777); ``"padam"`` and ``"pin"``: From SGD to Muon (arXiv 2605.19781); sizes
    ``"spectral"`` and ``"rms"`` after Muon and Moonlight (arXiv 2502.16982).

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> optimizer = Schattor(model, lr=1e-3, p=3.0)
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> optimizer.step()
    >>> [(group["rule"], group["p"]) for group in optimizer.param_groups]
    [('matrix', 3.0), ('adamw', 3.0)]
    """

    # What a member's authors call keys of ours.
    _authors: Mapping[str, str] = {}
    _source: Source | None = None

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        *,
        p: float | Schedule | AutoP | Literal["auto"] | None = None,
        power: float | Schedule | None = None,
        oracle: Literal["ball", "regularized"] = "ball",
        coupling: str | float | None = None,
        block_weights: float | Mapping[str, float] | None = None,
        momentum: float = 0.95,
        momentum_form: Literal["ema", "heavy_ball"] = "ema",
        nesterov: bool = True,
        weight_decay: float = 0.0,
        scale: Scale | None = None,
        norm: Literal["schatten", "entries"] = "schatten",
        preconditioner: str | None = None,
        second_moment: Literal["full", "factored"] = "full",
        bias_correction: bool | None = None,
        shampoo_beta: float | None = None,
        precondition_frequency: int | None = None,
        max_precond_dim: int = 10000,
        stagger: bool = False,
        method: Literal["auto", "chain", "exact", "partial_svd"] = "auto",
        steps: int | None = None,
        chain_dtype: torch.dtype | None = None,
        coefficients: str = "schattor",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        adamw_lr: float | Tensor | None = None,
        maximize: bool = False,
        capturable: bool = False,
        workspace_mb: float = 256,
        momentum_dtype: torch.dtype | None = None,
    ) -> None:
        """See the class."""
        weights = dict(block_weights) if isinstance(block_weights, Mapping) else block_weights
        defaults: Group = {
            "lr": lr,
            "p": p,
            "power": power,
            "oracle": oracle,
            "coupling": coupling,
            "block_weights": weights,
            "momentum": momentum,
            "momentum_form": momentum_form,
            "nesterov": nesterov,
            "dampening": 0.0,
            "weight_decay": weight_decay,
            "scale": scale,
            "pin_ratio": None,
            "norm": norm,
            "preconditioner": preconditioner,
            "second_moment": second_moment,
            "bias_correction": bias_correction,
            "shampoo_beta": shampoo_beta,
            "precondition_frequency": precondition_frequency,
            "start_preconditioning_step": None,
            "max_precond_dim": max_precond_dim,
            "stagger": stagger,
            "init_factor": 0.1,
            "max_clamp": 4000.0,
            "method": method,
            "steps": steps,
            "chain_dtype": chain_dtype,
            "coefficients": coefficients,
            "betas": betas,
            "eps": eps,
            "adamw_lr": adamw_lr,
            "maximize": maximize,
            "capturable": capturable,
            "workspace_mb": workspace_mb,
            "momentum_dtype": momentum_dtype,
            "blocks": None,
            "routes": "",
            "format": FORMAT,
        }
        self._schedules = {}
        model = params if isinstance(params, nn.Module) else None
        self._rates = {}
        self._stepper, self._sharded = Stepper(self._who), ShardedSteps(self._who)
        super().__init__(to_groups(self._who, params, **self._fixed), defaults)
        check_together(self._who, self.param_groups)
        refuse_idle(self._who, defaults, self.param_groups)
        refuse_unmatched_weights(self._who, self.param_groups)
        if model is not None:
            self._source = Source(model, self.param_groups)
            if self.wants_model:
                self.watch(model)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one that names no rule is split in two, as in the constructor."""
        if not isinstance(param_group, dict):
            raise TypeError(f"{self._who}: a group must be a dict, got {param_group!r}")
        param_group = self._named(param_group)
        check_keys(self._who, param_group)
        own_rate = "rule" in param_group and "lr" in param_group
        for part in self._split({**self._fixed, **param_group}):
            group = resolve(self.defaults, part)
            if isinstance(group["p"], AutoP) or group["p"] == "auto":
                given = isinstance(group["p"], AutoP)
                self._auto = group["p"] if given else self._auto or AutoP()
                group["p"] = "auto"
            schedules = {dial: group[dial] for dial in ("p", "power") if callable(group[dial])}
            group.update({d: number_of(self._who, d, each, 0) for d, each in schedules.items()})
            self._refuse(group, schedules)
            adamw_lr = group.pop("adamw_lr")
            if group["rule"] == "adamw" and adamw_lr is not None and not own_rate:
                group["lr"] = adamw_lr
            super().add_param_group(group)
            del group["adamw_lr"]  # a default, which torch has filled in
            if schedules and group["rule"] == "matrix":
                self._schedules[len(self.param_groups) - 1] = schedules
        self._stepper.forget()

    def _named(self, group: Group) -> Group:
        """A caller's group with the names that a member's authors use for settings as ours."""
        return {self._authors.get(key, key): value for key, value in group.items()}

    def _split(self, group: Group) -> list[Group]:
        return split(self._who, group)

    def _refuse(self, group: Group, schedules: dict[str, Schedule]) -> None:
        for dial, schedule in schedules.items():
            if group["capturable"]:
                raise ValueError(
                    f"{self._who}: {dial} must be a number with capturable=True, since a captured"
                    f" graph runs no Python, got {schedule!r}"
                )
        check_group(self._who, group, {ours: theirs for theirs, ours in self._authors.items()})
        for index, param in enumerate(group["params"]):
            if isinstance(param, Tensor):  # torch refuses the rest
                name = name_of(len(self.param_groups), group, index)
                refuse_parameter(self._who, name, param, group)

    @_disable_dynamo  # a compiled training loop calls it as it is
    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step of every parameter with a gradient.

        Args:
            closure: evaluates the model again, before gradients are read, and returns the loss.

        Returns what ``closure`` returned, or None. Raises ValueError or TypeError, before anything
        is changed, as the class says.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with without_autocast():
            self._take_step()
        return loss

    def _take_step(self) -> None:
        for index, schedules in self._schedules.items():
            group = self.param_groups[index]
            taken = self._steps_taken(group)
            found = {d: number_of(self._who, d, each, taken) for d, each in schedules.items()}
            group.update({"p": None, "power": None, **found})
        if self._source is not None:
            self._source.check(self._who, self.param_groups)
        self._prepare_choice()
        if _is_capturing():
            self._stepper.prepare_capture(self.param_groups, self.state)
        else:
            self._stepper.prepare(self.param_groups, self.state)
            self._write_rates()
        self._step_matrices()
        for index, group in enumerate(self.param_groups):
            if group["rule"] != "matrix":
                rate = self._rates.get(index, plain(group["lr"]))
                elementwise.RULES[group["rule"]](group, self.state, rate)

    def _step_matrices(self) -> None:
        chooser = self._stepper.chooser
        if chooser is not None and chooser.due:
            chooser.reduce()
        self._sharded.prepare(self.param_groups, self.state, self._stepper.sharded, chooser)
        waiting = self._stepper.begin(self.param_groups)
        self._sharded.step(self.param_groups, self.state, self._stepper, waiting)
        self._count_step()

    @torch.no_grad()
    def refresh(self) -> None:
        """Write lr, momentum, weight decay and p of the groups where a captured step reads them.

        Call it before a replay of a graph that holds :meth:`step`, whenever a scheduler or you
        changed one of them; a step outside a graph does it itself. It takes no step. The AdamW
        rule follows lr alone. The captured gradients must keep their memory
        (``zero_grad(set_to_none=False)``).

        Raises ValueError where p asks for another route than the captured one: capture again.
        """
        self._stepper.refresh(self.param_groups, self.state)
        self._write_rates()

    def _write_rates(self) -> None:
        """Learning rates of the other rules, on the device where a graph may be captured."""
        for index, group in enumerate(self.param_groups):
            lr = plain(group["lr"])
            if group["rule"] == "matrix" or not group["capturable"] or isinstance(lr, Tensor):
                self._rates.pop(index, None)
            elif index in self._rates:
                self._rates[index].fill_(lr)
            elif group["params"]:
                self._rates[index] = torch.tensor(lr, device=group["params"][0].device)

    def stats(self, *, spectra: bool = False) -> dict[str, Any]:
        """What the last step did, read from the device now; a step that nobody asks about is free.

        Args:
            spectra: also compute what needs singular values of each block's momentum.

        Returns a dict with ``"nonfinite"``, the number of blocks left alone for a gradient that was
        not finite, summed over all steps since the optimizer was built or loaded,
        ``"failed_refreshes"``, bases or roots that stayed since eigh did not converge, and
        ``"blocks"``: for every block that moved last under the matrix rule, by name, ``p``
        (``power`` below 0), ``dual_norm`` of its momentum, ``update_rms``, ``weight_rms``; and with
        ``spectra``, of the momentum as it is now, ``stable_rank`` and, at p = inf, ``polar_error``:
        ``|D D' - I|_F / sqrt(rows)`` of the direction D that its route gives. Of weights in shards
        a rank knows those that it computes.
        """
        return statistics(self._stepper, self._sharded, spectra=spectra)

    def explain(self) -> str:
        """How each bucket of matrices is computed, and why; known after the first step."""
        return describe(self._stepper, self._sharded)

    def __repr__(self) -> str:
        """The groups as torch prints them, and the routes of the last step."""
        return f"{super().__repr__()}\n{self.explain()}"
