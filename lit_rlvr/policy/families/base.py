"""The interface of a family of vision-language models: what differs between the ways in which models take images."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.errors import UserError
from lit_rlvr.media import Coordinates, Pixels, Video

PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Layers:
    """A stack of equal transformer layers.

    Args:
        count: number of layers.
        width: H, width of the hidden state.
        inner: width of the MLP.
        heads, keys: total width of the query heads, and of the key heads.
    """

    count: int
    width: int
    inner: int
    heads: int
    keys: int


class ImageProcessor(ABC):
    """Prepares images for a model: resizes each once, for both trainer and engine, and makes the model's inputs.

    Args:
        family: the family of the model.
        folder: the model's folder or hub id, for messages.
        processor: the model's own image processor.
        tokenizer: the model's tokenizer.

    Attributes:
        same_sizes: the sizes that it must have in common with the vision tower: name in the tower's config -> name in
            the image processor.

    Raises:
        UserError: the image processor does not fit the model.
    """

    same_sizes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, family: VisionFamily, folder: str, processor: Any, tokenizer: Any) -> None:
        self.family = family
        self.folder = folder
        self.processor = processor
        self.tokenizer = tokenizer
        self.check_sizes(processor, "image")

    def check_sizes(self, processor: Any, kind: str) -> None:
        """Refuse a processor of images or videos with other sizes than the vision tower's.

        Raises:
            UserError: names the size, which would fail deep in the model or count as another image's.
        """
        for name, other in self.same_sizes.items():
            wanted = getattr(self.family.config.vision_config, name)
            size = getattr(processor, other, None)
            if wanted != size:
                raise UserError(
                    f"model: the {kind} processor of {self.folder} has {other} {size}, its vision_config {name} "
                    f"{wanted}; take its processor's files and config.json from the same model"
                )

    @abstractmethod
    def placeholders(self, width: int, height: int) -> tuple[int, ...]:
        """Return the tokens that stand for an image of this size, in pixels, in place of its one placeholder.

        Raises:
            UserError: the model does not take images of this size.
        """

    def video_placeholders(self, size: tuple[int, int], video: Video) -> tuple[int, ...]:  # optional
        """Return the tokens that stand for a video with frames of this size (width, height), in pixels.

        Raises:
            UserError: the model takes no videos.
        """
        raise UserError(f"{self.family.names}: videos are not supported; use Qwen's models, or leave out such rows")

    def placeholders_of(self, images: Any) -> list[tuple[int, ...]]:
        """Return the tokens that stand for each of a sample's opened images and videos, none of which it decodes."""
        placeholders = []
        for source, size in zip(images.sources, images.sizes, strict=True):
            if isinstance(source, Video):
                placeholders.append(self.video_placeholders(size, source))
            else:
                placeholders.append(self.placeholders(*size))
        return placeholders

    @abstractmethod
    def cut(self, resized: Sequence[Any]) -> Pixels:
        """Return the model's inputs for RGB images that `resize` returned, and videos with such frames."""

    @property
    def has_resize(self) -> bool:
        """True if the class resizes images; False = trainer and engine get them as they are opened."""
        return type(self).resize is not ImageProcessor.resize

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size (width, height) in which `resize` returns an image; by default by trying it."""
        if not self.has_resize:
            return width, height
        from PIL import Image

        resized: tuple[int, int] = self.resize(Image.new("RGB", (width, height))).size
        return resized

    def coordinates_of(self, images: Any) -> tuple[Coordinates, ...]:
        """Return how the model writes places in each of a sample's opened images; () if one is a video."""
        if any(isinstance(source, Video) for source in images.sources):
            return ()
        coordinates = []
        resize = self.resize if self.has_resize else None
        for file, size in zip(images.file_sizes, images.sizes, strict=True):
            scale = self.family.place_scale
            seen = self.resized_size(*size)
            corner = seen if scale is None else (scale, scale)
            coordinates.append(Coordinates(file, corner, self.family.writes_y_first, seen, resize))
        return tuple(coordinates)

    def resize(self, image: Any) -> Any:
        """Return an RGB image in the size in which trainer and engine get it; by default unchanged."""
        return image

    def pixels(self, images: Sequence[Any]) -> Pixels:
        """Resize PIL images, and videos with such frames, and return the model's inputs for them."""
        return self.cut([self.resize(x if isinstance(x, Video) else x.convert("RGB")) for x in images])

    def expand(self, token_ids: Sequence[int], placeholders: Sequence[Sequence[int]]) -> list[int]:
        """Replace the one placeholder of each image or video with all of its placeholders.

        Args:
            token_ids: of a prompt.
            placeholders: those of each image and video, in order.

        Raises:
            UserError: the numbers of placeholders and images differ.
        """
        markers = self.family.prompt_token_ids
        count = sum(token in markers for token in token_ids)
        if count != len(placeholders):
            raise UserError(f"{count} image placeholders for {len(placeholders)} images")
        images = iter(placeholders)
        expanded: list[int] = []
        for token in token_ids:
            if token in markers:
                expanded.extend(next(images))
            else:
                expanded.append(token)
        return expanded


def made_up_pixels(height: int, width: int) -> Tensor:
    """Return the pixel values (1, 3, height, width) of a made-up image."""
    return torch.linspace(-1, 1, 3 * height * width).mul(100).sin().view(1, 3, height, width)


