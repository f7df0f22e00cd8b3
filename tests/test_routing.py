"""The routing of whole models, against closed forms and against a walk over module types."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from sweep_architectures import build, judge  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from schattor.blocks import block_shapes  # noqa: E402
from schattor.routing import Routing, route  # noqa: E402

D, F, V, L, H, KV = 64, 176, 97, 2, 4, 2  # width, inner width, words, layers, heads, key heads
W = D // H
COMMON: dict[str, Any] = {
    "hidden_size": D, "intermediate_size": F, "vocab_size": V, "num_hidden_layers": L,
    "num_attention_heads": H, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**COMMON, "num_key_value_heads": KV}
ATTENTION = 4 * D * D
GROUPED_ATTENTION = 2 * D * D + 2 * D * KV * W


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=D, n_layer=L, n_head=H, vocab_size=V, bos_token_id=1, eos_token_id=2)
    )


def llama(tied: bool) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=tied))


def qwen3_moe() -> nn.Module:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **GROUPED, head_dim=W, num_experts=8, moe_intermediate_size=48, num_experts_per_tok=2
        )
    )


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(d_model=D, d_kv=W, d_ff=F, num_layers=L, num_heads=H, vocab_size=V)
    )


def resnet_50_matrices() -> int:
    """The stem and, in every bottleneck, 1x1, 3x3, 1x1; a 1x1 shortcut in the first of a stage."""
    total, inputs = 64 * 3 * 49, 64
    for outputs, depth in zip((256, 512, 1024, 2048), (3, 4, 6, 3), strict=True):
        inner = outputs // 4
        for index in range(depth):
            total += inner * inputs + 9 * inner * inner + outputs * inner
            total += outputs * inputs if index == 0 else 0
            inputs = outputs
    return total


NINE: dict[str, tuple[Callable[[], nn.Module], int, list[str]]] = {
    "gpt2": (gpt2, L * 12 * D * D, ["transformer.wpe"]),
    "llama": (
        lambda: llama(tied=False),
        L * (GROUPED_ATTENTION + 3 * D * F),
        [],
    ),
    "llama tied": (
        lambda: llama(tied=True),
        L * (GROUPED_ATTENTION + 3 * D * F),
        [],
    ),
    "phi3": (
        lambda: Phi3ForCausalLM(Phi3Config(**GROUPED)),
        L * (GROUPED_ATTENTION + 3 * D * F),
        [],
    ),
    "gpt-neox": (
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON)),
        L * (ATTENTION + 2 * D * F),
        [],
    ),
    "qwen3-moe": (
        qwen3_moe,
        L * (GROUPED_ATTENTION + 8 * 3 * D * 48),
        ["model.layers.0.mlp.gate"],
    ),
    "bert": (
        lambda: BertForMaskedLM(BertConfig(**{**COMMON, "bos_token_id": None})),
        L * (ATTENTION + 2 * D * F) + D * D,
        ["bert.embeddings.position_embeddings"],
    ),
    "vit": (
        lambda: ViTForImageClassification(
            ViTConfig(
                hidden_size=D,
                intermediate_size=F,
                num_hidden_layers=L,
                num_attention_heads=H,
                num_labels=10,
            )  # fmt: skip
        ),
        L * (ATTENTION + 2 * D * F),
        ["classifier", "vit.embeddings.patch_embeddings.projection", "vit.embeddings"],
    ),
    "t5": (
        t5,
        L * (ATTENTION + 2 * D * F) + L * (2 * ATTENTION + 2 * D * F),
        ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias"],
    ),
    "resnet-50": (
        lambda: ResNetForImageClassification(ResNetConfig()),
        resnet_50_matrices(),
        ["classifier.1"],
    ),
}


@pytest.mark.parametrize("name", NINE)
def test_all_hidden_matrices_and_nothing_else_on_the_matrix_rule(name: str) -> None:
    make, hidden, others = NINE[name]
    with torch.device("meta"):
        model = make()

    routing = route(model)
    modules = dict(model.named_modules())

    assert sum(e.param.numel() for e in routing if e.rule == "matrix") == hidden
    assert {e.rule for e in routing} == {"matrix", "adamw"}
    ends = [modules[module] for module in others]
    if name not in ("vit", "resnet-50"):
        ends += [model.get_input_embeddings(), model.get_output_embeddings()]
    off_matrix = {id(entry.param) for entry in routing if entry.rule == "adamw"}
    assert all(id(p) in off_matrix for end in ends for p in end.parameters(recurse=False))
    assert {id(e.param) for e in routing} == {id(p) for p in model.parameters()}


REPRESENTATIVE = """
    AlbertForMaskedLM ASTForAudioClassification BartForConditionalGeneration
    BeitForImageClassification BloomForCausalLM ClapModel CLIPModel ConvBertForMaskedLM
    ConvNextForImageClassification CsmForConditionalGeneration DebertaV2ForMaskedLM
    DeepseekV3ForCausalLM EfficientNetForImageClassification ElectraForMaskedLM
    FalconForCausalLM FNetForMaskedLM FunnelForMaskedLM Gemma3ForConditionalGeneration
    GptOssForCausalLM IBertForMaskedLM JambaForCausalLM JetMoeForCausalLM
    Llama4ForConditionalGeneration MambaForCausalLM Mask2FormerForUniversalSegmentation
    MixtralForCausalLM ModernBertDecoderForCausalLM MptForCausalLM PerceiverForMaskedLM
    Qwen3_5MoeTextModel RegNetForImageClassification RecurrentGemmaForCausalLM ReformerModel
    SegformerForImageClassification Siglip2Model SwinForImageClassification
    SwitchTransformersForConditionalGeneration Wav2Vec2ForCTC WhisperForConditionalGeneration
    XLNetLMHeadModel YolosForObjectDetection ZambaForCausalLM
