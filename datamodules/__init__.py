"""Data sets as LightningDataModules: each yields prompts with reference answers."""

from datamodules.arithmetic import Arithmetic
from datamodules.base import PromptDataModule
from datamodules.rows import BadRow
from datamodules.text_math import TextMath

__all__ = ["Arithmetic", "BadRow", "PromptDataModule", "TextMath"]
