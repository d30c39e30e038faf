"""The frames of video files, which PyAV decodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from lit_rlvr.common.packages import require
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.errors import UserError

MIN_FRAMES = 4
"""Frames that the model sees of a video that is too short for `video_fps`, as in qwen-vl-utils."""


def check_packages() -> None:
    """Refuse to go on without the packages that read videos.

    Raises:
        UserError: names the one that is missing.
    """
    for module in ("av", "qwen_vl_utils"):
        require(module, "videos", "av", "qwen-vl-utils", "torchvision")


def inspect_video(file: bytes | str) -> tuple[int, float, Image.Image]:
    """Return a video's number of frames, its frames per second, and its first frame; decode no other.

    Raises:
        BadRow: there is no video in the file.
    """
    with _stream_of(file) as (container, stream):
        frame = next(container.decode(stream), None)
        fps = float(stream.average_rate or stream.guessed_rate)
    if frame is None:
        raise BadRow("it has no frames")
    with _stream_of(file) as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream)), fps, _upright(frame)


def choose_frames(total: int, fps: float, wanted_fps: float | None, max_frames: int) -> tuple[int, ...]:
    """Return the numbers of the frames that the model sees of a video: as many as qwen-vl-utils takes, evenly spread.

    Args:
        total, fps: frames of the video, and how many a second has.
        wanted_fps: how many of a second the model sees; None = all that there are.
        max_frames: the largest number of frames.

    Raises:
        BadRow: there are not even two frames.
    """
    from qwen_vl_utils.vision_process import smart_nframes

    if total < 2:
        raise BadRow("a video has at least 2 frames; give a single one as an image")
    limits = {"fps": wanted_fps, "min_frames": min(MIN_FRAMES, max_frames), "max_frames": max_frames}
    if wanted_fps is None:
        count = min(total, max_frames)
    else:
        count = smart_nframes(limits, total, fps)
    return tuple(np.linspace(0, total - 1, count).round().astype(int).tolist())


def read_frames(file: bytes | str, indices: Sequence[int]) -> list[Image.Image]:
    """Decode some frames of a video, given by their numbers in ascending order, as if all were equally far apart.

    In a video of a variable frame rate, it decodes the frames that are nearest to these times.

    Raises:
        UserError: the file ends before the last of them, or is broken.
    """
    import av

    frames: dict[int, Image.Image] = {}
    numbers: Sequence[int] = indices
    try:
        numbers = _nearest_in_time(file, indices)
        with _stream_of(file) as (container, stream):
            for number, frame in enumerate(container.decode(stream)):
                if number in numbers:
                    frames[number] = _upright(frame)
                if number == numbers[-1]:
                    return [frames[number] for number in numbers]
        reason = "the file ends before it"
    except av.InvalidDataError as error:
        reason = str(error)
    missing = next(number for number in numbers if number not in frames)
    raise UserError(f"video: frame {missing} cannot be decoded ({reason}); encode the file again")


def _nearest_in_time(file: bytes | str, indices: Sequence[int]) -> Sequence[int]:
    """Return the numbers of the frames that are nearest to the times of frames that are equally far apart."""
    with _stream_of(file) as (container, stream):
        packets = []
        for packet in container.demux(stream):
            if packet.size > 0:
                packets.append(packet)
    times = np.array(sorted(packet.pts for packet in packets if packet.pts is not None), dtype=np.float64)
    if len(times) < len(packets) or len(times) <= indices[-1]:  # it has no times, or has lost frames
        return indices
    wanted = np.linspace(times[0], times[-1], len(times))[list(indices)]
    nearest: list[int] = np.abs(times[:, None] - wanted).argmin(0).tolist()
    return nearest


def _upright(frame: Any) -> Image.Image:
    """Convert a frame to RGB, rotated as its file says."""
    return frame.to_image().rotate(frame.rotation, expand=True)


@contextmanager
def _stream_of(file: bytes | str) -> Iterator[tuple[Any, Any]]:
    """Open a video file; yield its container and its first video stream."""
    import av

    with av.open(BytesIO(file) if isinstance(file, bytes) else file) as container:
        if not container.streams.video:
            raise BadRow("it has no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream
