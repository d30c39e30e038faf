"""The images and videos of a row: functions to find, check, place and decode them."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_rlvr.common.arguments import check_within, option_group
from lit_rlvr.common.columns import parse_text
from lit_rlvr.common.paths import expanded
from lit_rlvr.common.pictures import Size, fit
from lit_rlvr.datamodules.reading.cells import BadRow, is_empty
from lit_rlvr.datamodules.reading.conversations import NO_AUDIO, Messages, without_nulls
from lit_rlvr.datamodules.reading.videos import check_packages, choose_frames, inspect_video, read_frames
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video, kinds_of
from lit_rlvr.types import Sample

PLACEHOLDER = "<image>"
_PLACEHOLDERS = re.compile(r"(?:<\|vision_start\|>)?<(image|video)>(?:</\1>|<\|vision_end\|>)?")
_OTHER_MARKS = re.compile(
    r"(?:<\|(?:vision_start|begin_of_(?:image|video))\|>|<img>(?=<IMG_CONTEXT>))?"
    r"(?:(?:<\|(?P<padded>image|video)_pad\|>)+|(?:<IMG_CONTEXT>)+|(?-i:\[IMG\])|"
    r"<\|?(?:start_of_)?(?P<kind>image|video|img)(?:[ _]?(?P<number>\d+)|_(?:soft_)?token|_placeholder)?\|?>)"
    r"(?:</(?:image|video|img)>|<\|(?:vision_end|end_of_(?:image|video))\|>)?",
    re.IGNORECASE,
)
"""The marks of images and videos in the prompts of other families, such as `<|image_1|>` and `[IMG]`."""


def as_parts(messages: Messages, images: Sequence[Any]) -> Messages:
    """Convert chat messages to a processor's format: `{"type": "text", "text"}` parts and `{"type"}` of other media.

    Args:
        messages: each `<image>` or `<video>` in them becomes a part; if there is none, the parts of all images and
            videos go in front of the last user message.
        images: the prompt's images and videos.
    """
    messages = [message | {"content": _parts(message["content"])} for message in messages]
    if not _places(messages):
        last = next(message for message in reversed(messages) if message["role"] == "user")
        last["content"] = [{"type": kind} for kind in kinds_of(images)] + last["content"]
    return messages


def as_images(value: Any) -> tuple[Any, ...]:
    """Read a cell as a tuple of unopened images: one, a list or its text, or none (None, NaN, "", a dict of these).

    The name of a video's file is a video.
    """
    if getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    else:
        value = parse_text(value)
    values = value if isinstance(value, list | tuple) else (value,)
    given = []
    for image in values:
        if not is_empty(image):
            if _is_video_file(image):
                given.append(Video(image))
            else:
                given.append(image)
    return tuple(given)


def _is_video(value: Any) -> bool:
    return isinstance(value, Video) or bool(_VIDEO.fullmatch(str(value)))


def _is_video_file(value: Any) -> bool:
    return isinstance(value, str) and bool(_VIDEO.fullmatch(value.strip())) and not value.lower().endswith(".gif")


def as_videos(value: Any) -> tuple[Any, ...]:
    """Read a cell as videos: a file, a list of image files (the frames of one video), a list of these, or none.

    The name of an image's file alone is an image.
    """
    value = without_nulls(parse_text(value))
    if isinstance(value, bool | int | float) or is_empty(value):
        return ()
    if isinstance(value, str) and _is_frame(value):
        return (value,)
    if isinstance(value, list) and not all(map(_is_frame, value)):
        videos = value
    else:
        videos = [value]
    given = []
    for video in videos:
        if not is_empty(video):
            given.append(Video(video))
    return tuple(given)


def _is_frame(value: Any) -> bool:
    """Return True for a decoded image and for the name of an image file, also in a dict of `datasets`."""
    value = value.get("path") if isinstance(value, Mapping) else value
    return isinstance(value, Image.Image) or (isinstance(value, str) and bool(_FRAME.fullmatch(value.strip())))


def check_media(row: Mapping[str, Any], read: Container[str], images: bool = True) -> None:
    """Refuse a row with media that would not reach the model.

    Args:
        row: the row.
        read: columns that are read.
        images: also look for images, and for videos in columns of other names.

    Raises:
        BadRow: a column other than `read` holds video, audio or an image.
    """
    for column, cell in row.items():
        if column in read:
            continue
        kind = str(column).lower().removesuffix("s")
        values = []
        for value in as_images(cell):
            if not isinstance(value, bool | int | float):
                values.append(value)
        if values and kind in ("audio", "video"):
            if kind == "audio":
                reason = NO_AUDIO
            else:
                reason = "videos that are not read (PromptDataModule reads one column)"
            raise BadRow(f"{reason}; leave out such rows, or this column if its questions need none", column)
        if images and any(_is_image(value, IMAGE_NAME.search(str(column)) is not None) for value in values):
            raise BadRow(
                "images that are not read; map the column with `columns: {image: ...}`, or leave it out", column
            )
        if images and _VIDEO_NAME.search(str(column)) and any(_is_video(value) for value in values):
            raise BadRow(
                "videos that are not read; map the column with `columns: {video: ...}`, or leave it out", column
            )


def _is_image(value: Any, by_name: bool) -> bool:
    """Return True for an encoded or decoded image, and for the name of an image file in a column `by_name`."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, str):
        return bool(BASE64.match(value)) or (by_name and bool(_FILE_OR_URL.fullmatch(value.strip())))
    return isinstance(value, bytes | Image.Image)


