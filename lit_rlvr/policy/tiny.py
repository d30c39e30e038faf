"""Models small enough to learn within minutes on two cores: a Llama, and a Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


LLM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save_tiny_llm(folder: Path, seed: int = 0) -> Path:
    """Write a Hugging Face folder with random weights and a byte-level tokenizer, and return it.

    Args:
        folder: created if missing. seed: seeds the weights.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    end = LLM_SPECIALS.index("<|im_end|>")
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(LLM_SPECIALS) + 256, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.set_rng_state(state)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0)
    model.save_pretrained(folder)
    byte_tokenizer(LLM_SPECIALS, CHAT_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)
    return folder


VLM_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # Qwen's own, without its default system prompt


def save_tiny_vlm(
    folder: Path, seed: int = 0, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Path:
    """Write a Hugging Face folder with random weights, a byte-level tokenizer and an image processor, and return it.

    Args:
        folder: created if missing. seed: seeds the weights.
        text, vision: overrides for the language model's and the vision tower's config, by their names in it.
    """
    from transformers import Qwen2_5_VLConfig

    language = language_sizes(**(text or {}))
    encoder = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
        "out_hidden_size": language["hidden_size"], "patch_size": 14, "window_size": 56,
        "fullatt_block_indexes": [1], "spatial_merge_size": 2, **(vision or {}),
    }  # fmt: skip
    return save_vlm(Qwen2_5_VLConfig(text_config=language, vision_config=encoder, **markers()), folder, seed)


def language_sizes(**other: Any) -> dict[str, Any]:
    """Return the config of the tiny language model.

    Args:
        other: config entries that override or extend the defaults.
    """
    sizes: dict[str, Any] = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(VLM_SPECIALS) + 256, "max_position_embeddings": 2048,
        "bos_token_id": None, "eos_token_id": VLM_SPECIALS.index("<|im_end|>"), "pad_token_id": 0, **other,
    }  # fmt: skip
    sections = _sections(sizes["hidden_size"] // sizes["num_attention_heads"])
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    return {"rope_parameters": rope, **sizes}


def markers(tied: bool = True) -> dict[str, Any]:
    """Return the config entries of a vision-language model outside its two parts: image and video tokens, and whether
    the input and output embeddings are tied."""
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": VLM_SPECIALS.index(f"<|{token}|>") for name, token in names.items()}
    return {"tie_word_embeddings": tied, **ids}


def save_vlm(config: Any, folder: Path, seed: int = 0) -> Path:
    """Write a vision-language model of any config: random weights, tokenizer and image processor. Returns `folder`."""
    from transformers import AutoModelForImageTextToText, GenerationConfig, Qwen2VLImageProcessor

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    torch.set_rng_state(state)
    model.generation_config = GenerationConfig(eos_token_id=VLM_SPECIALS.index("<|im_end|>"), pad_token_id=0)
    model.save_pretrained(folder)
    byte_tokenizer(VLM_SPECIALS, CHAT_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)
    vision = config.vision_config
    Qwen2VLImageProcessor(patch_size=vision.patch_size, merge_size=vision.spatial_merge_size).save_pretrained(folder)
    return folder


def _sections(head: int) -> list[int]:
    """Return how many rotary frequencies time (a quarter), height and width (half the rest each) have."""
    first = head // 8
    second = (head // 2 - first) // 2
    return [first, second, head // 2 - first - second]


def byte_tokenizer(specials: Sequence[str], chat_template: str, pad: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, preceded by the special tokens; `<|im_end|>` ends a turn.

    Args:
        specials: special tokens, including `<|im_end|>` and `pad`.
        pad: the padding token.
    """
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=pad)
    fast.chat_template = chat_template
    return fast
