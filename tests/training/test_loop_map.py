"""The loop is read in the files that the docstring of `training/module.py` names; all others are details of these."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule

import lit_rlvr.training.module
from lit_rlvr import GRPO, Arithmetic, RolloutCallback, Sampling, Trainer
from lit_rlvr.types import Completion, Sample

ROOT = Path(lit_rlvr.__file__).parent
MOST_FILES = 20
ASIDE = {
    "algorithms/grpo.py": "GRPO's objective",
    "advantages/base.py": "what an advantage is given",
    "advantages/group.py": "GRPO's advantage",
    "datamodules/base.py": "the data's cursor",
    "datamodules/reading/stream.py": "the order of the prompts, of which repeats are counted",
    "distributed/collectives.py": "sums over ranks",
    "distributed/sharding.py": "whole tensors of sharded weights",
    "errors.py": "checks of values",
    "objectives.py": "GRPO's loss, and the correction for the engine",
    "options.py": "the options of a loss and of a correction",
    "policy/adapters.py": "adapters, of which there are none here",
    "policy/architecture.py": "what a model does to its logits",
    "policy/attention.py": "attention over shared prompts",
    "policy/layout.py": "prompts and completions as rows",
    "policy/logprobs.py": "log-softmax in chunks",
    "policy/precision.py": "names of precisions",
    "policy/speed.py": "memory of large tensors",
    "common/returned.py": "checks of what the user's code returns",
    "rewards/base.py": "one reward",
    "rewards/function.py": "a reward that is a plain function",
    "engines/base.py": "what an engine is given",
    "engines/hf.py": "one engine",
    "engines/turns.py": "how completions go on, of one turn here",
    "rollout/agreement.py": "agreement of rewards, of which there is one here",
    "rollout/balance.py": "groups evened out over ranks, of which there is one here",
    "rollout/metrics.py": "the metrics of a rollout",
    "rollout/summaries.py": "which groups of all ranks have a signal",
    "rollout/episodes.py": "turns, of which there is one here",
    "rollout/preflight/lengths.py": "how long a completion may be",
    "common/seeds.py": "seeds",
    "common/terminal.py": "progress",
    "speech/thoughts.py": "thoughts, of which there are none here",
    "training/failures.py": "out of memory, and steps that are skipped",
    "training/metrics.py": "the metrics of training",
    "training/reference.py": "reference model, of which there is none here",
    "training/teachers.py": "teachers, of which there are none here",
    "rollout/settings.py": "the options of a rollout",
    "training/trace.py": "what `explain` shows",
    "training/validation.py": "the attribute `data` of the module",
    "types.py": "the data types",
}
"""File that a step also runs -> what it does there, of which a reader of the loop needs the name alone."""


class Entered(Callback):
    """Notes which of our functions a step runs, in the order of their last calls."""

    def __init__(self) -> None:
        self.functions: dict[tuple[str, str], None] = {}  # (file, qualified name)

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        sys.setprofile(self._note)

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        file = Path(frame.f_code.co_filename).resolve()
        for root in (ROOT, ROOT.parent):
            if file.is_relative_to(root) and file.is_file():
                function = str(file.relative_to(root)), frame.f_code.co_qualname
                self.functions.pop(function, None)
                self.functions[function] = None
                return


def first_token(completion: Completion, sample: Sample) -> float:
    return completion.token_ids[0] / 1000


@pytest.mark.slow
def test_a_step_enters_the_files_that_the_docstring_lists(tmp_path: Path, tiny_model_folder: Path) -> None:
    entered = Entered()
    rollout = RolloutCallback(group_size=4, engine="hf", sampling=Sampling(max_tokens=6), rewards=[first_token])
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[rollout, entered], max_steps=1, accelerator="cpu", devices=1,
        precision="32-true", logger=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(GRPO(model=str(tiny_model_folder)), datamodule=Arithmetic(prompts_per_rollout=2, held_out=4))
    rows = re.findall(r"^ +([\w.]+) +(\w+/[\w/]+\.py)  ", lit_rlvr.training.module.__doc__ or "", re.MULTILINE)
    in_step = [(file, name) for name, file in rows[rows.index(("RolloutCallback.collect", "rollout/callback.py")) :]]
    assert in_step == [row for row in entered.functions if row in in_step], "named in another order"
    named = {file for _, file in rows}
    assert len(named) <= MOST_FILES and all((ROOT / file).is_file() for file in named)
    outside = ("run/", "cli/", "tests/", ".venv/")  # other callbacks of the run, before and after; this test; packages
    files = {file for file, _ in entered.functions if not file.startswith(outside)}
    assert files - named == {*ASIDE}
