"""InternVL3.5: tokens that are never sampled, and refusals."""

from pathlib import Path
from typing import Any

import pytest
from tiny_vlms import save_internvl3_5
from transformers import AutoTokenizer, GotOcr2ImageProcessor

from lit_rlvr.errors import UserError
from lit_rlvr.policy.families.internvl import CanvasProcessor
from lit_rlvr.policy.loading import load_image_processor, load_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_internvl3_5(tmp_path_factory.mktemp("models") / "internvl")


def test_tokens_around_images_are_never_sampled(folder: Path) -> None:
    never = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>", "<video>"])
    assert {*never} == {*load_policy(str(folder)).placeholder_ids}


def test_tiles_of_another_size_are_refused(folder: Path) -> None:
    family, own = load_image_processor(str(folder)).family, GotOcr2ImageProcessor(size={"height": 28, "width": 28})
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(UserError, match=r"has tiles of 28 x 28 pixels, its vision_config image_size \[56, 56\]; take"):
        CanvasProcessor(family, str(folder), own, tokenizer)
