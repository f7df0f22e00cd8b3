from __future__ import annotations

import copy
import functools
import gc
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import join, leave
from seen import truth
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.functional import jacobian
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import pad
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from schattor.adaptive.layers import LayerMoments
from schattor.adaptive.statistics import InputMoments, OutputMoments
from schattor.blocks import block_views


def recorded(model: nn.Module, *inputs: Tensor, **options: Any) -> InputMoments:
    """Moments of a model's parameters after a call on each input."""
    moments = InputMoments(model, model.parameters(), **options)
    moments.record(True)
    for x in inputs:
        model(x)
    moments.record(False)
    return moments


def conv1d(outputs: int, inputs: int) -> Any:
    from transformers.pytorch_utils import Conv1D  # here, for the quick start of a second process

    return Conv1D(outputs, inputs)


def close(moment: Tensor | None, expected: Tensor, tolerance: float = 1e-6) -> bool:
    assert moment is not None
    error = (moment.double() - expected).norm() / expected.norm()
    return moment.shape == expected.shape and float(error) < tolerance


# Linear maps.


@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 5, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = nn.Linear(6, 4, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)

    moment = recorded(model, x).moment(model.weight)

    assert close(moment, truth(x.view(-1, 6)), 1e-6 if dtype == torch.float32 else 1e-14)
    assert moment is not None and moment.dtype == dtype and torch.equal(moment, moment.mT)


def test_strided_inputs_stay_as_they_are() -> None:
    model = nn.Linear(6, 4)
    x = torch.randn(6, 5, 3).permute(2, 1, 0)
    x[0, 0, 0] = torch.nan
    before = x.clone()

    moments = recorded(model, x)

    assert bool(x[0, 0, 0].isnan().all())
    assert torch.equal(x.nan_to_num(0), before.nan_to_num(0))
    assert close(moments.moment(model.weight), truth(before.reshape(-1, 6)[1:]))


def test_conv1d_of_transformers() -> None:
    model = conv1d(4, 6)
    x = torch.randn(3, 5, 6)

    assert close(recorded(model, x).moment(model.weight), truth(x))


def test_inputs_by_keyword() -> None:
    model = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    moments = InputMoments(model, [model.weight])
    moments.record(True)

    model(input=x)

    assert close(moments.moment(model.weight), truth(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    model = nn.Linear(6, 4, dtype=dtype)
    x = torch.randn(300, 6).to(dtype)

    moment = recorded(model, x).moment(model.weight)

    assert moment is not None and moment.dtype == torch.float32
    assert close(moment, truth(x))


def test_autocast_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    seen: list[Tensor] = []
    model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(300, 6)

    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        moments = recorded(model, x)

    assert seen[0].dtype == torch.bfloat16
    assert close(moments.moment(model[0].weight), truth(x))
    assert close(moments.moment(model[1].weight), truth(seen[0]))


# Convolutions.

CONVOLUTIONS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv1d(3, 4, 3),
    lambda: nn.Conv1d(3, 4, 4, padding="same", dilation=3),
    lambda: nn.Conv2d(3, 4, 1),
    lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
    lambda: nn.Conv2d(3, 4, (2, 4), padding="same"),
    lambda: nn.Conv2d(3, 4, 3, padding="valid"),
    lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"),
    lambda: nn.Conv2d(3, 4, (3, 2), stride=3, padding=2, padding_mode="reflect"),
    lambda: nn.Conv3d(3, 4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 2)),
]


