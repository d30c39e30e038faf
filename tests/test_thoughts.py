"""Every family's marks of thoughts, as special tokens and as text: no answer and no call in thoughts counts."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import byte_tokenizer

from lit_rlvr.common.thoughts import ends_in_thoughts, read_text, without_thoughts
from lit_rlvr.environments.calls import Call, find_calls
from lit_rlvr.rewards import MathAnswer
from lit_rlvr.types import Completion, Sample

SPECIAL = {
    "Command": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "Mistral": ("[THINK]", "[/THINK]", "</s>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>", "<turn|>"),
    "Kimi": ("◁think▷", "◁/think▷", "<|im_end|>"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>",
    ),
}  # fmt: skip
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
CHANNELS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>")


def tokenizer_of(*tokens: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    return tokenizer


def score(text: str, truncated: bool = False) -> float:
    completion = Completion(text, (1,), "length" if truncated else "stop")
    return MathAnswer(truncated_is_wrong=False).score([(completion, Sample("a", "?", "7"))])[0].value


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


def test_a_later_end_of_thoughts_takes_no_call_back() -> None:
    assert find_calls("<think>a</think><call>f()</call> as </think> says") == [Call("f")]
    assert without_thoughts("<think>a</think> b") == " b"
