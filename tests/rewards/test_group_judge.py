"""A group judged in one call: values, order, splits, and what places do."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from stub_judge import StubJudge

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import GroupJudge
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rewards.judges.prompts import Seen
from lit_rlvr.types import Completion, RewardResult, Sample

SAMPLE = Sample("a", "Which organ makes insulin?", "pancreas", source="set.jsonl:3")


def answers_in(text: str) -> list[str]:
    """The answers in a question, in the order in which it shows them."""
    return [answer for _, answer in re.findall(r"\[answer (\d+) \w+\]\n(.*?)\n\[end", text)]


def by_length(text: str, fields: dict[str, list[Any]]) -> Any:
    """The length of each answer as its score, or the rank of that; equally long ones share one."""
    lengths = [len(answer) for answer in answers_in(text)]
    if "score_1" in fields:
        return dict(zip(fields, lengths, strict=True))
    return {name: 1 + sum(other > length for other in lengths) for name, length in zip(fields, lengths, strict=True)}


def by_place(text: str, fields: dict[str, list[Any]]) -> Any:
    """Ten for the first answer, and one less for each place behind."""
    return {name: 10 - place for place, name in enumerate(fields)}


def completed(*texts: str) -> list[Completion]:
    return [Completion(text, (1, 2), "stop") for text in texts]


def judged(judge: GroupJudge, *texts: str) -> list[RewardResult]:
    return judge.score([(completion, SAMPLE) for completion in completed(*texts)])


def test_a_group_is_scored_or_ranked_in_one_call() -> None:
    groups = [completed("aaa", "bb", "cc", "", "bb"), completed("a", "a", "bb", "bb", "bb")]
    with StubJudge(by_length) as stub:
        judges = [GroupJudge(by=by, server=stub.server(), shown_twice=0) for by in ("scores", "ranks")]
        scored, ranked = (score_rollout([judge], groups, [SAMPLE, SAMPLE]).parts["group_judge"] for judge in judges)
        assert stub.calls == 2 * 2
        for body in stub.bodies:
            shown = answers_in(body["messages"][1]["content"])
            assert sorted(shown) in (["aaa", "bb", "cc"], ["a", "bb"]), "equal texts are shown once, empty ones never"
    assert torch.allclose(scored, torch.tensor([[0.3, 0.2, 0.2, 0.0, 0.2], [0.1, 0.1, 0.2, 0.2, 0.2]]))
    half = torch.tensor([[4, 2, 2, 0, 2], [0.5, 0.5, 3, 3, 3]]) / 4
    assert torch.allclose(ranked, half)


def test_the_order_is_shuffled_by_the_answers_alone(tmp_path: Path) -> None:
    texts = [str(number) * 3 for number in range(8)]
    with StubJudge(by_place) as stub:
        server = stub.server(answers=str(tmp_path / "answers.sqlite"))
        for order in (texts, texts[::-1]):
            judge = GroupJudge(server=server, shown_twice=0)
            judged(judge, *order)
        assert stub.calls == 1 and judge.metrics["group_judge/cached"] == [1.0], "also after a restart"
        judged(judge, *texts[1:])
        judged(judge, *texts[2:])
        shown = [answers_in(body["messages"][1]["content"]) for body in stub.bodies]
    assert all(sorted(one) != one for one in shown)
    assert [text for text in shown[0] if text in shown[2]] != shown[2], "another group has another order"


def test_ranks_need_something_to_compare_with() -> None:
    with StubJudge(by_length) as stub:
        judge = GroupJudge(by="ranks", server=stub.server())
        assert judged(judge, "alone")[0].status == "unjudged"
        assert [result.value for result in judged(judge, "same", "same", "")] == [0.75, 0.75, 0.0]
        assert stub.calls == 0
        judge = GroupJudge(server=stub.server())
        assert [result.value for result in judged(judge, "alone")] == [0.5]


def test_a_group_that_is_too_long_is_split_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["a" * 4, "b" * 5, "c" * 6, "d" * 30]
    with StubJudge(by_length) as stub, caplog.at_level(logging.WARNING, "lit_rlvr"):
        judge = GroupJudge(by="ranks", server=stub.server(), max_characters=12, shown_twice=0)
        results = judged(judge, *texts)
        shown = [answers_in(body["messages"][1]["content"]) for body in stub.bodies]
        assert shown and all(sum(map(len, one)) <= 12 and len(one) > 1 for one in shown), "none alone is asked about"
        judged(judge, "a", "b")
        judged(judge, *texts)
    assert judge.metrics["group_judge/split"] == [1.0, 0.0, 1.0]
    said = "have 45 characters and 0 images, more than max_characters=12 or max_images=32, so they are judged in"
    assert caplog.text.count(said) == 1
    for text, result in zip(texts, results, strict=True):
        part = next((one for one in shown if text in one), None)
        if part is None:
            assert result.status == "unjudged"
        else:
            assert result.value == sum(len(other) < len(text) for other in part) / (len(part) - 1)
    assert "unjudged" in {result.status for result in results}


@pytest.mark.parametrize("long", [7, 10, 30])
def test_an_answer_is_moved_to_one_that_is_alone_only_where_both_fit(long: int) -> None:
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "asked nothing"}
    judge = GroupJudge(by="ranks", server=server, max_characters=12, shown_twice=0)
    for letter in "efghijklmnop":
        parts = judge.calls(SAMPLE, {Seen("a"), Seen("b" * 3), Seen("c" * 4), Seen(letter * long)})
        assert parts and all(sum(len(answer.text) for answer in part) <= 12 and len(part) > 1 for part in parts)


def test_what_places_do_is_measured_on_equal_answers() -> None:
    with StubJudge(by_place) as stub:
        judge = GroupJudge(server=stub.server(), shown_twice=1)
        results = judged(judge, "aa", "bb", "cc")
        shown = answers_in(stub.bodies[0]["messages"][1]["content"])
        (twice,) = {text for text in shown if shown.count(text) == 2}
        places = [place for place, text in enumerate(shown) if text == twice]
        assert judge.metrics["group_judge/place_bias"] == [pytest.approx((places[1] - places[0]) / 10)]
        means = {text: (20 - sum(places)) / 20 if text == twice else (10 - shown.index(text)) / 10 for text in shown}
        assert [result.value for result in results] == pytest.approx([means[text] for text in ("aa", "bb", "cc")])
    with StubJudge(by_length) as stub:
        fair = GroupJudge(by="ranks", server=stub.server(), shown_twice=1)
        assert [result.value for result in judged(fair, "a", "bb", "cccc")] == [0.0, 0.5, 1.0]
        assert fair.metrics["group_judge/place_bias"] == [0.0]
        never = GroupJudge(server=stub.server(), shown_twice=0)
        judged(never, "aa", "bb")
        assert never.metrics["group_judge/place_bias"] == []


def test_a_call_that_fails_masks_its_completions_alone() -> None:
    with StubJudge(by_length) as stub:
        stub.faults = [500]
        judge = GroupJudge(server=stub.server(max_retries=0, max_concurrent=1), max_characters=5, shown_twice=0)
        results = judged(judge, "aaaa", "bbbb")
        assert sorted(result.status for result in results) == ["error", "ok"]
        judge.connect()
        assert "[answer 2 " in stub.bodies[-1]["messages"][1]["content"], "the question at the start is of its kind"
    with pytest.raises(UserError, match=r"rewards\.GroupJudge\.shown_twice: 2\.0 must lie in \[0, 1\]"):
        GroupJudge(server={"base_url": "http://127.0.0.1:9/v1", "model": "none"}, shown_twice=2.0)