@pytest.mark.parametrize("index", range(len(CONVOLUTIONS)))
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batched", [True, False])
def test_patches_are_those_of_the_gradient(index: int, channels_last: bool, batched: bool) -> None:
    """By ``grad = R'X``: gradients for R of one entry are the patches, a row of X each."""
    model: Any = CONVOLUTIONS[index]().double()
    depth = len(model.kernel_size)
    if channels_last and depth > 1:
        last = torch.channels_last if depth == 2 else torch.channels_last_3d
        model.to(memory_format=last)
    x = torch.randn(*(2,) * batched, 3, *((9,), (5, 6), (3, 4, 2))[depth - 1], dtype=torch.float64)

    moment = recorded(model, x, tokens=None).moment(model.weight)

    out = model(x).unflatten(0, (-1, 4)) if not batched else model(x)
    patches = []
    for place in out[:, 0].flatten():
        (grad,) = torch.autograd.grad(place, model.weight, retain_graph=True)
        patches.append(block_views(torch.empty_like(model.weight).copy_(grad))[0][0])
    assert close(moment, truth(torch.stack(patches)), 1e-13)


def test_patches_by_hand() -> None:
    model = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2))
    x, weights = torch.randn(2, 3, 9, 8), torch.randn(2, 4, 6, 8)
    wide = pad(x, (1, 1, 2, 2))
    patches = torch.stack(
        [
            wide[:, :, 2 * row : 2 * row + 3, col : col + 3 : 2].flatten(1)
            for row in range(6)
            for col in range(8)
        ],
        1,
    )

    moment = recorded(model, x).moment(model.weight)
    (model(x) * weights).sum().backward()

    assert close(moment, truth(patches))
    assert model.weight.grad is not None
    by_hand = weights.flatten(2).movedim(1, 0).flatten(1) @ patches.flatten(0, 1)
    torch.testing.assert_close(model.weight.grad.flatten(1), by_hand, rtol=1e-4, atol=1e-4)


def test_columns_follow_the_memory_format_of_the_moment() -> None:
    model = nn.Conv2d(3, 4, 2)
    x = torch.randn(2, 3, 5, 5)
    moments = recorded(model, x)
    before = moments.moment(model.weight)

    model.to(memory_format=torch.channels_last)

    order = torch.arange(12).view(3, 2, 2).permute(1, 2, 0).flatten()
    assert before is not None
    assert torch.equal(moments.moment(model.weight), before[order][:, order])


