"""Wrong arguments in Python: the command line's line, with the nearest name, before anything is built."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy
import pytest
import torch

import lit_rlvr
from lit_rlvr import (
    GRPO,
    KL,
    Arithmetic,
    Environment,
    EvalSampling,
    Evaluation,
    JudgeServer,
    Lora,
    MathAnswer,
    Optim,
    RolloutCallback,
    Sampling,
    Term,
    TextMath,
    Trainer,
)
from lit_rlvr.advantages import GroupBatch, GRPOAdvantage
from lit_rlvr.advantages.base import Advantage
from lit_rlvr.cli.early_check import IndexedNames
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import FunctionReward, Reward
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import Budget
from lit_rlvr.types import Completion, Sample


def digits(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def scaled(completion: Completion, sample: Sample, scale: float = 1.0) -> float:
    return scale


class Own(Reward):
    """A reward of the user's, with an option of its own and one taken out of `kwargs`."""

    def __init__(self, least: int = 1, **kwargs: Any) -> None:
        self.least, self.most = least, kwargs.pop("most", 9)
        super().__init__(**kwargs)

    def __call__(self, completion: Completion, sample: Sample) -> float:
        return 1.0


class Loose(Own):
    """Its arguments cannot be told from its code."""

    def __init__(self, *names: str, title: str = None, **kwargs: Any) -> None:  # type: ignore[assignment]  # noqa: RUF013
        super().__init__()
        self.__dict__.update(kwargs, names=names, title=title)


