"""The published configs of the recipes' models, so that a plan needs neither the hub nor weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2_5_VLConfig, Qwen2Config

_1_5B: dict[str, Any] = dict(
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151936,
)
_3B: dict[str, Any] = dict(
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
_7B: dict[str, Any] = dict(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    tie_word_embeddings=False,
)
_LLAMA: dict[str, Any] = dict(
    intermediate_size=8192,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=True,
    max_position_embeddings=131072,
)

PUBLISHED: dict[str, PretrainedConfig] = {
    "Qwen/Qwen2.5-1.5B": Qwen2Config(**_1_5B, tie_word_embeddings=True, max_position_embeddings=131072),
    "Qwen/Qwen2.5-3B-Instruct": Qwen2Config(**_3B, max_position_embeddings=32768),
    "Qwen/Qwen2.5-7B": Qwen2Config(**_7B, max_position_embeddings=131072),
    "Qwen/Qwen2.5-32B": Qwen2Config(
        hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8,
        vocab_size=152064, tie_word_embeddings=False, max_position_embeddings=131072,
    ),
    "Qwen/Qwen2.5-Math-1.5B-Instruct": Qwen2Config(**_1_5B, tie_word_embeddings=True, max_position_embeddings=4096),
    "Qwen/Qwen2.5-Math-7B": Qwen2Config(**_7B, max_position_embeddings=4096),
    "Qwen/Qwen2.5-Coder-3B-Instruct": Qwen2Config(**_3B, max_position_embeddings=32768),
    "Qwen/Qwen2.5-VL-3B-Instruct": Qwen2_5_VLConfig(
        text_config=_3B,
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
        tie_word_embeddings=True,
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Qwen2Config(
        **_1_5B, tie_word_embeddings=False, max_position_embeddings=131072
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Qwen2Config(**_7B, max_position_embeddings=131072),
    "meta-llama/Llama-3.2-1B-Instruct": LlamaConfig(
        **_LLAMA, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64
    ),
    "meta-llama/Llama-3.2-3B-Instruct": LlamaConfig(
        **_LLAMA, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128
    ),
}  # fmt: skip
"""Hub id -> config; `docs/sizing.md` is made from some of them."""
for _config in PUBLISHED.values():
    _config.dtype = torch.bfloat16
