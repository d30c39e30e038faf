"""score_rollout against numbers computed by hand."""

import logging
import math
from collections.abc import Callable, Mapping
from math import isnan
from typing import Any

import pytest
import torch

from lit_rlvr.advantages.group import GDPOAdvantage
from lit_rlvr.environments.base import EnvironmentReward
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Reward
from lit_rlvr.rewards.background import BackgroundScoring
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rewards.gold_answers import check_references
from lit_rlvr.rollout.assemble import assemble
from lit_rlvr.rollout.metrics import rollout_metrics
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.gather import gather_groups
from lit_rlvr.types import Completion, Prompt, RewardResult, Sample


class Table(Reward):
    """Looks each completion's text up; remembers the samples it was asked about."""

    def __init__(self, table: Mapping[str, float | RewardResult | None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.asked: list[str] = []

    def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult | None:
        self.asked.append(sample.id + completion.text)
        return self.table[completion.text]  # a KeyError is a checker that fails


def group(texts: str) -> list[Completion]:
    return [Completion(text, (1,), "stop") for text in texts]


SAMPLES = [Sample("p", "?", ""), Sample("q", "?", "")]
GROUPS = [group("abc"), group("bbd")]
ANSWER = {
    "a": RewardResult(1.0, True),
    "b": RewardResult(0.0, False, "parse_fail"),
    "c": RewardResult(0.0, False, "timeout"),
}
FORMAT: dict[str, float | RewardResult] = {"a": 0.25, "b": 1.0, "c": -1.0, "d": 1.0}


def test_weighted_sum_parts_statuses_and_failures() -> None:
    answer, form = Table(ANSWER, name="answer", weight=2.0), Table(FORMAT, name="form", weight=0.5)
    scores = score_rollout([answer, form], GROUPS, SAMPLES)
    # 2 * answer + 0.5 * form; "d" is not in ANSWER, so that check fails and adds 0
    assert torch.equal(scores.rewards, torch.tensor([[2.125, 0.5, -0.5], [0.5, 0.5, 0.5]]))
    assert torch.equal(scores.correct, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert scores.rewards.dtype == scores.correct.dtype == torch.float32
    assert torch.equal(scores.parts["answer"], torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert torch.equal(scores.parts["form"], torch.tensor([[0.25, 1.0, -1.0], [1.0, 1.0, 1.0]]))
    assert scores.statuses == [["ok", "parse_fail", "timeout"], ["parse_fail", "parse_fail", "error"]]
    assert torch.equal(scores.failed, torch.tensor([[False, False, False], [False, False, True]]))
    assert scores.details[1][2]["answer"].detail.endswith("KeyError: 'd'")
    assert scores.details[0][2] == {"answer": ANSWER["c"], "form": RewardResult(-1.0)}
    assert answer.asked == ["pa", "pb", "pc", "qb", "qb", "qd"]


@pytest.mark.parametrize(
    ("result", "status", "detail"),
    [
        (RewardResult(9.0, None, "error", "lost"), "error", "lost"),
        (RewardResult(1.0), "error", "did not report `correct`; "),
        (RewardResult(0.0, None, "timeout", "late"), "timeout", "late"),
    ],
)
def test_a_judge_that_fails_does_not_report_or_was_stopped(result: RewardResult, status: str, detail: str) -> None:
    """The value of a failed check does not count; one that was stopped says wrong."""
    scores = score_rollout([Table({"a": RewardResult(1.0, True), "b": result}, name="t")], [group("ab")], SAMPLES[:1])
    assert scores.rewards.tolist() == scores.correct.tolist() == [[1.0, 0.0]]
    assert scores.statuses == [["ok", status]] and scores.failed.tolist() == [[False, status == "error"]]
    assert scores.details[0][1]["t"].detail == detail


def test_correct_comes_from_the_first_that_reports_it_or_from_the_marked_one() -> None:
    always = {text: RewardResult(0.0, True) for text in "abcd"}
    form = Table(FORMAT, name="form")
    first = score_rollout([form, Table(always, name="always"), Table(ANSWER, name="answer")], GROUPS[:1], SAMPLES[:1])
    assert first.correct.tolist() == [[1.0, 1.0, 1.0]]
    marked = Table(ANSWER, name="answer", correct_from=True)
    scores = score_rollout([form, Table(always, name="always"), marked], GROUPS[:1], SAMPLES[:1])
    assert scores.correct.tolist() == [[1.0, 0.0, 0.0]]


def test_where_nobody_reports_correct_it_is_the_value_1_of_the_first() -> None:
    form, other = Table(FORMAT, name="form"), Table(dict.fromkeys("abcd", 1.0), name="other")
    scores = score_rollout([form, other], GROUPS, SAMPLES)
    assert scores.correct.tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]  # 0.25, 1, -1; 1, 1, 1
    assert scores.rewards.tolist() == [[1.25, 2.0, 0.0], [2.0, 2.0, 2.0]] and not scores.failed.any()
    marked = Table(FORMAT, name="marked", correct_from=True)
    assert score_rollout([other, marked], GROUPS, SAMPLES).correct.tolist() == scores.correct.tolist()


class Checker(Table):
    """Says by its class that it reports `correct`."""

    reports_correct = True


def test_sets_that_nobody_reports_correct_for_have_no_accuracy() -> None:
    """Next to a reward that reports it, neither a number nor a reward that never reports it stands in for it."""
    rows = [Sample("sum", "?", "", rewards={"rule": None}), Sample("essay", "?", "", rewards={"number": None})]
    rule = Checker({"a": RewardResult(1.0, True), "b": RewardResult(0.0, False)}, name="rule")
    number = Table({"a": 1.0, "b": 0.7}, name="number")
    scores = score_rollout([rule, number], [group("ab"), group("ab")], rows)
    assert scores.has_correct.tolist() == [[True, True], [False, False]] and scores.correct.tolist() == [[1, 0], [0, 0]]
    assert scores.rewards.tolist() == [[1.0, 0.0], [1.0, pytest.approx(0.7)]] and not scores.failed.any()
    number.correct_from = True
    assert score_rollout([rule, number], [group("ab")], rows[1:]).correct.tolist() == [[1.0, 0.0]]

    alone = Table({"a": 1.0, "b": 0.0}, name="form")
    alone.reports_correct = False
    assert not score_rollout([alone], [group("ab")], [SAMPLES[0]]).has_correct.any()
    assert score_rollout([alone, number], [group("ab")], [SAMPLES[0]]).has_correct.all(), "the other one may report it"


def test_the_rule_for_correct_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "lit_rlvr")
    for _ in range(2):
        score_rollout([Table(FORMAT, name="said once")], GROUPS, SAMPLES)
    (message,) = (message for message in caplog.messages if "said once" in message)
    assert "'said once' reports no `correct`" in message and "its value 1 counts as correct" in message
    assert "set `correct_from: true` on the reward that decides" in message


@pytest.mark.parametrize(
    ("does", "changed"),
    [
        (lambda: torch.set_default_dtype(torch.float64), r"torch\.get_default_dtype\(\)"),
        (lambda: torch.set_grad_enabled(False), r"torch\.is_grad_enabled\(\)"),
        (lambda: torch.set_default_device("meta"), r"torch\.get_default_device\(\)"),
    ],
)
def test_a_reward_that_changes_what_training_reads_is_named(does: Callable[[], None], changed: str) -> None:
    class Changes(Table):
        def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult | None:
            does()
            return True

    try:
        with pytest.raises(UserError, match=rf"Changes changed {changed}, which training uses; "):
            score_rollout([Changes({})], [group("a")], [Sample("p", "?", "a")])
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)


@pytest.mark.parametrize(("part", "field"), [(0, "text"), (0, "token_ids"), (1, "answer")])
def test_a_reward_cannot_change_what_it_judges(part: int, field: str) -> None:
    class Changes(Table):
        def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult | None:
            setattr((completion, sample)[part], field, "b")
            return True

    completions, sample = group("a"), Sample("p", "?", "a")
    scores = score_rollout([Changes({}, name="changes")], [completions], [sample])
    assert scores.failed.all() and f"cannot assign to field '{field}'" in scores.details[0][0]["changes"].detail
    assert completions == group("a") and sample.answer == "a"


def test_none_leaves_a_reward_out_and_only_none_leaves_the_completion_out() -> None:
    """As in TRL: the weighted sum is over the rewards that judge a completion."""
    answer = Table(ANSWER | {"n": None}, name="answer", weight=2.0)
    form = Table({"a": 0.25, "b": None, "c": None, "n": None}, name="form", weight=0.5)
    extra = Table({"a": None, "b": None, "c": RewardResult(1.0, True), "n": 1.0}, name="extra")
    scores = score_rollout([answer, form], [group("abn")], SAMPLES[:1])
    assert scores.rewards.tolist() == [[2.125, 0.0, 0.0]] and scores.statuses == [["ok", "parse_fail", "unjudged"]]
    assert scores.has_reward.tolist() == [[True, True, False]] and not scores.failed.any()
    assert scores.has_correct.tolist() == [[True, True, False]] and scores.correct.tolist() == [[1.0, 0.0, 0.0]]
    parts = [[None if math.isnan(x) else x for x in scores.parts[name][0].tolist()] for name in ("answer", "form")]
    assert parts == [[1.0, 0.0, None], [0.25, None, None]]
    # "n" has a reward, but none that calls it right or wrong; `correct` of "c" comes from the one that judges it
    scores = score_rollout([Table({"a": True, "c": None, "n": None}), extra], [group("acn")], SAMPLES[:1])
    assert scores.rewards.tolist() == [[1.0, 1.0, 1.0]] and scores.has_reward.all()
    assert scores.has_correct.tolist() == [[True, True, False]] and scores.correct.tolist() == [[1.0, 1.0, 0.0]]


def test_without_a_reward_a_completion_changes_nothing() -> None:
    """It is not in the loss, and the mean and the correctness of its group are those of the others."""
    scores = score_rollout([Table({"a": True, "b": False, "n": None})], [group("abna")], SAMPLES[:1])
    rollout = assemble([Prompt(SAMPLES[0], [1])], [group("abna")], scores, Sampling())
    assert rollout.mask[:, 0].tolist() == [True, True, False, True]
    assert rollout.rewards[0].tolist() == rollout.correct[0].tolist() == pytest.approx([1, 0, 2 / 3, 1])
    assert rollout.has_correct.tolist() == rollout.in_accuracy.tolist() == [[True, True, False, True]]
    found = rollout_metrics(rollout, None, 1.0)
    names = ("rollout/accuracy", "rollout/reward", "reward/table")
    assert [found[name] for name in names] == pytest.approx([2 / 3] * 3)
    assert found["reward/status/unjudged"] == 1 / 4 and found["reward/status/error"] == 0.0
    scores = score_rollout([Table({"n": None})], [group("nn")], SAMPLES[:1])
    found = rollout_metrics(assemble([Prompt(SAMPLES[0], [1])], [group("nn")], scores, Sampling()), None, 1.0)
    assert all(isnan(found[name]) for name in names), "Lightning would repeat the last values"


def test_an_environment_without_a_judgement_leaves_the_episode_to_the_others() -> None:
    alone = score_rollout([EnvironmentReward()], [group("a")], SAMPLES[:1])
    assert alone.statuses == [["unjudged"]] and not alone.has_reward.any()
    with_answer = score_rollout([EnvironmentReward(), Table(ANSWER)], [group("a")], SAMPLES[:1])
    assert with_answer.rewards.tolist() == with_answer.correct.tolist() == [[1.0]] and with_answer.has_correct.all()


def test_a_row_chooses_its_rewards_and_their_weights() -> None:
    """By name, by name and weight, by verl's column; each row has its own `correct`, and other rewards are absent."""
    answer, form = Table(ANSWER, name="answer", weight=2.0), Table(FORMAT, name="form", weight=0.5)
    late = Table(dict.fromkeys("abcd", 0.5), name="late")
    late.whole_rollout = True
    samples = [
        Sample("all", "?", ""),
        Sample("one", "?", "", rewards={"answer": None}),
        Sample("other", "?", "", rewards={"form": 3.0, "late": None}),
        Sample("column", "?", "", row={"data_source": "late", "dataset": 7}),
        Sample("unknown source", "?", "", row={"data_source": "openai/gsm8k"}),
    ]
    with BackgroundScoring([answer, form, late]) as scoring:
        for p, sample in enumerate(samples):
            scoring.add(p, group("ab"), sample)
        scores = scoring.scores(range(len(samples)), 2)
    everything = [2.0 * 1 + 0.5 * 0.25 + 0.5, 0.5 * 1 + 0.5]
    assert scores.rewards.tolist() == [everything, [2.0, 0.0], [3 * 0.25 + 0.5, 3.5], [0.5, 0.5], everything]
    assert scores.parts["late"].isnan()[:, 0].tolist() == [False, True, False, False, False]
    assert scores.correct.tolist() == [[1, 0], [1, 0], [0, 1], [0, 0], [1, 0]]  # of "other": the value 1 of its first
    assert scores.has_correct.all() and scores.has_reward.all()
    assert [asked for asked in answer.asked if asked[:-1] in ("other", "column")] == []
    prompts = [Prompt(sample, [1]) for sample in samples]
    found = rollout_metrics(assemble(prompts, [group("ab")] * 5, scores, Sampling()), None, 1.0)
    assert found["reward/answer"] == 0.5 and found["reward/answer/parse_fail"] == 0.5, "of the rows that have it"
    assert found["reward/form"] == pytest.approx(0.625) and found["rollout/accuracy"] == 0.4
    batch = gather_groups(assemble(prompts, [group("ab")] * 5, scores, Sampling()), scores.rewards, GDPOAdvantage())
    assert {name: weight.flatten().tolist() for name, weight in (batch.weights or {}).items()} == {  # type: ignore[union-attr]
        "answer": [2, 2, 0, 0, 2],
        "form": [0.5, 0, 3, 0, 0.5],
        "late": [1, 0, 1, 1, 1],
    }


def test_a_row_whose_reward_does_not_exist_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    rows = [Sample("p", "?", "", source="f:1"), Sample("q", "?", "", source="f:2", rewards={"from": 1.0})]
    with pytest.raises(UserError, match=r"f:2: reward: there is no 'from'; the rewards are form \(rollout\.rewards\)"):
        check_references([Table(FORMAT, name="form")], rows)
    rows = [Sample("p", "?", "", source=f"f:{k}", row={"data_source": name}) for k, name in enumerate(("form", "x"))]
    with pytest.raises(UserError, match=r"f:1: data_source: there is no reward 'x', but one for other rows; name "):
        check_references([Table(FORMAT, name="form")], rows)
    check_references([Table(FORMAT, name="form"), Table(FORMAT, name="idle")], rows[:1])
    assert caplog.messages == ["rollout.rewards: no row has the reward idle, so it judges nothing"]
