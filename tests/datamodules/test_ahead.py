"""Images of the next batch, prepared in a thread during training: the batch is the one that would be prepared then."""

import threading
from pathlib import Path

import pytest
import torch
from tiny_vlms import picture
from transformers import AutoTokenizer

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.stream import START_CURSOR, PreparesAhead
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.types import Prompt, Sample


def shown(name: str) -> Prompt:
    return Prompt(Sample(name, "?", "a", images=["an image"]), [1])


def test_prompts_with_images_are_prepared_before_they_are_taken() -> None:
    seen: list[tuple[str, bool]] = []
    prepared = threading.Event()

    def prepare(prompt: Prompt) -> Prompt:
        seen.append((prompt.sample.id, threading.current_thread() is threading.main_thread()))
        if prompt.sample.id == "broken":
            raise UserError("broken.png: not an image")
        prepared.set()
        return Prompt(prompt.sample, [*prompt.token_ids, 2])

    ahead = PreparesAhead(prepare)
    text = Prompt(Sample("text", "?", "a"), [1])
    ahead.begin([shown("broken"), text, shown("a")])
    assert prepared.wait(60)
    assert seen == [("broken", False), ("a", False)], "text costs nothing"
    for name in ("b", "a"):  # b was not expected
        assert ahead(shown(name)).token_ids == [1, 2]
    assert ahead(text).token_ids == [1, 2]
    assert seen[2:] == [("b", True), ("text", True)]
    with pytest.raises(UserError, match=r"broken\.png"):
        ahead(shown("broken"))
    ahead(shown("a"))
    assert seen[4:] == [("a", True)], "each is used once"
    ahead.begin([shown("broken")])
    ahead.drop()  # nobody asks for it


def test_a_batch_is_the_same_with_and_without_it(vlm_folder: Path, tmp_path: Path) -> None:
    rows = []
    for k in range(6):
        picture(40 + k, 60, seed=k).save(tmp_path / f"{k}.png")
        rows.append({"prompt": "How long?", "answer": "1", "image": str(tmp_path / f"{k}.png")})
    data = PromptDataModule(rows, columns={"image": "image"}, prompts_per_rollout=4)
    data.tokenizer = AutoTokenizer.from_pretrained(vlm_folder)
    data.image_processor = load_image_processor(str(vlm_folder))
    data.setup("fit")
    loader = data.train_dataloader()
    wanted = loader.take(START_CURSOR)
    data.prepare_ahead(START_CURSOR)
    assert len(data._ahead._begun) == 4
    found = loader.take(START_CURSOR)
    assert not data._ahead._begun, "all were used"
    assert found.cursor == wanted.cursor
    for one, other in zip(found.prompts, wanted.prompts, strict=True):
        assert one.token_ids == other.token_ids and one.pixels.placeholders == other.pixels.placeholders
        for inputs, others in zip(one.pixels.inputs, other.pixels.inputs, strict=True):
            assert all(torch.equal(inputs[name], others[name]) for name in others)