def test_inputs_that_a_layer_refuses_are_left_out() -> None:
    """What is raised is the layer's own error."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Conv2d(3, 4, 3))
    moments = InputMoments(model, model.parameters())
    moments.record(True)
    for index, shape in [(0, (5, 7)), (1, (1, 3, 2, 2)), (1, (1, 2, 4, 4)), (1, (4, 4))]:
        with pytest.raises(RuntimeError, match=r"shapes cannot be|Kernel size|[Ee]xpected"):
            model[index](torch.randn(shape))

    assert all(moments.moment(param) is None for param in model.parameters())


# What is covered.


def test_what_is_covered() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))

    class Derived(nn.Linear):
        pass

    class Changed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.square())

    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(pad(x, (2, 2, 2, 2)))

    model = nn.ModuleDict({
        "linear": nn.Linear(4, 4), "conv": nn.Conv2d(4, 4, 3), "transformers": conv1d(4, 4),
        "embedding": nn.Embedding(4, 4), "grouped": nn.Conv2d(4, 4, 3, groups=2), "raw": Raw(),
        "transposed": nn.ConvTranspose1d(4, 4, 3), "bilinear": nn.Bilinear(4, 4, 4),
        "norm": nn.LayerNorm(4), "computed": parametrizations.weight_norm(nn.Linear(4, 4)),
        "flat": nn.Linear(4, 4), "unwanted": nn.Linear(4, 4), "derived": Derived(4, 4),
        "changed": Changed(4, 4), "padded": Padded(4, 4, 3),
    })  # fmt: skip
    model["flat"].weight = nn.Parameter(torch.zeros(16))
    params = dict(model.named_parameters())
    unwanted = params.pop("unwanted.weight")

    moments = InputMoments(model, params.values())

    covered = {name for name, param in params.items() if moments.covers(param)}
    assert covered == {f"{name}.weight" for name in ("linear", "conv", "transformers", "derived")}
    assert not moments.covers(unwanted) and not moments.covers(nn.Parameter(torch.zeros(4, 4)))
    assert moments.moment(unwanted) is None and moments.moment(params["linear.weight"]) is None


def test_tied_weights_sum_over_their_layers() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    x = torch.randn(5, 6)

    moment = recorded(model, x).moment(model[0].weight)

    assert close(moment, truth(x, model[1](model[0](x))))


def test_lookups_of_a_tied_weight_add_nothing() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9))
    model[1].weight = model[0].weight
    x = torch.arange(5)

    assert close(recorded(model, x).moment(model[0].weight), truth(model[0](x)))


def test_a_weight_read_by_both_sides_is_not_covered() -> None:
    model = nn.Sequential(nn.Linear(6, 6), conv1d(6, 6))
    model[1].weight = model[0].weight

    assert not InputMoments(model, model.parameters()).covers(model[0].weight)


def test_a_layer_used_twice() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(5, 6)

    assert close(recorded(model, x).moment(layer.weight), truth(x, layer(x).tanh()))


# Which calls count.


def test_micro_batches_add_up_by_samples_until_cleared() -> None:
    model = nn.Linear(6, 4)
    first, second = torch.randn(5, 6), torch.randn(2, 4, 6)

    moments = recorded(model, first, second)

    assert close(moments.moment(model.weight), truth(first, second))
    moments.clear()
    assert moments.moment(model.weight) is None
    moments.record(True)
    model(second)
    assert close(moments.moment(model.weight), truth(second))


def test_evaluation_stays_out() -> None:
    model = nn.Linear(6, 4)
    moments = InputMoments(model, model.parameters())
    moments.record(True)
    x = torch.randn(5, 6, requires_grad=True)

    with torch.no_grad():
        model(torch.randn(5, 6))
    with torch.inference_mode():
        model(torch.randn(5, 6))
    assert moments.moment(model.weight) is None
    model.eval()(x)

    moment = moments.moment(model.weight)
    assert close(moment, truth(x)) and moment is not None and not moment.requires_grad


def shapes_alone(model: nn.Module, x: Tensor) -> None:
    weights = {name: torch.empty_like(w, device="meta") for name, w in model.state_dict().items()}
    functional_call(model, weights, (torch.empty_like(x, device="meta"),))


def faked(model: nn.Module, x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))
        model(x)


def by_many(model: nn.Module, x: Tensor) -> None:
    call: Any = functools.partial(jacobian, model, vectorize=True)
    call(x, create_graph=True).sum().backward()


TRANSFORMED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "vmap": lambda model, x: torch.vmap(model)(x).sum().backward(),
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (x,)),
    "jacrev": lambda model, x: torch.func.jacrev(model)(x).sum().backward(),
    "hessian": lambda model, x: torch.func.hessian(lambda x: model(x).sum())(x),
    "meta": shapes_alone,
    "fake": faked,
    "trace": lambda model, x: torch.jit.trace(model, x),
    "export": lambda model, x: torch.export.export(model, (x,)),
    "export strictly": lambda model, x: torch.export.export(model, (x,), strict=True),
    "graph": lambda model, x: make_fx(model)(x),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
@pytest.mark.parametrize("way", TRANSFORMED)
@pytest.mark.parametrize("kind", [InputMoments, OutputMoments])
def test_transformed_and_traced_passes_stay_out(kind: type[LayerMoments], way: str) -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(20, 6)
    moments = kind(model, model.parameters())
    moments.record(True)
    TRANSFORMED[way](model, x)
    assert [moments.samples(param) for param in model.parameters()] == [None] * 4
    model(x).square().sum().backward()
    found = moments.moment(model[2].weight)
    assert found is not None and found.isfinite().all() and found.norm() > 0


def test_gradients_of_many_outputs_at_once_stay_out() -> None:
    """Nor do layers fail of which, where the loss is of derivatives, there is no gradient."""
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(4, 6)
    moments = OutputMoments(model, model.parameters())
    moments.record(True)
    by_many(model, x)
    assert [moments.samples(param) for param in model.parameters()] == [None] * 4


@pytest.mark.parametrize("kind", [InputMoments, OutputMoments])
def test_threads_add_up(kind: type[LayerMoments]) -> None:
    model, xs = nn.Linear(6, 4), torch.randn(40, 5, 6)
    moments = kind(model, model.parameters())
    moments.record(True)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda x: model(x).square().sum().backward(), xs))
    samples = moments.samples(model.weight)
    assert samples is not None and int(samples.number) == 200
    expected = xs if kind is InputMoments else 2 * model(xs)
    assert close(moments.moment(model.weight), truth(expected.flatten(0, 1)), 1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))
    moments = InputMoments(model, model.parameters())
    x = torch.randn(5, 6, requires_grad=True)
    plain = torch.autograd.grad(model(x).sum(), list(model.parameters()))

    moments.record(True)
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()

    assert close(moments.moment(model[0].weight), truth(x))
    assert close(moments.moment(model[2].weight), truth(model[0](x).tanh()))
    for param, grad in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(param.grad, grad)


def test_empty_calls_are_no_samples() -> None:
    model = nn.Linear(6, 4)
    x = torch.randn(5, 6)

    assert recorded(model, torch.randn(0, 6)).moment(model.weight) is None
    assert close(recorded(model, torch.randn(0, 6), x).moment(model.weight), truth(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_rows_that_are_not_finite_are_left_out(bad: float) -> None:
    model = nn.Linear(6, 4)
    x = torch.randn(2, 4, 6)
    sick = x.clone()
    sick[0, 1, 2] = bad

    rows = x.flatten(0, 1)
    assert close(recorded(model, sick).moment(model.weight), truth(rows[:1], rows[2:]))
    moment = recorded(model, torch.full((3, 6), bad)).moment(model.weight)
    assert moment is not None and torch.equal(moment, torch.zeros(6, 6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_device() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 4, 1)).cuda()
    x = torch.randn(64, 6, device="cuda")
    recorded(model, x, tokens=5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moment = recorded(model, x, tokens=5).moment(model[0].weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert moment is not None and moment.is_cuda


# Samples of a call.


def which(shape: tuple[int, ...], tokens: int) -> Tensor:
    """Flat indices of the samples that enter, read off one-hot inputs."""
    total = torch.Size(shape).numel()
    model = nn.Linear(total, 1)
    moment = recorded(model, torch.eye(total).view(*shape, total), tokens=tokens).moment(
        model.weight
    )
    assert moment is not None
    return moment.diag().nonzero().flatten()


@pytest.mark.parametrize(("shape", "tokens"), [((100,), 7), ((4, 25), 99), ((5, 4, 6), 13)])
def test_one_sample_of_each_stretch(shape: tuple[int, ...], tokens: int) -> None:
    total = torch.Size(shape).numel()

    found = which(shape, tokens)

    edges = torch.arange(tokens + 1) * total // tokens
    assert len(found) == tokens
    assert bool((edges[:-1] <= found).all() and (found < edges[1:]).all())
    assert torch.equal(found, which(shape, tokens))


def test_all_samples_where_there_are_no_more() -> None:
    assert len(which((4, 5), 20)) == 20


def test_samples_favour_no_position_of_a_sequence() -> None:
    places = which((64, 32), 256) % 32  # eight stretches a sequence

    assert int(torch.bincount(places, minlength=32).max()) <= 2 * 256 // 32


def test_samples_of_a_strided_input_and_of_patches() -> None:
    x = torch.randn(3, 8, 50).mT
    linear, conv = nn.Linear(8, 4), nn.Conv1d(8, 4, 1)

    moment = recorded(linear, x, tokens=16).moment(linear.weight)

    assert close(moment, truth(x.reshape(-1, 8)[which((3, 50), 16)]))
    assert close(recorded(conv, x.mT, tokens=16).moment(conv.weight), moment.double())


# Hooks and compiled code.


def test_no_hooks_unless_recording() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Conv1d(4, 4, 1))
    moments = InputMoments(model, model.parameters())

    def hooks() -> list[int]:
        return [len(module._forward_pre_hooks) for module in model]

    assert hooks() == [0, 0] and not moments.recording
    moments.record(True)
    moments.record(True)
    assert hooks() == [1, 1] and moments.recording
    moments.record(False)
    moments.record(False)
    assert hooks() == [0, 0] and not moments.recording
    model[0](torch.randn(5, 6))
    assert moments.moment(model[0].weight) is None


def test_an_object_that_goes_away_takes_its_hooks_along(compilations: list[str]) -> None:
    model = nn.Linear(6, 4)
    compiled = torch.compile(model, backend=counting(compilations))
    moments = InputMoments(model, model.parameters())
    moments.record(True)
    del moments
    gc.collect()

    assert not model._forward_pre_hooks
    compiled(torch.randn(5, 6))
    assert compilations == ["compiled", "ran"]


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def counting(log: list[str]) -> Callable[..., Any]:
    """A backend that logs what it compiles and runs."""

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        log.append("compiled")

        def run(*args: Any) -> Any:
            log.append("ran")
            return module(*args)

        return run

    return backend


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


@pytest.mark.parametrize("how", ["module", "in place", "function"])
def test_compiled_models(how: str, compilations: list[str]) -> None:
    model = Net()
    options: dict[str, Any] = {"backend": counting(compilations), "fullgraph": True}
    call: Any = model
    if how == "module":
        call = torch.compile(model, **options)
    elif how == "in place":
        model.compile(**options)
    else:
        call = torch.compile(lambda x: model(x), **options)
    given = call if how == "module" else model
    moments = InputMoments(given, model.parameters())
    x = torch.randn(5, 6)
    call(x)
    assert compilations == ["compiled", "ran"]

    moments.record(True)
    call(x).sum().backward()
    moments.record(False)
    assert compilations == ["compiled", "ran"]
    assert close(moments.moment(model.up.weight), truth(x))
    assert close(moments.moment(model.down.weight), truth(model.up(x).tanh()))

    moments.clear()
    call(x)
    assert compilations == ["compiled", "ran", "ran"]
    assert moments.moment(model.up.weight) is None


def test_recordings_that_overlap(compilations: list[str]) -> None:
    model = nn.Linear(6, 4)
    compiled = torch.compile(model, backend=counting(compilations))
    first, second = (InputMoments(model, model.parameters()) for _ in range(2))
    x = torch.randn(5, 6)

    first.record(True)
    second.record(True)
    first.record(False)
    compiled(x)
    assert compilations == [] and first.moment(model.weight) is None
    assert close(second.moment(model.weight), truth(x))
    second.record(False)
    compiled(x)
    assert compilations == ["compiled", "ran"]


def stance() -> str:
    """The compiler's, which setting it tells."""
    probe = torch.compiler.set_stance("default")
    probe.__exit__(None, None, None)
    return str(probe.prev.stance)


