"""The part of a text that is the model's answer: behind its thoughts, and before a question that it invents."""

from __future__ import annotations

import re

from lit_rlvr.speech.thoughts import without_thoughts

_NEXT_QUESTION = re.compile(r"^[ \t]*(?:(?:Question|Human|User|Q):|(?:user|human)[ \t]*$)", re.MULTILINE)


def answer_in(text: str, open_thoughts: bool = False) -> str:
    """Return the text behind the thoughts, up to the next question; "" if the thoughts never end.

    Args:
        open_thoughts: thoughts that never end may hold the answer.
    """
    text = without_thoughts(text, open_thoughts)
    return text[: next_question(text)[0]]


def next_question(text: str) -> tuple[int, str]:
    """Return where a text that has answered goes on with a question ("Question:", "Human:", "Q:", a line "user"), and
    these words; its length and "" if it does not.

    A base model, and one whose turns nothing ends, continues its prompts in this way. Code in a fence has no questions.
    """
    for match in _NEXT_QUESTION.finditer(text):
        before = text[: match.start()]
        if before.strip() and before.count("```") % 2 == 0:
            return match.start(), match[0].strip()
    return len(text), ""
