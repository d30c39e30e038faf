"""References that a reward cannot read are found when data load, and gold answers that do not score at the start."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import byte_tokenizer
from tiny_fit import fit

from lit_rlvr.algorithms import GRPO
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import MathAnswer, Reward
from lit_rlvr.rewards.gold_answers import GOLD_SAMPLES, check_references, find_long_answers, warn_of_gold_answers
from lit_rlvr.rollout.callback import RolloutCallback
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Pair, Prompt, RewardResult, Sample


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


def test_gold_answers_that_rewards_cannot_read_are_counted_and_the_first_is_named() -> None:
    check_references([Spelt(), MathAnswer()], samples("a", "b"))
    with pytest.raises(UserError) as error:
        check_references([Spelt(), Spelt(name="again"), MathAnswer()], samples("a", "(B)", "7"))
    assert error.value.messages == (
        "f.jsonl:2: rewards.Spelt: '(B)' is no word (spelt: 2 of 3 rows)",
        "f.jsonl:2: rewards.Spelt: '(B)' is no word (again: 2 of 3 rows)",
    )


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., PromptDataModule]:
    def make(train: Sequence[str], validation: Sequence[str]) -> PromptDataModule:
        for name, answers in (("train", train), ("validation", validation)):
            rows = [{"prompt": f"{name} {i}?", "answer": answer} for i, answer in enumerate(answers)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
        return PromptDataModule(**files, prompts_per_rollout=2)

    return make


def test_training_and_validation_references_are_checked_before_the_weights_load(
    data: Any, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_rlvr.training.models.load_policy", lambda *_, **__: pytest.fail("loads weights"))
    module = GRPO(model=str(tiny_model_folder))
    for train, validation, where in ((("a", "1"), ("b",), "train.jsonl:2"), (("a", "c"), ("2",), "validation.jsonl:1")):
        made = data(train, validation)
        made.use_model(module)
        made.setup("fit")
        with pytest.raises(UserError, match=rf"{where}: rewards.Spelt: '\d' is no word \(spelt: 1 of 3 rows\)"):
            RolloutCallback(rewards=[Spelt()], engine="hf").inspect_data(module, made)


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
    assert (len(reward.seen), reward.seen[:2], int(reward.seen[-1]) > 900) == (GOLD_SAMPLES, ["0", "31"], True)


def test_fit_judges_the_gold_answers_once_at_its_start(
    data: Any, tiny_model_folder: Path, tmp_path: Path, caplog: Any
) -> None:
    made = data(["one", "Two", "three"], ["four"])
    rollout = RolloutCallback(group_size=2, engine="hf", sampling=Sampling(max_tokens=6), rewards=[Spelt()])
    fit(tiny_model_folder, tmp_path, data=made, trainer_options={"callbacks": [rollout]})
    (line,) = [message for message in caplog.messages if "references are not right" in message]
    assert line.startswith("reward spelt: 1 of 3 references are not right when they are given as the answer; first, ")
    assert "train.jsonl:2: 'Two'" in line


class Tagged(Reward):
    """Pays an answer in tags alone, and knows no text that it would pay."""

    def __call__(self, completion: Completion, sample: Sample) -> bool:
        return completion.text == f"<answer>{sample.answer}</answer>"


class Overlap(Reward):
    """Pays the share of the answer's letters that a completion has."""

    def __call__(self, completion: Completion, sample: Sample) -> float:
        return len({*sample.answer} & {*completion.text}) / len({*sample.answer})


def prompts(*answers: str) -> list[Prompt]:
    return [Prompt(sample, [1]) for sample in samples(*answers)]


@pytest.mark.parametrize(
    ("reward", "answers", "max_tokens", "stop", "expected"),
    [
        (Spelt(), ("one", "three"), 6, (), None),
        (Spelt(), ("one", "three"), 5, (), (1, 6, False)),
        (Spelt(), ("three", "seven"), 5, (), (2, 6, True)),
        (Spelt(), ("three", "seven"), 5, ("e", "n"), None),  # a stop text ends them, without EOS
        (MathAnswer(), ("1234", "5678"), 5, (), None),  # it pays the plain number, too
        (MathAnswer(boxed_only=True), ("1234", "5678"), 5, (), (2, 13, True)),
        (Tagged(), ("1234567890", "12345"), 10, (), (2, 28, True)),
        (Tagged(), ("12", "34"), 19, (), None),  # the plain answers fit, so code of the user's is not asked
        (Overlap(), ("abcdef", "ghijkl"), 4, (), (2, 7, False)),  # it pays a part of an answer
        (Tagged(truncated_is_wrong=False), ("12", ""), 500, (), None),
    ],
)
def test_answers_longer_than_a_completion_are_measured_in_the_shortest_form_that_is_paid(
    reward: Reward, answers: tuple[str, ...], max_tokens: int, stop: tuple[str, ...], expected: Any
) -> None:
    """The tokenizer has a token for each byte."""
    found = find_long_answers(
        [reward], prompts(*answers), byte_tokenizer(), Sampling(max_tokens=max_tokens, stop=stop), "max_tokens"
    )
    assert (found and (found.count, found.needed, found.is_hopeless)) == expected


def test_rewards_that_pay_no_known_form_leave_the_lengths_alone() -> None:
    class Backwards(Reward):
        def __call__(self, completion: Completion, sample: Sample) -> bool:
            return completion.text == sample.answer[::-1]

    assert find_long_answers([Backwards()], prompts("abcdef"), byte_tokenizer(), Sampling(max_tokens=2), "o") is None


def test_an_alias_that_fits_suffices() -> None:
    prompt = Prompt(Sample("0", "q", "three", aliases=("ten",)), [1])
    assert find_long_answers([Tagged()], [prompt], byte_tokenizer(), Sampling(max_tokens=8), "o") is None


@pytest.mark.first_case_fast
@pytest.mark.parametrize("command", ["fit", "dry-run", "preview"])
def test_a_run_whose_answers_do_not_fit_is_refused_and_one_with_some_is_warned(
    run_folder: Path, lit_rlvr: Any, command: str
) -> None:
    rows = [{"prompt": f"{k}?", "answer": "seven" if k else "six"} for k in range(4)]
    (run_folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = (
        "--data",
        "PromptDataModule",
        "--data.init_args.train",
        "d.jsonl",
        "--data.init_args.prompts_per_rollout",
        2,
    )
    limits = ("--rollout.sampling.max_tokens", 5, "--rollout.rewards", "[tiny_rewards.whole_answer]")
    arguments = {"fit": ("fit",), "dry-run": ("fit", "--dry-run"), "preview": ("preview",)}[command]
    result = lit_rlvr(*arguments, "--config", "tiny.yaml", *data, *limits, "--trainer.max_steps", 1)
    said = "rollout.sampling.max_tokens: 5 tokens are too few for the answers of 3 of 4 rows, which take up to 6, EOS"
    assert result.status == 0 and result.err.count(said) == 1, result.err
    other = ("--rollout.sampling.max_tokens", 3, "--trainer.default_root_dir", "other")
    refused = lit_rlvr(*arguments, "--config", "tiny.yaml", *data, *limits, *other)
    said = said.replace("5 tokens", "3 tokens").replace("3 of 4 rows", "4 of 4 rows")
    assert said in refused.err and refused.status == (0 if command == "preview" else 2)