@pytest.mark.usefixtures("compilations")
def test_stances_of_others_stay_theirs() -> None:
    model = nn.Linear(6, 4)
    moments = InputMoments(model, model.parameters())
    moments.record(True)
    assert stance() == "force_eager"
    with torch.compiler.set_stance("eager_on_recompile"):  # begins while we record
        moments.record(False)
        assert stance() == "eager_on_recompile"
    assert stance() == "default"
    with torch.compiler.set_stance("eager_on_recompile"):  # ends while we record
        moments.record(True)
        assert stance() == "force_eager"
    assert stance() == "default"
    moments.record(False)
    assert stance() == "default"
    with torch.compiler.set_stance("eager_on_recompile"):  # around a recording
        moments.record(True)
        moments.record(False)
        assert stance() == "eager_on_recompile"
    assert stance() == "default"


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    found: nn.Module = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", [InputMoments, OutputMoments])
def test_copies_of_a_model_are_not_watched(
    kind: type[LayerMoments], copied: Callable[[nn.Module], nn.Module]
) -> None:
    model, x = nn.Linear(6, 4), torch.randn(5, 6)
    moments = kind(model, model.parameters())
    moments.record(True)
    before = copied(model)
    model(x).square().sum().backward()
    found = moments.moment(model.weight)
    for twin in (before, copied(model)):
        twin(torch.randn(5, 6)).sum().backward()
        assert [hook._call for hook in twin._forward_pre_hooks.values()] in ([], [None])
    assert close(moments.moment(model.weight), found)


