"""What the blocks of fused weights are, judged by what zeroing one of them does to the layer."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import transformers  # noqa: E402

from schattor.blocks import block_shapes, block_views, fans  # noqa: E402
from schattor.routing import Entry, route  # noqa: E402

D, F, V, H, KV = 32, 48, 61, 4, 2
W = D // H
LLAMA: dict[str, Any] = {
    "hidden_size": D, "intermediate_size": F, "num_hidden_layers": 1, "num_attention_heads": H,
    "vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT: dict[str, Any] = {
    "n_embd": D, "n_layer": 1, "n_head": H, "vocab_size": V, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make(name: str, **config: Any) -> nn.Module:
    model_class = getattr(transformers, name)
    model: nn.Module = model_class(model_class.config_class(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 and not name.endswith("bias"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, 0.3)
    return model


def output_of(model: nn.Module, module: nn.Module) -> Tensor:
    """What a module inside gives for fixed words: [batch, words, features]."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple | list) else output)

    handle = module.register_forward_hook(keep)
    words = torch.arange(3, 11)[None]
    with torch.no_grad():
        model(input_ids=words, use_cache=False)
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def without(model: nn.Module, entry: Entry, block: int, module: nn.Module) -> Tensor:
    """The module's output while one block of a parameter is zero; interleaved per matrix."""
    views = block_views(entry.param, entry.blocks)
    matrices = len(views) // (2 if len(views) % 3 else 3)
    parts = len(views) // matrices
    before = entry.param.detach().clone()
    with torch.no_grad():
        for view in views[block::parts]:
            view.zero_()
        output = output_of(model, module)
        entry.param.copy_(before)
    return output


