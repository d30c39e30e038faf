"""Validation and test: what a module measures of scored batches."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule

from lit_rlvr.errors import UserError
from lit_rlvr.training.validation_metrics import ValidationMetrics
from lit_rlvr.types import PromptBatch


class Validation:
    """Turns the scored batches of a validation or test into `val/<set>/...` or `test/<set>/...` metrics.

    Attributes:
        results: the metrics of the last validation.
        questions: of each set, the correct completions of each question, as in `ValidationMetrics`.
    """

    def __init__(self) -> None:
        self.results: dict[str, float] = {}
        self.questions: dict[str, dict[str, tuple[int, int]]] = {}
        self._metrics: dict[str, ValidationMetrics] = {}

    def begin(self) -> None:
        """Forget the batches of an earlier validation."""
        self._metrics = {}

    def add(self, module: LightningModule, batch: PromptBatch) -> None:
        """Measure a batch.

        Collective: call it on every rank.

        Args:
            module: whose completions they are.
            batch: filled by the `RolloutCallback`.
        """
        assert batch.rollout is not None, "the RolloutCallback fills the batch before it is measured"
        if batch.name not in self._metrics:
            metrics = ValidationMetrics(batch.rollout.group_size, batch.greedy is not None)
            self._metrics[batch.name] = metrics.to(module.device)
        if batch.prompts:  # empty if only other ranks have prompts in the last batch
            self._metrics[batch.name].update(batch.rollout, batch.greedy)

    def end(self, prefix: str) -> dict[str, float]:
        """Return each set's metrics, and `<prefix>/accuracy`, the mean over sets.

        Collective: call it on every rank.
        """
        results = {}
        for name, metrics in self._metrics.items():
            for metric, value in metrics.compute().items():
                results[f"{prefix}/{name}/{metric}"] = value
        accuracies = []
        for key, value in results.items():
            if key.endswith("/accuracy"):
                accuracies.append(value)
        if accuracies:
            results[f"{prefix}/accuracy"] = sum(accuracies) / len(accuracies)
        self.results = results
        self.questions = {name: metrics.questions for name, metrics in self._metrics.items()}
        return results


def check_sets(data: Any, stage: str) -> None:
    """Refuse to validate or test without a set.

    Raises:
        UserError: says what to give.
    """
    if stage == "validate" and not any(other.prompts["validation"] for other in data.validated):
        raise UserError(f"data: {data.name} has no validation set to measure; give `validation`")
    if stage == "test" and not data.prompts["test"]:
        raise UserError(f"data: {data.name} has no test set to measure; give `test`")
