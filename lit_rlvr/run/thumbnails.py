"""Stores thumbnails of the images of sampled prompts, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from lit_rlvr.datamodules.reading.images import Images, open_images
from lit_rlvr.files import write_atomically

SIDE = 256
"""Maximum length of a thumbnail's longer side, in pixels."""


def save_thumbnails(images: Sequence[Any], run: str | Path) -> list[str]:
    """Store each of a sample's images once, as `images/<key>.png` in the run folder.

    Returns:
        The images' keys (hashes of their content), in order.
    """
    opened = images if isinstance(images, Images) else open_images(images, Path())
    for number, key in enumerate(opened.keys):
        path = thumbnail_path(run, key)
        if not path.exists():
            picture, png = opened[number], BytesIO()
            picture.thumbnail((SIDE, SIDE))
            picture.save(png, "PNG", optimize=True)
            write_atomically(path, png.getvalue())
    return list(opened.keys)


def thumbnail_path(run: str | Path, key: str) -> Path:
    return Path(run) / "images" / f"{key}.png"


def list_thumbnails(run: str | Path) -> list[Path]:
    """A run's thumbnails, without other pictures in the folder."""
    return sorted((Path(run) / "images").glob(f"{'[0-9a-f]' * 16}.png"))
