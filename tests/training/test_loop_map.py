"""The docstring of `training/module.py` names the calls of an iteration in their order, and where each stands."""

import re
import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule

import lit_rlvr.training.module
from lit_rlvr import GRPO, Arithmetic, RolloutCallback, Sampling, Trainer
from lit_rlvr.types import Completion, Sample

ROOT = Path(lit_rlvr.__file__).parent
MOST_FILES = 20


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


def test_a_step_makes_the_calls_that_the_docstring_lists(tmp_path: Path, tiny_model_folder: Path) -> None:
    entered = Entered()
    rollout = RolloutCallback(group_size=4, engine="hf", sampling=Sampling(max_tokens=6), rewards=[first_token])
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[rollout, entered], max_steps=1, accelerator="cpu", devices=1,
        precision="32-true", logger=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(GRPO(model=str(tiny_model_folder)), datamodule=Arithmetic(prompts_per_rollout=2, held_out=4))
    rows = re.findall(r"^ +([\w.]+) +(\w+/[\w/]+\.py)  ", lit_rlvr.training.module.__doc__ or "", re.MULTILINE)
    assert len({file for _, file in rows}) <= MOST_FILES
    for name, file in rows:
        module = import_module(f"lit_rlvr.{file.removesuffix('.py').replace('/', '.')}")
        function = attrgetter(name)(module)
        assert getattr(function, "__wrapped__", function).__module__ == module.__name__, f"{name} is not in {file}"
    in_step = [(file, name) for name, file in rows[rows.index(("RolloutCallback.collect", "rollout/callback.py")) :]]
    assert in_step == [row for row in entered.functions if row in in_step], "named in another order"
