"""Reward models: models with a head of one score, in this process or on a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from lit_rlvr.common.log import log
from lit_rlvr.common.packages import expect_hub
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rewards.base import CheckedReward, RunProcess, groups_of, reaches
from lit_rlvr.rewards.forms import as_messages
from lit_rlvr.rewards.judges.base import NO_IMAGES, TRIAL, Judge
from lit_rlvr.rewards.judges.prompts import Question, Reply
from lit_rlvr.rewards.judges.replies import Received, read_usage
from lit_rlvr.rewards.judges.server import Client, JudgeServer
from lit_rlvr.speech.prompts import content_text
from lit_rlvr.types import Pair, RewardResult, Sample


class RewardModel(CheckedReward):
    """The score that a model for sequence classification gives to a conversation that ends with the completion.

    On a GPU it has the type of its files, and judges the completions of a group in padded batches.

    Args:
        model: a folder or a hub id of a model with one label and a chat template.
        device: where it runs: `cpu`; `cuda`, which is each process's own GPU; or `cuda:1` in a run of one process.
        threshold: the least score of a right answer; null: it reports no `correct`.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    may_be_negative = True
    needs_answer = False

    def __init__(self, model: str, device: str = "cpu", threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.device = device
        self.threshold = threshold
        self._device = device
        self.reports_correct = threshold is not None
        self._said_no_images = False

    def check_reference(self, sample: Sample) -> None:
        if not sample.images:
            return
        if self._takes_images:
            raise UserError(
                f"rewards.RewardModel.model: {self.model} takes images, of which RewardModel would show it none; give "
                "a judge that sees them (PointwiseJudge), or a reward model of text"
            )
        if not self._said_no_images:
            self._said_no_images = True
            log.warning(NO_IMAGES, self.name, sample.source or sample.id)

    @cached_property
    def _takes_images(self) -> bool:
        """Whether the model is one of images and text; False if its config cannot be read, which `connect` says."""
        from transformers import AutoConfig

        expect_hub(self.model)
        try:
            config = AutoConfig.from_pretrained(self.model, trust_remote_code=False)
        except (OSError, ValueError):
            return False
        return hasattr(config, "vision_config")

    def set_process(self, process: RunProcess) -> None:
        kind, _, index = self.device.partition(":")
        if index and process.processes > 1:
            raise UserError(
                f"rewards.RewardModel.device: each of the {process.processes} processes would load the model onto "
                f"{self.device}; give {kind}, which is each one's own, or serve the model (RewardModelServer)"
            )
        if kind == process.device.type and not index:
            self._device = str(process.device)  # a thread of its own scores, and its current GPU is the first one

    def connect(self) -> None:
        _ = self._parts

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The model and its tokenizer.

        Raises:
            UserError: they cannot be loaded, or are not those of a reward model.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        where = f"rewards.RewardModel.model: {self.model}"
        expect_hub(self.model)
        if self._is_on_cpu:
            dtype = "float32"
        else:
            dtype = "auto"
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                self.model, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{where} cannot be loaded ({first_line(error)}); give a folder or a hub id") from error
        lacks = [*report["missing_keys"], *([] if tokenizer.chat_template else ["a chat template"])]
        if lacks or model.config.num_labels != 1:
            raise UserError(
                f"{where} has {model.config.num_labels} labels and lacks {', '.join(lacks) or 'nothing'}; give a "
                "reward model, which has 1 label, a trained head and a chat template"
            )
        return model.to(self._device).eval(), tokenizer

    @property
    def _is_on_cpu(self) -> bool:
        return self._device.partition(":")[0] == "cpu"

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge completions: on a CPU each alone; elsewhere those of a group together.

        So the last digits of a score never depend on when other groups finish.
        """
        if self._is_on_cpu:
            batches = []
            for k in range(len(pairs)):
                batches.append([k])
        else:
            batches = groups_of(pairs)
        values = [0.0] * len(pairs)
        for batch in batches:
            scores = self.scores_of([pairs[k] for k in batch])
            for k, score in zip(batch, scores, strict=True):
                values[k] = score
        return [scored(value, self.threshold) for value in values]

    def scores_of(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the scores of completions, computed in batches of similar lengths, each padded on its right."""
        import torch

        model, tokenizer = self._parts
        rows = []
        for pair in pairs:
            rows.append(_token_ids(tokenizer, conversation_of(pair)))
        scores = [0.0] * len(rows)
        with torch.inference_mode():
            for batch in batches_of([len(row) for row in rows]):
                logits = model(**_padded([rows[k] for k in batch], model)).logits[:, 0].tolist()
                for k, score in zip(batch, logits, strict=True):
                    scores[k] = score
        return scores


BATCH_TOKENS = 16_384
"""Most tokens of a batch, padding included."""


def batches_of(lengths: Sequence[int]) -> list[list[int]]:
    """Return the numbers of rows in batches of at most `BATCH_TOKENS` tokens, or of one row, by falling length."""
    batches: list[list[int]] = []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(k)
    return batches


def _token_ids(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    return ids


def _padded(rows: Sequence[list[int]], model: Any) -> dict[str, Any]:
    """Return the inputs of a batch, and name the padding to the model, which reads the last token before it."""
    import torch

    used = set(chain.from_iterable(rows))
    pad = next(token for token in range(len(used) + 1) if token not in used)
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    model.config.get_text_config().pad_token_id = pad
    return {"input_ids": ids.to(model.device), "attention_mask": (ids != pad).long().to(model.device)}


class ScoringClient(Client):
    """A client of a server that scores conversations."""

    path = "/classify"

    def request(self, question: Question, attempt: int = 0) -> dict[str, Any]:
        request = {"model": self.server.model, "messages": json.loads(question.text), "use_activation": False}
        return request | (self.server.extra_body or {})

    def read_body(self, body: Any) -> Received:
        (score,) = body["data"][0]["probs"]
        return Received(str(float(score)), "", read_usage(body.get("usage"), has_completion=False))


class RewardModelServer(Judge):
    """The score of a reward model on a server of vLLM, by `/classify`, without an activation.

    Args:
        server: the server; its `base_url` has no `/v1`.
        threshold: the least score of a right answer; null: it reports no `correct`.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    client_class = ScoringClient
    may_be_negative = True
    sends_images = False

    def __init__(self, server: JudgeServer, threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(server=server, task="", has_reason=False, sees_thoughts=False, **kwargs)
        self.threshold = threshold
        self.reports_correct = threshold is not None

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        questions = []
        for pair in pairs:
            questions.append(Question("", json.dumps(conversation_of(pair)), ()))
        replies = self.ask(questions)
        results = []
        for reply in replies:
            if isinstance(reply, str):
                results.append(RewardResult(0.0, None, "error", reply))
            else:
                results.append(scored(reply["score"], self.threshold))
        return results

    def trial(self) -> Question:
        return Question("", json.dumps(conversation_of(TRIAL)), ())

    def read(self, question: Question, answer: str) -> Reply:
        return {"score": float(answer)}


def conversation_of(pair: Pair) -> list[dict[str, Any]]:
    """Return what the model was told and its completion, without thoughts, as chat messages of text."""
    completion, sample = pair
    told = []
    for message in as_messages(sample.told):
        told.append(message | {"content": content_text(message["content"])})
    return [*told, {"role": "assistant", "content": completion.answer}]


def scored(score: float, threshold: float | None) -> RewardResult:
    """Return the result for a score; `correct` if a threshold says which scores are."""
    return RewardResult(score, None if threshold is None else reaches(score, threshold))