class VisionFamily(ABC):
    """The way in which the models of a family take images. A new family is a subclass, in `FAMILIES` or an entry point.

    Args:
        config: the config of one model of the family.

    Attributes:
        names: what the family's models are called, for messages.
        image_processor: the class that prepares their images.
        tower_attention: the attention implementation of the vision tower.
        media_tokens: names in the config of the tokens that stand for or enclose images and other media.
        token_types: the argument of the model that marks which tokens are features of images; None = it has none.
        place_scale: the coordinate that its models write for an image's right and lower edges; None = in pixels as they
            see it.
        writes_y_first: in places in an image, its models write y before x.
        tiny: small random models for tests and smoke recipes: name -> function that writes the folder. The names are
            those of `--model` if the family is in `FAMILIES`.
    """

    names: ClassVar[str]
    image_processor: ClassVar[type[ImageProcessor]]
    tower_attention: ClassVar[str] = "sdpa"
    media_tokens: ClassVar[tuple[str, ...]] = ("image_token_id",)
    token_types: ClassVar[str | None] = None
    place_scale: int | None = 1000
    writes_y_first: ClassVar[bool] = False
    tiny: ClassVar[Mapping[str, Callable[[Path], Path]]] = {}

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def is_family(cls, config: Any) -> bool:
        """Return whether a model with this config belongs to the family."""

    # tokens

    @property
    def image_token_id(self) -> int:
        """The placeholder of an image feature."""
        return int(self.config.image_token_id)

    @property
    def prompt_token_id(self) -> int:
        """The placeholder of a whole image, before `ImageProcessor.expand`; by default also that of a feature."""
        return self.image_token_id

    @property
    def video_token_id(self) -> int | None:
        """The placeholder of a feature of a video, and of a whole video; None = the model takes no videos."""
        return None

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The placeholders of a whole image and, if the model takes videos, of a whole video."""
        return (self.prompt_token_id, *(() if self.video_token_id is None else (self.video_token_id,)))

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Tokens that stand for or enclose media: never sampled, and left out of the softmax."""
        ids = (getattr(self.config, name, None) for name in self.media_tokens)
        return tuple(int(token) for token in ids if token is not None)

    def collapse(self, token_ids: Sequence[int], pixels: Pixels) -> list[int]:
        """Undo `ImageProcessor.expand`: one placeholder per image or video, for engines that expand them themselves."""
        ids = list(token_ids)
        collapsed = []
        at = 0
        for placeholders in map(list, pixels.placeholders):
            while ids[at] != placeholders[0] or ids[at : at + len(placeholders)] != placeholders:
                collapsed.append(ids[at])
                at += 1
            video = self.video_token_id
            if video is None or video not in placeholders:
                collapsed.append(self.prompt_token_id)
            else:
                collapsed.append(video)
            at += len(placeholders)
        return collapsed + ids[at:]

    def check_features(self, token_ids: Sequence[int], pixels: Pixels) -> None:
        """Refuse a prompt whose placeholders are not as many as the features of its images.

        Raises:
            UserError: names both numbers.
        """
        count = sum(token in (self.image_token_id, self.video_token_id) for token in token_ids)
        wanted = sum(map(self.features, pixels.inputs))
        if count != wanted:
            raise UserError(f"{count} image placeholders for {wanted} image features; the image has changed")

    # the model

    def vision_modules(self, model: Any) -> list[nn.Module]:
        """Return the parts of a model that turn pixels into features for the language model.

        By default these are those of transformers' usual names.
        """
        return [model.base_model.vision_tower, model.base_model.multi_modal_projector]

    @abstractmethod
    def features(self, inputs: Mapping[str, Tensor]) -> int:
        """Return how many features the model computes for an image, given its inputs."""

    def model_inputs(self, pixels: Sequence[Pixels], device: torch.device) -> dict[str, Tensor]:
        """Return all images of a micro-batch as keyword arguments of the model, in the order of their placeholders.

        By default these are the inputs of each, joined along their first dimension.
        """
        images = [image for part in pixels for image in part.inputs]
        inputs = {}
        for name in images[0]:
            inputs[name] = to_device(torch.cat([image[name] for image in images]), device)
        return inputs

    @abstractmethod
    def blank(self) -> Pixels:
        """Return a small made-up image."""

    def prepare(self, model: Any) -> None:  # noqa: B027  # most families change nothing
        """Change a loaded model, in place, without changing its results; by default nothing."""

    def position_ids(self, model: Any, token_ids: Sequence[int], pixels: Pixels | None) -> Tensor:
        """Return the positions (D, L) of a prompt's tokens; by default they are counted, with D = 1."""
        return torch.arange(len(token_ids))[None]

    def token_inputs(self, token_ids: Tensor) -> dict[str, Tensor]:
        """Return what the model needs, in addition to `model_inputs`, of tokens (R, L) among which are images.

        By default these are `token_types`.
        """
        if self.token_types is None:
            return {}
        return {self.token_types: (token_ids == self.image_token_id).int()}

    # engines and plans

    @property
    def is_in_vllm(self) -> bool:
        """Whether vLLM computes images as the trainer does."""
        return True

    def vllm_options(self) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM` with which vLLM sees the trainer's pixels.

        Raises:
            UserError: vLLM needs a package that is not installed.
        """
        # On the device, mean and deviation of the pixels would come from the noise that the engine starts with.
        return {"skip_mm_profiling": True, "mm_device_do_normalize": False}

    def save_processors(self, source: str, target: Path) -> None:
        """Copy the processors of a folder or hub id to a folder: newer models have all of them in one file."""
        from transformers.utils import cached_file

        for name in PROCESSOR_FILES:
            file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            if file is not None:
                shutil.copyfile(file, target / name)

    @property
    def tower_layers(self) -> Layers:
        """The sizes of the vision tower's layers; by default those of transformers' usual names."""
        vision = self.config.vision_config
        width = vision.hidden_size
        return Layers(vision.num_hidden_layers, width, vision.intermediate_size, width, width)

    @property
    @abstractmethod
    def patches_per_feature(self) -> int:
        """The number of patches of an image that become one feature."""
