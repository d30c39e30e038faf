"""Pictures: the size that fits a bound, and a picture as a URL that holds it."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

Size = tuple[int, int]
"""Width and height in pixels."""


def fit(size: Size, min_pixels: int | None, max_pixels: int | None) -> Size:
    """Return (width, height) with the same aspect ratio and between `min_pixels` and `max_pixels` pixels."""
    pixels = size[0] * size[1]
    if max_pixels is not None and pixels > max_pixels:
        factor = math.sqrt(max_pixels / pixels)
        return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))
    if min_pixels is not None and pixels < min_pixels:
        factor = math.sqrt(min_pixels / pixels)
        return math.ceil(size[0] * factor), math.ceil(size[1] * factor)
    return size


def png_url(image: Any) -> str:
    """Return an image as a URL that holds a PNG."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data_url("png", data.getvalue())


def data_url(kind: str, content: bytes) -> str:
    """Return the content of an image file as a URL that holds it.

    Args:
        kind: the format: png, webp.
        content: the file's bytes.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
