"""Format: each condition alone, all of them together, and bad configurations."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Format
from lit_rlvr.rewards.base import check_prefills
from lit_rlvr.types import Completion, Prompt, Sample

SAMPLE = Sample("a", "?", "7")


def value(reward: Format, text: str) -> float:
    (result,) = reward.score([(Completion(text, (1,), "stop"), SAMPLE)])
    assert result.correct is None and result.status == "ok"
    return result.value


def test_pattern_is_searched_and_its_dot_matches_newlines() -> None:
    reward = Format(pattern="<think>.*</think>")
    assert value(reward, "so <think>a\nb</think> 7") == 1.0
    assert value(reward, "<think>a\nb 7") == 0.0
    assert value(Format(pattern="^7$"), "7 ") == 0.0


def test_contains_is_literal() -> None:
    assert value(Format(contains="\n</think>\n"), "a\n</think>\n7") == 1.0
    assert value(Format(contains="\n</think>\n"), "a</think>7") == 0.0
    assert value(Format(contains="."), "7") == 0.0


def test_boxed_needs_a_box() -> None:
    assert value(Format(boxed=True), r"so \boxed{7}") == 1.0
    assert value(Format(boxed=True), "boxed{7}") == 0.0


def test_all_given_conditions_must_hold() -> None:
    reward = Format(pattern="^a", contains="b", boxed=True)
    assert value(reward, r"a b \boxed{7}") == 1.0
    assert [value(reward, text) for text in (r"b \boxed{}", r"a \boxed{}".replace("b", "c"), "a b")] == [0.0] * 3


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(UserError, match="at least one of pattern, contains, boxed"):
        Format()
    with pytest.raises(UserError, match=r"Format\.pattern '\(' is not a regular expression"):
        Format(pattern="(")


THINKS = "<think>\n"


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "^<think>.*?</think>"},
        {"pattern": r"\A(<think>)\n.+</think>\s*<answer>"},
        {"pattern": "(?:<think>.*?</think>)+ .*"},
        {"pattern": "(?=.*<think>)x"},
        {"pattern": "a<think>|<think>b"},
        {"contains": "<think>"},
        {"pattern": "</think>", "contains": "<think>\n"},
    ],
)
def test_a_tag_that_the_prompt_opens_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(
        UserError, match=r"asks for <think> in the text, .*set data.init_args.chat.score_prefill: true"
    ) as error:
        Format(**options).check_prefill(THINKS)
    assert "\n" not in str(error.value)
    Format(**options).check_prefill("So the answer")


@pytest.mark.parametrize("score_prefill", [False, True])
def test_what_a_single_row_opens_is_looked_at(score_prefill: bool) -> None:
    rows = [Prompt(SAMPLE, [], prefill=prefill, score_prefill=score_prefill) for prefill in ("", "", THINKS)]
    check_prefills([Format(contains="<think>")], rows[:2])
    with nullcontext() if score_prefill else pytest.raises(UserError, match="asks for <think> in the text"):
        check_prefills([Format(contains="<think>")], rows)
    check_prefills([Format(contains="<think>")], [replace(rows[2], sample=replace(SAMPLE, rewards={"other": None}))])


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "</think>"},
        {"pattern": "^(?!.*<think>).*</think>"},
        {"pattern": "(<think>)?.*</think>"},
        {"pattern": "<think>.*</think>|</think>"},
        {"pattern": "[<think>]+"},
        {"contains": "\n</think>\n"},
        {"boxed": True},
    ],
)
def test_what_a_text_can_have_is_not_refused(options: dict[str, str]) -> None:
    Format(**options).check_prefill(THINKS)
