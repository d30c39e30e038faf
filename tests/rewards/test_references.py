"""References that a reward cannot read are found when data load, and gold answers that do not score at the start."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_fit import fit

from lit_rlvr.algorithms import GRPO
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import LCPO, MathAnswer, Reward
from lit_rlvr.rewards.references import GOLD_SAMPLES, check_references, warn_of_gold_answers
from lit_rlvr.rollout.callback import RolloutCallback
from lit_rlvr.types import Completion, Pair, RewardResult, Sample, Sampling


class Spelt(Reward):
    """Judges answers that are words of small letters, and gives no others as right."""

    def check_reference(self, sample: Sample) -> None:
        if not sample.answer.isalpha():
            raise UserError(f"rewards.Spelt: {sample.answer!r} is no word")

    def gold_completion(self, sample: Sample) -> str | None:
        return None if sample.answer == "none" else sample.answer

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        right = completion.text == sample.answer.lower()
        return RewardResult(float(right), right)


class Counted(Spelt):
    """Remembers the samples that it judges."""

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        self.seen = [sample.id for _, sample in pairs]
        return super().score(pairs)


def samples(*answers: str) -> list[Sample]:
    return [Sample(str(i), "q", answer, source=f"f.jsonl:{i + 1}") for i, answer in enumerate(answers)]


def test_references_that_rewards_cannot_read_are_counted_and_the_first_is_named() -> None:
    check_references([Spelt(), MathAnswer()], samples("a", "b"))
    with pytest.raises(UserError) as error:
        check_references([Spelt(), Spelt(name="again"), MathAnswer()], samples("a", "(B)", "7"))
    assert error.value.messages == (
        "f.jsonl:2: rewards.Spelt: '(B)' is no word (spelt: 2 of 3 rows)",
        "f.jsonl:2: rewards.Spelt: '(B)' is no word (again: 2 of 3 rows)",
    )


def test_a_message_that_names_the_row_does_not_name_it_twice() -> None:
    with pytest.raises(UserError) as error:
        check_references([LCPO()], samples("1"))
    assert str(error.value).startswith("rewards.LCPO.target: f.jsonl:1 has no number of tokens in the column")


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., PromptDataModule]:
    def make(train: Sequence[str], validation: Sequence[str]) -> PromptDataModule:
        for name, answers in (("train", train), ("validation", validation)):
            rows = [{"prompt": f"{name} {i}?", "answer": answer} for i, answer in enumerate(answers)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
        return PromptDataModule(**files, prompts_per_step=2)

    return make


def test_training_and_validation_references_are_checked_before_the_weights_load(
    data: Any, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_rlvr.training.module.load_policy", lambda *_, **__: pytest.fail("loads weights"))
    module = GRPO(model=str(tiny_model_folder))
    for train, validation, where in ((("a", "1"), ("b",), "train.jsonl:2"), (("a", "c"), ("2",), "validation.jsonl:1")):
        made = data(train, validation)
        made.use_model(module)
        made.setup("fit")
        with pytest.raises(UserError, match=rf"{where}: rewards.Spelt: '\d' is no word \(spelt: 1 of 3 rows\)"):
            RolloutCallback(rewards=[Spelt()], engine="hf").check_data(module, made)


def test_gold_answers_that_do_not_score_are_reported_in_a_line(caplog: Any) -> None:
    warn_of_gold_answers([Spelt(), MathAnswer()], samples("a", "Bc", "none", "D", ""))
    assert caplog.messages == [
        "reward spelt: 2 of 3 references are not right when they are given as the answer; first, f.jsonl:2: 'Bc'; no "
        "completion may be right there"
    ]
    warn_of_gold_answers([Spelt()], [])
    assert len(caplog.messages) == 1


def test_gold_answers_of_a_bounded_sample_are_judged_spread_over_the_set() -> None:
    reward = Counted()
    warn_of_gold_answers([reward], samples(*["a"] * 1000))
    assert len(reward.seen) == GOLD_SAMPLES and reward.seen[:2] == ["0", "31"] and int(reward.seen[-1]) > 900


def test_fit_judges_the_gold_answers_once_at_its_start(
    data: Any, tiny_model_folder: Path, tmp_path: Path, caplog: Any
) -> None:
    made = data(["one", "Two", "three"], ["four"])
    rollout = RolloutCallback(group_size=2, engine="hf", sampling=Sampling(max_tokens=2), rewards=[Spelt()])
    fit(tiny_model_folder, tmp_path, data=made, trainer_options={"callbacks": [rollout]})
    (line,) = [message for message in caplog.messages if "references are not right" in message]
    assert line.startswith("reward spelt: 1 of 3 references are not right when they are given as the answer; first, ")
    assert "train.jsonl:2: 'Two'" in line
