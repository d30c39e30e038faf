"""Gemma 4: an image keeps its shape and is resized to at most a given number of features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy.families.base import ImageProcessor, VisionFamily
from lit_rlvr.policy.tiny import LLM_SPECIALS, TINY_TOWER, byte_tokenizer, chat_template, save_random, tiny_sizes


class PooledProcessor(ImageProcessor):
    """Cuts images into patches, of which a square becomes one feature. The model's own processor resizes them."""

    same_sizes: ClassVar[dict[str, str]] = {"patch_size": "patch_size", "pooling_kernel_size": "pooling_kernel_size"}

    def placeholders(self, width: int, height: int) -> tuple[int, ...]:
        from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

        patch = self.processor.patch_size
        pool = self.processor.pooling_kernel_size
        try:
            high, wide = get_aspect_ratio_preserving_size(
                height, width, patch, self.processor.max_soft_tokens * pool**2, pool
            )
        except ValueError as error:
            raise UserError(f"an image of {width} x {height} pixels: {error}") from error
        return self._enclosed(high * wide // (patch * pool) ** 2)

    def cut(self, resized: Sequence[Any]) -> Pixels:
        outputs = self.processor(images=list(resized), return_tensors="pt")
        pairs = zip(outputs["pixel_values"], outputs["image_position_ids"], strict=True)
        inputs = tuple({"pixel_values": values[None], "image_position_ids": at[None]} for values, at in pairs)
        return Pixels(inputs, tuple(self._enclosed(self.family.features(image)) for image in inputs), tuple(resized))

    def _enclosed(self, count: int) -> tuple[int, ...]:
        """Return the tokens of an image with as many features."""
        config = self.family.config
        return (config.boi_token_id, *[self.family.image_token_id] * count, config.eoi_token_id)


ROLES = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
SPECIALS = (*LLM_SPECIALS, *ROLES.values(), "<|video|>")
DRAWN = ("position_embedding_table", "q_norm.weight")
"""Weights that would start with ones: all patches in one place, and attention to one token alone."""


def save_tiny_gemma4(
    folder: Path,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
) -> Path:
    """Write a Gemma 4 with random weights, a byte-level tokenizer and its processors, and return its folder.

    Square images become 96 x 96 pixels, which are 8 x 8 features.

    Args:
        folder: created if missing.
        seed: seeds the weights.
        text, vision: overrides for the language model's and the vision tower's config, by their names in it.
        audio: the config of an audio tower; None = without one.
    """
    from transformers import (
        AutoModelForImageTextToText,
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    language = tiny_sizes(SPECIALS) | {
        "head_dim": 32,
        "global_head_dim": 64,
        "sliding_window": 512,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": len(SPECIALS) + 256,
        "layer_types": ["sliding_attention", "full_attention"],
        **(text or {}),
    }
    tower = {
        **TINY_TOWER,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "patch_size": 6,
        "pooling_kernel_size": 2,
        "position_embedding_size": 140,
        "default_output_length": 70,
        **(vision or {}),
    }
    ids: dict[str, Any] = {}
    for role, token in ROLES.items():
        if role != "eoa_token":
            ids[f"{role}_id"] = SPECIALS.index(token)
    ids |= {"eoa_token_index": SPECIALS.index("<audio|>"), "video_token_id": SPECIALS.index("<|video|>")}
    config = Gemma4Config(
        text_config=language,
        vision_config=tower,
        audio_config=audio,
        **ids,
        initializer_range=language.get("initializer_range", 0.02),
    )
    save_random(AutoModelForImageTextToText, config, folder, seed, DRAWN)
    tokenizer = byte_tokenizer(SPECIALS, chat_template(ROLES["image_token"]), "<|endoftext|>", ROLES)
    sizes = {"patch_size": tower["patch_size"], "pooling_kernel_size": tower["pooling_kernel_size"]}
    images = Gemma4ImageProcessor(max_soft_tokens=70, **sizes)
    videos = Gemma4VideoProcessor(**sizes)
    processors = Gemma4AudioFeatureExtractor(), images, tokenizer, videos
    Gemma4Processor(*processors, chat_template=tokenizer.chat_template, image_seq_length=70).save_pretrained(folder)
    return folder


class Gemma4(VisionFamily):
    """The models of Gemma 4 that take images. Those of some hear sounds, too, which are not supported.

    In some models the features of an image attend to each other in both directions.
    """

    names = "Gemma 4"
    place_scale = 1024  # as PaliGemma's
    writes_y_first = True
    image_processor = PooledProcessor
    media_tokens = (
        "image_token_id",
        "boi_token_id",
        "eoi_token_id",
        "video_token_id",
        "audio_token_id",
        "boa_token_id",
        "eoa_token_index",
    )
    token_types = "mm_token_type_ids"
    tiny: ClassVar[dict[str, Callable[[Path], Path]]] = {"tiny-gemma4": save_tiny_gemma4}

    @classmethod
    def is_family(cls, config: Any) -> bool:
        return config.model_type == "gemma4"

    def vision_modules(self, model: Any) -> list[nn.Module]:
        """Return the parts for images, and those for sounds if there are some."""
        return [model.base_model.vision_tower, model.base_model.embed_vision, *_audio_modules(model)]

    def prepare(self, model: Any) -> None:
        """Freeze the parts for sounds, which get no gradient."""
        for part in _audio_modules(model):
            part.requires_grad_(False)

    def features(self, inputs: Mapping[str, Tensor]) -> int:
        return int((inputs["image_position_ids"] >= 0).all(-1).sum()) // self.patches_per_feature

    def blank(self) -> Pixels:
        """Return a made-up image of 2 x 3 features."""
        vision = self.config.vision_config
        pool = self.config.vision_config.pooling_kernel_size
        at = torch.cartesian_prod(torch.arange(2 * pool), torch.arange(3 * pool)).flip(-1)[None]  # (1, n, 2), x and y
        values = torch.linspace(0, 1, at.shape[1] * 3 * vision.patch_size**2).mul(100).sin().view(1, at.shape[1], -1)
        tokens = (self.config.boi_token_id, *[self.image_token_id] * 6, self.config.eoi_token_id)
        return Pixels(({"pixel_values": values, "image_position_ids": at},), (tokens,), ())

    @property
    def is_in_vllm(self) -> bool:
        return self.config.text_config.use_bidirectional_attention is None

    @property
    def patches_per_feature(self) -> int:
        return int(self.config.vision_config.pooling_kernel_size) ** 2


def _audio_modules(model: Any) -> list[nn.Module]:
    modules = []
    for part in (model.base_model.audio_tower, model.base_model.embed_audio):
        if part is not None:
            modules.append(part)
    return modules
