"""Lightning's Trainer with the commands of ours that take a whole config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer

from datamodules import PromptDataModule
from datamodules.base import Split
from lit_rlvr.evaluation.filter import filter_prompts
from lit_rlvr.plan.job import job_of
from lit_rlvr.plan.show import show
from lit_rlvr.plan.ways import GPUs
from lit_rlvr.preview import show_prompts
from lit_rlvr.rollout import RolloutCallback

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule


class RLVRTrainer(Trainer):
    """`fit` and `validate` as Lightning has them, and what a config is looked at with before it is trained."""

    def preview(
        self, model: RLVRModule, datamodule: PromptDataModule, prompts: int = 3, split: Split = "train",
        out: str = "preview",
    ) -> None:  # fmt: skip
        """Show prompts exactly as the model sees them.

        Args:
            model: whose tokenizer and image processor are used; no weights are loaded.
            datamodule: the data.
            prompts: how many are shown, the first ones of the set.
            split: which set.
            out: folder for their images, as PNG files of the size that the model sees.
        """
        datamodule.use_model(model)
        show_prompts(datamodule, split, prompts, Path(out))

    def filter(
        self, model: RLVRModule, datamodule: PromptDataModule, out: str, samples: int = 8, lowest: float = 0.1,
        highest: float = 0.9, split: Split = "train",
    ) -> None:  # fmt: skip
        """Keep the prompts that the model answers right sometimes.

        Args:
            model: what answers.
            datamodule: the data.
            out: JSONL file for the rows that are kept, each with its `pass_rate`.
            samples: completions per prompt, with the config's sampling and rewards.
            lowest: smallest share of right completions that is kept.
            highest: largest share that is kept.
            split: which set.
        """
        rollout = next(c for c in self.callbacks if isinstance(c, RolloutCallback))  # type: ignore[attr-defined]
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32
        path = filter_prompts(model, datamodule, rollout, dtype, Path(out), samples, lowest, highest, split)
        print(f"{path}: give it as --data.init_args.{split}")

    def plan(self, model: RLVRModule, datamodule: PromptDataModule, gpus: str) -> None:
        """Say what a run needs of each GPU's memory, by DDP, FSDP2 and LoRA, and propose one.

        Args:
            model: of which only the config is read.
            datamodule: whose sizes count; no row is read.
            gpus: how many with how much memory each, such as 8x80GB.
        """
        rollout = next(c for c in self.callbacks if isinstance(c, RolloutCallback))  # type: ignore[attr-defined]
        show(job_of(model, datamodule, rollout, str(self.precision)), GPUs.parse(gpus))