def _check_named_files(content: Sequence[Mapping[str, Any]]) -> None:
    """Refuse parts of a message whose text names an image by its file or URL."""
    for part in content:
        named = _NAMED.search(part.get("text", ""))
        if named and _FILE_OR_URL.fullmatch(named[1]):
            raise BadRow(
                f"{named[0]} is not read; write <image> in its place, and the file into the image column", "prompt"
            )


def _check_counts(parts: Sequence[Mapping[str, Any]], listed: Sequence[Any], own: int) -> None:
    """Refuse more or fewer images or videos than there are places for them.

    Args:
        parts: the places of images and videos in a prompt; those with an image of their own take no other.
        listed: the sample's images and videos for the other places.
        own: the number of parts with their own.
    """
    count = Counter(kinds_of(listed))
    kinds = []
    for part in parts:
        if part["type"] not in part:
            kinds.append(part["type"])
    places = Counter(kinds)
    for kind in ("image", "video"):
        if count[kind] != places[kind]:
            more = f", next to {own} in the messages' own parts" if own else ""
            raise BadRow(f"{places[kind]} <{kind}> placeholders for {count[kind]} {kind}s{more}", kind)


def place_images(sample: Sample) -> Sample:
    """Put a sample's images and videos in the order of their places in the prompt.

    Parts of messages may hold their own, which move to the sample's images. The other places take the sample's images
    and videos in turn. These may also repeat the parts' own. A prompt without places takes any number.

    Raises:
        BadRow: there are more or fewer of them than such places.
    """
    if isinstance(sample.prompt, str):
        messages = [{"content": sample.prompt}]
    else:
        messages = sample.prompt
    contents = []
    for message in messages:
        contents.append(_parts(message["content"]))
    for content in contents:
        _check_named_files(content)
    parts = _places([{"content": content} for content in contents])
    if not parts:
        if sample.images:
            prompt = _with_marks_read(sample.prompt)
        else:
            prompt = sample.prompt
        if prompt == sample.prompt:
            return sample
        return place_images(replace(sample, prompt=prompt))
    own_parts = []
    for part in parts:
        if part["type"] in part:
            own_parts.append(part[part["type"]])
    if own_parts and _are_same(own_parts, sample.images):
        listed = []
    else:
        listed = list(sample.images)
    _check_counts(parts, listed, len(own_parts))
    rest: dict[str, list[Any]] = {"image": [], "video": []}
    for image, kind in zip(listed, kinds_of(listed), strict=True):
        rest[kind].append(image)
    images = []
    for part in parts:
        kind = part["type"]
        if kind in part:
            images.append(part[kind])
        else:
            images.append(rest[kind].pop(0))
    if not own_parts:
        return replace(sample, images=tuple(images))
    prompt = [_with_empty_parts(message) for message in messages]
    return replace(sample, prompt=prompt, images=tuple(images))


