"""Prepares a prompt's images for a vision-language model: resized once, for both trainer and engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.packages import require
from lit_rlvr.policy.loading import load_config, reading
from lit_rlvr.policy.vision import PATCHES, takes_images
from lit_rlvr.types import Pixels


class ImageProcessor:
    """Resizes images and cuts them into patches, as in the model's own training.

    Args:
        folder: a model folder or hub id.

    Raises:
        UserError: the model takes no images, or its image processor's patch sizes are not the model's.
    """

    def __init__(self, folder: str) -> None:
        from transformers import AutoImageProcessor

        config = load_config(folder)
        if not takes_images(config):
            raise UserError(f"model: {folder} takes no images, and the data has some; use a vision-language model")
        with reading("the image processor", folder):
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        _check_patches(folder, self._processor, config.vision_config)
        self._token = int(config.image_token_id)
        self._merge = int(self._processor.merge_size)
        self._unit = int(self._processor.patch_size) * self._merge
        self._min, self._max = self._processor.size["shortest_edge"], self._processor.size["longest_edge"]

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Return how many patches (time, height, width) an image of this size, in pixels, has after resizing.

        Raises:
            UserError: one side is more than 200 times as long as the other.
        """
        require("qwen_vl_utils", "images", "qwen-vl-utils", "torchvision")
        from qwen_vl_utils.vision_process import smart_resize

        try:
            high, wide = smart_resize(height, width, self._unit, self._min, self._max)
        except ValueError as error:
            raise UserError(f"an image of {width} x {height} pixels: {error}") from error
        patch = self._unit // self._merge  # a long image's short side can round to less than one unit
        return 1, max(high, self._unit) // patch, max(wide, self._unit) // patch

    def pixels(self, images: Sequence[Any]) -> Pixels:
        """Resize PIL images and cut their patches."""
        from PIL import Image

        patch, resized = self._unit // self._merge, []
        for image in images:
            _, high, wide = self.grid(*image.size)
            resized.append(image.convert("RGB").resize((wide * patch, high * patch), Image.Resampling.BICUBIC))
        return self.cut(resized)

    def cut(self, resized: Sequence[Any]) -> Pixels:
        """Cut the patches of images that are resized already."""
        made = self._processor(images=list(resized), do_resize=False, return_tensors="pt")
        return Pixels(made["pixel_values"], made["image_grid_thw"], tuple(resized))

    def features(self, grid: Sequence[int]) -> int:
        """Return how many features, and so tokens, an image has, given its `grid` of patches."""
        time, high, wide = grid
        return time * high * wide // self._merge**2

    def expand(self, token_ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> list[int]:
        """Repeat each image's placeholder once per feature of the image.

        Args:
            grids: each image's `grid`, in order.

        Raises:
            UserError: the numbers of placeholders and images differ.
        """
        found = sum(token == self._token for token in token_ids)
        if found != len(grids):
            raise UserError(f"{found} image placeholders for {len(grids)} images")
        counts = iter(self.features(grid) for grid in grids)
        return [t for token in token_ids for t in [token] * (next(counts) if token == self._token else 1)]


def collapse(token_ids: Sequence[int], image_token: int) -> list[int]:
    """Undo `expand`: one placeholder per image, for engines that expand them themselves.

    Two images always have other tokens between them.
    """
    before = [None, *token_ids[:-1]]
    return [t for t, last in zip(token_ids, before, strict=True) if t != image_token or last != image_token]


def _check_patches(folder: str, processor: Any, vision: Any) -> None:
    """Refuse patches of the wrong size: they would fail deep in the model or count as another image's."""
    for name, other in PATCHES.items():
        wanted, found = getattr(vision, name), getattr(processor, other, None)
        if wanted != found:
            raise UserError(
                f"model: the image processor of {folder} has {other} {found}, its vision_config {name} {wanted}; "
                "take preprocessor_config.json and config.json from the same model"
            )
