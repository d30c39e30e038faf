"""Images of every kind, read from files by a data module: trainer and engines see the same pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_vlms import differences, picture
from transformers import AutoTokenizer

from lit_rlvr.datamodules import Geometry
from lit_rlvr.policy.images import ImageProcessor
from lit_rlvr.policy.load_policy import load_policy
from lit_rlvr.rollout.engines.base import EngineContext, RolloutEngine
from lit_rlvr.rollout.engines.hf import HFEngine
from lit_rlvr.rollout.engines.synced import trainer_logprobs
from lit_rlvr.rollout.engines.vllm import VLLMEngine
from lit_rlvr.types import Completion, Prompt, Sampling

COLUMNS = {"prompt": "question", "answer": "answer", "image": "picture", "id": "kind"}


def deep(kind: type) -> Image.Image:
    """Greyscale with 12 significant bits."""
    return Image.fromarray((np.asarray(picture(40, 50, 1).convert("L")).astype(kind) * 16 + 7).astype(kind))


def write_pictures(folder: Path) -> list[str]:
    """One file of each kind; the file name without its extension is the kind."""
    noise = picture(61, 43, 0)
    see_through = noise.copy()
    see_through.putalpha(noise.convert("L"))
    exif = Image.Exif()
    pictures = {
        **{f"{w} x {h}.png": picture(w, h, w) for w, h in ((1, 1), (1, 1000), (1000, 1), (3, 5), (57, 83), (199, 1))},
        "RGB.png": noise, "RGB.jpg": noise, "RGB.webp": noise, "CMYK.jpg": noise.convert("CMYK"),
        "greyscale.png": noise.convert("L"), "black and white.png": noise.convert("1"), "RGBA.png": see_through,
        "greyscale with alpha.png": see_through.convert("LA"), "palette.png": noise.quantize(32),
        "palette with transparency.gif": noise.quantize(32), "16 bit.png": deep(np.uint16),
        "32 bit.tiff": deep(np.int32), "float.tiff": deep(np.float32),
    }  # fmt: skip
    for name, image in pictures.items():
        image.save(folder / name, **({"transparency": 3} if name.endswith("gif") else {}))
    for orientation in (3, 6, 8):
        exif[0x0112] = orientation
        noise.save(folder / f"rotated {orientation}.jpg", exif=exif)
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def prompts(any_vlm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """A training batch with every picture once."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "pictures").mkdir()
    names = write_pictures(folder / "pictures")
    rows = [{"kind": n, "question": "<image>How long?", "answer": "1", "picture": f"pictures/{n}"} for n in names]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Geometry(train=str(folder / "train.jsonl"), columns=COLUMNS, prompts_per_step=len(rows))
    data.tokenizer = AutoTokenizer.from_pretrained(any_vlm_folder)
    data.image_processor = ImageProcessor(str(any_vlm_folder))
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(prompt.sample.id for prompt in batch.prompts) == names, "none is refused"
    return batch.prompts


def largest_differences(engine: RolloutEngine, context: EngineContext, prompts: list[Prompt]) -> dict[str, float]:
    policy = load_policy(context.folder)
    engine.sync(policy)
    sampling = Sampling(max_tokens=8).with_banned(policy.placeholder_ids)
    seeds = [[10 * p, 10 * p + 1] for p in range(len(prompts))]
    return differences(policy, prompts, engine.generate(prompts, sampling, seeds), sampling)


def test_hugging_face_engine(vlm_context: EngineContext, prompts: list[Prompt]) -> None:
    engine = HFEngine()
    engine.start(vlm_context)
    found = largest_differences(engine, vlm_context, prompts)
    assert max(found.values()) <= 2e-5, found


@pytest.mark.slow
def test_vllm(vlm_context: EngineContext, vlm_engine: VLLMEngine, prompts: list[Prompt]) -> None:
    found = largest_differences(vlm_engine, vlm_context, prompts)
    assert max(found.values()) <= 5e-5, found


def test_a_picture_the_wrong_way_round_would_be_noticed(vlm_context: EngineContext, prompts: list[Prompt]) -> None:
    policy, processor = load_policy(vlm_context.folder), ImageProcessor(vlm_context.folder)
    sampling = Sampling()
    for prompt in prompts:
        assert prompt.pixels is not None
        completion = Completion("", (40, 50, 60, 70), "stop")
        shown = trainer_logprobs(policy, prompt, completion, sampling)
        turned = processor.pixels([image.rotate(180) for image in prompt.pixels.images])
        other = trainer_logprobs(policy, replace(prompt, pixels=turned), completion, sampling)
        assert (shown - other).abs().max() > 1e-2 or prompt.sample.id == "1 x 1.png", prompt.sample.id
