"""Videos as Qwen's models take them: tokens, positions and log-probabilities are transformers' own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlms import KINDS, QWEN, picture, save_with_videos, write_clip
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from lit_rlvr.datamodules.reading.images import ImageOptions, open_images
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video
from lit_rlvr.policy.families import vision_modules
from lit_rlvr.policy.loading import load_image_processor, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout, Sample

TEXT = "a<|vision_start|><|video_pad|><|vision_end|>b<|vision_start|><|image_pad|><|vision_end|>c"
COMPLETIONS = [Completion("", ids, "stop") for ids in ((40, 41, 42), (50,))]


@pytest.fixture(params=list(QWEN))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_with_videos(request.param, tmp_path)


def make_prompt(folder: Path, frames: Any) -> tuple[Prompt, dict[str, Any]]:
    """A prompt of ours with a video and an image, and the inputs that transformers' own processor makes of it."""
    processor, own = load_image_processor(str(folder)), AutoProcessor.from_pretrained(folder)
    images = open_images([Video(frames), picture(60, 90, seed=1)], Path(), ImageOptions(video_fps=1.9))
    pixels = processor.pixels(images)
    ids = processor.expand(own.tokenizer(TEXT).input_ids, processor.placeholders_of(images))
    assert tuple(processor.placeholders_of(images)) == pixels.placeholders
    processor.family.check_features(ids, pixels)
    assert processor.family.collapse(ids, pixels) == own.tokenizer(TEXT).input_ids
    video, image = pixels.images
    if isinstance(frames, str):
        metadata = VideoMetadata(fps=4.0, frames_indices=[0, 2, 5, 7, 10, 12], total_num_frames=13)
    else:
        metadata = VideoMetadata(fps=1.9, frames_indices=list(range(5)), total_num_frames=5)
    theirs = own(
        text=TEXT,
        images=[image],
        videos=[video.array],
        return_tensors="pt",
        do_resize=False,
        videos_kwargs={"do_sample_frames": False, "video_metadata": [metadata]},
    )
    assert ids == theirs["input_ids"][0].tolist()
    return Prompt(Sample("clip", "?", "1"), ids, pixels), dict(theirs)


