"""The image-related parts of a vision-language model: its tower and attention, placeholders, positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, vision_utils
from transformers.utils.generic import get_max_seqlen

from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.errors import UserError
from lit_rlvr.policy.spans import Spans, attend, available, kernel_dtype
from lit_rlvr.types import Pixels

VISION_ATTENTION = "vision_flash"


def vision_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, cu_seq_lens_q: Tensor, max_length_q: int, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute full attention within each piece of a row of T patches.

    Args:
        query, key, value: (1, heads, T, D).
        cu_seq_lens_q: (N + 1,) int, the ends of the pieces, from 0.
        max_length_q: patches of the longest piece.

    Returns:
        (1, T, heads, D), and None for the scores.
    """
    dtype = kernel_dtype(value)
    q, k, v = (x[0].to(dtype) for x in (query, key, value))  # (heads, T, D)
    if q.is_cuda and available(q.device, dtype):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        out = attend(q, k, v, Spans.alone(cu_seq_lens_q, max_length_q), scaling)
    else:
        out = _by_length(q, k, v, (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist(), scaling)
    return out.to(value.dtype)[None], None


def _by_length(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scaling: float) -> Tensor:
    """Attend with one call for all pieces of each length, since most windows of an image are equally large."""
    starts: defaultdict[int, list[int]] = defaultdict(list)
    end = 0
    for length in lengths:
        starts[length].append(end)
        end += length
    position_ids, blocks = [], []
    for length, firsts in starts.items():
        place = to_device(torch.tensor(firsts)[:, None] + torch.arange(length), q.device)  # (n, L)
        position_ids.append(place.flatten())
        parts = [x.index_select(1, position_ids[-1]).unflatten(1, place.shape).transpose(0, 1) for x in (q, k, v)]
        with torch.autocast(q.device.type, enabled=False):
            out = scaled_dot_product_attention(parts[0], parts[1], parts[2], scale=scaling)  # (n, heads, L, D)
        blocks.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(blocks).index_select(0, torch.cat(position_ids).argsort())


AttentionInterface.register(VISION_ATTENTION, vision_attention)


_MARKERS = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
PATCHES = {
    "patch_size": "patch_size",
    "spatial_merge_size": "merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Patch sizes: name in the vision tower's config -> name in the image processor."""


def takes_images(config: Any) -> bool:
    """Return whether a config is that of a vision-language model.

    Raises:
        UserError: the model does not take images as Qwen2-VL, Qwen2.5-VL and Qwen3-VL do: as a sequence of patches of
            any length, with three-dimensional positions.
    """
    if not hasattr(config, "vision_config"):
        return False
    missing = [name for name in _MARKERS if not hasattr(config, name)]
    missing += [f"vision_config.{name}" for name in PATCHES if not hasattr(config.vision_config, name)]
    if missing:
        raise UserError(
            f"model: {config.model_type} does not take images as Qwen2-VL, Qwen2.5-VL and Qwen3-VL do (its "
            f"config has no {missing[0]}); use one of these"
        )
    return True


def vision_tower(model: Any) -> Any:
    """Return the part of a model that turns patches into features for the language model; None if it has none."""
    inner = model.base_model
    return next((getattr(inner, name) for name in ("visual", "vision_tower") if hasattr(inner, name)), None)


def derive_sizes_on_cpu(model: Any) -> None:
    """Let a model's vision tower receive what it derives from the sizes of images, in place.

    The sizes stay on the CPU. On a GPU the tower would copy them back, and wait for the GPU, about ten times.
    """
    tower = vision_tower(model)
    if tower is not None:
        tower.register_forward_pre_hook(_derive_sizes, with_kwargs=True)


def _derive_sizes(tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Add positions, ends of images and windows, and places in the table of positions to a tower's arguments."""
    grid, (pixels, *_) = kwargs["grid_thw"], args
    if grid.device.type != "cpu":
        return None
    merge = tower.spatial_merge_size
    derived: dict[str, Any] = {"position_ids": vision_utils.get_vision_position_ids(grid, merge)}
    derived["cu_seqlens"], derived["max_seqlen"] = vision_utils.get_vision_attention_seqlens(grid, tower.config)
    if hasattr(tower, "window_size"):  # Qwen2.5-VL
        derived["window_index"], ends = vision_utils.get_vision_window_index(
            grid, merge, tower.window_size, tower.patch_size
        )
        derived["cu_window_seqlens"], derived["max_window_seqlen"] = ends, get_max_seqlen(ends, tower.config)
    if hasattr(tower, "num_grid_per_side"):  # Qwen3-VL
        derived["interp_indices"], derived["interp_weights"] = (
            vision_utils.get_vision_interpolation_indices_and_weights(
                grid, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, merge
            )
        )
    moved = {name: to_device(x, pixels.device) if isinstance(x, Tensor) else x for name, x in derived.items()}
    return args, kwargs | moved


def language_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Return a model's modules with their names, except its vision tower."""
    left_out = {id(module) for module in (vision_tower(model) or nn.Module()).modules()}
    return ((name, module) for name, module in model.named_modules() if id(module) not in left_out)


def freeze_vision_tower(model: Any) -> None:
    """Freeze the vision tower, in place.

    Raises:
        UserError: the model has none.
    """
    tower = vision_tower(model)
    if tower is None:
        raise UserError(f"model.freeze_vision: {type(model).__name__} has no vision tower; leave the option out")
    tower.requires_grad_(False)


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """Return the tokens that stand for or enclose images and videos; text never contains them."""
    ids = [getattr(config, name, None) for name in (*_MARKERS, "video_token_id")]
    return tuple(int(i) for i in ids if i is not None)


def blank_image(config: Any) -> Pixels:
    """Return a made-up image of 2 x 3 features."""
    vision = config.vision_config
    merge, size = vision.spatial_merge_size, vision.temporal_patch_size * vision.in_channels * vision.patch_size**2
    count = 6 * merge**2
    return Pixels(
        torch.linspace(-1, 1, count * size).sin().view(count, size), torch.tensor([[1, 2 * merge, 3 * merge]]), ()
    )


def blank_placeholders(config: Any) -> list[int]:
    """Return the tokens that stand for `blank_image` in a prompt."""
    return [config.vision_start_token_id, *[config.image_token_id] * 6, config.vision_end_token_id]


def rope_position_ids(model: Any, token_ids: Sequence[int], grid: Tensor | None) -> Tensor:
    """Return the positions (1, L) of a prompt's tokens, or (3, L) for a vision-language model.

    Args:
        grid: (images, 3) patches in time, height and width; None without images.
    """
    plain = torch.arange(len(token_ids))[None]
    if not takes_images(model.config):
        return plain
    if grid is None:
        return plain.expand(3, -1)
    ids = torch.tensor([list(token_ids)])
    kinds = (ids == model.config.image_token_id).int()
    return model.model.get_rope_index(ids, kinds, image_grid_thw=grid)[0][:, 0]
