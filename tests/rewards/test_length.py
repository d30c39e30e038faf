"""Length rewards against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from trl.rewards import get_soft_overlong_punishment

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import LCPO, CosineScaled, MathAnswer, Overlong, RelativeLength
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rewards.gold_answers import warn_of_other_lengths
from lit_rlvr.types import Completion, RewardResult, Sample

SAMPLE = Sample("s", "What is 3 + 4?", "7")


def completion(text: str, tokens: int, cut: bool = False) -> Completion:
    return Completion(text, tuple(range(tokens)), "length" if cut else "stop")


@pytest.mark.parametrize(
    ("cache", "tokens", "value"),
    [(20, 0, 0.0), (20, 80, 0.0), (20, 85, -0.25), (20, 90, -0.5), (20, 100, -1.0), (20, 150, -1.0),
     (0, 99, 0.0), (0, 100, 0.0), (0, 101, -1.0)],
)  # fmt: skip
def test_overlong_is_daposs_ramp_and_trls(cache: int, tokens: int, value: float) -> None:
    assert Overlong(max_tokens=100, cache_tokens=cache)(completion("", tokens), SAMPLE) == pytest.approx(value)
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=cache)
    assert theirs(completion_ids=[[0] * tokens]) == pytest.approx([value])


@pytest.mark.parametrize("cache", [-1, 101])
def test_overlong_refuses_a_slope_that_does_not_fit(cache: int) -> None:
    with pytest.raises(UserError, match="cache_tokens"):
        Overlong(max_tokens=100, cache_tokens=cache)


@pytest.mark.parametrize(
    ("text", "tokens", "value", "correct"),
    [
        ("7", 0, 1.0, True),
        ("7", 50, 0.75, True),  # half way down: the cosine is 0
        ("7", 25, 0.75 + 0.25 * 2**-0.5, True),  # cos(pi / 4)
        ("7", 100, 0.5, True),
        ("7", 300, 0.5, True),  # clamped, not periodic
        ("8", 0, -0.5, False),
        ("8", 50, -0.25, False),
        ("8", 100, 0.0, False),
        ("no idea", 0, -0.5, False),
    ],
)
def test_cosine_scaled_gives_hand_computed_values(text: str, tokens: int, value: float, correct: bool) -> None:
    result = CosineScaled(max_length=100).score([(completion(text, tokens), SAMPLE)])[0]
    assert result.value == pytest.approx(value)
    assert result.correct is correct


def test_cosine_scaled_takes_its_alphas() -> None:
    reward = CosineScaled(max_length=10, min_correct=0.1, max_correct=2.0, min_wrong=-3.0, max_wrong=-1.0)
    values = [r.value for r in reward.score([(completion(t, n), SAMPLE) for t in ("7", "8") for n in (0, 10)])]
    assert values == pytest.approx([2.0, 0.1, -3.0, -1.0])


@pytest.mark.parametrize(("reward", "value"), [(CosineScaled(max_length=100), 0.0), (LCPO(90, alpha=0.01), -0.1)])
def test_a_cut_off_answer_is_wrong(reward: MathAnswer, value: float) -> None:
    result = reward.score([(completion("7", 100, cut=True), SAMPLE)])[0]
    assert (result.value, result.correct) == (pytest.approx(value), False)


def test_cosine_scaled_masks_a_reference_that_cannot_be_read() -> None:
    pairs = [(completion(text, 5), Sample("s", "?", answer)) for answer in ("???", "7") for text in ("8", "???")]
    found = CosineScaled(max_length=100).score(pairs)
    assert [r.status for r in found] == ["unjudged", "unjudged", "ok", "parse_fail"]
    assert "'???' cannot be read" in found[0].detail


@pytest.mark.parametrize("reward", [RelativeLength(), LCPO(target=20)])
def test_length_alone_is_not_taught_where_nobody_can_be_right(reward: MathAnswer) -> None:
    texts = [completion("The answer is 7.", 9), completion("The answer is 8.", 30)]
    for answer in ("see picture", "$\\square$", "\\int_0^1 f"):
        sample = Sample("s", "?", answer)
        found = reward.score([(text, sample) for text in texts])
        assert [(r.value, r.correct, r.status) for r in found] == [(0.0, None, "unjudged")] * 2
    sample = Sample("s", "?", "???", aliases=("7",))
    assert [r.status for r in reward.score([(text, sample) for text in texts])] == ["ok", "ok"]


# ---- LCPO ------------------------------------------------------------------------------------------------------


def asked(tokens: object) -> Sample:
    return Sample("s", "Think for 100 tokens. What is 3 + 4?", "7", row={"num_tokens": tokens})


@pytest.mark.parametrize(
    ("text", "tokens", "exact", "at_most"),
    [
        ("7", 100, 1.0, 0.5),
        ("7", 80, 0.8, 0.7),
        ("7", 130, 0.7, 0.2),
        ("7", 10, 0.1, 1.0),  # LCPO-max's clip: 0.9 + 0.5
        ("7", 160, 0.4, 0.0),  # and -0.6 + 0.5
        ("8", 80, -0.2, 0.0),
        ("no idea", 100, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("target", [100, "num_tokens"])
def test_lcpo_gives_hand_computed_values(
    text: str, tokens: int, exact: float, at_most: float, target: int | str
) -> None:
    pair = (completion(text, tokens), asked("100"))
    for delta, value in ((None, exact), (0.5, at_most)):
        result = LCPO(target, alpha=0.01, delta=delta).score([pair])[0]
        assert result.value == pytest.approx(value) and result.correct is (text == "7")


def test_lcpo_takes_each_prompts_target_and_the_papers_alpha() -> None:
    pairs = [(completion("7", 1000), asked(target)) for target in (1000, 2000, 4000)]
    assert [result.value for result in LCPO().score(pairs)] == pytest.approx([1.0, 0.7, 0.1])


@pytest.mark.parametrize("row", [{}, *({"num_tokens": value} for value in (None, "many", math.nan, -1, True))])
def test_lcpo_names_the_sample_without_a_target(row: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:3 has no number of tokens in the column 'num_tokens'"):
        LCPO().score([(completion("7", 5), Sample("s", "?", "7", row=row, source="train.jsonl:3"))])


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"delta": 1.5}, {"target": 0}])
def test_lcpo_refuses_options_outside_their_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"rewards.LCPO.{next(iter(options))}: .* must lie in"):
        LCPO(**options)  # type: ignore[arg-type]


# ---- Kimi k1.5 -------------------------------------------------------------------------------------------------


def test_relative_length_gives_hand_computed_values() -> None:
    group = [completion(text, tokens) for text, tokens in (("7", 10), ("7", 20), ("7", 30), ("8", 10), ("8", 50))]
    found = RelativeLength(length_weight=0.5).score([(c, SAMPLE) for c in group])
    shares = [0.5, 0.25, 0.0, 0.0, -0.5]  # 0.5 - (n - 10) / 40; the wrong answer of 10 tokens: min(0, 0.5)
    assert [r.value for r in found] == pytest.approx(
        [r + 0.5 * s for r, s in zip((1, 1, 1, 0, 0), shares, strict=True)]
    )
    assert [r.correct for r in found] == [True] * 3 + [False] * 2


def test_relative_length_compares_within_groups_and_gives_0_to_equal_lengths() -> None:
    other = Sample("t", "What is 4 + 4?", "8")
    seven, eight = ([completion("7", n) for n in (10, 30)], [completion("8", 200)] * 2)
    groups = [seven, eight, [completion("7", n) for n in (50, 70)]]
    scores = score_rollout([RelativeLength()], groups, [SAMPLE, other, SAMPLE])  # a prompt may come twice
    assert scores.rewards.tolist() == [[1.5, 0.5], [1.0, 1.0], [1.5, 0.5]] and scores.correct.all()


def test_relative_length_leaves_out_failed_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = RewardResult(0.0, None, "error", "no memory")
    judged = [failed, RewardResult(1.0, True), RewardResult(1.0, True)]
    monkeypatch.setattr(MathAnswer, "score", lambda self, pairs: judged)
    found = RelativeLength().score([(completion("7", tokens), SAMPLE) for tokens in (1, 10, 20)])
    assert found[0] is failed and [r.value for r in found[1:]] == [1.5, 0.5]


def test_rewards_for_another_length_than_the_runs_are_named(caplog: pytest.LogCaptureFixture) -> None:
    rewards = [Overlong(max_tokens=4096, cache_tokens=512), CosineScaled(max_length=100), MathAnswer()]
    warn_of_other_lengths(rewards, 100)
    warn_of_other_lengths(rewards[1:], 100)
    (said,) = caplog.messages
    assert (
        "reward overlong: it is set to completions of up to 4096 tokens, and those of training have up to 100" in said
    )
