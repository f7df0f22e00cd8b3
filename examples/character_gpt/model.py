"""A small Llama made from a transformers configuration."""

from __future__ import annotations

import torch
from settings import Settings
from transformers import LlamaConfig, LlamaForCausalLM


def build_model(settings: Settings, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights: the same weights for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=settings.width,
            intermediate_size=8 * settings.width // 3 // 32 * 32,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.context,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )
