"""Runs from Python: the folder of `fit`, whose `config.yaml` repeats the run and is read by the other commands."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from tiny_environments import Increment
from torch.utils.data import DataLoader

from lit_rlvr import GRPO, Arithmetic, PromptDataModule, RolloutCallback, Sampling, TextMath, Trainer
from lit_rlvr.common.init_arguments import settings_of
from lit_rlvr.environments.tools import WrappedTools
from lit_rlvr.errors import UserError
from lit_rlvr.options import DEFAULT_TOKENS, Lora
from lit_rlvr.rewards import Format
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.run import RunStart, in_order
from lit_rlvr.run.stop import StopOnSignal
from lit_rlvr.sizing.strategies import FEWEST_TOKENS


class Own(Callback):
    """A callback of the user's."""


def share_of_digits(completions: list[Any], **columns: Any) -> list[float]:
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in texts]


def train_on_rows(folder: Path, model: Path, rows: Any, max_steps: int, **more: Any) -> str:
    """Train with a function as the reward, and rows as the data; return the hash of the weights."""
    seed_everything(3)
    rollout = RolloutCallback(
        group_size=4, engine="hf", sampling=Sampling(max_tokens=6), rewards=[partial(share_of_digits, unused=1)]
    )
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[rollout],
        max_steps=max_steps,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        logger=False,
        limit_val_batches=0,
    )
    trainer.fit(GRPO(model=str(model), lr=1e-2), datamodule=TextMath(train=rows, prompts_per_rollout=2), **more)
    return str(json.loads((folder / "summary.json").read_text())["weights_sha256"])


