"""InternVL3 and InternVL3.5 in transformers' format: an image is cut into square tiles.

Each tile has the same number of features, and the whole image follows as one more tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy.families.base import ImageProcessor, VisionFamily, made_up_pixels
from lit_rlvr.policy.tiny import LLM_SPECIALS, TINY_TOWER, byte_tokenizer, chat_template, save_random, tiny_sizes


class CanvasProcessor(ImageProcessor):
    """Resizes images to the canvas of tiles that is closest in shape, as in the model's own training.

    Engines get the images as they are: the model's own image processor does the same to them again.
    """

    def __init__(self, family: VisionFamily, folder: str, processor: Any, tokenizer: Any) -> None:
        super().__init__(family, folder, processor, tokenizer)
        tile = (processor.size["height"], processor.size["width"])
        wanted = family.config.vision_config.image_size
        if tile != tuple(wanted):
            raise UserError(
                f"model: the image processor of {folder} has tiles of {tile[1]} x {tile[0]} pixels, its vision_config "
                f"image_size {[*wanted]}; take its processor's files and config.json from the same model"
            )

    def placeholders(self, width: int, height: int) -> tuple[int, ...]:
        return self._expanded(self.processor.get_number_of_image_patches(height, width, {"crop_to_patches": True}))

    def cut(self, resized: Sequence[Any]) -> Pixels:
        outputs = self.processor(images=list(resized), crop_to_patches=True, return_tensors="pt")
        counts = []
        for count in outputs["num_patches"]:
            counts.append(int(count))
        tiles = outputs["pixel_values"].split(counts)  # (n, 3, side, side) each
        inputs = tuple({"pixel_values": image} for image in tiles)
        return Pixels(inputs, tuple(map(self._expanded, counts)), tuple(resized))

    def _expanded(self, tiles: int) -> tuple[int, ...]:
        """Return the tokens of an image."""
        features = [self.family.image_token_id] * (tiles * _features(self.family.config))
        return (self.tokenizer.start_image_token_id, *features, self.tokenizer.end_image_token_id)


ROLES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIALS = (*LLM_SPECIALS, *ROLES.values())
DRAWN = ("position_embeddings", "q_norm.weight")
"""Weights that would start with zeros, all patches in one place, or with ones: such a model did not learn to count."""


def save_tiny_internvl(
    folder: Path,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    drawn: Sequence[str] = DRAWN,
) -> Path:
    """Write an InternVL3.5 with random weights, a byte-level tokenizer and an image processor, and return its folder.

    Tiles have 84 pixels and 3 x 3 features.

    Args:
        folder: created if missing.
        seed: seeds the weights.
        text, vision: overrides for the language model's and the vision tower's config, by their names in it.
        drawn: see `save_random`.
    """
    from transformers import (
        AutoModelForImageTextToText,
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    language = {"model_type": "qwen3", "head_dim": 32, **tiny_sizes(SPECIALS), **(text or {})}
    tower = {**TINY_TOWER, "image_size": 84, "patch_size": 14, "layer_scale_init_value": 1.0, **(vision or {})}
    image = SPECIALS.index(ROLES["context_image_token"])
    config = InternVLConfig(text_config=language, vision_config=tower, image_token_id=image)
    config.image_seq_length = _features(config)
    save_random(AutoModelForImageTextToText, config, folder, seed, drawn)
    template = chat_template(ROLES["context_image_token"])
    tokenizer = byte_tokenizer(SPECIALS, template, "<|endoftext|>", ROLES)
    size = {"height": tower["image_size"], "width": tower["image_size"]}
    processors = GotOcr2ImageProcessor(size=size), tokenizer, InternVLVideoProcessor(size=size)
    InternVLProcessor(*processors, image_seq_length=config.image_seq_length, chat_template=template).save_pretrained(
        folder
    )
    return folder


class InternVL(VisionFamily):
    """The models of the InternVL architecture of transformers."""

    names = "InternVL3, InternVL3.5 (-HF)"
    image_processor = CanvasProcessor
    tiny: ClassVar[dict[str, Callable[[Path], Path]]] = {"tiny-internvl3.5": save_tiny_internvl}

    @classmethod
    def is_family(cls, config: Any) -> bool:
        return config.model_type == "internvl"

    def features(self, inputs: Mapping[str, Tensor]) -> int:
        return len(inputs["pixel_values"]) * _features(self.config)

    def blank(self) -> Pixels:
        """Return a made-up image of one tile."""
        values = made_up_pixels(*self.config.vision_config.image_size)
        return Pixels(({"pixel_values": values},), ((self.image_token_id,) * _features(self.config),), ())

    @property
    def patches_per_feature(self) -> int:
        return round(self.config.downsample_ratio**-2)


def _features(config: Any) -> int:
    """Return how many features a tile has."""
    (high, wide), (patch_high, patch_wide) = config.vision_config.image_size, config.vision_config.patch_size
    return round((high // patch_high) * (wide // patch_wide) * config.downsample_ratio**2)