def slow_positions(prompt: Prompt, config: Any) -> list[list[int]]:
    """Positions in time, height and width as in Qwen's own code, also of transformers 4: each part begins after the
    largest position of those before it. In transformers 5 text begins after the height or width of a video, however
    long that is."""
    assert prompt.pixels is not None
    merge, rows, at = config.vision_config.spatial_merge_size, [[], [], []], 0
    grids = {"video": [], "image": []}
    for inputs in prompt.pixels.inputs:
        t, h, w = inputs["image_grid_thw"][0].tolist()
        seconds = float(inputs.get("second_per_grid_ts", 0)) * getattr(config.vision_config, "tokens_per_second", 0)
        each = [(1, h, w)] * t if config.model_type.startswith("qwen3") else [(t, h, w)]
        grids["video" if "second_per_grid_ts" in inputs else "image"] += [(*grid, seconds or 1) for grid in each]
    ids = list(prompt.token_ids)
    kinds = {config.image_token_id: "image", config.video_token_id: "video"}
    while at < len(ids):
        start = max(map(max, rows)) + 1 if at else 0
        if ids[at] not in kinds:
            places = [(start,) * 3]
        else:
            t, h, w, interval = grids[kinds[ids[at]]].pop(0)
            places = [
                (start + int(i * interval), start + j, start + k)
                for i in range(t)
                for j in range(h // merge)
                for k in range(w // merge)
            ]
        for row, values in zip(rows, zip(*places, strict=True), strict=True):
            row += values
        at += len(places)
    return rows


def logprobs(policy: Policy, *prompts: Prompt) -> torch.Tensor:
    rollout = Rollout.unscored(list(prompts), [COMPLETIONS] * len(prompts), Sampling(), group_size=2)
    return policy.logprobs(rollout, list(range(2 * len(prompts))))[0]


@pytest.mark.first_case_fast
@pytest.mark.parametrize("form", ["file", "list"])
def test_a_policy_computes_a_video_as_the_model_on_its_own(folder: Path, form: str, tmp_path: Path) -> None:
    """The model sees 6 of the 13 frames of a file, and all 5 of a list."""
    clip = write_clip(tmp_path / "clip.mp4", frames=13)
    prompt, inputs = make_prompt(folder, str(clip) if form == "file" else [picture(84, 56, seed=i) for i in range(5)])
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    assert prompt.pixels is not None
    seconds = prompt.pixels.inputs[0]["second_per_grid_ts"]
    assert (folder.name == "qwen2.5-vl") is ("second_per_grid_ts" in inputs)
    torch.testing.assert_close(seconds, inputs.get("second_per_grid_ts", seconds))
    policy = load_policy(str(folder))
    ours, positions = logprobs(policy, prompt).detach(), slow_positions(prompt, model.config)
    assert policy.position_ids(prompt).tolist() == positions
    if folder.name != "qwen2.5-vl":  # see `slow_positions`
        own, _ = model.model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})
        assert own[:, 0].tolist() == positions
    for row, completion in zip(ours, COMPLETIONS, strict=True):
        more = torch.tensor([completion.token_ids])
        ids = torch.cat([inputs["input_ids"], more], 1)
        after = max(map(max, positions)) + 1
        places = torch.tensor([[*row, *range(after, after + more.numel())] for row in positions])[:, None]
        same = {name: value for name, value in inputs.items() if "pixel" in name or "grid" in name}
        with torch.no_grad():
            logits = model(ids, position_ids=places, use_cache=False, **same).logits
        wanted = logits.log_softmax(-1)[0, len(prompt.token_ids) - 1 : -1].gather(-1, more.T).squeeze(-1)
        torch.testing.assert_close(row[: len(wanted)], wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("bounds", [(20000, 21000), (1, 3000), (60000, 500000)])
def test_frames_of_any_size_have_as_many_tokens_as_features(folder: Path, bounds: tuple[int, int]) -> None:
    file = folder / "video_preprocessor_config.json"
    low, high = bounds
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"shortest_edge": low, "longest_edge": high}}))
    processor = load_image_processor(str(folder))
    tokens = {processor.family.image_token_id, processor.family.video_token_id}
    for size in ((84, 84), (30, 300), (301, 33), (28, 28), (97, 143)):
        images = open_images([Video([picture(*size, seed=i) for i in range(3)])], Path())
        (wanted,), pixels = processor.placeholders_of(images), processor.pixels(images)
        assert pixels.placeholders == (wanted,)
        assert sum(token in tokens for token in wanted) == processor.family.features(pixels.inputs[0])
    with pytest.raises(UserError, match="a video of 2010 x 10 pixels"):
        processor.video_grid((2010, 10), 4)


def test_the_tower_computes_images_and_videos_in_one_pass(folder: Path, tmp_path: Path) -> None:
    """Ranks synchronise in each pass: with two, one without a video would wait forever."""
    prompt, _ = make_prompt(folder, str(write_clip(tmp_path / "clip.mp4", frames=13)))
    policy, seen = load_policy(str(folder)), []
    vision_modules(policy.model)[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    logprobs(policy, prompt, prompt)
    assert prompt.pixels is not None
    rows = 1 if policy.shared_prefix else 2
    assert seen == [2 * rows * sum(len(inputs["pixel_values"]) for inputs in prompt.pixels.inputs)]


def test_tokens_of_videos_are_never_sampled(folder: Path) -> None:
    policy = load_policy(str(folder))
    assert policy.model.config.video_token_id in policy.placeholder_ids


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - QWEN.keys()))
def test_other_families_refuse_videos(kind: str, tmp_path: Path) -> None:
    processor = load_image_processor(str(KINDS[kind](tmp_path / kind)))
    images = open_images([Video(str(write_clip(tmp_path / "clip.mp4")))], Path())
    with pytest.raises(
        UserError, match=r"^[^\n]*: videos are not supported; use Qwen's models, or leave out such rows$"
    ):
        processor.placeholders_of(images)
