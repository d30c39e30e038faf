"""Pictures and videos of a prompt, and the places in them that answers name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reward workers import this module; torch is too slow for them
    from torch import Tensor


@dataclass(frozen=True)
class Video:
    """A video among the images of a sample.

    Args:
        frames: a file's path or bytes, or a list of frames, each in a form that images have; once the video is
            decoded, the RGB images that the model sees.
        indices: the numbers of the frames that the model sees; () = they are not chosen yet.
        fps: frames per second of the whole video.
        total: number of frames of the whole video.
    """

    frames: Any
    indices: tuple[int, ...] = ()
    fps: float = 0.0
    total: int = 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The facts about a video that transformers and vLLM need once its frames are chosen."""
        return {"fps": self.fps, "frames_indices": list(self.indices), "total_num_frames": self.total}

    @property
    def array(self) -> Any:
        """The frames of a decoded video as one array (T, height, width, 3) of bytes."""
        import numpy as np

        return np.stack([np.asarray(frame) for frame in self.frames])


def kinds_of(images: Sequence[Any]) -> list[str]:
    """Return `image` or `video` for each of a sample's images and videos; decode none."""
    kinds = []
    for source in getattr(images, "sources", images):
        kinds.append("video" if isinstance(source, Video) else "image")
    return kinds


@dataclass(frozen=True)
class Coordinates:
    """The way in which a model writes places in an image.

    Args:
        file: (width, height) of the image in its file, in pixels.
        corner: (x, y) that the model writes for the bottom right corner.
        y_first: the model writes y before x.
        seen: (width, height) in which the model's image processor takes the image, in pixels; None = unknown.
        resize: the family's own function that returns the image in this size; None = the image has it already. It stays
            in its process, because workers check texts alone.
    """

    file: tuple[int, int]
    corner: tuple[float, float]
    y_first: bool = False
    seen: tuple[int, int] | None = None
    resize: Callable[[Any], Any] | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Coordinates, (self.file, self.corner, self.y_first, self.seen)


@dataclass(frozen=True)
class Pixels:
    """The n images and videos of a prompt, or of a completion's observations.

    Args:
        inputs: for each image, the model's inputs by name; only the model's `VisionFamily` reads them.
        placeholders: for each image, the tokens that stand for it.
        images: the n resized RGB images, or a `Video` of such, for engines that make the model's inputs themselves.
    """

    inputs: tuple[Mapping[str, Tensor], ...]
    placeholders: tuple[tuple[int, ...], ...]
    images: tuple[Any, ...]

    def split(self, count: int) -> tuple[Pixels | None, Pixels | None]:
        """Return the first `count` images and the others; None for none."""
        before = Pixels(self.inputs[:count], self.placeholders[:count], self.images[:count])
        after = Pixels(self.inputs[count:], self.placeholders[count:], self.images[count:])
        return before if before.inputs else None, after if after.inputs else None

    def split_at(self, token_ids: Sequence[int]) -> tuple[Pixels | None, Pixels | None]:
        """Return the images whose placeholders stand in a text, and those of the text behind it; None for none."""
        return self.split(len(self.spans(token_ids)))

    def spans(self, token_ids: Sequence[int]) -> list[range]:
        """Return where the placeholders of the images stand in a text, up to the first image that is not in it."""
        spans: list[range] = []
        start = 0
        for placeholder in self.placeholders:
            length = len(placeholder)
            while start + length <= len(token_ids) and tuple(token_ids[start : start + length]) != tuple(placeholder):
                start += 1
            if start + length > len(token_ids):
                break
            spans.append(range(start, start + length))
            start += length
        return spans

    @classmethod
    def joined(cls, parts: Sequence[Pixels | None]) -> Pixels | None:
        """Concatenate the images of several parts; return None without images."""
        present = [part for part in parts if part is not None]
        if len(present) < 2:
            if present:
                return present[0]
            return None
        inputs = tuple(image for part in present for image in part.inputs)
        placeholders = tuple(tokens for part in present for tokens in part.placeholders)
        return cls(inputs, placeholders, tuple(image for part in present for image in part.images))
