"""Validation and test: the LightningModule that holds the model and measures scored batches."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule

from lit_rlvr.errors import UserError
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.loading import load_image_processor, load_tokenizer
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.training.validation_metrics import EvaluationMetrics
from lit_rlvr.types import PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EvaluatingModule(LightningModule):
    """Holds the model, and turns scored batches into `val/<set>/...` metrics, or `test/<set>/...` ones."""

    def __init__(
        self,
        model: str,
        config_overrides: dict[str, Any] | None = None,
        adapter: Literal["continue", "merge", "any"] | None = "any",
    ) -> None:
        super().__init__()
        self.model = model
        self.config_overrides = config_overrides
        self.adapter = adapter
        self.updates = 0  # optimizer steps taken so far: the version of the weights
        self.policy: Policy = None  # type: ignore[assignment]  # built in configure_model
        self.validation_results: dict[str, float] = {}
        self.validation_questions: dict[str, dict[str, tuple[int, int]]] = {}  # set -> as in EvaluationMetrics
        self._metrics: dict[str, EvaluationMetrics] = {}

    @cached_property
    def model_folder(self) -> str:
        """The folder or hub id that the policy and the engine load."""
        return resolve_model(self.model, self.config_overrides, self.adapter)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.model_folder)

    @cached_property
    def image_processor(self) -> ImageProcessor:
        return load_image_processor(self.model_folder)

    @property
    def data(self) -> Any:
        """The run's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        data = self.data
        if stage == "validate" and not any(other.prompts["validation"] for other in data.validated):
            raise UserError(f"data: {data.name} has no validation set to measure; give `validation`")
        if stage == "test" and not data.prompts["test"]:
            raise UserError(f"data: {data.name} has no test set to measure; give `test`")

    def on_validation_epoch_start(self) -> None:
        self._metrics = {}

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert batch.rollout is not None, "the RolloutCallback fills the batch before it is measured"
        if batch.name not in self._metrics:
            metrics = EvaluationMetrics(batch.rollout.group_size, batch.greedy is not None)
            self._metrics[batch.name] = metrics.to(self.device)
        if batch.prompts:  # empty if only other ranks have prompts in the last batch
            self._metrics[batch.name].update(batch.rollout, batch.greedy)

    def on_validation_epoch_end(self) -> None:
        self.validation_results = self._results("val")
        self.validation_questions = {name: metrics.questions for name, metrics in self._metrics.items()}
        self.log_dict(self.validation_results | {"step": float(self.updates)})

    def _results(self, prefix: str) -> dict[str, float]:
        """Return each set's metrics, and `<prefix>/accuracy`, the mean over sets."""
        results = {
            f"{prefix}/{name}/{metric}": value
            for name, metrics in self._metrics.items()
            for metric, value in metrics.compute().items()
        }
        accuracies = [v for k, v in results.items() if k.endswith("/accuracy")]
        if accuracies:
            results[f"{prefix}/accuracy"] = sum(accuracies) / len(accuracies)
        return results

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._results("test"))
