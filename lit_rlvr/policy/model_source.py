"""A model as the settings name it, and what is read of it before its weights."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.loading import load_image_processor, load_tokenizer
from lit_rlvr.policy.sources import adapter_folder, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelSource:
    """Where a model comes from: its folder, its tokenizer and its image processor, each read when it is first used.

    Args:
        model: `smollm2`, a model folder, or a hub id.
        config_overrides: changes of the model's config.
        adapter: what happens to the adapter in a folder that has one: "continue" trains it on, "merge" merges it into
            its base model, "any" too; None refuses it.
    """

    def __init__(
        self,
        model: str,
        config_overrides: dict[str, Any] | None = None,
        adapter: Literal["continue", "merge", "any"] | None = "any",
    ) -> None:
        self.model = model
        self.config_overrides = config_overrides
        self.adapter = adapter

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
    def adapter_folder(self) -> Path | None:
        """The folder of the adapter that is trained on; None = there is none, or it is merged."""
        if self.adapter == "continue":
            return adapter_folder(self.model)
        return None

    def start_from(self, folder: str) -> None:
        """Load the weights of another folder from now on, such as those after a warm start."""
        self.model_folder = folder
