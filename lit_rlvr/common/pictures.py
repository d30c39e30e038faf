"""Pictures as text."""

from __future__ import annotations

import base64
import io
from typing import Any


def png_url(image: Any) -> str:
    """Return an image as a URL that holds a PNG."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
