"""How models talk: thoughts in every family's marks, parts of a completion, calls that are spoken of, runaways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import byte_tokenizer

from lit_rlvr.answers.find import next_question
from lit_rlvr.engines.turns import read_completion
from lit_rlvr.rewards import Choice, Format, MathAnswer, OpenAnswer, Reward
from lit_rlvr.rewards.forms import turn_message
from lit_rlvr.rewards.sql import extract_sql
from lit_rlvr.speech.calls import Call, find_calls
from lit_rlvr.speech.thoughts import ends_in_thoughts, read_text, without_thoughts
from lit_rlvr.types import Completion, Sample, Turn

SPECIAL = {
    "Command": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "Mistral": ("[THINK]", "[/THINK]", "</s>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>", "<turn|>"),
    "Kimi": ("◁think▷", "◁/think▷", "<|im_end|>"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
}
"""Family -> how thoughts begin, how they end, how the turn ends; what is in brackets is a special token."""
TEXT = {
    "Qwen": ("<think>\n", "</think>\n", ""),
    "Seed": ("<seed:think>", "</seed:think>", ""),
    "one's own": ("<reasoning>", "</reasoning>", ""),
    "OpenThoughts": ("<|begin_of_thought|>", "<|end_of_thought|>", ""),
}
TOKENS = (
    "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "[THINK]", "[/THINK]",
    "<|channel>", "<channel|>", "<turn|>", "◁think▷", "◁/think▷", "</s>",
)  # fmt: skip
SAMPLE = Sample("a", "?", "7")
CHANNELS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>")


def tokenizer_of(*tokens: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    return tokenizer


def score(text: str, truncated: bool = False) -> float:
    completion = Completion(text, (1,), "length" if truncated else "stop")
    return MathAnswer(truncated_is_wrong=False).score([(completion, SAMPLE)])[0].value


@pytest.mark.parametrize("family", [*SPECIAL, *TEXT])
def test_only_what_is_behind_the_thoughts_counts(family: str) -> None:
    begin, end, stop = (SPECIAL | TEXT)[family]
    tokenizer = tokenizer_of(*(CHANNELS if family == "gpt-oss" else TOKENS))

    def read(written: str) -> str:
        return read_text(tokenizer, tokenizer(written, add_special_tokens=False).input_ids)

    right, wrong = (read(f"{begin}It is \\boxed{{{a}}}.{end}So \\boxed{{{b}}}.{stop}") for a, b in ((3, 7), (7, 3)))
    assert (score(right), score(wrong)) == (1.0, 0.0), right
    assert score(read(f"{begin}It is \\boxed{{7}}."), truncated=True) == 0.0, "thoughts that are cut off"
    assert score(read(f"So \\boxed{{7}}.{stop}")) == 1.0, "no thoughts"
    assert score(read(f"It is \\boxed{{7}}.{end}So \\boxed{{3}}.{stop}")) == 0.0, "the prompt has opened them"
    if family in SPECIAL:
        assert right == "<think>It is \\boxed{3}.</think>So \\boxed{7}.", right
    raw = tokenizer.decode(tokenizer(f"{begin}<call>f(1)</call>{end}<call>g(2)</call>").input_ids)
    assert find_calls(raw) == [Call("g", (2,))]
    assert ends_in_thoughts(f"user: ?\n{begin}") and not ends_in_thoughts(f"{begin}{end}")


def test_without_a_mark_among_the_special_tokens_a_text_is_as_it_was() -> None:
    tokenizer = tokenizer_of("<|end|>", "<|start|>", "<|user|>")  # Phi's
    ids = tokenizer("<|start|>a <|end|> b<|user|>").input_ids
    assert read_text(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True) == "a  b"


@pytest.mark.parametrize("call", ["<call>f(1)</call>", '\n{"name": "f", "arguments": {"x": 1}}\n'])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>CALL as </think> says", "CALL as \n says"),  # thoughts end once
        ("<think>a <think>CALL b</think> c", " c"),  # and begin once
        ("CALL a</think> b", " b"),  # the prompt opened them
        ("CALL<think>a</think> b", "CALL\n b"),
        ("<think>a</think> b <think>CALL</think> c", " b \n c"),
        ("<think>a</think> b <think>c</think>CALL", " b \nCALL"),
    ],
)
def test_thoughts_end_at_the_same_place_for_calls_and_for_answers(text: str, answer: str, call: str) -> None:
    text, answer = text.replace("CALL", call), answer.replace("CALL", call)
    assert without_thoughts(text) == answer
    assert [call.name for call in find_calls(text)] == ["f"] * (call in answer)


def test_a_completion_has_parts() -> None:
    tokenizer = tokenizer_of(*TOKENS, "<|tool_call_start|>", "<|tool_call_end|>", "<|answer|>")

    def read(text: str, stopped: bool = True) -> Completion:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return read_completion(tokenizer, ids, [0.0] * len(ids), stopped)

    said = read("[THINK]a <call>f()</call>[/THINK]so <|tool_call_start|>[g(x=1)]<|tool_call_end|></s>")
    assert said.text == "<think>a <call>f()</call></think>so [g(x=1)]"
    assert said.raw == "[THINK]a <call>f()</call>[/THINK]so <|tool_call_start|>[g(x=1)]<|tool_call_end|>"
    assert (said.thoughts, said.answer) == ("a <call>f()</call>", "so [g(x=1)]")
    assert said.tool_calls == [{"name": "g", "arguments": {"x": 1}}]
    assert read("plain</s>").raw == "", "the same as the text"
    opened = replace(read("a[/THINK]b"), prefill="<think>")
    assert (opened.thoughts, opened.answer) == ("a", "b")
    assert (replace(read("a"), prefill="<think>").answer, read("[THINK]a").answer) == ("", "")
    marked = read("a<|answer|>5</s>")
    assert Format(contains="<|answer|>")(marked, SAMPLE) == 1 and Format(pattern="^a5$")(marked, SAMPLE) == 1
    message = turn_message(Turn(said.text, raw=said.raw))
    calls = [{"type": "function", "function": {"name": "g", "arguments": {"x": 1}}}]
    assert message == {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "a <call>f()</call>",
        "tool_calls": calls,
    }


@pytest.mark.parametrize("reward", [MathAnswer, OpenAnswer, Choice])
def test_thoughts_that_the_prompt_opened_and_that_never_end_hold_no_answer(reward: type[Reward]) -> None:
    sample = Sample("a", "?", "A") if reward is Choice else SAMPLE
    right = Completion(f"The answer is {sample.answer}.", (1,), "stop", prefill="<think>\n")
    values = reward().score([(right, sample), (replace(right, text=f"So.</think>{right.text}"), sample)])
    assert [value.value for value in values] == [0.0, 1.0]


def test_an_answer_in_the_box_of_glm_is_found() -> None:
    assert score("It is <|begin_of_box|>7<|end_of_box|>, since 3 + 4 = 7 and not 8") == 1.0


@pytest.mark.parametrize("words", ["Question:", "Human:", "Q:", "user"])
def test_what_follows_a_question_of_the_models_own_is_no_answer(words: str) -> None:
    assert score(f"The answer is 7.\n\n{words} What is 4 + 4?\nThe answer is 8.".replace("user ", "user\n")) == 1.0
    assert score(f"{words} What is 3 + 4?\nThe answer is 7.".replace("user ", "user\n")) == 1.0, "the same question"
    assert score(f"I sum up.\n{words} What is left?\nThe answer is 7.") == 1.0, "nothing was answered before"
    assert extract_sql(f"SELECT a\nFROM\n{words}\nWHERE b = 1") == f"SELECT a\nFROM\n{words}\nWHERE b = 1"
    assert next_question(f'```\nx = "{words}"\n{words}\n```')[1] == ""


@pytest.mark.parametrize(
    "text",
    [
        "I would use the <tool_call> tag.",
        "Write `<tool_call>{...}</tool_call>` here.",
        "The <call> and </call>.",
        "Behind the [TOOL_CALLS] token comes more.",
        'They are between "<|tool_call>" and "<tool_call|>".',
    ],
)
def test_marks_that_are_only_spoken_of_are_no_calls(text: str) -> None:
    assert find_calls(f"So: {text}") == []
    assert find_calls(f"{text} <call>f(1)</call>") == [Call("f", (1,))]


@pytest.mark.parametrize(
    "text",
    [
        "<call>f 1</call>",
        "So <call>f(1</call>",
        "I look: <call>search</call>",
        '<tool_call>\n{"name": "f"\n</tool_call>',
    ],
)
def test_a_call_that_is_tried_and_fails_is_a_failed_call(text: str) -> None:
    assert [bool(call.problem) for call in find_calls(text)] == [True]


def test_marks_in_arguments_stay_as_they_are() -> None:
    text = "<reasoning>a</reasoning> [THINK]"
    for written in (
        f'<tool_call>{{"name": "f", "arguments": {{"x": "{text}"}}}}</tool_call>',
        f"<call>f(x='{text}')</call>",
    ):
        assert find_calls(written) == [Call("f", named={"x": text})]


def test_a_name_and_an_object_alone_are_a_call_of_glm_4() -> None:
    assert find_calls('f\n{"x": 1}<|observation|>') == [Call("f", named={"x": 1})]
    assert find_calls('The object of f\n{"x": 1}') == []


@pytest.mark.parametrize(
    ("written", "named", "problem"),
    [
        ('{"name": "f", "input": {"a": 1}}', {"a": 1}, ""),
        ('{"name": "f", "Arguments": {"a": 1}, "id": "7"}', {"a": 1}, ""),
        ('{"tool_name": "f", "kwargs": {}}', {}, ""),
        ('{"name": "f"}', {}, ""),
        ('{"name": "f", "a": 1}', {}, 'under "arguments"; there is a'),
        ('{"name": "f", "a": {"b": 1}, "c": 2}', {}, 'under "arguments"; there is a, c'),
    ],
)
def test_arguments_under_another_key_are_read_or_named(written: str, named: dict[str, Any], problem: str) -> None:
    (call,) = find_calls(f"<tool_call>{written}</tool_call>")
    assert (call.name, call.named) == ("f", named)
    assert problem in call.problem and bool(call.problem) == bool(problem)
