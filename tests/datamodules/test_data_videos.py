"""Videos: files and lists of frames, their places in the prompt, bounds on frames and pixels, and broken ones."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_vlms import picture, write_clip
from transformers import AutoTokenizer

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.images import ImageOptions, as_videos, open_images
from lit_rlvr.datamodules.reading.readers import as_row
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.types import Prompt

V, I = "<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>"  # noqa: E741


@pytest.fixture
def load(vlm_folder: Path, jsonl: Any, tmp_path: Path) -> Callable[..., list[Prompt]]:
    """Reads rows next to a.mp4, b.mp4, f0.png, f1.png, f2.png and x.png with the options of `images`."""
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", frames=12 if name == "a" else 8)
    whole = write_clip(tmp_path / "c.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    first, *others = (picture(84, 56, i) for i in range(4))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=250)
    for i in range(3):
        picture(84, 56, seed=i).save(tmp_path / f"f{i}.png")
    picture(56, 56, seed=9).save(tmp_path / "x.png")

    def load(*rows: dict[str, Any], columns: dict[str, str] | None = None, **options: Any) -> list[Prompt]:
        path = jsonl([{"answer": "A", **row} for row in rows])
        data = PromptDataModule(train=path, columns=columns, images=ImageOptions(**options))
        data.tokenizer, data.image_processor = (
            AutoTokenizer.from_pretrained(vlm_folder),
            load_image_processor(str(vlm_folder)),
        )
        prompts = [data.prepare(data.encode(sample)) for sample in data.load("train")]
        for prompt in prompts:  # data sets in Python, and files that `split` writes
            again = as_row(prompt.sample, False, tmp_path)
            assert len(again.get("video", [])) == sum(isinstance(x, Video) for x in prompt.sample.images)
        shown.extend(data.render(sample).split("user\n", 1)[1].split("<|im_end|>")[0] for sample in data.load("train"))
        return prompts

    shown: list[str] = []
    load.shown = shown  # type: ignore[attr-defined]
    return load


def part(**more: Any) -> dict[str, Any]:
    return {"type": "video", **more}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    "row,seen,kinds",
    [
        ({"prompt": "<video>\nWhat?", "videos": ["a.mp4"]}, f"{V}\nWhat?", "v"),  # EasyR1
        ({"prompt": "<image>, then <video> and <video>", "images": ["x.png"], "videos": ["a.mp4", "b.mp4"]},
         f"{I}, then {V} and {V}", "ivv"),
        ({"prompt": "<video>, <image>?", "images": ["x.png"], "videos": [["f0.png", "f1.png"]]}, f"{V}, {I}?", "vi"),
        ({"prompt": "What?", "video": "a.mp4"}, f"{V}What?", "v"),
        ({"prompt": "What?", "videos": ["f0.png", "f1.png", "f2.png"]}, f"{V}What?", "v"),
        ({"prompt": "<video>, <video>?", "videos": ["a.gif", {"path": "a.gif"}]}, f"{V}, {V}?", "vv"),
        ({"prompt": user({"type": "video"}, "What?"), "videos": ["a.mp4"]}, f"{V}What?", "v"),  # TRL
        ({"prompt": user("See", part(video="a.mp4"), {"type": "image", "image": "x.png"})}, f"See{V}{I}", "vi"),
        ({"prompt": user(part(video=["f0.png", "f1.png"]), "?"), "videos": [["f0.png", "f1.png"]]}, f"{V}?", "v"),
        ({"prompt": user(part(video="a.mp4"), {"type": "image", "image": "x.png"}), "image": "x.png", "video": "a.mp4"},
         f"{V}{I}", "vi"),
        ({"prompt": user({"type": "video_url", "video_url": {"url": "a.mp4"}}, "?")}, f"{V}?", "v"),
        ({"prompt": "What?", "videos": None, "video": []}, "What?", ""),
    ],
)  # fmt: skip
def test_videos_have_their_places(load: Any, row: dict[str, Any], seen: str, kinds: str) -> None:
    (prompt,) = load(row)
    assert load.shown == [seen]
    images = () if prompt.pixels is None else prompt.pixels.images
    assert "".join("v" if isinstance(x, Video) else "i" for x in images) == kinds


def brightness(video: Video) -> list[int]:
    """The number of each frame that `write_clip` wrote."""
    return [round(float(frame.convert("L").getpixel((5, 5))) / 20) for frame in video.frames]


@pytest.mark.parametrize(
    "options,indices",
    [
        ({}, (0, 2, 4, 7, 9, 11)),  # three seconds, of which two frames each
        ({"video_fps": 0.1}, (0, 4, 7, 11)),
        ({"max_frames": 3}, (0, 11)),
        ({"video_fps": 4}, tuple(range(12))),
    ],
)
def test_frames_are_spread_over_the_video(load: Any, options: dict[str, Any], indices: tuple[int, ...]) -> None:
    (prompt,) = load({"prompt": "?", "video": "a.mp4"}, **options)
    (video,) = prompt.pixels.images
    assert video.indices == indices and brightness(video) == list(indices)
    assert (video.fps, video.total) == (4.0, 12)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_of_a_variable_rate_are_chosen_by_time(tmp_path: Path, suffix: str) -> None:
    """Eight frames in the first second, and four in the next ten."""
    times = [*range(8), 18, 38, 58, 88]
    clip = write_clip(tmp_path / f"a.{suffix}", fps=8, times=times)
    (video,) = open_images([Video(str(clip), indices=(0, 3, 6, 8, 11))], Path())
    at = [88 * index / 11 for index in video.indices]
    assert brightness(video) == [min(range(12), key=lambda i: abs(times[i] - wanted)) for wanted in at]
    assert brightness(video) == [0, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("more", "rates"),
    [
        ({}, [2.0, 2.0, 4.0]),
        ({"fps": 8}, [8.0, 8.0, 4.0]),
        ({"frame_rate": [8, 5, 1]}, [8.0, 5.0, 4.0]),
        ({"video_fps": [8]}, "video_fps: expected a number"),
        ({"fps": 0}, "fps: expected a number of frames"),
    ],
)
def test_a_column_gives_the_rate_of_lists_of_frames(load: Any, more: dict[str, Any], rates: list[float] | str) -> None:
    frames = ["f0.png", "f1.png"]
    row = {"prompt": user(part(video=frames), {"type": "video"}, {"type": "video"}), "videos": [frames, "a.mp4"]} | more
    if isinstance(rates, str):
        with pytest.raises(UserError, match=rates):
            load(row)
    else:
        assert [video.fps for video in load(row)[0].pixels.images] == rates


def test_pixel_bounds_hold_for_frames_and_a_long_list_is_bounded(load: Any) -> None:
    (prompt, listed) = load(
        {"prompt": "?", "video": "a.mp4"}, {"prompt": "?", "videos": [["f0.png"] * 9]}, max_pixels=3200, max_frames=4
    )
    assert prompt.pixels.images[0].frames[0].size == (56, 56)
    assert listed.pixels.images[0].indices == (0, 3, 5, 8)


def test_a_video_is_shown_upright(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    plain, upright = clip.read_bytes(), struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    at = plain.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), plain.index(b"tkhd"))
    turned = open_images([Video(plain[:at] + upright + plain[at + 36 :])], Path())
    assert turned.sizes == ((56, 84),) and turned[0].frames[0].size == (56, 84)


@pytest.mark.parametrize("form", ["bytes", "base64", "url", "dict"])
def test_a_video_may_be_encoded(form: str, tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.mp4").read_bytes()
    text = base64.b64encode(data).decode()
    cell: Any = {"bytes": data, "base64": text, "url": f"data:video/mp4;base64,{text}", "dict": {"bytes": data}}[form]
    images = open_images(as_videos([cell]), Path())
    named = open_images(as_videos("a.mp4"), tmp_path)
    assert (images.keys, images.sizes, brightness(images[0])) == (named.keys, ((84, 56),), [0, 2, 4, 7, 9, 11])
    assert open_images(as_videos("a.mp4"), tmp_path, ImageOptions(max_frames=2)).keys != named.keys


@pytest.mark.parametrize(
    "row,reason",
    [
        ({"prompt": "<video>?"}, "video: 1 <video> placeholders for 0 videos"),
        ({"prompt": "<video><video>?", "videos": ["a.mp4"]}, "video: 2 <video> placeholders for 1 videos"),
        ({"prompt": "<image>?", "image": "x.png", "video": "a.mp4"}, "video: 0 <video> placeholders for 1 videos"),
        ({"prompt": user(part(video="a.mp4"), "?"), "video": "b.mp4"}, "0 <video> placeholders for 1 videos, next to"),
        ({"prompt": "?", "video": "no.mp4"}, "video: no such file"),
        ({"prompt": "?", "video": "https://x.org/a.mp4"}, "video: https://.*URLs are not read; download the video"),
        ({"prompt": "?", "video": "train.jsonl"}, "video: .*train.jsonl cannot be decoded"),
        ({"prompt": "?", "video": "cut.mkv"}, "video: .*cut.mkv cannot be decoded .it has no frames"),
        ({"prompt": "?", "video": "A" * 5000}, "video: number 1 cannot be decoded"),
        ({"prompt": "?", "videos": [["f0.png"]]}, "a video has at least 2 frames; give a single one as an image"),
        ({"prompt": "?", "videos": [["f0.png", "x.png"]]}, "number 1 cannot be decoded .its frames have several"),
        ({"prompt": "?", "video": "a.mp4", "videos": ["b.mp4"]}, "videos: videos that are not read"),
        ({"prompt": "?", "video_path": "a.mp4"}, "video_path: videos that are not read; map the column"),
        ({"prompt": "?", "clips": ["a.gif"]}, "clips: videos that are not read; map the column"),
    ],
)  # fmt: skip
def test_videos_that_cannot_be_shown_are_bad_rows(load: Any, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"train.jsonl:1: .*{reason}"):
        load(row)


def test_a_file_that_breaks_off_is_named_with_its_frame(vlm_folder: Path, jsonl: Any, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    data = PromptDataModule(train=jsonl([{"prompt": "?", "answer": "A", "video": "a.mp4"}]))
    data.tokenizer, data.image_processor = (
        AutoTokenizer.from_pretrained(vlm_folder),
        load_image_processor(str(vlm_folder)),
    )
    (sample,) = data.load("train")
    prompt = data.encode(sample)
    write_clip(clip, frames=5)
    with pytest.raises(UserError, match=r"train.jsonl:1: video: frame 7 cannot be decoded \(the file ends before it\)"):
        data.prepare(prompt)
    clip.unlink()
    with pytest.raises(UserError, match=r"train.jsonl:1: image: .*it was there when the data were loaded"):
        data.prepare(prompt)


def test_without_pyav_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    monkeypatch.setattr("lit_rlvr.common.packages.is_installed", lambda module: module != "av")
    with pytest.raises(UserError, match=r"^videos: av is not installed; pip install 'av>=15' .*qwen-vl-utils"):
        open_images([Video(str(clip))], Path())
