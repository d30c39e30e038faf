"""A magnifying glass as a tool: a vision-language model asks for an enlarged region of the image."""

from __future__ import annotations

from typing import Any

from lit_rlvr.environments.tools import Tools
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample


class Crop(Tools):
    """A tool that shows a region of the sample's first image, enlarged so that its longer side has `size` pixels.

    Args:
        size: longer side of the enlarged region, in pixels.
        kwargs: `limits` and `offer` of every environment with tools.
    """

    def __init__(self, size: int = 336, **kwargs: Any) -> None:
        if size < 28:
            raise UserError(f"Crop.size: {size} pixels are too few; use at least 28")
        super().__init__(**kwargs)
        self._size, self._image = size, None

    def reset(self, sample: Sample) -> None:
        if not sample.images:
            raise UserError(f"{sample.source or sample.id}: Crop needs an image")
        self._image = sample.images[0]

    def crop(self, left: float, top: float, right: float, bottom: float) -> Any:
        """See a region of the image enlarged. All numbers are shares of the image's width or height, from 0 to 1.

        Args:
            left: Left edge of the region.
            top: Top edge of the region.
            right: Right edge of the region.
            bottom: Bottom edge of the region.
        """
        assert self._image is not None, "reset() comes first"
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError("give 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
        wide, high = self._image.size
        box = (int(left * wide), int(top * high), max(round(right * wide), 1), max(round(bottom * high), 1))
        region = self._image.convert("RGB").crop(box)
        scale = self._size / max(region.size)
        return region.resize([max(1, round(side * scale)) for side in region.size])
