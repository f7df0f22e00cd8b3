"""p from data for the experts of language models."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from seen import curves_of

from schattor import AutoP, Schattor

MOE = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Mixtral": MOE,
    "GptOss": {**MOE, "head_dim": 8},
    "Llama4": {**MOE, "head_dim": 8, "interleave_moe_layer_step": 1, "pad_token_id": 0},
    "Dbrx": {
        "vocab_size": 32, "d_model": 32, "n_heads": 4, "n_layers": 1,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2,
        },
    },
    "JetMoe": {**MOE, "num_hidden_layers": 2, "kv_channels": 8},
}  # fmt: skip


def _trained(name: str, implementation: str | None) -> Schattor:
    """Two steps of a small model, with a choice at each."""
    config = getattr(transformers, "Llama4TextConfig" if name == "Llama4" else f"{name}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config(**MODELS[name]))
    if implementation is not None:
        model.set_experts_implementation(implementation)
    optimizer = Schattor(model, lr=1e-3, p=AutoP(warmup=0, interval=1))
    ids = torch.arange(96).view(3, 32).remainder(29)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", MODELS)
def test_models_of_experts(name: str) -> None:
    """Each block of every expert gets a p of its own."""
    optimizer = _trained(name, None)
    assert all(bool(curve.isfinite().all()) for curve in curves_of(optimizer))
    blocks = optimizer.p_history().items()
    chosen = [found[-1][1] for block, found in blocks if re.search("expert|mlp", block)]
    assert len(chosen) >= 8 and len(set(chosen)) > 3


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
def test_other_ways_choose_what_loops_choose(name: str, way: str) -> None:
    loops, others = (curves_of(_trained(name, each)) for each in ("eager", way))
    # Ways differ in rounding, threads in the order of sums, and the first step makes that larger.
    for one, other in zip(loops, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