# Ranks.


RANK_WIDTHS = (4, 6, 12, 20)  # of inputs: below, between and above the samples of both ranks


def rank_inputs(rank: int, width: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(rank)
    return torch.randn(5 + 3 * rank, width, generator=generator).bfloat16().float()


def run_rank(rank: int, folder: str) -> None:
    join(rank, folder)
    found = {}
    for width in RANK_WIDTHS:
        model = nn.ModuleList(nn.Linear(width, 4) for _ in range(4))
        moments = InputMoments(model, model.parameters())
        moments.record(True)
        x = rank_inputs(rank, width)
        model[0](x)
        model[3](x)  # the same tensor: one collection for both
        if rank == 1:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                model[1](rank_inputs(rank, width).bfloat16())
        moments.record(False)
        moments.reduce()
        seen = [moments.samples(layer.weight) for layer in model]
        numbers = [None if each is None else int(each.number) for each in seen]
        heights = [0 if each is None else each.height for each in seen]
        found[width] = [moments.moment(layer.weight) for layer in model], numbers, heights
    leave(rank, folder, found)


@pytest.mark.usefixtures("on_processor")
def test_ranks_have_the_same_moments(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)

    found = [torch.load(tmp_path / f"rank{rank}") for rank in range(2)]

    for width in RANK_WIDTHS:
        for rank in range(2):
            (both, one, none, same), numbers, heights = found[rank][width]
            assert numbers == [13, 8, None, 13]
            assert heights == [min(13, width), min(8, width), 0, min(13, width)]
            assert close(both, truth(rank_inputs(0, width), rank_inputs(1, width)))
            assert torch.equal(both, same)
            assert close(one, truth(rank_inputs(1, width)))
            assert none is None
        for ours, theirs in zip(found[0][width][0], found[1][width][0], strict=True):
            assert ours is theirs is None or torch.equal(ours, theirs)


def test_reducing_alone_changes_nothing() -> None:
    model = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    moments = recorded(model, x)
    moments.reduce()

    assert close(moments.moment(model.weight), truth(x))


# Arguments.


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: InputMoments("m", []), TypeError, "model must be an nn.Module, got str"),
        (lambda m: InputMoments(m, m.weight), TypeError, "params must be an iterable .* Parameter"),
        (lambda m: InputMoments(m, 3), TypeError, "params must be an iterable .* got int"),
        (lambda m: InputMoments(m, m.named_parameters()), TypeError, "got one of tuple"),
        (
            lambda m: InputMoments(m, [], tokens=0),
            ValueError,
            "tokens must be an int >= 1 .* got 0",
        ),
        (lambda m: InputMoments(m, [], tokens=1.5), ValueError, "tokens must .* got 1.5"),
        (lambda m: InputMoments(m, [], tokens=True), ValueError, "tokens must .* got True"),
        (lambda m: InputMoments(m, []).record(1), TypeError, "record: on must be a bool, got 1"),
    ],
)
def test_arguments(make: Callable[[nn.Linear], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"^InputMoments\S* .*{words}|^InputMoments.{words}"):
        make(nn.Linear(6, 4))
