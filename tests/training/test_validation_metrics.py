"""pass@k against all subsets, and the metrics of an evaluated set."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from tiny import make_rollout

from lit_rlvr.errors import UserError
from lit_rlvr.training.validation_metrics import PassAtK, ValidationMetrics, by_length, given_answer, pass_at_k
from lit_rlvr.types import Rollout


def brute_force(correct: list[float], k: int) -> float:
    """The share of all k-subsets of completions that contain a correct one."""
    subsets = list(combinations(correct, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int) -> None:
    for k in range(1, n + 1):
        for c in range(n + 1):
            row = [1.0] * c + [0.0] * (n - c)
            assert float(pass_at_k(torch.tensor([row]), k)) == pytest.approx(brute_force(row, k), abs=1e-12), (n, c, k)


def test_pass_at_k_does_not_overflow() -> None:
    correct = torch.zeros(1, 1000)
    correct[0, :3] = 1
    # 1 - C(997, 256) / C(1000, 256) = 1 - (744 * 743 * 742) / (1000 * 999 * 998)
    assert float(pass_at_k(correct, 256)) == pytest.approx(1 - 744 * 743 * 742 / (1000 * 999 * 998), abs=1e-12)


def test_pass_at_k_is_the_mean_over_questions_of_all_batches() -> None:
    metric = PassAtK(2)
    metric.update(torch.tensor([[1.0, 0.0, 0.0]]))  # 2/3
    metric.update(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))  # 0, 1
    assert float(metric.compute()) == pytest.approx((2 / 3 + 0 + 1) / 3)
    with pytest.raises(ValueError, match="at least 2"):
        metric.update(torch.ones(1, 1))
    with pytest.raises(ValueError, match="at least 1"):
        PassAtK(0)


def test_an_evaluated_set() -> None:
    metrics = ValidationMetrics(4)
    metrics.update(make_rollout([[5]], [[[6], [6, 7], [6, 7, 8], []]], [[1.0, 0.0, 0.0, 0.0]]))
    metrics.update(make_rollout([[5]], [[[6], [6], [6], [6]]], [[1.0, 1.0, 0.0, 0.0]]))
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(3 / 8) and found["pass@1"] == pytest.approx(3 / 8)
    assert found["pass@2"] == pytest.approx((brute_force([1, 0, 0, 0], 2) + brute_force([1, 1, 0, 0], 2)) / 2)
    assert found["pass@4"] == 1.0
    assert found["length"] == pytest.approx((0 + 1 + 2 + 3 + 4) / 8)
    assert found["truncated"] == 0.0


def test_the_accuracy_has_an_error_and_a_constant_guess_to_beat() -> None:
    """Shares of 1, 0 and 1/2 right; two of three questions have the answer a."""
    rollout = make_rollout([[5]] * 3, [[[6]] * 2] * 3, [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    metrics = ValidationMetrics(2)
    metrics.update(answered(rollout, ["a", "b", "a"]))
    found = metrics.compute()
    assert found["accuracy_error"] == pytest.approx((0.25 / 3) ** 0.5) and found["guess"] == pytest.approx(2 / 3)
    same = ValidationMetrics(2)
    same.update(answered(rollout, ["a"] * 3))
    assert "guess" not in same.compute(), "the references are not what answers are compared with"


def answered(rollout: Rollout, answers: list[str]) -> Rollout:
    """The rollout with these reference answers."""
    samples = [replace(p.sample, answer=answer) for p, answer in zip(rollout.prompts, answers, strict=True)]
    prompts = [replace(p, sample=sample) for p, sample in zip(rollout.prompts, samples, strict=True)]
    return replace(rollout, prompts=prompts)


def test_one_completion_a_question_has_no_pass_at_k() -> None:
    metrics = ValidationMetrics(1)
    metrics.update(make_rollout([[5], [5]], [[[6]], [[6]]], [[1.0], [0.0]]))
    assert metrics.compute().keys() == {
        "accuracy",
        "accuracy_error",
        "length",
        "truncated",
        "entropy",
        "reward",
        "same_answer",
        "same_answer_reward",
    }


@pytest.mark.parametrize(("ending", "answer"), [
    ("It is **Thursday**.", "Thursday"), ("1", "1"), ("so 11", "11"), ("in New York", "New York"), ("York", "York"),
    ("It is 21", "It is 21"), ("x1", "x1"), ("```\n}\n```", ""), ("", ""),
])  # fmt: skip
def test_the_answer_of_a_completion_is_the_reference_that_it_ends_with(ending: str, answer: str) -> None:
    assert given_answer(ending, by_length(["1", "11", "York", "New York", "Thursday", "."])) == answer


def test_the_most_frequent_answer_has_its_share_and_its_reward() -> None:
    """Five of eight completions end with 1; they earn 0.55 of a mean of 0.5."""
    rewards = [[0.25, 0.5, 0.75, 0.25], [1.0, 0.25, 0.75, 0.25]]
    texts = [["1", "1.", "It is 1", "3"], ["(1)", "2", "so it is 1", "4"]]
    rollout = answered(make_rollout([[5]] * 2, [[[6]] * 4] * 2, rewards), ["1", "2"])
    rollout.completions = [
        [replace(completion, text=text) for completion, text in zip(group, row, strict=True)]
        for group, row in zip(rollout.completions, texts, strict=True)
    ]
    metrics = ValidationMetrics(4)
    metrics.update(rollout)
    found = metrics.compute()
    assert (found["reward"], found["same_answer"], found["same_answer_reward"]) == pytest.approx((0.5, 5 / 8, 0.65))


def test_entropy_is_per_sampled_token_and_greedy_answers_have_none() -> None:
    """-(-1 - 2 - 3) / 3 and -(-6) / 1: 12 nats over 4 tokens."""
    metrics, greedy = ValidationMetrics(1, greedy=True), ValidationMetrics(1)
    first, second = make_rollout([[5]], [[[6, 7, 8]]], [[1.0]]), make_rollout([[5]], [[[6]]], [[0.0]])
    first.rollout_logprobs, second.rollout_logprobs = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-6.0]])
    metrics.update(first, first)
    metrics.update(second, first)
    assert metrics.compute()["entropy"] == pytest.approx(3.0) and metrics.compute()["greedy"] == 1.0
    greedy.update(replace(first, sampling=replace(first.sampling, temperature=0.0)))
    assert "entropy" not in greedy.compute() and "greedy" not in greedy.compute()


def of_category(name: str, rewards: list[list[float]]) -> Rollout:
    rollout = make_rollout([[5]] * len(rewards), [[[6]] * len(row) for row in rewards], rewards)
    rollout.prompts = [
        replace(p, sample=replace(p.sample, category=name, id=f"{name}{i} of {len(rewards)}"))
        for i, p in enumerate(rollout.prompts)
    ]
    return rollout


def test_accuracy_of_each_category_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [ValidationMetrics(1), ValidationMetrics(1)]
    ranks[0].update(of_category("MRI", [[1.0], [0.0], [1.0]]))
    ranks[0].update(of_category("CT", [[0.0]]))
    ranks[0].update(of_category("", [[1.0]]))  # no category
    ranks[1].update(of_category("MRI", [[0.0]]))
    ranks[1].update(of_category("X-ray", [[1.0], [1.0]]))
    gathered = [
        ((rank.correct_in, rank.counted_in, True, rank.questions, rank.answers), rank.rewards) for rank in ranks
    ]
    monkeypatch.setattr("lit_rlvr.training.validation_metrics.gather_objects", lambda _: gathered)
    for rank in ranks:
        shares = {name: value for name, value in rank.compute().items() if "/" in name}
        assert shares == {"accuracy/CT": 0.0, "accuracy/MRI": 2 / 4, "accuracy/X-ray": 1.0}
        assert rank.compute()["reward"] == pytest.approx(5 / 8)
        assert rank.questions == {
            "MRI0 of 3": (1, 1),
            "MRI1 of 3": (0, 1),
            "MRI2 of 3": (1, 1),
            "CT0 of 1": (0, 1),
            "0 of 1": (1, 1),
            "MRI0 of 1": (0, 1),
            "X-ray0 of 2": (1, 1),
            "X-ray1 of 2": (1, 1),
        }


def test_what_no_reward_calls_right_or_wrong_does_not_count() -> None:
    """A failed check counts as wrong; a question with fewer than k judged completions is not in pass@k."""
    rollout = make_rollout([[5]] * 3, [[[6]] * 4] * 3, [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    rollout = answered(rollout, ["a", "b", "c"])
    rollout.prompts = [replace(p, sample=replace(p.sample, category="x")) for p in rollout.prompts]
    rollout.has_correct = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    rollout.statuses = [["ok"] * 4, ["ok", "unjudged", "ok", "error"], ["unjudged"] * 3 + ["ok"]]
    metrics = ValidationMetrics(4, greedy=True)
    metrics.update(rollout, rollout)
    found = metrics.compute()
    nothing = ValidationMetrics(4)
    rollout.has_correct, rollout.statuses = torch.zeros(3, 4, dtype=torch.bool), [["unjudged"] * 4] * 3
    nothing.update(rollout)
    with pytest.raises(UserError, match=r"^rollout.rewards: no reward says of any completion .* whether it is right"):
        nothing.compute()
    assert found.keys() == metrics.names(rollout.prompts, sampled=True)
    assert [found[name] for name in ("accuracy", "greedy", "accuracy/x")] == pytest.approx([3 / 7] * 3)
    assert [*metrics.questions.values()] == [(2, 4), (1, 3)], "nothing is known of the third"
    assert found["pass@1"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert found["pass@2"] == pytest.approx((brute_force([1, 1, 0, 0], 2) + brute_force([1, 0, 0], 2)) / 2)
    assert found["pass@4"] == 1.0