def test_functions_and_rows_resume_and_repeat(
    tmp_path: Path, tiny_model_folder: Path, lit_rlvr: Callable[..., Any]
) -> None:
    """A list, then a `Dataset` of the same rows, and the command line with the config: the same weights."""
    rows = [{"question": f"{a} + 1 = ?", "answer": str(a + 1)} for a in range(9)]
    whole = train_on_rows(tmp_path / "whole", tiny_model_folder, rows, 4)
    train_on_rows(tmp_path / "run", tiny_model_folder, rows, 2)
    others = [{"question": row["question"], "answer": "3"} for row in rows]
    with pytest.raises(UserError, match="answers"):
        train_on_rows(tmp_path / "run", tiny_model_folder, others, 4, ckpt_path="last")
    assert train_on_rows(tmp_path / "run", tiny_model_folder, Dataset.from_list(rows), 4, ckpt_path="last") == whole
    config = tmp_path / "run/config.yaml"
    saved = yaml.safe_load(config.read_text())
    assert saved["data"]["init_args"]["train"] == str(tmp_path / "run/rows/text_math_train.jsonl")
    assert saved["rollout"]["rewards"][0]["init_args"]["options"] == {"unused": 1}
    lit_rlvr("fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path / "command"))
    assert json.loads((tmp_path / "command/summary.json").read_text())["weights_sha256"] == whole


def test_with_an_environment_rows_need_no_answer(tmp_path: Path, tiny_model_folder: Path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path / "run",
        max_steps=1,
        accelerator="cpu",
        limit_val_batches=0,
        callbacks=RolloutCallback(
            group_size=2, engine="hf", environment=WrappedTools(Increment), sampling=Sampling(max_tokens=4, max_turns=2)
        ),
    )
    rows = [{"prompt": f"Count from {k}.", "start": k} for k in range(4)]
    data = PromptDataModule(train=rows, prompts_per_rollout=2, columns={"prompt": "prompt"})
    trainer.fit(GRPO(model=str(tiny_model_folder)), datamodule=data)
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 1


def test_from_python_auto_is_chosen_for_the_devices_too(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU of 2 GiB, where all of a step fits into a micro-batch, and on one that holds nothing."""

    def chosen(gib: float) -> tuple[int, bool]:
        folder = tmp_path / f"run-{gib}"
        monkeypatch.setattr("lit_rlvr.sizing.strategies.device_memory", lambda trainer: gib * 2**30)
        rollout = RolloutCallback(group_size=2, engine="hf", sampling=Sampling(max_tokens=4))
        trainer = Trainer(
            default_root_dir=folder, max_steps=1, accelerator="cpu", limit_val_batches=0, callbacks=rollout
        )
        module = GRPO(model=str(tiny_model_folder))
        trainer.fit(module, datamodule=Arithmetic(prompts_per_rollout=2))
        return module.budget.given, module.compute.gradient_checkpointing

    assert chosen(1) == (DEFAULT_TOKENS, False), "a CPU's memory is not the run's alone"
    monkeypatch.setattr("lit_rlvr.sizing.auto.trains_on_gpus", lambda trainer: True)
    assert chosen(2) == (2 * (512 + 2 * 3), False)
    assert chosen(2**-10) == (FEWEST_TOKENS, True)


def test_groups_that_the_run_folder_saves_stay_on_their_process(tmp_path: Path, tiny_model_folder: Path) -> None:
    rollout = RolloutCallback(group_size=2, engine="hf", sampling=Sampling(max_tokens=2))
    trainer = Trainer(
        default_root_dir=tmp_path / "run",
        max_steps=1,
        accelerator="cpu",
        limit_val_batches=0,
        callbacks=[rollout, RunFolder(save_prompts=3)],
    )
    trainer.fit(GRPO(model=str(tiny_model_folder)), datamodule=Arithmetic(prompts_per_rollout=2))
    assert rollout.source.pinned_groups == 3


def test_what_fit_needs_is_said(tmp_path: Path, tiny_model_folder: Path) -> None:
    model = GRPO(model=str(tiny_model_folder))
    data = Arithmetic(prompts_per_rollout=2, held_out=4)
    for given, message in (
        ((model,), "data: missing; give a data module, such as TextMath"),
        ((model, DataLoader([1])), "data: give a data module, .*, not a DataLoader"),  # type: ignore[arg-type]
        ((model, [{"question": "1+1?", "answer": "2"}]), "data: give a data module, .*, not .*question"),
        ((GRPO, data), "model: give an algorithm, such as GRPO.., not the class GRPO"),
        ((data, model), "model: give an algorithm, such as GRPO.., not an Arithmetic"),
        ((None, data), "model: missing; give an algorithm"),
    ):
        with pytest.raises(UserError, match=message):
            Trainer(default_root_dir=tmp_path / "run", max_steps=1, accelerator="cpu").fit(*given)
    assert not (tmp_path / "run").exists()


def test_callbacks_are_ordered_by_what_they_are() -> None:
    given = [RunCheckpoint(), ModelCheckpoint(), Timer("00:01:00:00"), RolloutCallback(), Own(), RunFolder()]
    names = [type(callback).__name__ for callback in Trainer(callbacks=given, accelerator="cpu").callbacks]
    own = names.index("Own")
    assert names[0] == "StopOnSignal" and names[own - 1] == "LiveFile"
    after = ["RunFolder", "RolloutCallback", "Budget", "CollapseMonitor", "FirstRollout", "LostWork", "Timer"]
    assert (names[own + 1 : own + 8], names[-2:]) == (after, ["RunCheckpoint", "ModelCheckpoint"])
    assert [type(one) for one in in_order([Own(), RunStart(None), StopOnSignal()])] == [StopOnSignal, RunStart, Own]  # type: ignore[arg-type]


def test_settings_are_read_from_objects() -> None:
    assert settings_of(Sampling(max_tokens=6))["max_tokens"] == 6, "without a class_path, as the parser takes it"
    assert settings_of(Lora(rank=2))["rank"] == 2
    weighted = settings_of(Format("x", weight=0.5))
    assert weighted["class_path"] == "lit_rlvr.rewards.format.Format"
    assert weighted["init_args"]["pattern"] == "x" and weighted["init_args"]["weight"] == 0.5, "of both classes"
    sgd = {"class_path": "torch.optim.sgd.SGD", "init_args": {"momentum": 0.9}}
    assert settings_of(partial(torch.optim.SGD, momentum=0.9)) == sgd
    assert settings_of({"a": (Path("b"), share_of_digits)}) == {"a": ["b", f"{__name__}.share_of_digits"]}