""".split()


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_architectures_of_transformers(name: str) -> None:
    model = build(name)

    verdict = judge(model, route(model))

    assert verdict.wrong == []
    assert verdict.hidden > 0


def test_groups_have_matrices_first_and_name_all() -> None:
    with torch.device("meta"):
        model = gpt2()

    groups = route(model).groups()

    assert [group["rule"] for group in groups] == ["matrix", "matrix", "adamw"]
    assert [group["blocks"] for group in groups] == [
        {"out": 1}, {"cols": 3, "out": 1}, None,
    ]  # fmt: skip
    named = dict(model.named_parameters())
    for group in groups:
        assert [named[name] for name in group["param_names"]] == group["params"]
    assert sorted(name for group in groups for name in group["param_names"]) == sorted(named)


def test_the_largest_matrix_group_is_first() -> None:
    layers = {"qkv": nn.Linear(4, 12), "up": nn.Linear(4, 64), "down": nn.Linear(64, 4)}
    model = nn.ModuleDict(layers)

    groups = route(model).groups()

    assert groups[0]["param_names"] == ["up.weight", "down.weight"]
    assert groups[1]["param_names"] == ["qkv.weight"] and groups[1]["blocks"] == {"rows": 3}


def test_groups_go_to_a_torch_optimizer_and_its_state_dict_loads() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LSTM(8, 8), nn.Linear(8, 2))
    groups = route(model, rules={"2": {"lr": 0.5}}).groups()
    optimizer = torch.optim.SGD(groups, lr=0.1)
    file = io.BytesIO()

    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    optimizer.load_state_dict(state)

    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.1, 0.1, 0.1, 0.5]
    assert [group["rule"] for group in optimizer.param_groups][:2] == ["matrix", "matrix"]
    assert {"rows": 4} in [group["blocks"] for group in optimizer.param_groups]


def test_frozen_parameters_are_listed_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)

    routing = route(model)

    assert [entry.name for entry in routing] == ["1.weight", "1.bias"]
    assert [entry.name for entry in routing.frozen] == ["0.weight", "0.bias"]
    assert routing["0.weight"].rule == "frozen"
    assert all("0.weight" not in group["param_names"] for group in routing.groups())
    with pytest.raises(KeyError):
        routing["2.weight"]


@pytest.mark.parametrize("head_first", [True, False])
@pytest.mark.parametrize("share", ["module", "parameter", "memory"])
def test_ties_are_found_in_any_order(head_first: bool, share: str) -> None:
    embedding, linear = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
    layers = [("a", linear), ("b", nn.Linear(8, 8)), ("c", embedding)]
    model = nn.ModuleDict(layers if head_first else layers[::-1])
    if share == "parameter":
        linear.weight = embedding.weight
    elif share == "memory":
        linear.weight = nn.Parameter(embedding.weight.data)
    else:
        model["d"] = embedding

    routing = route(model)

    assert routing["b.weight"].rule == "matrix"
    tied = [entry for entry in routing if entry.name in ("a.weight", "c.weight")]
    if share != "module":
        assert all(entry.rule == "adamw" for entry in tied)
        assert all("tied to" in entry.reason for entry in tied)
    assert len(tied) == (1 if share == "parameter" else 2)


def test_wrappers_change_names_only() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 9))

    wrapped = route(nn.DataParallel(model))

    assert [e.rule for e in wrapped] == [e.rule for e in route(model)]
    assert wrapped["module.1.weight"].rule == "matrix"


def test_routing_is_deterministic() -> None:
    with torch.device("meta"):
        model = qwen3_moe()

    assert str(route(model)) == str(route(copy.deepcopy(model)))


def test_blocks_fit_every_matrix() -> None:
    with torch.device("meta"):
        routing: Routing = route(qwen3_moe())

    for entry in routing:
        if entry.rule == "matrix":
            shapes = block_shapes(entry.param.shape, entry.blocks)
            assert sum(rows * cols for rows, cols in shapes) == entry.param.numel()


def test_a_model_is_a_module() -> None:
    with pytest.raises(TypeError, match="route: model must be a torch.nn.Module, got list"):
        route([nn.Linear(2, 2)])  # type: ignore[arg-type]


def test_a_model_without_parameters() -> None:
    routing = route(nn.ReLU())

    assert len(routing) == 0 and routing.groups() == []
    assert "parameter" in str(routing)
