"""A Llama small enough to learn within minutes on two cores, and what such models have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LLM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save_tiny_llm(folder: Path, seed: int = 0) -> Path:
    """Write a Hugging Face folder with random weights and a byte-level tokenizer, and return it.

    Args:
        folder: created if missing.
        seed: seeds the weights.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**tiny_sizes(LLM_SPECIALS), tie_word_embeddings=True)
    save_random(AutoModelForCausalLM, config, folder, seed)
    byte_tokenizer(LLM_SPECIALS, CHAT_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)
    return folder


def tiny_sizes(specials: Sequence[str]) -> dict[str, Any]:
    """Return the config of a tiny language model whose tokenizer is `byte_tokenizer(specials, ...)`."""
    return {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(specials) + 256, "max_position_embeddings": 2048,
        "bos_token_id": None, "eos_token_id": specials.index("<|im_end|>"), "pad_token_id": 0,
    }  # fmt: skip


TINY_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
"""The config of a tiny vision tower, by transformers' usual names."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # Qwen's own, without its default system prompt


def chat_template(image: str) -> str:
    """Return `CHAT_TEMPLATE` with another text for an image."""
    return CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image)


def save_random(kind: Any, config: Any, folder: Path, seed: int, drawn: Sequence[str] = ()) -> None:
    """Write the config, random weights and generation settings of a model that ends its turns with `<|im_end|>`.

    Args:
        kind: a class of transformers with `from_config`.
        config: of the model.
        folder: created if missing.
        seed: seeds the weights.
        drawn: ends of names of weights that the model starts with zeros or ones, and that are drawn as others are.
    """
    from transformers import GenerationConfig

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = kind.from_config(config)
    for name, weight in model.named_parameters():
        if name.endswith(tuple(drawn)):
            torch.nn.init.normal_(weight, std=config.get_text_config().initializer_range)
    torch.set_rng_state(state)
    model.generation_config = GenerationConfig(eos_token_id=LLM_SPECIALS.index("<|im_end|>"), pad_token_id=0)
    model.save_pretrained(folder)


def byte_tokenizer(
    specials: Sequence[str], chat_template: str, pad: str, roles: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, preceded by the special tokens; `<|im_end|>` ends a turn.

    Args:
        specials: special tokens, including `<|im_end|>` and `pad`.
        chat_template: in Jinja.
        pad: the padding token.
        roles: attribute of the tokenizer -> special token.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {}
    for i, token in enumerate([*specials, *alphabet]):
        vocabulary[token] = i
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=pad, extra_special_tokens=roles or {}
    )
    fast.chat_template = chat_template
    return fast
