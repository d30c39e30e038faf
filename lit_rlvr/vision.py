"""Images of a prompt as a vision-language model takes them: resized once, for trainer and engine alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.errors import UserError

_MARKERS = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
_PATCHES = {
    "patch_size": "patch_size",
    "spatial_merge_size": "merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Sizes of patches: their names in a vision tower's config -> in its image processor."""


@dataclass(frozen=True)
class Pixels:
    """A prompt's n images.

    Args:
        values: (N, D) float, the patches of all images one after the other.
        grid: (n, 3) long, each image's patches in time, height and width.
        images: the n resized RGB images themselves, for engines that cut patches on their own.
    """

    values: Tensor
    grid: Tensor
    images: tuple[Any, ...]


class ImageProcessor:
    """Resizes images and cuts them into patches as a model was trained with.

    Args:
        folder: a model folder or hub id.

    Raises:
        UserError: the model takes no images, or its image processor cuts other patches than it was built for.
    """

    def __init__(self, folder: str) -> None:
        from transformers import AutoConfig, AutoImageProcessor

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if not takes_images(config):
            raise UserError(f"model: {folder} takes no images, and the data has some; use a vision-language model")
        self._processor: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        _check_patches(folder, self._processor, config.vision_config)
        self._token = int(config.image_token_id)
        self._merge = int(self._processor.merge_size)
        self._unit = int(self._processor.patch_size) * self._merge
        self._min, self._max = self._processor.size["shortest_edge"], self._processor.size["longest_edge"]

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Patches in time, height and width of an image of this size, once resized.

        Raises:
            UserError: one side is more than 200 times the other.
        """
        from qwen_vl_utils.vision_process import smart_resize

        try:
            high, wide = smart_resize(height, width, self._unit, self._min, self._max)
        except ValueError as error:
            raise UserError(f"an image of {width} x {height} pixels: {error}") from error
        patch = self._unit // self._merge  # a long image's short side may have come out below one unit
        return 1, max(high, self._unit) // patch, max(wide, self._unit) // patch

    def pixels(self, images: Sequence[Any]) -> Pixels:
        """Resize PIL images and cut their patches."""
        from PIL import Image

        patch, resized = self._unit // self._merge, []
        for image in images:
            _, high, wide = self.grid(*image.size)
            resized.append(image.convert("RGB").resize((wide * patch, high * patch), Image.Resampling.BICUBIC))
        made = self._processor(images=resized, do_resize=False, return_tensors="pt")
        return Pixels(made["pixel_values"], made["image_grid_thw"], tuple(resized))

    def features(self, grid: Sequence[int]) -> int:
        """How many features, and so tokens, an image of so many patches has."""
        time, high, wide = grid
        return time * high * wide // self._merge**2

    def expand(self, token_ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> list[int]:
        """Repeat each image's placeholder as often as the image has features.

        Raises:
            UserError: there are more or fewer placeholders than images.
        """
        found = sum(token == self._token for token in token_ids)
        if found != len(grids):
            raise UserError(f"{found} image placeholders for {len(grids)} images")
        counts = iter(self.features(grid) for grid in grids)
        return [t for token in token_ids for t in [token] * (next(counts) if token == self._token else 1)]


def collapse(token_ids: Sequence[int], image_token: int) -> list[int]:
    """One placeholder per image again, for engines that expand them on their own.

    Two images always have other tokens between them.
    """
    before = [None, *token_ids[:-1]]
    return [t for t, last in zip(token_ids, before, strict=True) if t != image_token or last != image_token]


def _check_patches(folder: str, processor: Any, vision: Any) -> None:
    """Patches of another size would fail deep inside the model, or be taken for those of another image."""
    for name, other in _PATCHES.items():
        wanted, found = getattr(vision, name), getattr(processor, other, None)
        if wanted != found:
            raise UserError(
                f"model: the image processor of {folder} has {other} {found}, its vision_config {name} {wanted}; "
                "take preprocessor_config.json and config.json from the same model"
            )


def takes_images(config: Any) -> bool:
    """Whether a model's config is that of a vision-language model.

    Raises:
        UserError: of another kind than Qwen2-VL, Qwen2.5-VL and Qwen3-VL, which take an image as a sequence of
            patches of any length, with positions of three dimensions.
    """
    if not hasattr(config, "vision_config"):
        return False
    missing = [name for name in _MARKERS if not hasattr(config, name)]
    missing += [f"vision_config.{name}" for name in _PATCHES if not hasattr(config.vision_config, name)]
    if missing:
        raise UserError(
            f"model: {config.model_type} takes images in another way than Qwen2-VL, Qwen2.5-VL and Qwen3-VL (its "
            f"config has no {missing[0]}); use one of these"
        )
    return True


def vision_tower(model: Any) -> Any:
    """The part of a model that turns patches into features of the language model; None without one."""
    inner = model.base_model
    return next((getattr(inner, name) for name in ("visual", "vision_tower") if hasattr(inner, name)), None)


def freeze_vision_tower(model: Any) -> None:
    """Leave the vision tower out of training.

    Raises:
        UserError: there is none.
    """
    tower = vision_tower(model)
    if tower is None:
        raise UserError(f"model.freeze_vision: {type(model).__name__} has no vision tower; leave the option out")
    tower.requires_grad_(False)


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """The tokens that stand for images and videos or enclose them: a text never has them."""
    ids = [getattr(config, name, None) for name in (*_MARKERS, "video_token_id")]
    return tuple(int(i) for i in ids if i is not None)


def blank_image(config: Any) -> Pixels:
    """A made-up image of 2 x 3 features."""
    vision = config.vision_config
    merge, size = vision.spatial_merge_size, vision.temporal_patch_size * vision.in_channels * vision.patch_size**2
    count = 6 * merge**2
    return Pixels(
        torch.linspace(-1, 1, count * size).sin().view(count, size), torch.tensor([[1, 2 * merge, 3 * merge]]), ()
    )


def blank_placeholders(config: Any) -> list[int]:
    """The tokens that stand for `blank_image` in a prompt."""
    return [config.vision_start_token_id, *[config.image_token_id] * 6, config.vision_end_token_id]


def rope_places(model: Any, token_ids: Sequence[int], grid: Tensor | None) -> Tensor:
    """Positions (1, L) of a prompt's tokens, or (3, L) for a model with multimodal rotary embeddings."""
    plain = torch.arange(len(token_ids))[None]
    if not takes_images(model.config):
        return plain
    if grid is None:
        return plain.expand(3, -1)
    ids = torch.tensor([list(token_ids)])
    kinds = (ids == model.config.image_token_id).int()
    return model.model.get_rope_index(ids, kinds, image_grid_thw=grid)[0][:, 0]
