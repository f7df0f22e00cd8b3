from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from schattor.routing import route
from schattor.routing.roles import PRECEDENCE, Role, strongest


class Holder(nn.Module):
    """A module of a given class name that holds a parameter of a given name and shape."""

    def __new__(cls, class_name: str, name: str, *shape: int) -> Any:
        return super().__new__(type(class_name, (Holder,), {}))

    def __init__(self, class_name: str, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def test_strongest_does_not_depend_on_the_order() -> None:
    roles = [Role(kind, "") for kind in PRECEDENCE]

    for some in itertools.permutations(roles, 3):
        assert strongest(some).kind == min((r.kind for r in some), key=PRECEDENCE.index)
    assert [role.rule for role in roles] == ["adamw"] * 5 + ["matrix"]


@pytest.mark.parametrize(
    ("class_name", "name", "shape", "rule"),
    [
        ("Net", "weight", (8, 4), "matrix"),
        ("Net", "kernel", (8, 4, 3), "matrix"),
        ("Net", "W1", (8, 4), "matrix"),
        ("Net", "in_proj", (8, 4), "matrix"),
        ("Net", "scale", (8, 4), "adamw"),
        ("Net", "bias", (8, 4), "adamw"),
        ("Net", "pos_emb", (16, 4), "adamw"),
        ("Net", "pos_embed", (1, 16, 4), "adamw"),
        ("Net", "cls_token", (1, 1, 4), "adamw"),
        ("Net", "registers", (1, 3, 4), "adamw"),
        ("Net", "latents", (16, 4), "adamw"),
        ("Net", "relative_position_bias_table", (49, 3), "adamw"),
        ("Net", "weird", (5, 6, 7), "adamw"),
        ("Net", "weird", (1, 6, 7), "adamw"),
        ("Net", "weight", (8, 1), "adamw"),
        ("Net", "weight", (1, 8, 1), "adamw"),
        ("Net", "weight", (8,), "adamw"),
        ("Net", "weight", (), "adamw"),
        ("Net", "weight", (0, 4), "adamw"),
        ("MambaMixer", "A_log", (8, 4), "adamw"),
        ("MambaMixer", "D", (8, 4), "adamw"),
        ("FancyEmbedding", "weight", (8, 4), "adamw"),
        ("FancyRMSNorm", "weight", (8, 4), "adamw"),
        ("FancyExperts", "w1", (8, 4, 3), "matrix"),
        ("QuantLinear", "weight", (8, 4), "matrix"),
    ],
)
def test_raw_parameters(class_name: str, name: str, shape: tuple[int, ...], rule: str) -> None:
    entry = route(Holder(class_name, name, *shape))[name]

    assert entry.rule == rule
    assert entry.reason


def test_elementwise_weight_of_a_layer_norm_is_no_matrix() -> None:
    assert route(nn.LayerNorm((4, 6)))["weight"].rule == "adamw"


def test_single_rows_are_vectors() -> None:
    model = nn.ModuleList([nn.Linear(8, 1), nn.Conv2d(8, 1, 3), nn.Conv2d(8, 8, 1, groups=8)])

    assert {entry.rule for entry in route(model)} == {"adamw"}
    assert route(model)["0.weight"].reason == "vector"


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 16)
        self.up = nn.Linear(8, 16)


class Qwen3MoeGatedDeltaNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out_proj = nn.Linear(8, 8)


class TopKRouter(nn.Linear):
    pass


def test_routers_and_gates() -> None:
    model = nn.ModuleDict({
        "moe": Mixture(), "mlp": GatedMLP(), "delta": Qwen3MoeGatedDeltaNet(),
        "router": TopKRouter(8, 4),
    })  # fmt: skip

    routing = route(model)

    assert routing["moe.gate.weight"].rule == "adamw"
    assert "router" in routing["moe.gate.weight"].reason
    assert routing["router.weight"].rule == "adamw"
    assert routing["moe.experts.3.weight"].rule == "matrix"
    assert routing["mlp.gate.weight"].rule == "matrix"
    assert routing["delta.out_proj.weight"].rule == "matrix"