def _with_empty_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose parts name images and videos without holding them."""
    if isinstance(message["content"], str):
        return message
    content = []
    for part in message["content"]:
        if part["type"] == "text":
            content.append(part)
        else:
            content.append({"type": part["type"]})
    return message | {"content": content}


def _with_marks_read(prompt: str | Messages) -> str | Messages:
    """Return a prompt with `<image>` or `<video>` for each mark of another family.

    Raises:
        BadRow: the marks have numbers in another order than that of the images.
    """
    numbers: list[int] = []

    def placeholder(mark: re.Match[str]) -> str:
        if mark["number"]:
            numbers.append(int(mark["number"]))
        if "video" in (mark["kind"] or mark["padded"] or "").lower():
            return "<video>"
        return PLACEHOLDER

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return _OTHER_MARKS.sub(placeholder, value)
        parts = []
        for part in value:
            if part.get("type") == "text":
                parts.append(part | {"text": read(part["text"])})
            else:
                parts.append(part)
        return parts

    if isinstance(prompt, str):
        result: str | Messages = read(prompt)
    else:
        result = []
        for message in prompt:
            result.append(message | {"content": read(message["content"])})
    if numbers != sorted(set(numbers)):
        raise BadRow(f"the marks of its images have the numbers {numbers}; name each image once, in order", "prompt")
    return result


def _are_same(parts: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return True if both are the same paths, encoded images or videos; `others` are images before videos."""
    parts = sorted(parts, key=lambda x: isinstance(x, Video))
    kinds = (str, bytes, Mapping, Video)
    return len(parts) == len(others) and all(
        isinstance(a, kinds) and isinstance(b, kinds) and a == b for a, b in zip(parts, others, strict=True)
    )


def _parts(content: Any) -> list[dict[str, Any]]:
    """Split a content at each `<image>` and `<video>` into parts; drop empty texts."""
    parts: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part.get("type") != "text":
            parts.append(part)
            continue
        for i, text in enumerate(_PLACEHOLDERS.split(part["text"])):  # texts and kinds alternate
            if text:
                if i % 2:
                    parts.append({"type": text})
                else:
                    parts.append({"type": "text", "text": text})
    return parts


def _places(messages: Messages) -> list[dict[str, Any]]:
    """Return the parts that stand for images and videos."""
    places = []
    for message in messages:
        for part in message["content"]:
            if part.get("type") in ("image", "video"):
                places.append(part)
    return places


BASE64 = re.compile(r"data:(?:image|video)/[\w.+-]+;base64,|iVBORw0KGgo|/9j/|R0lGOD|UklGR|AAAA[\w+/]{2}Z0eX|GkXfo")
"""The beginning of base64: a data URL of an image or video, or the first bytes of PNG, JPEG, GIF, WebP, MP4 or WebM."""
_LONG = re.compile(r"[A-Za-z0-9+/\s]{4096}")
"""The beginning of base64 of any other format, which is longer than a path can be."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

MAX_ASPECT = 200
"""Largest ratio of an image's sides that Qwen2.5-VL's processor takes."""

IMAGE_NAME = re.compile(r"image|img|picture|photo", re.IGNORECASE)
"""The names of columns that may hold images."""
_VIDEO_NAME = re.compile(r"video|clip", re.IGNORECASE)

_RATE = re.compile(r"((video|sample)_?)?(fps|frame_?rates?)", re.IGNORECASE)
"""The names of columns with frame rates."""

_FRAME = re.compile(r"\S+\.(png|jpe?g|webp|bmp|tiff?)", re.IGNORECASE)
_NAMED = re.compile(r"<img>\s*(\S+?)\s*</img>")
"""The notation of Qwen-VL's first data."""
_VIDEO = re.compile(r"\S+\.(mp4|webm|mkv|mov|avi|gif)", re.IGNORECASE)
_FILE_OR_URL = re.compile(rf"{_FRAME.pattern}|\S+\.gif|[A-Za-z]+://\S+", re.IGNORECASE)

Source = bytes | str | Image.Image


