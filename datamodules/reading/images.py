"""The images of a row: functions to find, check, place and decode them."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_rlvr.datamodules.reading.bad_row import BadRow
from lit_rlvr.datamodules.reading.conversations import UNSUPPORTED, Messages, is_empty, parse_nested
from lit_rlvr.errors import UserError, check_within, option_group
from lit_rlvr.types import Sample

PLACEHOLDER = "<image>"


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


def as_images(value: Any) -> tuple[Any, ...]:
    """Read a cell as a tuple of unopened images: one, a list or its text, or none (None, NaN, "", a dict of these)."""
    value = value.tolist() if getattr(value, "ndim", 0) == 1 else parse_nested(value)
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(image for image in values if not is_empty(image))


def check_media(row: Mapping[str, Any], read: Container[str], images: bool = True) -> None:
    """Refuse a row with media that would not reach the model.

    Args:
        read: columns that are read.
        images: also look for images.

    Raises:
        BadRow: a column other than `read` holds video, audio or an image.
    """
    for column, cell in row.items():
        if column in read:
            continue
        kind = str(column).lower().removesuffix("s")
        values = [value for value in as_images(cell) if not isinstance(value, bool | int | float)]
        if values and kind in UNSUPPORTED:
            raise BadRow(f"{UNSUPPORTED[kind]}; leave out such rows, or this column if its questions need none", column)
        if images and any(_is_image(value, IMAGE_NAME.search(str(column)) is not None) for value in values):
            raise BadRow(
                "images that are not read; map the column with `columns: {image: ...}`, or leave it out", column
            )


def _is_image(value: Any, by_name: bool) -> bool:
    """Return True for an encoded or decoded image, and for the name of an image file in a column `by_name`."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, str):
        return bool(BASE64.match(value)) or (by_name and bool(_FILE_OR_URL.fullmatch(value.strip())))
    return isinstance(value, bytes | Image.Image)


def with_own_images(sample: Sample) -> Sample:
    """Move the images that parts of messages hold to the sample's images, in the order of their places.

    The places without an image of their own take the sample's images. These may also repeat the parts' images.

    Raises:
        BadRow: there are more or fewer of them than such places.
    """
    if isinstance(sample.prompt, str):
        return sample
    parts = [part for message in sample.prompt for part in _parts(message["content"]) if part["type"] == "image"]
    own = [part["image"] for part in parts if "image" in part]
    if not own:
        return sample
    given = [] if _are_same(own, sample.images) else list(sample.images)
    if len(given) != len(parts) - len(own):
        raise BadRow(
            f"{len(given)} images for {len(parts) - len(own)} placeholders, next to {len(own)} images in the prompt",
            "image",
        )
    rest = iter(given)
    messages = [
        message if isinstance(message["content"], str)
        else message | {"content": [{"type": "image"} if "image" in part else part for part in message["content"]]}
        for message in sample.prompt
    ]  # fmt: skip
    return replace(sample, prompt=messages, images=tuple(p["image"] if "image" in p else next(rest) for p in parts))


