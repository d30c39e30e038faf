"""Gemma 3: tokens and pixels as transformers' own processor makes them, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlms import SHARP, picture
from transformers import AutoProcessor, AutoTokenizer, Gemma3ImageProcessor

from lit_rlvr.errors import UserError
from lit_rlvr.policy.families.gemma3 import SPECIALS, SquareProcessor, save_tiny_gemma3
from lit_rlvr.policy.loading import load_image_processor

IMAGE = "<start_of_image>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tokens for two to four newlines, as Gemma's tokenizer has them."""
    text = SHARP | {"vocab_size": len(SPECIALS) + 259}
    folder = save_tiny_gemma3(tmp_path_factory.mktemp("models") / "gemma3", text=text, vision=SHARP)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["\n\n", "\n\n\n", "\n\n\n\n"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "text", [f"a{IMAGE}b", f"user\n{IMAGE}\nb", f"{IMAGE}{IMAGE}", f"a\n\n{IMAGE}\n{IMAGE}b\n\n", f"\n\n\n{IMAGE}\n\n"]
)
def test_tokens_and_pixels_are_those_of_the_models_own_processor(folder: Path, text: str) -> None:
    processor, own = load_image_processor(str(folder)), AutoProcessor.from_pretrained(folder)
    pictures = [picture(60, 30 + 20 * k, seed=k) for k in range(text.count(IMAGE))]
    wanted = own(images=pictures, text=text, add_special_tokens=False, return_tensors="pt")
    pixels = processor.pixels(pictures)
    ids = processor.expand(own.tokenizer(text, add_special_tokens=False).input_ids, pixels.placeholders)
    assert ids == wanted["input_ids"][0].tolist()
    assert torch.cat([image["pixel_values"] for image in pixels.inputs]).equal(wanted["pixel_values"])
    assert processor.family.token_inputs(torch.tensor([ids]))["token_type_ids"].equal(wanted["token_type_ids"].int())
    processor.family.check_features(ids, pixels)
    assert pixels.placeholders[0] == processor.placeholders(60, 30)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": {"height": 84, "width": 56}}, r"makes images of 56 x 84 pixels, its vision_config has image_size 84"),
        ({"do_pan_and_scan": True}, r"has do_pan_and_scan, .* set it to false"),
    ],
)
def test_image_processors_that_do_not_fit_are_refused(folder: Path, settings: dict[str, Any], said: str) -> None:
    family, tokenizer = load_image_processor(str(folder)).family, AutoTokenizer.from_pretrained(folder)
    own: Any = Gemma3ImageProcessor(**({"size": {"height": 84, "width": 84}} | settings))
    with pytest.raises(UserError, match=said):
        SquareProcessor(family, str(folder), own, tokenizer)
