"""The images of a row, and those that an environment showed, as a judge is sent them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.common.pictures import Size, fit, png_url
from lit_rlvr.media import Coordinates, kinds_of
from lit_rlvr.types import Sample


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
    images = [_as_seen(sample.images[number], coordinates) for number, coordinates in enumerate(seen)]
    return as_urls(images, max_pixels)


def as_urls(images: Sequence[Any], max_pixels: int | None) -> tuple[str, ...]:
    """Return PIL images as data URLs of PNGs, each with at most `max_pixels` pixels."""
    return tuple(png_url(_resized(image, fit(image.size, None, max_pixels))) for image in images)


def _as_seen(image: Any, coordinates: Coordinates | None) -> Any:
    """Return an image in the size in which the model's image processor takes it."""
    if coordinates is None or coordinates.seen is None:
        return image
    return _resized(image, coordinates.seen)


def _resized(image: Any, size: Size) -> Any:
    from PIL import Image

    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC)