def _are_same(own: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return True if both are the same paths or encoded images."""
    kinds = (str, bytes, Mapping)
    return len(own) == len(others) and all(
        isinstance(a, kinds) and isinstance(b, kinds) and a == b for a, b in zip(own, others, strict=True)
    )


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

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

MAX_ASPECT = 200
"""Largest ratio of an image's sides that Qwen2.5-VL's processor takes."""

IMAGE_NAME = re.compile(r"image|img|picture|photo", re.IGNORECASE)
"""The names of columns that may hold images."""

_FILE_OR_URL = re.compile(r"\S+\.(png|jpe?g|webp|gif|bmp|tiff?)|[A-Za-z]+://\S+", re.IGNORECASE)

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


@option_group("data.images")
@dataclass(frozen=True)
class ImageOptions:
    """Where a data set's images are, and in which size the model sees them.

    Args:
        folder: folder that relative image paths start from; by default the folder of the data file.
        min_pixels: smaller images are enlarged to this many pixels (width x height).
        max_pixels: larger images are reduced to this many pixels; one token is 784 pixels in Qwen2.5-VL and 1024 in
            Qwen3-VL.
    """

    folder: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        check_within("[1, inf)", "data.images", min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise UserError(f"data.images: min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}")


def with_images(rows: Iterable[Sample | BadRow], options: ImageOptions) -> Iterator[Sample | BadRow]:
    """Open the images of each row; turn a row with a bad image, or with too many or too few, into a `BadRow`.

    Args:
        rows: samples whose images are still raw cells of the data.

    Raises:
        UserError: there is no such folder.
    """
    folder = None if options.folder is None else Path(options.folder).expanduser()
    if folder is not None and not folder.is_dir():
        what = "is a file; unpack an archive first" if folder.exists() else "there is no such folder"
        raise UserError(f"data.images.folder: {options.folder!r}: {what}")
    for row in rows:
        if isinstance(row, Sample):
            start = folder or Path(row.source.rpartition(":")[0]).parent
            try:
                row = with_own_images(row)
                check_placeholders(row.prompt, len(row.images))
                if row.images:
                    row = replace(row, images=open_images(row.images, start, options.min_pixels, options.max_pixels))
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
            what = error.reason if isinstance(error, BadRow) else f"{type(error).__name__}: {error}"
            what = "not an image" if isinstance(error, UnidentifiedImageError) else what
            raise BadRow(f"{name} cannot be decoded ({what})", "image") from error
        sources.append(source)
        keys.append(hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()[:16])
        sizes.append(_padded(*fit(picture.size, min_pixels, max_pixels)))
    return Images(tuple(sources), tuple(keys), tuple(sizes), (min_pixels, max_pixels))


def locate(image: Any, folder: Path) -> Source:
    """Return the image in a cell as encoded bytes, a path, or a PIL image.

    Args:
        image: {"bytes", "path"} as `datasets` stores it, {"url"}, bytes, base64 text, a path, also as file://, or a PIL
            image.
        folder: folder that a relative path starts from.

    Raises:
        BadRow: it is none of these, or there is no such file.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path") or image.get("url")
    if isinstance(image, bytes | Image.Image):
        return image
    if not isinstance(image, str | Path):
        raise BadRow(f"expected a path, bytes or an image, got {type(image).__name__}", "image")
    if isinstance(image, str) and (head := BASE64.match(image)):
        try:
            return base64.b64decode("".join(image[head.end() * image.startswith("data:") :].split()), validate=True)
        except ValueError as error:
            raise BadRow(f"broken base64 ({error})", "image") from error
    if isinstance(image, str):
        if image.startswith("data:"):
            raise BadRow(f"{image[:40]!r} is not a base64 image", "image")
        if image.startswith("file://"):
            image = unquote(image.removeprefix("file://"))
        if _URL.match(image):
            raise BadRow(f"{image}: URLs are not read; download the image and give its path", "image")
    path = folder / Path(image).expanduser()
    if not path.is_file():
        raise BadRow(f"no such file: {path}", "image")
    return str(path)


def decode(source: Source) -> Image.Image:
    """Decode an image to RGB, rotated as its EXIF data say, with transparent parts on white.

    It rescales 16 and 32 bit greyscale from the darkest to the brightest value: medical images use 12 of 16 bits and
    would be black otherwise.

    Raises:
        BadRow: it has several frames, or pixels that are no numbers.
    """
    if isinstance(source, str):
        source = Path(source).read_bytes()
    picture = Image.open(BytesIO(source)) if isinstance(source, bytes) else source
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a photo, which a phone saves with its preview
        raise BadRow(f"it has {frames} frames; give one image for each that the model shall see")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _rescale_to_8_bits(np.asarray(picture, dtype=np.float64))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _rescale_to_8_bits(values: np.ndarray) -> Image.Image:
    """Convert (H, W) numbers to greyscale, from the smallest (black) to the largest (white)."""
    if not np.isfinite(values).all():
        raise BadRow("it has pixels that are NaN or infinite")
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
