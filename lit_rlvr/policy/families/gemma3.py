"""Gemma 3: every image becomes a square of one size with the same number of features.

The features of an image attend to each other in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy.families.base import ImageProcessor, VisionFamily, made_up_pixels
from lit_rlvr.policy.tiny import LLM_SPECIALS, TINY_TOWER, byte_tokenizer, chat_template, save_random, tiny_sizes

MOST_NEWLINES = 31
"""The most newlines for which Gemma's tokenizer has one token."""


class SquareProcessor(ImageProcessor):
    """Resizes images to a square, and sets the tokens of each apart by blank lines, as the model's own processor."""

    def __init__(self, family: VisionFamily, folder: str, processor: Any, tokenizer: Any) -> None:
        super().__init__(family, folder, processor, tokenizer)
        side = family.config.vision_config.image_size
        size = (processor.size["height"], processor.size["width"])
        if size != (side, side):
            raise UserError(
                f"model: the image processor of {folder} makes images of {size[1]} x {size[0]} pixels, its "
                f"vision_config has image_size {side}; take its processor's files and config.json from the same model"
            )
        if processor.do_pan_and_scan:
            raise UserError(
                f"model: the image processor of {folder} has do_pan_and_scan, which adds parts of an image to it; not "
                "supported: set it to false"
            )
        runs = {}
        for count in range(1, MOST_NEWLINES + 1):
            runs[count] = self._encode("\n" * count)
        self._newlines = {ids[0]: count for count, ids in runs.items() if len(ids) == 1}

    def placeholders(self, width: int, height: int) -> tuple[int, ...]:
        return (*self._encode("\n\n"), *self.family.blank().placeholders[0], *self._encode("\n\n"))

    def cut(self, resized: Sequence[Any]) -> Pixels:
        values = self.processor(images=list(resized), return_tensors="pt")["pixel_values"]  # (n, 3, side, side)
        inputs = tuple({"pixel_values": image[None]} for image in values)
        return Pixels(inputs, (self.placeholders(0, 0),) * len(inputs), tuple(resized))

    def expand(self, token_ids: Sequence[int], placeholders: Sequence[Sequence[int]]) -> list[int]:
        """Replace each image's one placeholder with all of its placeholders.

        The tokenizer has tokens for several newlines, so those that meet are encoded together.
        """
        ids = super().expand(token_ids, placeholders)
        expanded: list[int] = []
        for is_newline, run in groupby(ids, key=self._newlines.__contains__):
            if is_newline:
                expanded += self._encode("\n" * sum(self._newlines[token] for token in run))
            else:
                expanded += run
        return expanded

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


ROLES = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
SPECIALS = (*LLM_SPECIALS, *ROLES.values())


def save_tiny_gemma3(
    folder: Path, seed: int = 0, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Path:
    """Write a Gemma 3 with random weights, a byte-level tokenizer and an image processor, and return its folder.

    Images become 84 x 84 pixels, which are 3 x 3 features.

    Args:
        folder: created if missing.
        seed: seeds the weights.
        text, vision: overrides for the language model's and the vision tower's config, by their names in it.
    """
    from transformers import AutoModelForImageTextToText, Gemma3Config, Gemma3ImageProcessor, Gemma3Processor

    language = tiny_sizes(SPECIALS) | {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
        **(text or {}),
    }
    tower = {**TINY_TOWER, "image_size": 84, "patch_size": 14, "vision_use_head": False, **(vision or {})}
    ids: dict[str, Any] = {}
    for role, token in ROLES.items():
        ids[f"{role}_index"] = SPECIALS.index(token)
    config = Gemma3Config(
        text_config=language,
        vision_config=tower,
        mm_tokens_per_image=9,
        **ids,
        initializer_range=language.get("initializer_range", 0.02),
    )
    save_random(AutoModelForImageTextToText, config, folder, seed, ["mm_input_projection_weight"])
    tokenizer = byte_tokenizer(SPECIALS, chat_template(ROLES["boi_token"]), "<|endoftext|>", ROLES)
    images = Gemma3ImageProcessor(size={"height": tower["image_size"], "width": tower["image_size"]})
    Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=9).save_pretrained(folder)
    return folder


class Gemma3(VisionFamily):
    """The models of Gemma 3 that take images. The features of an image attend to each other in both directions."""

    names = "Gemma 3"
    place_scale = 1024  # as PaliGemma's
    writes_y_first = True
    image_processor = SquareProcessor
    media_tokens = ("boi_token_id", "image_token_id", "eoi_token_id")
    token_types = "token_type_ids"
    tiny: ClassVar[dict[str, Callable[[Path], Path]]] = {"tiny-gemma3": save_tiny_gemma3}

    @classmethod
    def is_family(cls, config: Any) -> bool:
        return config.model_type == "gemma3"

    @property
    def prompt_token_id(self) -> int:
        return int(self.config.boi_token_id)

    def features(self, inputs: Mapping[str, Tensor]) -> int:
        return int(self.config.mm_tokens_per_image)

    def blank(self) -> Pixels:
        """Return a made-up image."""
        side = self.config.vision_config.image_size
        features = [self.image_token_id] * self.features({})
        values = made_up_pixels(side, side)
        tokens = (self.config.boi_token_id, *features, self.config.eoi_token_id)
        return Pixels(({"pixel_values": values},), (tokens,), ())

    @property
    def is_in_vllm(self) -> bool:
        return False

    @property
    def patches_per_feature(self) -> int:
        vision = self.config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 // self.config.mm_tokens_per_image)
