"""SmolVLM, SmolVLM2 and Idefics3: an image is cut into square tiles.

Each tile has the same number of features, and the whole image follows as one more tile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_rlvr.common.packages import require
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy.families.base import ImageProcessor, VisionFamily, made_up_pixels
from lit_rlvr.policy.tiny import LLM_SPECIALS, TINY_TOWER, byte_tokenizer, chat_template, save_random, tiny_sizes


class TileProcessor(ImageProcessor):
    """Enlarges or reduces images to a fixed longer side and cuts them into tiles, as in the model's own training.

    Engines get the images as they are: the model's own image processor does the same to them again.
    """

    def __init__(self, family: VisionFamily, folder: str, processor: Any, tokenizer: Any) -> None:
        super().__init__(family, folder, processor, tokenizer)
        tile = processor.max_image_size["longest_edge"]
        longest = processor.size["longest_edge"]
        if tile != family.config.vision_config.image_size:
            raise UserError(
                f"model: the image processor of {folder} has tiles of {tile} pixels, its vision_config image_size "
                f"{family.config.vision_config.image_size}; take preprocessor_config.json and config.json from the "
                "same model"
            )
        if longest % tile:  # transformers would count other tiles than it cuts
            raise UserError(
                f"model: the image processor of {folder} has size {longest}, which is no multiple of its tiles "
                f"({tile} pixels); change preprocessor_config.json"
            )
        self._expanded = cache(self._expand)

    def placeholders(self, width: int, height: int) -> tuple[int, ...]:
        _, rows, columns = self.processor.get_number_of_image_patches(height, width)
        return self._expanded(rows, columns)

    def cut(self, resized: Sequence[Any]) -> Pixels:
        outputs = self.processor(images=[list(resized)], return_row_col_info=True, return_tensors="pt")
        shapes = list(zip(outputs["rows"][0], outputs["cols"][0], strict=True))
        sizes = []
        for rows, columns in shapes:
            sizes.append(rows * columns + 1)
        tiles = outputs["pixel_values"][0].split(sizes)  # (n, 3, side, side)
        placeholders = tuple(self._expanded(rows, columns) for rows, columns in shapes)
        return Pixels(tuple({"pixel_values": image} for image in tiles), placeholders, tuple(resized))

    def _expand(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the tokens of an image that is cut into rows and columns of tiles; 0 and 0 = it is one tile."""
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        count = _features(self.family.config)
        marks = ("<fake_token_around_image>", "<image>", "<global-img>")
        text = get_image_prompt_string(rows, columns, count, *marks)
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)


TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
SPECIALS = (*LLM_SPECIALS, "<fake_token_around_image>", "<image>", "<global-img>", *TILES)


def save_tiny_smolvlm(
    folder: Path, seed: int = 0, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Path:
    """Write a SmolVLM2 with random weights, a byte-level tokenizer and an image processor, and return its folder.

    Images become 84 pixels wide or high: square ones are 2 x 2 tiles and the whole, each of which is one feature.

    Args:
        folder: created if missing.
        seed: seeds the weights.
        text, vision: overrides for the language model's and the vision tower's config, by their names in it.
    """
    from transformers import SmolVLMConfig

    language = tiny_sizes(SPECIALS) | {"tie_word_embeddings": True} | (text or {})
    tower = {**TINY_TOWER, "image_size": 42, "patch_size": 14, **(vision or {})}
    config = SmolVLMConfig(
        text_config=language,
        vision_config=tower,
        scale_factor=3,
        image_token_id=SPECIALS.index("<image>"),
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return save_smolvlm(config, folder, seed)


def save_smolvlm(config: Any, folder: Path, seed: int = 0) -> Path:
    """Write a model of any config of the family: random weights, tokenizer and image processor. Returns `folder`."""
    from transformers import AutoModelForImageTextToText, SmolVLMImageProcessor, SmolVLMVideoProcessor

    save_random(AutoModelForImageTextToText, config, folder, seed)
    byte_tokenizer(SPECIALS, chat_template("<image>"), pad="<|endoftext|>").save_pretrained(folder)
    tile = config.vision_config.image_size
    sizes = {"size": {"longest_edge": 2 * tile}, "max_image_size": {"longest_edge": tile}}
    SmolVLMImageProcessor(**sizes).save_pretrained(folder)
    SmolVLMVideoProcessor(**sizes).save_pretrained(folder)
    processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": _features(config)}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


class SmolVLM(VisionFamily):
    """The models of the Idefics3 architecture."""

    names = "SmolVLM, SmolVLM2, Idefics3"
    image_processor = TileProcessor
    tiny: ClassVar[dict[str, Callable[[Path], Path]]] = {"tiny-smolvlm2": save_tiny_smolvlm}

    @classmethod
    def is_family(cls, config: Any) -> bool:
        return config.model_type in ("smolvlm", "idefics3")

    def vision_modules(self, model: Any) -> list[nn.Module]:
        return [model.base_model.vision_model, model.base_model.connector]

    def features(self, inputs: Mapping[str, Tensor]) -> int:
        return len(inputs["pixel_values"]) * _features(self.config)

    def model_inputs(self, pixels: Sequence[Pixels], device: torch.device) -> dict[str, Tensor]:
        return {
            name: tiles[None] for name, tiles in super().model_inputs(pixels, device).items()
        }  # (1, n, 3, side, side)

    def blank(self) -> Pixels:
        """Return a made-up image of one tile."""
        side = self.config.vision_config.image_size
        values = made_up_pixels(side, side)
        return Pixels(({"pixel_values": values},), ((self.image_token_id,) * _features(self.config),), ())

    def vllm_options(self) -> dict[str, Any]:
        if self.config.model_type == "smolvlm":  # transformers' processor, which vLLM calls, writes numbers as words
            require("num2words", "engine vllm with SmolVLM")
        return super().vllm_options()

    @property
    def patches_per_feature(self) -> int:
        return int(self.config.scale_factor) ** 2


def _features(config: Any) -> int:
    """Return how many features a tile has."""
    return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2 // config.scale_factor**2)