ATTENTION = {
    "GPT2LMHeadModel": (GPT, "c_attn", [(D, D)] * 3),
    "OpenAIGPTLMHeadModel": (GPT, "c_attn", [(D, D)] * 3),
    "Phi3ForCausalLM": (
        {**LLAMA, "num_key_value_heads": KV}, "qkv_proj", [(D, D), (KV * W, D), (KV * W, D)],
    ),
    "GPTBigCodeForCausalLM": (GPT, "c_attn", [(D, D), (W, D), (W, D)]),
    "MptForCausalLM": (
        {"d_model": D, "n_layers": 1, "n_heads": H, "vocab_size": V, "expansion_ratio": 2},
        "Wqkv", [(D, D)] * 3,
    ),
    "FalconForCausalLM": (
        {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": H, "vocab_size": V},
        "query_key_value", [(D, D), (W, D), (W, D)],
    ),
    "DbrxForCausalLM": (
        {
            "d_model": D, "n_heads": H, "n_layers": 1, "vocab_size": V, "max_seq_len": 32,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "attn_config": {"kv_n_heads": KV, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {
                "hidden_size": D, "ffn_hidden_size": F, "moe_num_experts": 4, "moe_top_k": 2,
            },
        },
        "Wqkv", [(D, D), (KV * W, D), (KV * W, D)],
    ),
    "ModernBertForMaskedLM": (
        {**LLAMA, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 1},
        "Wqkv", [(D, D)] * 3,
    ),
}  # fmt: skip


def fused_entry(model: nn.Module, layer: str) -> tuple[Entry, nn.Module]:
    (entry,) = (e for e in route(model) if f".{layer}." in e.name and e.rule == "matrix")
    return entry, model.get_submodule(entry.name.rpartition(f".{layer}.")[0])


@pytest.mark.parametrize("name", ATTENTION)
def test_blocks_of_fused_attention_are_query_key_value(name: str) -> None:
    config, layer, shapes = ATTENTION[name]
    model = make(name, **config)
    entry, attention = fused_entry(model, layer)

    found = block_shapes(entry.param.shape, entry.blocks)
    query, key, value = (without(model, entry, i, attention) for i in range(3))

    assert [fans(shape, entry.blocks) for shape in found] == shapes
    assert value.abs().max() == 0, "without values, attention gives nothing"
    assert torch.allclose(query, key, atol=1e-5), "without queries or keys, attention is uniform"
    assert query.abs().max() > 0
    assert not torch.allclose(query, output_of(model, attention), atol=1e-5)


INTERLEAVED = {
    "GPTNeoXForCausalLM": (LLAMA, "query_key_value"),
    "BloomForCausalLM": ({**GPT, "hidden_size": D}, "query_key_value"),
    "PersimmonForCausalLM": (LLAMA, "query_key_value"),
    "CodeGenForCausalLM": ({**GPT, "rotary_dim": 4}, "qkv_proj"),
    "GPTBigCodeForCausalLM": ({**GPT, "multi_query": False}, "c_attn"),
}


@pytest.mark.parametrize("name", INTERLEAVED)
def test_attention_stored_head_by_head_is_left_whole(name: str) -> None:
    config, layer = INTERLEAVED[name]
    model = make(name, **config)
    entry, attention = fused_entry(model, layer)

    thirds = Entry(entry.name, entry.param, "matrix", {"rows": 3}, "")

    assert entry.blocks is None and "left whole" in entry.reason
    assert all(without(model, thirds, i, attention).abs().max() > 0 for i in range(3))


MOE = {**LLAMA, "num_key_value_heads": KV, "num_experts_per_tok": 2}
GATED = {
    "Phi3ForCausalLM": ({**LLAMA, "num_key_value_heads": KV}, "mlp", (F, D), True),
    "GlmForCausalLM": ({**LLAMA, "num_key_value_heads": KV, "head_dim": W}, "mlp", (F, D), True),
    "ModernBertForMaskedLM": (ATTENTION["ModernBertForMaskedLM"][0], "mlp", (F, D), True),
    "Qwen3MoeForCausalLM": (
        {**MOE, "num_experts": 4, "moe_intermediate_size": F, "head_dim": W},
        "mlp.experts", (F, D), True,
    ),
    "MixtralForCausalLM": ({**MOE, "num_local_experts": 4}, "mlp.experts", (F, D), True),
    "GptOssForCausalLM": (
        {**MOE, "num_local_experts": 4, "head_dim": W}, "mlp.experts", (F, D), False,
    ),
    "Llama4ForCausalLM": (
        {**MOE, "num_local_experts": 4, "head_dim": W, "interleave_moe_layer_step": 1},
        "feed_forward.experts", (F, D), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GATED)
def test_blocks_of_fused_gates(name: str) -> None:
    config, place, shape, up_multiplies = GATED[name]
    model = make(name, **config)
    (entry,) = (e for e in route(model) if e.blocks and ("gate_up" in e.name or ".Wi." in e.name))
    (layer,) = (m for n, m in model.named_modules() if n.endswith(place))

    found = block_shapes(entry.param.shape, entry.blocks)
    gate, up = (without(model, entry, i, layer) for i in range(2))

    assert {fans(block, entry.blocks) for block in found} == {shape}
    assert output_of(model, layer).abs().max() > 0
    assert gate.abs().max() == 0
    assert (up.abs().max() == 0) == up_multiplies


@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM"])
def test_fans_of_the_way_down_in_experts(name: str) -> None:
    config = GATED[name][0]
    (entry,) = (e for e in route(make(name, **config)) if e.name.endswith("experts.down_proj"))

    shapes = block_shapes(entry.param.shape, entry.blocks)

    assert [fans(shape, entry.blocks) for shape in shapes] == [(D, F)] * 4


def test_experts_stacked_in_rows() -> None:
    routing = route(make("DbrxForCausalLM", **ATTENTION["DbrxForCausalLM"][0]))
    entries = [e for e in routing if ".experts." in e.name]

    for entry in entries:
        shapes = block_shapes(entry.param.shape, entry.blocks)
        expected = (D, F) if entry.name.endswith("w2") else (F, D)
        assert [fans(shape, entry.blocks) for shape in shapes] == [expected] * 4
    assert len(entries) == 3


def blocks_of(module: nn.Module, name: str = "weight", **options: Any) -> list[tuple[int, int]]:
    entry = route(module, **options)[name]
    assert entry.rule == "matrix"
    return [fans(s, entry.blocks) for s in block_shapes(entry.param.shape, entry.blocks)]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 5), [(5, 3)]),
        (nn.Conv1d(6, 8, 3), [(8, 18)]),
        (nn.Conv2d(6, 8, 3, groups=2), [(4, 27)] * 2),
        (nn.Conv2d(8, 8, 3, groups=8), [(8, 9)]),
        (nn.Conv2d(8, 16, 3, groups=8), [(16, 9)]),
        (nn.Conv2d(16, 8, 3, groups=8), [(8, 18)]),
        (nn.Conv3d(6, 8, (1, 2, 3)), [(8, 36)]),
        (nn.ConvTranspose2d(6, 8, 3), [(72, 6)]),
        (nn.ConvTranspose2d(6, 8, 3, groups=2), [(36, 3)] * 2),
        (nn.Bilinear(3, 4, 5), [(3, 4)] * 5),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 8, 3, groups=2)), [(4, 27)] * 2),
    ],
    ids=repr,
)
def test_layers(module: nn.Module, expected: list[tuple[int, int]]) -> None:
    name = max(dict(module.named_parameters()), key=lambda n: module.get_parameter(n).numel())

    assert blocks_of(module, name) == expected


