"""training/loop.py: a run makes its calls, in the order in which they stand there."""

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule

from lit_rlvr import GRPO, Arithmetic, RolloutCallback, Sampling, Trainer
from lit_rlvr.rollout.source import SyncSource
from lit_rlvr.training import loop, step
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.update import Updater
from lit_rlvr.types import Completion, Sample

OWNERS = {"source": SyncSource, "updater": Updater, "algorithm": LossModule, "": step}
"""Name of an object in the loop -> its class; "" = a function."""
CONDITIONAL = {"sample_more", "skip_step"}
"""Calls that a plain step does not make."""


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


def calls_of(function: Any) -> Iterator[str]:
    """Yield the qualified names of the calls of one of the loop's functions, in the order of its lines."""
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(node, ast.Call)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if any(isinstance(part, ast.Name) and part.id == "accumulate" for part in node.args):
            yield from calls_of(loop.accumulate)
        *objects, name = ast.unparse(node.func).split(".")
        called = getattr(OWNERS.get("".join(objects[-1:])), name, None)
        if inspect.isfunction(called) and name not in CONDITIONAL:
            yield called.__qualname__


def first_token(completion: Completion, sample: Sample) -> float:
    return completion.token_ids[0] / 1000


def test_a_step_makes_the_calls_of_the_loop_in_their_order(tmp_path: Path, tiny_model_folder: Path) -> None:
    entered = Entered()
    rollout = RolloutCallback(group_size=4, engine="hf", sampling=Sampling(max_tokens=6), rewards=[first_token])
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[rollout, entered], max_steps=1, accelerator="cpu", devices=1,
        precision="32-true", logger=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(GRPO(model=str(tiny_model_folder)), datamodule=Arithmetic(prompts_per_rollout=2, held_out=4))
    calls = [*dict.fromkeys([*calls_of(loop.collect), *calls_of(loop.train)])]
    assert len(calls) > 20
    assert calls == [name for name in entered.names if name in calls]
