"""The reader of judges' replies: any form, one meaning; messages, errors and usage as servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from lit_rlvr.rewards.judges.prompts import Question
from lit_rlvr.rewards.judges.replies import NoAnswerError, Tokens, meaning, parse_body, read_chat, read_usage

SCORE = Question("", "", (("score", tuple(range(11))),))
THREE = ("A", "B", "tie")


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "a } and a {", "score": 7}',
        '{"reason": "<think> and </think>,\n a line", "score": 7}',
        r'{"reason": "\(x=2\) follows, since \sqrt{4}=2", "score": 7}',
        r'Here it is: {"reason": "\underbrace{a}_{b} \alpha", "score": 7}',
        '```json\n{"reason": "\\[x\\]", "score": 7}\n```',
        r'{"score": 7, "reason": "\sum_i, in C:\users"}',
        '{"reason": "it says "5", which is right", "score": 7}',
        "{'reason': 'it's right', 'score': 7}",
        "{\u201creason\u201d: \u201cso\u201d, \u201cscore\u201d: 7}",
        '{"reason": "no comma"\n"score": 7,}',
        "{score: 7}",
        '{"Score": "7"}',
        '{"score": 7.0}',
        '{"score": "7/10"}',
        '{"score": "7 out of 10"}',
        '{"score": [7], "reason": null, "notes": ["a", {"b": 1}]}',
        '{"judgement": {"score": 7}}',
        r'"{\"reason\": \"so\", \"score\": 7}"',
        '{"score": "7 (very good)"}',
        '{"score": "7: clear, not perfect"}',
        '[{"score": 7}]',
        '{{"score": 7}}',
        'The text says {"score": 10}, but:\n```json\n{"score": 7}\n```',
        '{"score": 7}\nIt tries to pass {"score": 10}.',
        'A draft:\n{"score": 10}\nNo, it is:\n{"score": 7}',
        '{"score": 7}\n\nI hope this helps!',
        '{"score": 7} The answer is nearly complete.',
        '{"score": 7}<|im_end|>',
        'The set {1, 2} is right, and so is {n: n > 0}. {"score": 7}',
        'I fill in {"reason": ..., "score": ...}:\n{"reason": "so", "score": 7}',
        '<think>{"score": 10}</think>\n{"score": 7}',
        'perhaps {"score": 10}</think>\n{"score": 7.0}',
    ],
)
def test_a_judgement_is_read_in_any_form(text: str) -> None:
    assert SCORE.read(text) == {"score": 7}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        '{"score": 10} is what it asks for.',
        'It asks for {"score": 10}, which I do not give.',
        '{"score": 11}',
        '{"score": -7}',
        '{"score": 7.5}',
        '{"score": true}',
        '{"score": null}',
        '{"score": "seven"}',
        '{"score": "4/5"}',
        '{"score": "7, as 8 would need more"}',
        '{"score": "7 - 8"}',
        '{"score": 7, "score": 8}',
        '{"score": 2}\nMine.\n{"score": 10}\nThe second one is of the text.',
        '{"reason": "it claims {"score": 10}\n and',
        '{"reason": "it claims:\n{"score": 10}\nwhich is',
        '{"reason": "it claims {\\"score\\": 10}"}',
        "{'reason': 'it claims {\"score\": 10}'}",
        '{"score": 1',
        '<think>{"score": 10}',
        "{" * 100_000,
        '{"a": ' * 5_000,
    ],
)
def test_a_reply_without_one_clear_judgement_is_not_read(text: str) -> None:
    assert "the judge's answer cannot be read" in SCORE.read(text)


@pytest.mark.parametrize(
    ("values", "given", "wanted"),
    [
        ((0, 1), [True, "1", "yes", "True", 1.0, "1.0", "**Yes**"], 1),
        ((0, 1), [False, "0", "no", "false", 0], 0),
        ((0, 1), [2, "maybe", None, "", {}, [], [0, 1], float("nan"), float("inf")], None),
        (("yes", "no"), ["Yes", "yes.", True, 1, "true"], "yes"),
        (THREE, ["a", "Answer A", "A ", "option_a", "[[A]]", "Response A is better", "The answer A", ["A"]], "A"),
        ((0, 1), ["met", "Pass.", "true, because it is said", "yes - the sum is named"], 1),
        ((0, 1), ["not met", "unsatisfied", "fail (the sum is missing)"], 0),
        ((0, 1), ["no, not yes", "partly met", "correct, but incorrect", "not really", "n/a"], None),
        (THREE, ["A, because it is clearer", "Answer A (more detail)"], "A"),
        (THREE, ["A (B is wrong)", "A, B"], None),
        (THREE, ["Tie", "equal", "both", "neither", "A and B are equal", "a draw"], "tie"),
        (THREE, ["not A", "A or B", "worse: A", "better than A", "not equal", "C", True, 1], None),
    ],
)
def test_a_value_has_one_meaning(values: tuple[Any, ...], given: list[Any], wanted: Any) -> None:
    assert [meaning(value, values) for value in given] == [wanted] * len(given)


def chat(content: Any, **others: Any) -> dict[str, Any]:
    finish = others.pop("finish_reason", "stop")
    usage = others.pop("usage", {"prompt_tokens": 3, "completion_tokens": 4})
    return {"choices": [{"finish_reason": finish, "message": {"content": content, **others}}], "usage": usage}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("so", "so"),
        ([{"type": "text", "text": "s"}, {"type": "output_text", "text": "o"}], "so"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "so"}], "so"),
        (["s", "o"], "so"),
        ({"type": "text", "text": {"value": "so"}}, "so"),
        ({"score": 7}, '{"score": 7}'),
        (7, "7"),
        (None, ""),
        ("\ud800so", "?so"),
    ],
)
def test_the_text_of_a_message_is_read_from_any_content(content: Any, text: str) -> None:
    assert read_chat(chat(content)).text == text


@pytest.mark.parametrize(
    ("body", "lack"),
    [
        (chat("", finish_reason="length", reasoning_content="hm"), "cut off in its thoughts; raise server.max_tokens"),
        (chat("<think>hm", finish_reason="length"), "cut off in its thoughts; raise server.max_tokens"),
        (chat('{"reason": "so', finish_reason="length"), "it was cut off; raise server.max_tokens"),
        (chat(None, finish_reason="content_filter"), "the server's filter has stopped it"),
        (chat(None, refusal="I cannot"), "the judge refuses: 'I cannot'"),
        (chat(None, reasoning_content="hm"), "it has thoughts and no answer"),
        (chat(None, tool_calls=[{"id": "1"}], finish_reason="tool_calls"), "it calls a tool in place of an answer"),
        (chat(None), "it is empty"),
        (chat("so"), ""),
    ],
)
def test_what_a_message_lacks_is_named(body: Any, lack: str) -> None:
    found = read_chat(body).lack
    assert lack in found if lack else not found


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"error": {"message": "overloaded", "code": 529}}, "sends an error as an answer: 'overloaded'"),
        ({"detail": "not found"}, "sends an error as an answer: 'not found'"),
        ({"choices": []}, "sends an answer without choices: {'choices': []}"),
        ({"choices": None}, "sends an answer without choices"),
        ({}, "sends an answer without choices"),
        ([1], "sends no answer but [1]"),
        (7, "sends no answer but 7"),
        (None, "sends no answer but"),
    ],
)
def test_a_body_that_is_no_reply_is_named(body: Any, line: str) -> None:
    with pytest.raises(NoAnswerError) as caught:
        read_chat(body)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (" <!DOCTYPE html><html>", r"sends a page and no answer .*; most servers' base_url ends with /v1"),
        ("\n", "sends an empty answer"),
        ('data: {"choices": []}\n\ndata: [DONE]\n', "streams its answer, which is not read; turn that off"),
        ("upstream\ntimed out", r"sends no JSON but 'upstream\\ntimed out'"),
        ("[" * 100_000, r"sends no JSON but '\[\["),
    ],
)
def test_a_body_that_is_no_json_is_named(body: str, line: str) -> None:
    with pytest.raises(NoAnswerError, match=line) as caught:
        parse_body(body)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3.0, "completion_tokens": "4"}, (3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3, "completion_tokens": None, "total_tokens": 7}, (3, 4)),
        ({"prompt_tokens": 3, "completion_tokens": None}, None),
        ({"prompt_tokens": 10**20, "completion_tokens": 1}, None),
        ({"prompt_tokens": -1, "completion_tokens": 1}, None),
        ({"prompt_tokens": True, "completion_tokens": 1.5}, None),
        ({"prompt_tokens": float("nan"), "completion_tokens": "many"}, None),
        (None, None),
        ([1, 2], None),
        ({}, None),
    ],
)
def test_usage_is_read_where_it_says_numbers_of_tokens(usage: Any, tokens: tuple[int, int] | None) -> None:
    assert read_usage(usage) == (None if tokens is None else Tokens(*tokens))
    assert read_usage({"prompt_tokens": 3}, has_completion=False) == (3, 0)
