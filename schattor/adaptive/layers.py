"""The layers that weights belong to, and what is seen at them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as NeverCalled
from torch.utils.hooks import RemovableHandle

from schattor.adaptive.recording import Recorder
from schattor.adaptive.samples import Collection, Samples, reduce_all
from schattor.routing.layouts import is_conv1d

__all__ = ["CONVOLUTIONS", "LayerMoments", "Layers", "NeverCalled"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Layers:
    """The layers of one weight, and what is seen at them."""

    def __init__(self, param: nn.Parameter, modules: list[nn.Module]) -> None:
        """``modules`` are all layers of this weight."""
        self.turned = is_conv1d(modules[0])
        self.modules = modules
        self.seen = Collection(param, self.size(param))

    def size(self, param: nn.Parameter) -> int:
        """How many numbers make one sample."""
        raise NotImplementedError

    def attach(self, module: nn.Module) -> RemovableHandle:
        """Put the hook on one of the layers."""
        raise NotImplementedError

    def samples(self) -> Samples:
        """What was seen, on the parameter's device, in the order of its matrix."""
        raise NotImplementedError


class LayerMoments(Recorder):
    """Second moments of what is seen at the layers whose weights are given.

    Layers are ``nn.Linear``, HuggingFace's ``Conv1D`` and ``nn.Conv1d/2d/3d`` of one group, and
    classes derived from them that keep their ``forward``: one of their own may multiply something
    else than what it is given. A weight of several layers, or of one that is called several times,
    sums over all calls. All else is not covered: grouped and transposed convolutions, lookups of
    embeddings, stacked experts, parametrised weights, the way out of ``nn.MultiheadAttention``, and
    what a ``Linear`` and a ``Conv1D`` share, since these read it by different sides.

    Kept for each weight are the samples that are looked at, in their dtype, while they are fewer
    than the n numbers of each, and then a sum ``[n, n]``; layers that read the same share them.
    Nothing waits for the device. A captured CUDA graph replays what it captured. Compiled code does
    not see hooks that come later, so while anything records, whatever the process has compiled runs
    eagerly (``torch.compiler.set_stance``). A recorded step costs what an eager step costs, in time
    and memory; nothing is compiled again for it. Passes inside a transformation of ``torch.func``
    or a trace, and tensors without numbers (meta, fake), are left out.

    Args:
        model: whose modules are searched, once: make another after changing them.
        params: those of interest, in an order that is the same on every rank.
        tokens: most samples of one call, the same ones for each shape: one from each of so many
            equal stretches, at places that favour no position in a sequence. None: all.

    Raises:
        TypeError, ValueError: a value outside these.
    """

    def __init__(
        self, model: nn.Module, params: Iterable[nn.Parameter], *, tokens: int | None = 4096
    ) -> None:
        """See the class."""
        super().__init__()
        who = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(f"{who}: model must be an nn.Module, got {type(model).__name__}")
        if tokens is not None and (type(tokens) is not int or tokens < 1):
            raise ValueError(f"{who}: tokens must be an int >= 1 or None, got {tokens!r}")
        given = _checked(who, params)
        layers: dict[int, list[nn.Module]] = {id(param): [] for param in given}
        for module in model.modules():
            # A weight that a parametrisation computes is no parameter of the module's own.
            weight = module._parameters.get("weight")
            if weight is not None and id(weight) in layers and _is_known(module, weight.ndim):
                layers[id(weight)].append(module)
        self._tokens = tokens
        self._layers = {
            id(param): self._layers_of(param, layers[id(param)])
            for param in given
            if len({is_conv1d(module) for module in layers[id(param)]}) == 1
        }

    def _layers_of(self, param: nn.Parameter, modules: list[nn.Module]) -> Layers:
        raise NotImplementedError

    def covers(self, param: nn.Parameter) -> bool:
        """Whether the layers of this parameter are watched."""
        return id(param) in self._layers

    def turned(self, param: nn.Parameter) -> bool | None:
        """Whether a layer has its inputs along the rows, as a ``Conv1D``; None: not covered."""
        layers = self._layers.get(id(param))
        return None if layers is None else layers.turned

    def _attach(self) -> list[RemovableHandle]:
        return [each.attach(module) for each in self._layers.values() for module in each.modules]

    def moment(self, param: nn.Parameter) -> Tensor | None:
        """``[n, n]``, the mean over samples since the last :meth:`clear`; None without samples.

        A new symmetric tensor on the parameter's device, float64 for a float64 weight, else
        float32. Zero if no row was finite.
        """
        found = self.samples(param)
        return None if found is None else found.moment()

    def samples(self, param: nn.Parameter) -> Samples | None:
        """Those that :meth:`moment` is the mean of; the same for layers that read the same."""
        layers = self._layers.get(id(param))
        return None if layers is None or layers.seen.samples is None else layers.samples()

    def clear(self) -> None:
        """Forget all samples, and free their memory."""
        for each in self._layers.values():
            each.seen.clear()

    def reduce(self) -> None:
        """Gather from the ranks of the default process group, if there is one; all must call it.

        Ranks that never called a layer take part with no samples. Once before moments are read: a
        second time would count every sample once for each rank. Waits for the device.
        """
        reduce_all([each.seen for each in self._layers.values()])


def _checked(who: str, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    words = f"{who}: params must be an iterable of parameters, got"
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"{words} {type(params).__name__}")
    found = list(params)
    for param in found:
        if not isinstance(param, Tensor):
            raise TypeError(f"{words} one of {type(param).__name__}")
    return found


def _is_known(module: nn.Module, ndim: int) -> bool:
    """Whether this is a layer that is covered, whose weight is whole and no flat shard of it."""
    if isinstance(module, CONVOLUTIONS):
        whole = module.groups == 1 and ndim == len(module.kernel_size) + 2
        return whole and _keeps_forward(module, CONVOLUTIONS)
    if is_conv1d(module):
        return ndim == 2
    # The way out of nn.MultiheadAttention is a layer that is never called.
    linear = isinstance(module, nn.Linear) and not isinstance(module, NeverCalled)
    return linear and ndim == 2 and _keeps_forward(module, (nn.Linear,))


def _keeps_forward(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is called as one of these, and not as a derived class has it."""
    return any(type(module).forward is kind.forward for kind in kinds)
