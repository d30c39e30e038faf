"""SmolVLM2 and Idefics3: tiles and their placeholders as transformers' own processor makes them, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_vlms import make_prompt, picture, save_idefics3, save_smolvlm2
from transformers import AutoTokenizer, Idefics3ImageProcessor, Idefics3Processor

from lit_rlvr.errors import UserError
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.families.smolvlm import SPECIALS
from lit_rlvr.policy.loading import load_image_processor, load_policy

SIZES = [(84, 84), (60, 140), (140, 60), (1, 1), (200, 3), (3, 200), (57, 83), (42, 41), (640, 479)]
IMAGE = SPECIALS.index("<image>")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_smolvlm2(tmp_path_factory.mktemp("models") / "smolvlm2")


@pytest.fixture(scope="session")
def processor(folder: Path) -> ImageProcessor:
    return load_image_processor(str(folder))


@pytest.mark.parametrize("size", SIZES)
def test_tokens_and_tiles_are_those_of_the_models_own_processor(
    folder: Path, processor: ImageProcessor, size: tuple[int, int]
) -> None:
    """Idefics3's expands the same text; SmolVLM's needs a package for the numbers of videos."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images: Any = Idefics3ImageProcessor.from_pretrained(folder)
    own: Any = Idefics3Processor(images, tokenizer, image_seq_len=1)(
        images=[picture(*size, seed=1)], text="a<image>b", add_special_tokens=False, return_tensors="pt"
    )
    prompt = processor.pixels([picture(*size, seed=1)])
    ids = processor.expand(tokenizer("a<image>b").input_ids, prompt.placeholders)
    assert ids == own["input_ids"][0].tolist() and prompt.placeholders == (processor.placeholders(*size),)
    assert prompt.inputs[0]["pixel_values"].equal(own["pixel_values"][0])
    processor.family.check_features(ids, prompt)
    assert processor.family.collapse(ids, prompt) == tokenizer("a<image>b").input_ids


def test_several_images_keep_their_own_tiles(processor: ImageProcessor) -> None:
    pictures = [picture(*size, seed=k) for k, size in enumerate(SIZES)]
    together = processor.pixels(pictures)
    for k, one in enumerate(pictures):
        alone = processor.pixels([one])
        assert together.placeholders[k] == alone.placeholders[0]
        assert together.inputs[k]["pixel_values"].equal(alone.inputs[0]["pixel_values"])


def test_idefics3_is_a_model_of_the_family(tmp_path: Path) -> None:
    """Loading compares its log-probabilities, with an image, with the model's own forward pass."""
    policy = load_policy(str(save_idefics3(tmp_path)))
    assert policy.shared_prefix and policy.placeholder_ids == (IMAGE,)
    prompt = make_prompt(load_image_processor(str(tmp_path)), "one", picture(56, 56, seed=0))
    assert prompt.token_ids.count(IMAGE) == 5 * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_image_size": {"longest_edge": 28}}, r"has tiles of 28 pixels, its vision_config image_size 42; take"),
        ({"size": {"longest_edge": 100}}, r"has size 100, which is no multiple of its tiles \(42 pixels\)"),
    ],
)
def test_image_processors_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    file = save_smolvlm2(tmp_path) / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match=said):
        load_image_processor(str(tmp_path))


def test_without_num2words_vllm_is_refused_in_one_line(
    processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_rlvr.common.packages.is_installed", lambda module: module != "num2words")
    with pytest.raises(
        UserError, match=r"^engine vllm with SmolVLM: num2words is not installed; pip install num2words"
    ):
        processor.family.vllm_options()
