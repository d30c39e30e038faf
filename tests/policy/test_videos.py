"""Videos as Qwen's models take them: tokens, positions and log-probabilities are transformers' own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlms import KINDS, QWEN, picture, write_clip
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from lit_rlvr.datamodules.reading.images import ImageOptions, open_images
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_image_processor, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.types import Completion, Prompt, Rollout, Sample, Sampling, Video

TEXT = "a<|vision_start|><|video_pad|><|vision_end|>b<|vision_start|><|image_pad|><|vision_end|>c"
COMPLETIONS = [Completion("", ids, "stop") for ids in ((40, 41, 42), (50,))]


@pytest.fixture(params=list(QWEN))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model with a video processor of its own, as the published ones have."""
    made = QWEN[request.param](tmp_path / request.param)
    images = json.loads((made / "preprocessor_config.json").read_text())
    kind = "Qwen3VLVideoProcessor" if request.param.startswith("qwen3") else "Qwen2VLVideoProcessor"
    wanted = {"video_processor_type": kind, "size": {"shortest_edge": 4096, "longest_edge": 60000}}
    sizes = {name: images[name] for name in ("patch_size", "merge_size", "temporal_patch_size")}
    (made / "video_preprocessor_config.json").write_text(json.dumps(wanted | sizes))
    return made


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
    theirs = own(
        text=TEXT, images=[image], videos=[video.array], return_tensors="pt", do_resize=False,
        videos_kwargs={"do_sample_frames": False, "video_metadata": [VideoMetadata(**video.metadata)]},
    )  # fmt: skip
    assert ids == theirs["input_ids"][0].tolist()
    return Prompt(Sample("clip", "?", "1"), ids, pixels), dict(theirs)


def logprobs(policy: Policy, *prompts: Prompt) -> torch.Tensor:
    rollout = Rollout.unscored(list(prompts), [COMPLETIONS] * len(prompts), Sampling(), group_size=2)
    return policy.logprobs(rollout, list(range(2 * len(prompts))))[0]


@pytest.mark.parametrize("form", ["file", "list"])
def test_a_policy_computes_a_video_as_the_model_on_its_own(folder: Path, form: str, tmp_path: Path) -> None:
    """Of 13 frames of a file the model sees 6, and 5 in a list."""
    clip = write_clip(tmp_path / "clip.mp4", frames=13)
    prompt, inputs = make_prompt(folder, str(clip) if form == "file" else [picture(84, 56, seed=i) for i in range(5)])
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    assert prompt.pixels is not None
    video = prompt.pixels.images[0]
    assert video.indices == ((0, 2, 5, 7, 10, 12) if form == "file" else (0, 1, 2, 3, 4))
    ours = logprobs(load_policy(str(folder)), prompt).detach()
    for row, completion in zip(ours, COMPLETIONS, strict=True):
        more = torch.tensor([completion.token_ids])
        ids = torch.cat([inputs["input_ids"], more], 1)
        marks = torch.cat([inputs["mm_token_type_ids"], 0 * more], 1)
        same = {name: value for name, value in inputs.items() if "pixel" in name or "grid" in name}
        with torch.no_grad():
            model.model.rope_deltas = None
            logits = model(ids, mm_token_type_ids=marks, use_cache=False, **same).logits
        wanted = logits.log_softmax(-1)[0, len(prompt.token_ids) - 1 : -1].gather(-1, more.T).squeeze(-1)
        torch.testing.assert_close(row[: len(wanted)], wanted, atol=2e-5, rtol=0)


def test_frames_and_their_order_matter(folder: Path, tmp_path: Path) -> None:
    prompt, _ = make_prompt(folder, str(write_clip(tmp_path / "clip.mp4")))
    assert prompt.pixels is not None
    video, image = prompt.pixels.images
    turned = load_image_processor(str(folder)).cut([replace(video, frames=video.frames[::-1]), image])
    policy = load_policy(str(folder))
    before, after = (logprobs(policy, replace(prompt, pixels=pixels)).detach() for pixels in (prompt.pixels, turned))
    assert float((after - before)[0].abs().max()) > 1e-3


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
