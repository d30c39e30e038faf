"""A DataModule's access to the model's tokenizer and image processor."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from lit_rlvr.policy.images import ImageProcessor


class UsesModel(LightningDataModule):
    """A DataModule with the tokenizer and image processor of the trainer's model, or ones set without a trainer."""

    def __init__(self) -> None:
        super().__init__()
        self._tokenizer: Any = None
        self._image_processor: ImageProcessor | None = None
        self._module: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the trainer's model; set it to use the data without a trainer."""
        return self._tokenizer if self._tokenizer is not None else self._model("tokenizer").tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def image_processor(self) -> ImageProcessor:
        """The image processor of the trainer's model; set it to use the data without a trainer."""
        processor = self._image_processor
        return processor if processor is not None else self._model("image processor").image_processor

    @image_processor.setter
    def image_processor(self, processor: ImageProcessor) -> None:
        self._image_processor = processor

    def use_model(self, module: Any) -> None:
        """Take tokenizer and image processor from a module that has no trainer yet, or from another DataModule."""
        self._module = module

    def _model(self, wanted: str) -> Any:
        module = self._module if self.trainer is None else self.trainer.lightning_module
        if module is None:
            name = wanted.replace(" ", "_")
            raise RuntimeError(f"no {wanted}: attach a trainer, or set `data.{name}`")
        return module