@dataclass(frozen=True)
class OwnAdvantage(Advantage):
    scale: float = 1.0

    def __call__(self, groups: GroupBatch) -> torch.Tensor:
        return groups.rewards * self.scale


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: GRPO(lr="abc"), "model.lr: give a number, or 'auto', or an AutoLR, not 'abc'"),
    (lambda: GRPO(lr=True), "model.lr: give a number, or 'auto', or an AutoLR, not True"),
    (lambda: GRPO(lr=None), "model.lr: None is not allowed; leave it out for its default"),
    (lambda: GRPO(learning_rate=1e-6), "model: GRPO has no option 'learning_rate'; did you mean 'lr'?"),
    (
        lambda: GRPO(num_generations=8),
        "model: GRPO has no option 'num_generations'; did you mean 'rollout.group_size'?",
    ),
    (
        lambda: GRPO(optim={"lr_schedule": "step"}),
        "model.optim.lr_schedule: give one of 'constant', 'linear', 'cosine', not 'step'",
    ),
    (lambda: GRPO(optim={"betas": 0.9}), "model.optim.betas: give a list, not 0.9"),
    (lambda: GRPO(optim={"betas": (0.9, "x")}), "model.optim.betas.1: give a number, not 'x'"),
    (lambda: GRPO(lora={"rank": 8}), "model.lora: give a Lora, not {'rank': 8}"),
    (lambda: RolloutCallback(group_size="8"), "rollout.group_size: give a whole number, not '8'"),
    (lambda: RolloutCallback(group_size=2.5), "rollout.group_size: give a whole number, not 2.5"),
    (
        lambda: RolloutCallback(groupsize=8),
        "rollout: RolloutCallback has no option 'groupsize'; did you mean 'group_size'?",
    ),
    (
        lambda: RolloutCallback(temperature=1.0),
        "rollout: RolloutCallback has no option 'temperature'; did you mean 'rollout.sampling.temperature'?",
    ),
    (lambda: RolloutCallback(sampling={"max_tokens": 3}), "rollout.sampling: give a Sampling, not {'max_tokens': 3}"),
    (lambda: RolloutCallback(rewards=digits), "rollout.rewards: give a list, not a function"),
    (lambda: RolloutCallback(rewards=[3]), "rollout.rewards.0: give a Reward, or text, or a function, not 3"),
    (
        lambda: RolloutCallback(rewards=[MathAnswer]),
        "rollout.rewards: lit_rlvr.rewards.math.MathAnswer is a class; give one with its options, MathAnswer(...)",
    ),
    (lambda: Sampling(max_tokens=None), "sampling.max_tokens: None is not allowed; leave it out for its default"),
    (lambda: Sampling(max_token=5), "sampling: Sampling has no option 'max_token'; did you mean 'max_tokens'?"),
    (lambda: Sampling(stop="\n"), "sampling.stop: give a list, not '\\n'"),
    (
        lambda: EvalSampling(temp=0.5),
        "rollout.evaluation.sampling: EvalSampling has no option 'temp'; did you mean 'temperature'?",
    ),
    (lambda: Lora(r=8), "lora: Lora has no option 'r'; did you mean 'rank'?"),
    (lambda: MathAnswer(wieght=2), "rewards.MathAnswer: MathAnswer has no option 'wieght'; did you mean 'weight'?"),
    (lambda: Own(least="1"), "rewards.Own.least: give a whole number, not '1'"),
    (lambda: Own(leest=1), "rewards.Own: Own has no option 'leest'; did you mean 'least'?"),
    (lambda: OwnAdvantage(scale="1"), "model.advantage.scale: give a number, not '1'"),
    (lambda: HFEngine(rows=2), "rollout.engine: HFEngine has no option 'rows'"),
    (lambda: Arithmetic(batch_size=4), "data: Arithmetic has no option 'batch_size'"),
    (lambda: TextMath(train=3), "data.train: give text, or a list, or a mapping, not 3"),
    (lambda: TextMath(trian="x.jsonl"), "data: TextMath has no option 'trian'; did you mean 'train'?"),
    (lambda: Trainer(max_step=3), "trainer: Trainer has no option 'max_step'; did you mean 'max_steps'?"),
    (lambda: Trainer(max_steps="3"), "trainer.max_steps: give a whole number, not '3'"),
    (lambda: Trainer(learning_rate=3), "trainer: Trainer has no option 'learning_rate'; did you mean 'model.lr'?"),
    (lambda: RunFolder(save_prompt=3), "run: RunFolder has no option 'save_prompt'; did you mean 'save_prompts'?"),
    (lambda: Budget(tokens="1M"), "budget.tokens: give a whole number, not '1M'"),
    (
        lambda: Trainer(callbacks=[RolloutCallback(), RolloutCallback()]),
        "rollout: give one RolloutCallback among the callbacks, not 2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_wrong_arguments_in_python_are_named_as_options(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_all_mistakes_of_a_call_are_named() -> None:
    with pytest.raises(UserError) as caught:
        GRPO(lr="abc", clip_loww=0.1)  # type: ignore[call-arg]
    assert len(caught.value.messages) == 2


def test_right_arguments_are_taken() -> None:
    assert Own(numpy.int64(2), most=3, weight=numpy.float32(0.5), name="x").most == 3
    assert Loose("a", "b", title=None, anything=3).anything == 3  # type: ignore[attr-defined]
    assert GRPO(lr=1, optim={"betas": [0.9, 0.95]}, advantage=GRPOAdvantage(scale="none"), lora=Lora(4)).lr == 1
    assert RolloutCallback(evaluation={"sampling": Sampling(max_tokens=7)}).eval_sampling.max_tokens == 7
    assert Sampling(max_tokens=numpy.int32(5), stop=["\n"]).max_tokens == 5
    assert Trainer(max_steps=2, accelerator="cpu", limit_val_batches=0.5).max_steps == 2


def test_objects_are_copied_and_pickled_as_before() -> None:
    for built in (Own(least=3), Sampling(max_tokens=3), OwnAdvantage(2.0), Lora(3)):
        for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
            assert vars(other) == vars(built)


def test_functions_are_rewards() -> None:
    rollout = RolloutCallback(
        rewards=[digits, partial(scaled, scale=0.5), lambda completion, sample: 2.0, MathAnswer()]
    )
    first, second, third = rollout.rewards[:3]
    pair = (Completion("12", (1,), "stop"), Sample("a", "b", "c"))
    assert [reward.score([pair])[0].value for reward in (first, second, third)] == [2.0, 0.5, 2.0]
    assert [reward.name for reward in rollout.rewards] == ["digits", "scaled", "<lambda>", "math_answer"]
    assert isinstance(first, FunctionReward) and first.dotted_path == f"{__name__}.digits"
    assert FunctionReward(digits, weight=0.5).init_args["path"] == f"{__name__}.digits"


def test_a_class_without_a_file_keeps_the_options_of_its_base() -> None:
    namespace: dict[str, Any] = {"Reward": Reward}
    exec(  # as in an interactive session
        "class Typed(Reward):\n"
        "    def __init__(self, least=1, **kwargs):\n        super().__init__(**kwargs)\n"
        "    def __call__(self, completion, sample):\n        return 1.0\n",
        namespace,
    )
    assert namespace["Typed"](least=2, weight=0.5).weight == 0.5
    with pytest.raises(UserError, match="did you mean 'weight'"):
        namespace["Typed"](wieght=0.5)


def classes_in(hint: Any) -> set[type]:
    """Return the classes of lit-rlvr that an annotation names."""
    if isinstance(hint, list | tuple):
        return {cls for part in hint for cls in classes_in(part)}
    if get_args(hint):
        return classes_in(get_args(hint))
    if isinstance(hint, type) and hint.__module__.startswith("lit_rlvr."):
        return {hint}
    return set()


def constructor_classes(cls: type) -> set[type]:
    """Return the classes that the constructors of a class and of its bases take."""
    found: set[type] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("lit_rlvr.") and "__init__" in vars(base):
            hints = get_type_hints(base.__init__, localns={"Tensor": torch.Tensor, "Advantage": Advantage})
            hints.pop("return", None)
            found |= classes_in(list(hints.values()))
    return found


def test_each_class_that_a_public_constructor_takes_is_public() -> None:
    todo = [cls for name in dir(lit_rlvr) if isinstance(cls := getattr(lit_rlvr, name), type)]
    seen: set[type] = set()
    while todo:
        cls = todo.pop()
        assert getattr(lit_rlvr, cls.__name__) is cls
        seen.add(cls)
        if not cls.__module__.startswith("lit_rlvr.types."):  # what a run makes
            todo.extend(constructor_classes(cls) - seen)
    assert {KL, Optim, Lora, Evaluation, EvalSampling, Term, Environment, JudgeServer} <= seen


def test_each_class_that_a_config_names_is_public() -> None:
    paths = [path for classes in IndexedNames("fit").index["classes"].values() for path in classes]
    left = {path.rpartition(".")[2] for path in paths} - set(dir(lit_rlvr))
    made_by_ours = {"DrawnPictures", "EnvironmentChoice", "EnvironmentFunction", "FunctionAdvantage"}
    assert left == made_by_ours | {"GeneratedDataModule", "NoReward"}


def test_a_trainer_without_a_rollout_callback_says_so(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for callbacks, said in (([RolloutCallback()], 0), ([], 1)):
        Trainer(default_root_dir=tmp_path, accelerator="cpu", callbacks=callbacks)
        assert caplog.text.count("there is no RolloutCallback") == said


def test_listing_names_imports_nothing(tmp_path: Path) -> None:
    code = "import sys, lit_rlvr; dir(lit_rlvr); sys.exit('torch' in sys.modules or 'jsonargparse' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
