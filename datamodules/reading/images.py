"""The images of a row: functions to find, check, place and decode them."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_rlvr.datamodules.reading.rows import BadRow
from lit_rlvr.types import Sample

PLACEHOLDER = "<image>"

Messages = list[dict[str, Any]]


def as_parts(messages: Messages, images: int) -> Messages:
    """Convert chat messages to a processor's format: `{"type": "image"}` and `{"type": "text", "text"}` parts.

    Args:
        messages: each `<image>` in them becomes an image part; if there is none, all image parts go in front of the
            last user message.
        images: number of images of the prompt.
    """
    messages = [message | {"content": _parts(message["content"])} for message in messages]
    if not _count(messages):
        last = next(message for message in reversed(messages) if message["role"] == "user")
        last["content"] = [{"type": "image"}] * images + last["content"]
    return messages


def check_placeholders(prompt: str | Messages, images: int) -> None:
    """Check that there are as many placeholders as images; a prompt without placeholders takes any number.

    Raises:
        BadRow: the numbers differ.
    """
    content = prompt if isinstance(prompt, list) else [{"content": prompt}]
    places = _count([{"content": _parts(message["content"])} for message in content])
    if places not in (0, images):
        raise BadRow(f"{places} {PLACEHOLDER} placeholders for {images} images", "image")


def _parts(content: Any) -> list[dict[str, Any]]:
    """Split a content at each `<image>` into image parts and text parts; drop empty texts."""
    parts: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part.get("type") != "text":
            parts.append(part)
            continue
        for i, text in enumerate(part["text"].split(PLACEHOLDER)):
            parts += [{"type": "image"}] if i else []
            parts += [{"type": "text", "text": text}] if text else []
    return parts


def _count(messages: Messages) -> int:
    return sum(part.get("type") == "image" for message in messages for part in message["content"])


BASE64 = re.compile(r"data:image/[\w.+-]+;base64,|iVBORw0KGgo|/9j/|R0lGOD|UklGR")
"""The beginning of a base64 image: a data URL, or the first bytes of PNG, JPEG, GIF or WebP."""

MAX_ASPECT = 200
"""Largest ratio of an image's sides that Qwen2.5-VL's processor takes."""

Source = bytes | str | Image.Image
Size = tuple[int, int]


@dataclass(frozen=True)
class Images(Sequence[Any]):
    """A sample's images, decoded on indexing, so that a data set needs no more memory than its files.

    Args:
        sources: encoded bytes, paths, or PIL images.
        keys: a hash of each image's content; equal images have equal keys.
        sizes: (width, height) in pixels of each image as the model sees it.
        bounds: minimum and maximum number of pixels, None = no bound.
    """

    sources: tuple[Source, ...]
    keys: tuple[str, ...]
    sizes: tuple[Size, ...]
    bounds: tuple[int | None, int | None] = (None, None)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return resize(decode(self.sources[index]), *self.bounds)


def with_images(
    rows: Iterable[Sample | BadRow], folder: str | None, min_pixels: int | None, max_pixels: int | None
) -> Iterator[Sample | BadRow]:
    """Open the images of each row; turn a row with a bad image, or with too many or too few, into a `BadRow`.

    Args:
        rows: samples whose images are still raw cells of the data.
        folder: folder that relative paths start from; None: the folder of the row's file.
        min_pixels: smaller images are enlarged to this many pixels; max_pixels: larger ones are reduced.
    """
    for row in rows:
        if isinstance(row, Sample):
            start = Path(folder).expanduser() if folder else Path(row.source.rpartition(":")[0]).parent
            try:
                check_placeholders(row.prompt, len(row.images))
                if row.images:
                    row = replace(row, images=open_images(row.images, start, min_pixels, max_pixels))
            except BadRow as error:
                error.source = row.source
                row = error
        yield row


def open_images(
    images: Sequence[Any], folder: Path, min_pixels: int | None = None, max_pixels: int | None = None
) -> Images:
    """Find the images and check that each can be decoded.

    Raises:
        BadRow: an image is missing or cannot be decoded.
    """
    sources, keys, sizes = [], [], []
    for number, image in enumerate(images, 1):
        source = locate(image, folder)
        try:
            picture = decode(source)
        except Exception as error:  # broken files can raise anything: OSError, SyntaxError, ValueError, zlib.error
            name = source if isinstance(source, str) else f"number {number}"
            what = "not an image" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
            raise BadRow(f"{name} cannot be decoded ({what})", "image") from error
        sources.append(source)
        keys.append(hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()[:16])
        sizes.append(_padded(*fit(picture.size, min_pixels, max_pixels)))
    return Images(tuple(sources), tuple(keys), tuple(sizes), (min_pixels, max_pixels))


def locate(image: Any, folder: Path) -> Source:
    """Return the image in a cell as encoded bytes, a path, or a PIL image.

    Args:
        image: {"bytes", "path"} as `datasets` stores it, bytes, base64 text, a path, or a PIL image.
        folder: folder that a relative path starts from.

    Raises:
        BadRow: it is none of these, or there is no such file.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes | Image.Image):
        return image
    if not isinstance(image, str | Path):
        raise BadRow(f"expected a path, bytes or an image, got {type(image).__name__}", "image")
    if isinstance(image, str) and (head := BASE64.match(image)):
        try:
            return base64.b64decode("".join(image[head.end() * image.startswith("data:") :].split()), validate=True)
        except ValueError as error:
            raise BadRow(f"broken base64 ({error})", "image") from error
    path = folder / Path(image).expanduser()
    if not path.is_file():
        raise BadRow(f"no such file: {path}", "image")
    return str(path)


def decode(source: Source) -> Image.Image:
    """Decode an image to RGB, rotated as its EXIF data say, with transparent parts on white.

    It rescales 16 and 32 bit greyscale from the darkest to the brightest value: medical images use 12 of 16 bits and
    would be black otherwise.
    """
    if isinstance(source, str):
        source = Path(source).read_bytes()
    picture = Image.open(BytesIO(source)) if isinstance(source, bytes) else source
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _rescale_to_8_bits(np.asarray(picture, dtype=np.float64))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _rescale_to_8_bits(values: np.ndarray) -> Image.Image:
    """Convert (H, W) numbers to greyscale, from the smallest (black) to the largest (white)."""
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8))


def resize(picture: Image.Image, min_pixels: int | None, max_pixels: int | None) -> Image.Image:
    """Resize an image to the bounds; add white margins if its aspect ratio exceeds `MAX_ASPECT`."""
    size = fit(picture.size, min_pixels, max_pixels)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    if _padded(*size) != size:
        picture = ImageOps.pad(picture, _padded(*size), color="white")
    return picture


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


def _padded(width: int, height: int) -> Size:
    return max(width, math.ceil(height / MAX_ASPECT)), max(height, math.ceil(width / MAX_ASPECT))
