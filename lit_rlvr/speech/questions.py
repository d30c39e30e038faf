"""Questions that a model invents behind its answer."""

from __future__ import annotations

import re

_NEXT_QUESTION = re.compile(r"^(?:[ \t]*(?:Question|Human|User|Q):|(?:user|human)[ \t]*$)", re.MULTILINE)


def next_question(text: str) -> tuple[int, str]:
    """Return where a text goes on with a question ("Question:", "Human:", "Q:", a line "user") behind other words, and
    how this begins; its length and "" if it does not.

    A base model, and one whose turns nothing ends, continues its prompts in this way. Code in a fence has no questions.
    """
    begin, fences, place = len(text) - len(text.lstrip()), 0, 0
    for match in _NEXT_QUESTION.finditer(text):
        fences, place = fences + text.count("```", place, match.start()), match.start()
        if place > begin and fences % 2 == 0:
            return place, match[0].strip()
    return len(text), ""
