"""A Llama with a third of a million parameters: small enough to learn sums within a minute on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_rlvr.policy.tiny_vlm import CHAT_TEMPLATE, byte_tokenizer

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save_tiny_llm(folder: Path, seed: int = 0) -> Path:
    """Write a Hugging Face folder with random weights and a byte-level tokenizer, and return it.

    Args:
        folder: created if missing. seed: seeds the weights.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    end = SPECIALS.index("<|im_end|>")
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(SPECIALS) + 256, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.set_rng_state(state)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0)
    model.save_pretrained(folder)
    byte_tokenizer(SPECIALS, CHAT_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)
    return folder
