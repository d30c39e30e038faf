"""A reward model: a model with a head of one score, in this process or on a server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rewards.base import CheckedReward
from lit_rlvr.types import Pair, RewardResult, Sample

_log = logging.getLogger("lit_rlvr")


class RewardModel(CheckedReward):
    """The score that a model for sequence classification gives to a conversation which ends with the completion.

    Args:
        model: a folder or a hub id of a model with one label and a chat template.
        device: where it runs, such as cuda:1.
        threshold: the least score of a right answer; null: it reports no `correct`.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    def __init__(self, model: str, device: str = "cpu", threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model, self.device, self.threshold = model, device, threshold

    @cached_property
    def _loaded(self) -> SimpleNamespace:
        """The model and its tokenizer.

        Raises:
            UserError: they cannot be loaded, or are none of a reward model.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        where = f"rewards.RewardModel.model: {self.model}"
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                self.model, dtype="float32", output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(self.model)
        except (OSError, ValueError) as error:
            raise UserError(f"{where} cannot be loaded ({first_line(error)}); give a folder or a hub id") from error
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"{where} has no weights {missing[0]}, so it is no reward model; give one")
        if model.config.num_labels != 1 or not tokenizer.chat_template:
            raise UserError(
                f"{where} has {model.config.num_labels} labels and {'a' if tokenizer.chat_template else 'no'} chat "
                "template; a reward model has 1 and a template"
            )
        return SimpleNamespace(model=model.to(self.device).eval(), tokenizer=tokenizer)

    def connect(self) -> None:
        _ = self._loaded

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge a batch, each completion alone: in a padded batch the score would depend on the others."""
        import torch

        with torch.inference_mode():
            scores = [float(self._loaded.model(**self.encoded(pair)).logits[0, 0]) for pair in pairs]
        return [RewardResult(score, None if self.threshold is None else score >= self.threshold) for score in scores]

    def encoded(self, pair: Pair) -> Any:
        """Return the tokens of a prompt and a completion, as the chat template of the reward model writes them."""
        completion, sample = pair
        messages = [*conversation(sample), {"role": "assistant", "content": completion.answer}]
        return self._loaded.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.device)


def conversation(sample: Sample) -> list[dict[str, Any]]:
    """Return a sample's prompt as chat messages."""
    return [{"role": "user", "content": sample.prompt}] if isinstance(sample.prompt, str) else sample.prompt
