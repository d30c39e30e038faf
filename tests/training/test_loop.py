"""training/loop.py: a run makes the calls of an iteration, in their order."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule

from lit_rlvr import GRPO, Arithmetic, RolloutCallback, Sampling, Trainer
from lit_rlvr.types import Completion, Sample

CALLS = [
    "SyncSource.sync_weights",
    "SyncSource.sample",
    "SyncSource.wants_more",
    "SyncSource.select",
    "SyncSource.add_reference_rewards",
    "SyncSource.balance",
    "SyncSource.release_engine",
    "Updater.initial_logprobs",
    "LossModule.estimate_advantages",
    "LossModule.split_groups",
    "Updater.prepare",
    "plan_step",
    "Updater.begin_step",
    "Updater.dropout",
    "Updater.forward",
    "StepPlan.old_logprobs",
    "loss_inputs",
    "Updater.watch",
    "LossModule.loss",
    "Updater.backward",
    "Updater.reduce_and_clip",
    "Updater.check_finite",
    "Updater.measure",
    "Updater.take_step",
    "Updater.end_step",
]
"""What a plain iteration of one step and one micro-batch calls, in this order."""


class Entered(Callback):
    """Notes which functions a step runs, in the order of their last calls."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        sys.setprofile(self._note)

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.names.pop(frame.f_code.co_qualname, None)
            self.names[frame.f_code.co_qualname] = None


def first_token(completion: Completion, sample: Sample) -> float:
    return completion.token_ids[0] / 1000


def test_a_step_makes_the_calls_of_the_loop_in_their_order(tmp_path: Path, tiny_model_folder: Path) -> None:
    entered = Entered()
    rollout = RolloutCallback(group_size=4, engine="hf", sampling=Sampling(max_tokens=6), rewards=[first_token])
    trainer = Trainer(
        default_root_dir=tmp_path,
        callbacks=[rollout, entered],
        max_steps=1,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        logger=False,
        limit_val_batches=0,
    )
    trainer.fit(GRPO(model=str(tiny_model_folder)), datamodule=Arithmetic(prompts_per_rollout=2, held_out=4))
    assert [name for name in entered.names if name in CALLS] == CALLS
