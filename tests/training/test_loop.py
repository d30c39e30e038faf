"""training/loop.py: a run makes the calls of an iteration, in their order."""

from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr import GRPO, Arithmetic, RolloutCallback, Sampling, Trainer
from lit_rlvr.rollout.source import SyncSource
from lit_rlvr.training import loop
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.step import StepPlan
from lit_rlvr.training.update import Updater
from lit_rlvr.types import Completion, Sample

CALLS: list[tuple[Any, str]] = [
    (SyncSource, "sync_weights"),
    (SyncSource, "sample"),
    (SyncSource, "wants_more"),
    (SyncSource, "select"),
    (SyncSource, "add_reference_rewards"),
    (SyncSource, "balance"),
    (SyncSource, "release_engine"),
    (Updater, "initial_logprobs"),
    (LossModule, "estimate_advantages"),
    (LossModule, "split_groups"),
    (Updater, "prepare"),
    (loop, "plan_step"),
    (Updater, "begin_step"),
    (Updater, "dropout"),
    (Updater, "forward"),
    (StepPlan, "old_logprobs"),
    (loop, "loss_inputs"),
    (Updater, "watch"),
    (LossModule, "loss"),
    (Updater, "backward"),
    (Updater, "reduce_and_clip"),
    (Updater, "check_finite"),
    (Updater, "measure"),
    (Updater, "take_step"),
    (Updater, "end_step"),
]
"""What a plain iteration of one step and one micro-batch calls, in this order."""


def note_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: list[tuple[Any, str]]) -> None:
    """Append (owner, name) to `calls` whenever a function of a class or module is called."""
    function = getattr(owner, name)

    @wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append((owner, name))
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, noted)


def first_token(completion: Completion, sample: Sample) -> float:
    return completion.token_ids[0] / 1000


def test_a_step_makes_the_calls_of_the_loop_in_their_order(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, str]] = []
    for owner, name in CALLS:
        note_calls(monkeypatch, owner, name, calls)
    rollout = RolloutCallback(group_size=4, engine="hf", sampling=Sampling(max_tokens=6), rewards=[first_token])
    trainer = Trainer(
        default_root_dir=tmp_path,
        callbacks=[rollout],
        max_steps=1,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        logger=False,
        limit_val_batches=0,
    )
    trainer.fit(GRPO(model=str(tiny_model_folder)), datamodule=Arithmetic(prompts_per_rollout=2, held_out=4))
    assert calls == CALLS
