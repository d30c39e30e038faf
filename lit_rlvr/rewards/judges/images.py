"""The images of a row, and those that an environment showed, as a judge is sent them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.common.pictures import Size, fit, png_url
from lit_rlvr.errors import UserError
from lit_rlvr.media import kinds_of
from lit_rlvr.types import Sample


def has_videos(sample: Sample) -> bool:
    """Return whether there is a video among the images of a row."""
    return "video" in kinds_of(sample.images)


def image_urls(sample: Sample, max_pixels: int | None) -> tuple[str, ...]:
    """Return the images of a row as the model saw them, each as a URL that holds a PNG.

    Args:
        sample: the row, which has no videos.
        max_pixels: larger images are reduced to this many pixels; None = none is.

    Raises:
        UserError: the model saw an image in another size, and its family's function that resizes it is not at hand.
    """
    coordinates = sample.coordinates or (None,) * len(sample.images)
    images = []
    for number, of_image in enumerate(coordinates):
        image = sample.images[number]
        if of_image is not None and of_image.resize is not None:
            image = of_image.resize(image)
        elif of_image is not None and of_image.seen not in (None, image.size):
            raise UserError(
                f"{sample.source or sample.id}: the model saw image {number + 1} in {of_image.seen[0]} x "
                f"{of_image.seen[1]} pixels, and the row does not know how its family resizes it, so no judge can be "
                "sent it; encode the row with the data set that loaded the model, in the same process"
            )
        images.append(image)
    return as_urls(images, max_pixels)


def as_urls(images: Sequence[Any], max_pixels: int | None) -> tuple[str, ...]:
    """Return PIL images as data URLs of PNGs, each with at most `max_pixels` pixels."""
    return tuple(png_url(_resized(image, fit(image.size, None, max_pixels))) for image in images)


def _resized(image: Any, size: Size) -> Any:
    from PIL import Image

    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC)
