"""Images as every supported kind of vision-language model takes them: sizes, placeholders, positions, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlms import AUDIO, KINDS, PAD, START, STOP, make_prompt, picture
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration

from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy.families import family_of
from lit_rlvr.policy.families.qwen_vl import QwenImageProcessor
from lit_rlvr.policy.loading import load_image_processor, load_policy


@pytest.fixture(scope="session")
def processor(qwen_folder: Path) -> QwenImageProcessor:
    return load_image_processor(str(qwen_folder))


@pytest.mark.parametrize("size", [(1000, 1), (200, 3), (28, 28), (33, 65), (100, 47), (1500, 1500)])
def test_sizes_become_multiples_within_the_bounds(
    qwen_folder: Path, processor: QwenImageProcessor, size: tuple[int, int]
) -> None:
    if max(size) > 200 * min(size):
        with pytest.raises(UserError, match="1000 x 1"):
            processor.grid(*size)
        return
    own: Any = AutoImageProcessor.from_pretrained(qwen_folder)
    patch = json.loads((qwen_folder / "config.json").read_text())["vision_config"]["patch_size"]
    high, wide = processor.grid(*size)
    assert high % 2 == wide % 2 == 0
    assert 3136 <= high * wide * patch**2 <= 1003520, "the bounds of the model's own processor"
    image = picture(*size, seed=1)
    if min(size) >= 2 * patch:
        assert own(images=[image])["image_grid_thw"].tolist() == [[1, high, wide]], "as it would resize on its own"
    pixels = processor.pixels([image])
    (inputs,), (placeholders,) = pixels.inputs, pixels.placeholders
    assert inputs["image_grid_thw"].tolist() == [[1, high, wide]] and len(inputs["pixel_values"]) == high * wide
    assert placeholders == processor.placeholders(*size) == (PAD,) * (high * wide // 4)
    assert pixels.images[0].size == (wide * patch, high * patch)


@pytest.mark.parametrize("kind", ["internvl3.5", "gemma4-vision", "glm-4.1v"])
def test_tokens_and_inputs_are_those_of_the_models_own_processor(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path)
    processor, own = load_image_processor(str(folder)), AutoProcessor.from_pretrained(folder)
    family = processor.family
    text = "a{0}b{0}".format(own.tokenizer.convert_ids_to_tokens(family.prompt_token_id))
    plain = own.tokenizer(text, add_special_tokens=False).input_ids
    for size in ((84, 84), (60, 140), (140, 60), (1, 1), (200, 3), (3, 200), (57, 83), (640, 479)):
        pictures = [picture(*size, seed=0), picture(70, 70, seed=1)]
        wanted = own(images=pictures, text=text, add_special_tokens=False, return_tensors="pt")
        pixels = processor.pixels(pictures)
        ids = processor.expand(plain, pixels.placeholders)
        assert ids == wanted["input_ids"][0].tolist() and family.collapse(ids, pixels) == plain
        inputs = family.model_inputs([pixels], torch.device("cpu")) | family.token_inputs(torch.tensor([ids]))
        if "image_grid_thw" in inputs:  # pixels are resized by PIL, for vLLM and the trainer alike
            assert inputs.pop("pixel_values").shape == wanted["pixel_values"].shape
        for name, value in inputs.items():
            assert value.equal(wanted[name].to(value.dtype)), name
        family.check_features(ids, pixels)
        assert pixels.placeholders[0] == processor.placeholders(*size)


@pytest.mark.parametrize("kind", ["gemma3", "gemma4-vision"])
@torch.no_grad()
def test_features_of_an_image_attend_in_both_directions(kind: str, tmp_path: Path) -> None:
    """A later feature changes an earlier one, which causal attention would not see."""
    folder = str(KINDS[kind](tmp_path))
    policy, processor = load_policy(folder), load_image_processor(folder)
    prompt = make_prompt(processor, "one", picture(84, 84, seed=0))
    assert prompt.pixels is not None and processor.family.token_types is not None
    ids = torch.tensor([prompt.token_ids])
    both = policy.plain_logits(ids, [prompt.pixels])
    images = policy.images([prompt.pixels], ids) | {processor.family.token_types: None}
    causal = policy.model(ids, use_cache=False, **images).logits
    first = prompt.token_ids.index(processor.family.image_token_id)
    assert float((both - causal)[:, first].abs().max()) > 0.1 and bool((both - causal)[:, :first].abs().max() < 1e-4)


def edited(folder: Path, to: Path, **settings: Any) -> Path:
    """A model folder with different image processor settings."""
    shutil.copytree(folder, to)
    file = to / "preprocessor_config.json"
    old = {key: value for key, value in json.loads(file.read_text()).items() if key != "size" or "size" in settings}
    file.write_text(json.dumps(old | settings))
    return to


def test_published_settings_of_image_processors_give_their_grids(qwen_folder: Path, tmp_path: Path) -> None:
    """As on the hub for Qwen2-VL and Qwen2.5-VL, and for Qwen3-VL."""
    kind = {"image_processor_type": "Qwen2VLImageProcessorFast"}
    pixels = load_image_processor(str(edited(qwen_folder, tmp_path / "a", min_pixels=50000, max_pixels=90000)))
    bounds = {"shortest_edge": 50000, "longest_edge": 90000}
    edges = load_image_processor(str(edited(qwen_folder, tmp_path / "b", size=bounds, **kind)))
    for made in (pixels, edges):
        for size in ((10, 10), (2000, 1500)):
            wide, high = made.pixels([picture(*size, seed=0)]).images[0].size
            assert 50000 <= wide * high <= 90000
    flat = load_image_processor(str(edited(qwen_folder, tmp_path / "c", min_pixels=1, max_pixels=20000)))
    assert 2 in flat.grid(6000, 30), "a side is never nothing"


def test_patches_of_another_size_are_refused(qwen_folder: Path, tmp_path: Path) -> None:
    folder = edited(qwen_folder, tmp_path / "other", patch_size=7)
    with pytest.raises(UserError, match=r"image processor of .*other has patch_size 7, its vision_config patch_size 1"):
        load_image_processor(str(folder))


def test_placeholders_are_as_many_as_features(processor: QwenImageProcessor) -> None:
    pictures = [picture(56, 112, seed=0), picture(84, 84, seed=1)]
    pixels = processor.pixels(pictures)
    assert [processor.placeholders(*image.size) for image in pictures] == list(pixels.placeholders), "by its size alone"
    one = [1, START, PAD, STOP, START, PAD, STOP, 2]
    ids = processor.expand(one, pixels.placeholders)
    counts = [len(placeholders) for placeholders in pixels.placeholders]
    assert ids == [1, START, *[PAD] * counts[0], STOP, START, *[PAD] * counts[1], STOP, 2]
    assert processor.family.collapse(ids, pixels) == one
    processor.family.check_features(ids, pixels)
    with pytest.raises(UserError, match=rf"{sum(counts) - 1} image placeholders for {sum(counts)} image features"):
        processor.family.check_features(ids[:2] + ids[3:], pixels)
    with pytest.raises(UserError, match="1 image placeholders for 2 images"):
        processor.expand([PAD], pixels.placeholders)


def test_positions_of_an_image_are_those_of_its_grid(qwen_folder: Path) -> None:
    """Three tokens, an image of 2 x 3 features, two tokens: text positions continue after the image's longer side."""
    policy = load_policy(str(qwen_folder))
    ids = [10, 11, START, *[PAD] * 6, STOP, 12]
    family = family_of(policy.model.config)
    assert family is not None
    image = Pixels(({"image_grid_thw": torch.tensor([[1, 4, 6]])},), ((PAD,) * 6,), ())
    position_ids = family.position_ids(policy.model, ids, image)
    assert position_ids.tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7],
    ]
    assert family.position_ids(policy.model, ids[:3], None).tolist() == [[0, 1, 2]] * 3


def test_other_vision_language_models_are_refused(tmp_path: Path) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": 300, **tower}
    config = LlavaConfig(text_config=text, vision_config={"model_type": "clip_vision_model", "image_size": 28, **tower})
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    line = r"model: llava does not take images as any supported model does; use one of Qwen2-VL, .*Qwen3-VL"
    for refuse in (load_policy, load_image_processor, lambda folder: family_of(config)):
        with pytest.raises(UserError, match=line):
            refuse(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("qwen3.5", (AUDIO,)),
        ("gemma4", ("<|image>", "<|image|>", "<image|>", "<|audio>", "<|audio|>", "<audio|>", "<|video|>")),
        ("glm-4.1v", ("<|begin_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>")),
    ],
)
def test_placeholders_of_other_media_are_never_sampled(kind: str, tokens: tuple[str, ...], tmp_path: Path) -> None:
    """Qwen3.5's tokenizer has tokens for sounds, of which its config says nothing; the model has no use for them."""
    policy = load_policy(str(KINDS[kind](tmp_path)))
    assert {*AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids(tokens)} <= {*policy.placeholder_ids}
    assert policy.without_adapters().placeholder_ids == policy.placeholder_ids