@option_group("data.images")
@dataclass(frozen=True)
class ImageOptions:
    """Where a data set's images and videos are, in which size the model sees them, and how many frames of a video.

    Args:
        folder: folder that relative paths of images and videos start from; by default the folder of the data file.
        min_pixels: smaller images and frames are enlarged to this many pixels (width x height).
        max_pixels: larger images and frames are reduced to this many pixels; one token is 784 pixels in Qwen2.5-VL and
            1024 in Qwen3-VL, in a video of two frames.
        video_fps: frames that the model sees of each second of a video; a video in the form of a list of frames has
            this many per second, unless a column such as `fps` or `frame_rate` gives its rate.
        max_frames: most frames that the model sees of a video; those of a longer one are spread evenly over it.
    """

    folder: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    video_fps: float = 2.0
    max_frames: int = 128

    def __post_init__(self) -> None:
        check_within("[1, inf)", "data.images", min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        check_within("(0, inf)", "data.images", video_fps=self.video_fps)
        check_within("[2, inf)", "data.images", max_frames=self.max_frames)
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise UserError(f"data.images: min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}")


@dataclass(frozen=True)
class Images(Sequence[Any]):
    """A sample's images and videos, decoded on indexing, so that a data set needs no more memory than its files.

    Args:
        sources: encoded bytes, paths, PIL images, or a `Video` of such.
        keys: a hash of each one's content; equal images have equal keys.
        sizes: (width, height) in pixels of each image, or frame of a video, as the model sees it.
        options: the sizes that they were opened with.
        file_sizes: (width, height) in pixels of each image, or frame of a video, in its file.
    """

    sources: tuple[Source | Video, ...]
    keys: tuple[str, ...]
    sizes: tuple[Size, ...]
    options: ImageOptions
    file_sizes: tuple[Size, ...] = ()

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        source = self.sources[index]
        bounds = (self.options.min_pixels, self.options.max_pixels)
        if not isinstance(source, Video):
            return resize(decode(source), *bounds)
        if isinstance(source.frames, tuple):
            frames = []
            for i in source.indices:
                frames.append(decode(source.frames[i]))
        else:
            frames = read_frames(source.frames, source.indices)
        return replace(source, frames=tuple(resize(frame, *bounds) for frame in frames))


def with_images(sample: Sample, options: ImageOptions) -> Sample:
    """Open the images of a sample, which are still raw cells of the data.

    Raises:
        UserError: there is no such folder.
        BadRow: an image is bad, or there are too many or too few.
    """
    if options.folder is None:
        folder = None
    else:
        folder = expanded(options.folder)
    if folder is not None and not folder.is_dir():
        if folder.exists():
            what = "is a file; unpack an archive first"
        else:
            what = "there is no such folder"
        raise UserError(f"data.images.folder: {options.folder!r}: {what}")
    sample = place_images(sample)
    start = folder or Path(sample.source.rpartition(":")[0]).parent
    if sample.images:
        return replace(sample, images=open_images(_with_rates(sample), start, options))
    return sample


def _with_rates(sample: Sample) -> list[Any]:
    """Return a sample's images, and its lists of frames with the rates that a column of its row gives.

    Raises:
        BadRow: the column has no number for each video.
    """
    column = next((name for name in sample.row if _RATE.fullmatch(str(name)) and not is_empty(sample.row[name])), None)
    videos = []
    for source in sample.images:
        if isinstance(source, Video):
            videos.append(source)
    if column is None or not any(isinstance(video.frames, list | tuple) for video in videos):
        return list(sample.images)
    given = parse_text(sample.row[column])
    if isinstance(given, list | tuple):
        rates = list(given)
    else:
        rates = [given] * len(videos)
    if len(rates) != len(videos) or not all(isinstance(r, int | float) and 0 < r < math.inf for r in rates):
        raise BadRow("expected a number of frames per second, or one for each video", column)
    rate_iterator = iter(rates)
    images = []
    for x in sample.images:
        if isinstance(x, Video):
            images.append(replace(x, fps=float(next(rate_iterator))))
        else:
            images.append(x)
    return images


def open_images(images: Sequence[Any], folder: Path, options: ImageOptions = ImageOptions()) -> Images:
    """Find the images and videos, and check that each can be decoded, of a video its first frame.

    Raises:
        BadRow: one is missing or cannot be decoded.
    """
    opened = []
    for number, (image, kind) in enumerate(zip(images, kinds_of(images), strict=True), 1):
        source = _locate_frames(image, folder) if isinstance(image, Video) else locate(image, folder)
        try:
            source, picture, key = _examine(source, options)
        except UserError:  # a missing package
            raise
        except Exception as error:  # broken files can raise anything: OSError, SyntaxError, ValueError, zlib.error
            file = source.frames if isinstance(source, Video) else source
            name = file if isinstance(file, str) else f"number {number}"
            if isinstance(error, BadRow):
                what = error.reason
            else:
                what = f"{type(error).__name__}: {error}"
            if isinstance(error, UnidentifiedImageError):
                what = "not an image"
            else:
                what = what
            raise BadRow(f"{name} cannot be decoded ({what})", kind) from error
        size = _padded(*fit(picture.size, options.min_pixels, options.max_pixels))
        opened.append((source, key, size, picture.size))
    sources, keys, sizes, file_sizes = zip(*opened, strict=True) if opened else ((), (), (), ())
    return Images(sources, keys, sizes, options, file_sizes)


def _locate_frames(video: Video, folder: Path) -> Video:
    """Return a video with its file, or the files of its frames, as `locate` returns them."""
    if not isinstance(video.frames, list | tuple):
        return replace(video, frames=locate(video.frames, folder, "video"))
    frames = []
    for frame in video.frames:
        frames.append(locate(frame, folder, "video"))
    return replace(video, frames=tuple(frames))


def _examine(source: Source | Video, options: ImageOptions) -> tuple[Source | Video, Image.Image, str]:
    """Return an image or video with its frames chosen, its picture or first frame, and a hash of what the model sees.

    Raises:
        BadRow: the frames of a video have several sizes, or there are fewer than two.
    """
    if not isinstance(source, Video):
        picture = decode(source)
        return source, picture, picture_hash(picture)
    check_packages()
    if isinstance(source.frames, tuple):
        pictures = [decode(frame) for frame in source.frames]
        if len({picture.size for picture in pictures}) > 1:
            raise BadRow("its frames have several sizes; give all of them one")
        content = b"".join(picture.tobytes() for picture in pictures)
        total = len(pictures)
        fps = source.fps or options.video_fps
        wanted = None
    else:
        total, fps, *pictures = inspect_video(source.frames)
        with BytesIO(source.frames) if isinstance(source.frames, bytes) else Path(source.frames).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        wanted = options.video_fps
    indices = source.indices or choose_frames(total, fps, wanted, options.max_frames)
    return replace(source, indices=indices, fps=fps, total=total), pictures[0], _hash(f"{indices}".encode() + content)


def picture_hash(picture: Image.Image) -> str:
    """Return a hash of a picture's size and pixels."""
    return _hash(f"{picture.size}".encode() + picture.tobytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def locate(image: Any, folder: Path, kind: str = "image") -> Source:
    """Return the image or video file in a cell as encoded bytes, a path, or a PIL image.

    Args:
        image: {"bytes", "path"} as `datasets` stores it, {"url"}, bytes, base64 text, a path, also as file://, or a PIL
            image.
        folder: folder that a relative path starts from.
        kind: `image` or `video`, for messages.

    Raises:
        BadRow: it is none of these, or there is no such file.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path") or image.get("url")
    if isinstance(image, bytes | Image.Image):
        return image
    if not isinstance(image, str | Path):
        raise BadRow(f"expected a path, bytes or an image, got {type(image).__name__}", kind)
    if isinstance(image, str) and (head := BASE64.match(image) or _LONG.match(image)):
        try:
            return base64.b64decode("".join(image[head.end() * image.startswith("data:") :].split()), validate=True)
        except ValueError as error:
            raise BadRow(f"broken base64 ({error})", kind) from error
    if isinstance(image, str):
        if image.startswith("data:"):
            raise BadRow(f"{image[:40]!r} is not a base64 {kind}", kind)
        if image.startswith("file://"):
            image = unquote(image.removeprefix("file://"))
        if _URL.match(image):
            raise BadRow(f"{image}: URLs are not read; download the {kind} and give its path", kind)
    path = folder / os.path.expanduser(image)  # a name that begins with ~ may be that of a file
    if not path.is_file():
        raise BadRow(f"no such file: {path}", kind)
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
    low = values.min()
    high = values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8))


def resize(picture: Image.Image, min_pixels: int | None, max_pixels: int | None) -> Image.Image:
    """Resize an image to the bounds; add white margins if its aspect ratio exceeds `MAX_ASPECT`."""
    size = fit(picture.size, min_pixels, max_pixels)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    if _padded(*size) != size:
        picture = ImageOps.pad(picture, _padded(*size), color="white")
    return picture


def film_strip(image: Any, frames: int = 8) -> Image.Image:
    """Return an image unchanged, or for a video a row of at most `frames` of its frames, evenly spread."""
    if not isinstance(image, Video):
        return image
    stills = []
    count = len(image.frames)
    for i in np.linspace(0, count - 1, min(frames, count)).astype(int):
        stills.append(image.frames[i])
    return Image.fromarray(np.hstack([np.asarray(frame) for frame in stills]))


def _padded(width: int, height: int) -> Size:
    return max(width, math.ceil(height / MAX_ASPECT)), max(height, math.ceil(width / MAX_ASPECT))