@pytest.mark.parametrize(
    ("name", "layer", "rule"),
    [
        ("patch_embed", nn.Conv2d(3, 8, 4, stride=4), "adamw"),
        ("stem", nn.Conv2d(3, 8, 4, stride=4), "adamw"),
        ("stem", nn.Conv2d(3, 8, 7, stride=2, padding=3), "matrix"),
        ("patch_embed", nn.Conv2d(3, 8, 7, stride=4), "adamw"),
        ("patch_embed", nn.Conv2d(16, 8, 3, stride=2), "matrix"),
        ("downsample", nn.Conv2d(16, 8, 2, stride=2), "matrix"),
        ("upsample", nn.ConvTranspose2d(3, 8, 2, stride=2), "matrix"),
        ("patch_embedding", nn.Linear(48, 8), "adamw"),
        ("patch_embedding_projection", nn.Linear(48, 8), "matrix"),
        ("pointwise", nn.Conv2d(3, 8, 1), "matrix"),
    ],
)
def test_patch_embeddings(name: str, layer: nn.Module, rule: str) -> None:
    model = nn.ModuleDict({name: layer, "next": nn.Linear(8, 8)})

    assert route(model)[f"{name}.weight"].rule == rule


class LoRA(nn.Module):
    """A layer with its adapter, as PEFT builds it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 24)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, 24, bias=False)})
        self.lora_embedding_A = nn.ParameterDict({"default": torch.zeros(4, 50)})
        self.base_layer.requires_grad_(False)


def test_adapters_are_matrices() -> None:
    model = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": LoRA()})})

    routing = route(model)

    assert routing["attn.qkv.lora_A.default.weight"].rule == "matrix"
    assert routing["attn.qkv.lora_B.default.weight"].rule == "matrix"
    assert routing["attn.qkv.lora_embedding_A.default"].rule == "adamw"
    assert len(routing) == 3
    model.requires_grad_(True)
    assert route(model)["attn.qkv.base_layer.weight"].blocks == {"rows": 3}


def zero_3() -> nn.Module:
    model = nn.Linear(4, 8)
    model.weight.data = torch.zeros(0)
    model.weight.ds_shape = torch.Size((8, 4))
    return model


def flat() -> nn.Module:
    model = nn.Module()
    model._flat_param = nn.Parameter(torch.zeros(32))
    model._flat_param._is_flat_param = True
    return model


def flat_in_place() -> nn.Module:
    model = nn.Linear(4, 8)
    model.weight = nn.Parameter(torch.zeros(16))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (zero_3, r"'weight' is a DeepSpeed ZeRO-3 partition of a weight \(8, 4\)"),
        (flat, "'_flat_param' is a flat shard of FSDP1"),
        (flat_in_place, r"'weight' is a flat shard of the weight of a Linear, got shape \(16,\)"),
        (lambda: nn.Embedding(4, 8, sparse=True), "'weight' gets sparse gradients"),
        (lambda: nn.EmbeddingBag(4, 8, sparse=True), "'weight' gets sparse gradients"),
        (lambda: nn.Linear(4, 8, dtype=torch.complex64), "'weight' must be real"),
    ],
    ids=["zero3", "flat", "flat in place", "sparse", "sparse bag", "complex"],
)
def test_what_no_rule_can_train_is_refused_by_name(make: Any, message: str) -> None:
    model = make()

    with pytest.raises(ValueError, match=f"route: parameter {message}"):
        route(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert len(route(model)) == 0


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="route: parameter 'weight' is not initialised yet"):
        route(nn.LazyLinear(8))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden = nn.Embedding(9, 4), nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.out = nn.Linear(5, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(self.words(x)))  # type: ignore[no-any-return]


TOKENS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("made_of", "kind"),
    [
        (torch.jit.script, "a scripted or traced"),
        (lambda model: torch.jit.trace(model, TOKENS), "a scripted or traced"),
        (lambda model: nn.ModuleDict({"part": torch.jit.script(model)}), "a scripted or traced"),
        (lambda model: torch.export.export(model, (TOKENS,)).module(), "an exported or traced"),
        (
            lambda model: torch.export.unflatten(torch.export.export(model, (TOKENS,))),
            "an exported",
        ),
    ],
    ids=["script", "trace", "a part", "export", "unflatten"],
)
def test_layers_that_lost_their_types_are_refused(made_of: Any, kind: str) -> None:
    model = Words()
    made = made_of(model)

    with pytest.raises(
        ValueError, match=rf"words\.weight' lies in {kind} module.*: build the optimizer"
    ):
        route(made)

    # The way that the message names.
    assert len(route(model)) == len([*made.parameters()])
    for param in made.parameters():
        param.requires_grad_(False)
    assert len(route(made)) == 0


def test_what_fx_traced_keeps_its_layers() -> None:
    model = Words()
    before = [(entry.name, entry.rule) for entry in route(model)]
    assert [(entry.name, entry.rule) for entry in route(torch.fx.symbolic_trace(model))] == before


def test_what_fx_inlined_is_refused() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), Raw()))
    with pytest.raises(ValueError, match=r"1\.weight' lies in an exported or traced module"):
        route(traced)