def test_attention_of_torch() -> None:
    assert blocks_of(nn.MultiheadAttention(8, 2), "in_proj_weight") == [(8, 8)] * 3
    assert blocks_of(nn.MultiheadAttention(8, 2), "out_proj.weight") == [(8, 8)]
    unequal = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert blocks_of(unequal, "k_proj_weight") == [(8, 6)]


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_split_into_gates(kind: str, gates: int) -> None:
    layer = getattr(nn, kind)(6, 8, bidirectional=True)
    cell = getattr(nn, f"{kind}Cell")(6, 8)

    assert blocks_of(layer, "weight_ih_l0_reverse") == [(8, 6)] * gates
    assert blocks_of(layer, "weight_hh_l0") == [(8, 8)] * gates
    assert blocks_of(cell, "weight_ih") == [(8, 6)] * gates
    assert blocks_of(nn.LSTM(6, 8, proj_size=5), "weight_hr_l0") == [(5, 8)]


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0"])
def test_nothing_is_split_when_told_so(name: str) -> None:
    shape = nn.LSTM(8, 8).get_parameter(name).shape

    assert blocks_of(nn.LSTM(8, 8), name, split_fused=False) == [tuple(shape)]


def test_split_fused_leaves_orientation_and_experts() -> None:
    gpt2 = make("GPT2LMHeadModel", **GPT)
    moe = make("GptOssForCausalLM", **GATED["GptOssForCausalLM"][0])

    whole = route(gpt2, split_fused=False)["transformer.h.0.attn.c_attn.weight"]
    experts = route(moe, split_fused=False)["model.layers.0.mlp.experts.gate_up_proj"]

    assert whole.blocks == {"out": 1}
    assert experts.blocks == {"batch": 1, "out": 1}


class Attention(nn.Module):
    """Attention as people write it, with a fused layer of a given name and width."""

    def __init__(self, name: str, outputs: int, **facts: Any) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(16, outputs))
        for key, value in facts.items():
            setattr(self, key, value)


@pytest.mark.parametrize(
    ("name", "outputs", "facts", "blocks"),
    [
        ("qkv", 48, {}, {"rows": 3}),
        ("c_attn", 48, {"n_head": 4}, {"rows": 3}),
        ("c_attn", 32, {}, {"rows": 2}),
        ("Wqkv", 32, {"num_heads": 4, "num_kv_heads": 2}, {"rows": (16, 8, 8)}),
        ("Wqkv", 40, {"num_heads": 4, "num_kv_heads": 2}, None),
        ("to_qkv", 96, {"num_heads": 4}, {"rows": 3}),
        ("qkv", 45, {}, None),
        ("qkv", 48, {"head_first": True}, None),
        ("query_key_value", 48, {}, None),
        ("gate_up_proj", 64, {}, {"rows": 2}),
        ("up_proj", 64, {}, None),
    ],
)
def test_fused_layers_of_unknown_classes(
    name: str, outputs: int, facts: dict[str, Any], blocks: Any
) -> None:
    assert route(Attention(name, outputs, **facts))[f"{name}.weight"].blocks == blocks


class Experts(nn.Module):
    def __init__(self, up: tuple[int, int], down: tuple[int, int]) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, *up))
        self.down_proj = nn.Parameter(torch.randn(4, *down))


@pytest.mark.parametrize("inner", [8, 16, 32])
def test_experts_tell_their_orientation_by_their_shapes(inner: int) -> None:
    normal = route(Experts((2 * inner, 16), (16, inner)))
    transposed = route(Experts((16, 2 * inner), (inner, 16)))

    assert normal["gate_up_proj"].blocks == {"batch": 1, "rows": 2}
    assert normal["down_proj"].blocks == {"batch": 1}
    assert transposed["gate_up_proj"].blocks == {"batch": 1, "cols": 2, "out": 1}
    assert transposed["down_proj"].blocks == {"batch": 1, "out": 1}
