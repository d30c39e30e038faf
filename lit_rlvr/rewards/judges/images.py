"""The images of a row as a judge is sent them."""

from __future__ import annotations

import math
from typing import Any

from lit_rlvr.common.pictures import png_url
from lit_rlvr.types import Coordinates, Sample, kinds_of


def has_videos(sample: Sample) -> bool:
    """Return whether there is a video among the images of a row."""
    return "video" in kinds_of(sample.images)


def image_urls(sample: Sample, max_pixels: int | None) -> tuple[str, ...]:
    """Return the images of a row as the model saw them, each as a URL that holds a PNG.

    Args:
        sample: the row, which has no videos.
        max_pixels: larger images are reduced to this many pixels; None = none is.
    """
    seen = sample.coordinates or (None,) * len(sample.images)
    urls = []
    for number, coordinates in enumerate(seen):
        urls.append(png_url(_reduced(_as_seen(sample.images[number], coordinates), max_pixels)))
    return tuple(urls)


def _as_seen(image: Any, coordinates: Coordinates | None) -> Any:
    """Return an image in the size in which the model's image processor takes it."""
    from PIL import Image

    if coordinates is None or coordinates.seen in (None, image.size):
        return image
    return image.resize(coordinates.seen, Image.Resampling.BICUBIC)


def _reduced(image: Any, max_pixels: int | None) -> Any:
    from PIL import Image

    pixels = image.width * image.height
    if max_pixels is None or pixels <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / pixels)
    size = [max(1, math.floor(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.BICUBIC)
