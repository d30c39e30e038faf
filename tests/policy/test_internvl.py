"""InternVL3.5: tiles and their tokens as transformers' own processor makes them, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlms import picture, save_internvl3_5
from transformers import AutoProcessor, AutoTokenizer, GotOcr2ImageProcessor

from lit_rlvr.errors import UserError
from lit_rlvr.policy.families.internvl import CanvasProcessor
from lit_rlvr.policy.loading import load_image_processor, load_policy

SIZES = [(84, 84), (60, 140), (140, 60), (1, 1), (200, 3), (3, 200), (57, 83), (640, 479)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_internvl3_5(tmp_path_factory.mktemp("models") / "internvl")


@pytest.mark.parametrize("size", SIZES)
def test_tokens_and_tiles_are_those_of_the_models_own_processor(folder: Path, size: tuple[int, int]) -> None:
    processor, own = load_image_processor(str(folder)), AutoProcessor.from_pretrained(folder)
    text, pictures = "a<IMG_CONTEXT>b<IMG_CONTEXT>", [picture(*size, seed=0), picture(70, 70, seed=1)]
    wanted = own(images=pictures, text=text, add_special_tokens=False, return_tensors="pt")
    pixels, plain = processor.pixels(pictures), own.tokenizer(text, add_special_tokens=False).input_ids
    ids = processor.expand(plain, pixels.placeholders)
    assert ids == wanted["input_ids"][0].tolist() and processor.family.collapse(ids, pixels) == plain
    assert processor.family.model_inputs([pixels], torch.device("cpu"))["pixel_values"].equal(wanted["pixel_values"])
    processor.family.check_features(ids, pixels)
    assert pixels.placeholders[0] == processor.placeholders(*size)


def test_tokens_around_images_are_never_sampled(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    never = tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>", "<video>"])
    assert {*never} == {*load_policy(str(folder)).placeholder_ids}


def test_tiles_of_another_size_are_refused(folder: Path) -> None:
    family, own = load_image_processor(str(folder)).family, GotOcr2ImageProcessor(size={"height": 28, "width": 28})
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(UserError, match=r"has tiles of 28 x 28 pixels, its vision_config image_size \[56, 56\]; take"):
        CanvasProcessor(family, str(folder), own, tokenizer)
