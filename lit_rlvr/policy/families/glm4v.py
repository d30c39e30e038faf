"""GLM-4.1V: an image is a sequence of patches as in Qwen's models, with other sizes and other tokens around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from lit_rlvr.policy.families.base import ImageProcessor, Layers
from lit_rlvr.policy.families.qwen_vl import QwenImageProcessor, QwenVL, language_sizes
from lit_rlvr.policy.tiny import LLM_SPECIALS, byte_tokenizer, chat_template, save_random


class FramesProcessor(QwenImageProcessor):
    """Resizes images within bounds of pixels for all frames of a temporal patch, as in the model's own training."""

    video_placeholders = ImageProcessor.video_placeholders

    def resized(self, height: int, width: int) -> tuple[int, int]:
        from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

        frames = self.processor.temporal_patch_size
        return smart_resize(frames, height, width, frames, self._unit, self._min, self._max)


START = "<|begin_of_image|>"
STOP = "<|end_of_image|>"
IMAGE = "<|image|>"
SPECIALS = (*LLM_SPECIALS, START, STOP, IMAGE, "<|begin_of_video|>", "<|end_of_video|>", "<|video|>")


def save_tiny_glm4v(
    folder: Path, seed: int = 0, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Path:
    """Write a GLM-4.1V with random weights, a byte-level tokenizer and its processors, and return its folder.

    Args:
        folder: created if missing.
        seed: seeds the weights.
        text, vision: overrides for the language model's and the vision tower's config, by their names in it.
    """
    from transformers import (
        AutoModelForImageTextToText,
        Glm4vConfig,
        Glm4vImageProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    sizes = {"vocab_size": len(SPECIALS) + 256, "rope_parameters": rope, "attention_bias": True}  # for vLLM
    language = language_sizes(**sizes | (text or {}))
    encoder = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "image_size": 112,
        "out_hidden_size": language["hidden_size"],
        "patch_size": 14,
        **(vision or {}),
    }
    names = ("image_start", "image_end", "image", "video_start", "video_end", "video")
    ids: dict[str, Any] = {}
    for i, name in enumerate(names, len(LLM_SPECIALS)):
        ids[f"{name}_token_id"] = i
    config = Glm4vConfig(text_config=language, vision_config=encoder, tie_word_embeddings=True, **ids)
    save_random(AutoModelForImageTextToText, config, folder, seed)
    tokenizer = byte_tokenizer(SPECIALS, chat_template(START + IMAGE + STOP), "<|endoftext|>")
    bounds = {"patch_size": encoder["patch_size"], "size": {"shortest_edge": 3136, "longest_edge": 1003520}}
    images = Glm4vImageProcessor(**bounds)
    videos = Glm4vVideoProcessor(**bounds)
    Glm4vProcessor(images, tokenizer, videos, tokenizer.chat_template).save_pretrained(folder)
    return folder


class GLM4V(QwenVL):
    """The models of GLM-4.1V."""

    names = "GLM-4.1V"
    image_processor = FramesProcessor
    markers = ("image_start_token_id", "image_end_token_id")
    media_tokens = ("image_token_id", *markers, "video_token_id", "video_start_token_id", "video_end_token_id")
    tiny: ClassVar[dict[str, Callable[[Path], Path]]] = {"tiny-glm-4.1v": save_tiny_glm4v}

    @property
    def video_token_id(self) -> None:
        return None

    @property
    def tower_layers(self) -> Layers:
        return replace(super().tower_layers, inner=self.config.vision_config.out_hidden_size)
