"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: an image or a video is a sequence of patches of any length.

The patches have positions in three dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import vision_utils
from transformers.utils.generic import get_max_seqlen

from lit_rlvr.common.files import reading
from lit_rlvr.common.packages import require
from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels, Video
from lit_rlvr.policy.families.base import ImageProcessor, Layers, VisionFamily
from lit_rlvr.policy.tiny import CHAT_TEMPLATE, LLM_SPECIALS, byte_tokenizer, save_random, tiny_sizes
from lit_rlvr.policy.vision_attention import VISION_ATTENTION


class QwenImageProcessor(ImageProcessor):
    """Resizes images and frames to whole numbers of merged patches and cuts them, as in the model's own training."""

    same_sizes: ClassVar[dict[str, str]] = {
        "patch_size": "patch_size",
        "spatial_merge_size": "merge_size",
        "temporal_patch_size": "temporal_patch_size",
    }

    def __init__(self, family: VisionFamily, folder: str, processor: Any, tokenizer: Any) -> None:
        super().__init__(family, folder, processor, tokenizer)
        self._merge = int(processor.merge_size)
        self._unit = int(processor.patch_size) * self._merge
        self._min = processor.size["shortest_edge"]
        self._max = processor.size["longest_edge"]

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return how many patches (height, width) an image of this size, in pixels, has after resizing.

        Raises:
            UserError: one side is more than 200 times as long as the other.
        """
        try:
            high, wide = self.resized(height, width)
        except ValueError as error:
            raise UserError(f"an image of {width} x {height} pixels: {error}") from error
        patch = self._unit // self._merge  # a long image's short side can round to less than one unit
        return max(high, self._unit) // patch, max(wide, self._unit) // patch

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the size (height, width), in pixels, that the model's own image processor gives to one of this size.

        Raises:
            ValueError: one side is more than 200 times as long as the other.
        """
        require("qwen_vl_utils", "images", "qwen-vl-utils", "torchvision")
        from qwen_vl_utils.vision_process import smart_resize

        high, wide = smart_resize(height, width, self._unit, self._min, self._max)
        return int(high), int(wide)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        patch = self._unit // self._merge
        high, wide = self.grid(width, height)
        return wide * patch, high * patch

    def placeholders(self, width: int, height: int) -> tuple[int, ...]:
        high, wide = self.grid(width, height)
        return (self.family.image_token_id,) * (high * wide // self._merge**2)

    @cached_property
    def _own(self) -> Any:
        """The model's own processor of images, videos and text."""
        from transformers import AutoProcessor

        with reading("the processor of videos", self.folder):
            processor = AutoProcessor.from_pretrained(self.folder, trust_remote_code=False)
        self.check_sizes(processor.video_processor, "video")
        return processor

    def video_grid(self, size: tuple[int, int], frames: int) -> tuple[int, int, int]:
        """Return how many patches (time, height, width) a video has.

        The model's own processor sizes it, with the bound of qwen-vl-utils on all frames together.

        Args:
            size: (width, height) of each frame, in pixels.
            frames: their number.

        Raises:
            UserError: one side is more than 200 times as long as the other.
        """
        processor, (width, height) = self._own.video_processor, size
        shape = torch.empty(1, frames, 3, height, width, device="meta")
        factors = {"factor": self._unit, "temporal_factor": processor.temporal_patch_size, "cap_pixels_per_frame": True}
        try:
            *_, high, wide = processor.resize(shape, processor.size, processor.resample, **factors).shape
        except ValueError as error:
            raise UserError(f"a video of {width} x {height} pixels: {error}") from error
        patch = self._unit // self._merge
        return -(-frames // processor.temporal_patch_size), high // patch, wide // patch

    def video_placeholders(self, size: tuple[int, int], video: Video) -> tuple[int, ...]:
        return self._video_tokens(torch.tensor([self.video_grid(size, len(video.indices))]), video)

    def _video_tokens(self, grid: Tensor, video: Video) -> tuple[int, ...]:
        """Return what the model's own processor writes for a video of a grid (1, 3): for some models also seconds."""
        from transformers.video_utils import VideoMetadata

        inputs = {"video_grid_thw": grid, "video_metadata": [VideoMetadata(**video.metadata)]}
        text = self._own.replace_video_token(inputs, 0)
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def resize(self, image: Any) -> Any:
        from PIL import Image

        patch = self._unit // self._merge
        if isinstance(image, Video):
            _, high, wide = self.video_grid(image.frames[0].size, len(image.frames))
            size = (wide * patch, high * patch)
            return replace(image, frames=tuple(frame.resize(size, Image.Resampling.BICUBIC) for frame in image.frames))
        return image.resize(self.resized_size(*image.size), Image.Resampling.BICUBIC)

    def cut(self, resized: Sequence[Any]) -> Pixels:
        parts = []
        for x in resized:
            if isinstance(x, Video):
                parts.append(self._cut_video(x))
            else:
                parts.append(self._cut_image(x))
        inputs, placeholders = zip(*parts, strict=True)
        return Pixels(inputs, placeholders, tuple(resized))

    def _cut_image(self, image: Any) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        """Return the model's inputs of an image, and its placeholders."""
        outputs = self.processor(images=[image], do_resize=False, return_tensors="pt")
        inputs = {}
        for name in ("pixel_values", "image_grid_thw"):
            inputs[name] = outputs[name]
        return inputs, (self.family.image_token_id,) * self.family.features(inputs)

    def _cut_video(self, video: Video) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        """Return the inputs of a video, by the names of an image's, with the seconds between its temporal patches."""
        processor = self._own.video_processor
        options = {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": True}
        outputs = processor(videos=[video.array], return_tensors="pt", **options)
        seconds = processor.temporal_patch_size * video.total / len(video.indices) / video.fps
        patches = outputs["pixel_values_videos"]
        grid = outputs["video_grid_thw"]
        inputs = {"pixel_values": patches, "image_grid_thw": grid, "second_per_grid_ts": torch.tensor([seconds])}
        return inputs, self._video_tokens(grid, video)


VLM_SPECIALS = (*LLM_SPECIALS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VLM_TEMPLATE = CHAT_TEMPLATE.replace(
    "{% else %}{{ part",
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part",
)


def save_tiny_vlm(
    folder: Path, seed: int = 0, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Path:
    """Write a Hugging Face folder with random weights, a byte-level tokenizer and an image processor, and return it.

    Args:
        folder: created if missing.
        seed: seeds the weights.
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


def save_tiny_qwen3_5(
    folder: Path, seed: int = 0, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Path:
    """Write a Qwen3.5 like `save_tiny_vlm`: a gated delta net, and full attention with rotations of half of each head.

    Args: as for `save_tiny_vlm`.
    """
    from transformers import Qwen3_5Config

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "partial_rotary_factor": 0.5}
    language = language_sizes(
        **{
            "head_dim": 32,
            "rope_parameters": rope,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        }
        | (text or {})
    )
    encoder = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": language["hidden_size"],
        "patch_size": 14,
        "num_position_embeddings": 64,
        **(vision or {}),
    }
    return save_vlm(Qwen3_5Config(text_config=language, vision_config=encoder, **markers()), folder, seed)


def language_sizes(**other: Any) -> dict[str, Any]:
    """Return the config of the tiny language model.

    Args:
        other: config entries that override or extend the defaults.
    """
    sizes = tiny_sizes(VLM_SPECIALS) | other
    sections = _sections(sizes["hidden_size"] // sizes["num_attention_heads"])
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    return {"rope_parameters": rope, **sizes}


def markers(tied: bool = True) -> dict[str, Any]:
    """Return the config entries of a vision-language model outside its two parts.

    These are image and video tokens, and whether the input and output embeddings are `tied`.
    """
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {}
    for name, token in names.items():
        ids[f"{name}_token_id"] = VLM_SPECIALS.index(f"<|{token}|>")
    return {"tie_word_embeddings": tied, **ids}


def save_vlm(config: Any, folder: Path, seed: int = 0) -> Path:
    """Write a model of any config of the family: random weights, tokenizer and image processor. Returns `folder`."""
    from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessor

    save_random(AutoModelForImageTextToText, config, folder, seed)
    byte_tokenizer(VLM_SPECIALS, VLM_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)
    vision = config.vision_config
    Qwen2VLImageProcessor(patch_size=vision.patch_size, merge_size=vision.spatial_merge_size).save_pretrained(folder)
    return folder


def _sections(head: int) -> list[int]:
    """Return how many rotary frequencies time (a quarter), height and width (half the rest each) have."""
    frames = head // 8
    rows = (head // 2 - frames) // 2
    return [frames, rows, head // 2 - frames - rows]


class QwenVL(VisionFamily):
    """Qwen2-VL and its successors, by their config: image tokens between markers, and merged patches.

    The vision tower computes a video as an image that has a duration. In a micro-batch all images and videos go through
    it together, because ranks synchronise in each of its passes, and others may have no video.

    Attributes:
        markers: names in the config of the tokens before and after an image.
    """

    names = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5"
    image_processor: ClassVar[type[QwenImageProcessor]] = QwenImageProcessor
    tower_attention = VISION_ATTENTION
    markers: ClassVar[tuple[str, str]] = ("vision_start_token_id", "vision_end_token_id")
    media_tokens: ClassVar[tuple[str, ...]] = ("image_token_id", *markers, "video_token_id")
    token_types = "mm_token_type_ids"
    tiny: ClassVar[dict[str, Callable[[Path], Path]]] = {
        "tiny-qwen2.5-vl": save_tiny_vlm,
        "tiny-qwen3.5": save_tiny_qwen3_5,
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.model_type == "qwen2_5_vl":
            self.place_scale = None

    @classmethod
    def is_family(cls, config: Any) -> bool:
        has_markers = all(hasattr(config, name) for name in ("image_token_id", *cls.markers))
        return has_markers and all(hasattr(config.vision_config, name) for name in cls.image_processor.same_sizes)

    @property
    def video_token_id(self) -> int | None:
        return int(self.config.video_token_id)

    def vision_modules(self, model: Any) -> list[nn.Module]:
        return [model.base_model.visual]

    def features(self, inputs: Mapping[str, Tensor]) -> int:
        return int(inputs["image_grid_thw"].prod()) // self.patches_per_feature

    def model_inputs(self, pixels: Sequence[Pixels], device: torch.device) -> dict[str, Tensor]:
        images = [image for part in pixels for image in part.inputs]
        return {
            "pixel_values": to_device(torch.cat([image["pixel_values"] for image in images]), device),
            "image_grid_thw": _grids(images),  # on the CPU, see `prepare`
        }

    def blank(self) -> Pixels:
        """Return a made-up image of 2 x 3 features."""
        vision = self.config.vision_config
        merge = vision.spatial_merge_size
        size = vision.temporal_patch_size * vision.in_channels * vision.patch_size**2
        values = torch.linspace(-1, 1, 6 * merge**2 * size).sin().view(-1, size)
        inputs = {"pixel_values": values, "image_grid_thw": torch.tensor([[1, 2 * merge, 3 * merge]])}
        before = getattr(self.config, self.markers[0])
        after = getattr(self.config, self.markers[1])
        return Pixels((inputs,), ((before, *[self.image_token_id] * 6, after),), ())

    def prepare(self, model: Any) -> None:
        """Let the vision tower receive what it derives from the sizes of images, and take features of videos, too.

        The sizes stay on the CPU. On a GPU the tower would copy them back, and wait for the GPU, about ten times.
        """
        model.base_model.visual.register_forward_pre_hook(_derive_sizes, with_kwargs=True)
        if self.video_token_id is not None:
            model.base_model.register_forward_pre_hook(self._as_images, with_kwargs=True)

    def _as_images(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give features of videos the placeholders of images, if `model_inputs` made the model's inputs."""
        if kwargs.get("pixel_values") is None or kwargs.get("pixel_values_videos") is not None:
            return None
        ids = kwargs["input_ids"]
        return args, kwargs | {"input_ids": ids.masked_fill(ids == self.video_token_id, self.image_token_id)}

    def token_inputs(self, token_ids: Tensor) -> dict[str, Tensor]:
        marks = super().token_inputs(token_ids)
        video = self.video_token_id
        if video is None:
            return marks
        inputs = {}
        for k, mark in marks.items():
            inputs[k] = mark + 2 * (token_ids == video).int()
        return inputs

    def position_ids(self, model: Any, token_ids: Sequence[int], pixels: Pixels | None) -> Tensor:
        """Return the positions (3, L): those of an image's features are its grid's, in time, height and width.

        What follows a video begins after all of its positions, as in the model's training and in vLLM; transformers 5
        lets a long video overlap with it.
        """
        if pixels is None:
            return super().position_ids(model, token_ids, None).expand(3, -1)
        ids = torch.tensor([list(token_ids)])
        marks = self.token_inputs(ids)
        videos = []
        for image in pixels.inputs:
            if "second_per_grid_ts" in image:
                videos.append(image)
        images = []
        for image in pixels.inputs:
            if "second_per_grid_ts" not in image:
                images.append(image)
        positions = model.model.get_rope_index(
            ids,
            **marks,
            image_grid_thw=_grids(images) if images else None,
            video_grid_thw=_grids(videos) if videos else None,
            second_per_grid_ts=[float(video["second_per_grid_ts"]) for video in videos],
        )[0][:, 0]
        is_video = marks["mm_token_type_ids"][0] == 2
        for end in (is_video[:-1] & ~is_video[1:]).nonzero().flatten().tolist():
            later = positions[:, end + 1 :]  # a view
            later += (positions[:, : end + 1].max() + 1 - later[0, 0]).clamp(min=0)
        return positions

    def vllm_options(self) -> dict[str, Any]:
        return super().vllm_options() | {"mm_processor_kwargs": {"do_resize": False}}  # our images are already resized

    @property
    def tower_layers(self) -> Layers:
        vision = self.config.vision_config  # Qwen2-VL names its sizes differently from later models
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
        return Layers(vision.depth, width, inner, width, width)

    @property
    def patches_per_feature(self) -> int:
        return int(self.config.vision_config.spatial_merge_size) ** 2


def _grids(images: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the images' patches (n, 3) in time, height and width."""
    return torch.cat([image["image_grid_thw"] for image in images])


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
        derived["cu_window_seqlens"] = ends
        derived["max_window_seqlen"] = get_max_seqlen(ends, tower.config)
    if hasattr(tower, "embeddings"):  # GLM-4.1V
        derived["grid_thw"] = grid
    if hasattr(tower, "num_grid_per_side"):  # Qwen3-VL
        derived["interp_indices"], derived["interp_weights"] = (
            vision_utils.get_vision_interpolation_indices_and_weights(
                grid, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, merge
            )
        )
    moved = {}
    for name, x in derived.items():
        if isinstance(x, Tensor):
            moved[name] = to_device(x, pixels.device)
        else:
            moved[name] = x
    return args, kwargs | moved
