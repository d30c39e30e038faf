"""The final answer of a completion, and its normalised text.

All functions are pure and linear in the text's length, because completions are untrusted.
"""

from __future__ import annotations

import re

TAIL_CHARACTERS = 2000  # without a marker, text further from the end is not the final answer
_BOX = r"\\(?:f?boxed|fbox)\s*\{|\\boxed\s+([^\s${}]++)(?!\{)"
_BOX_OR_BRACE = re.compile(rf"{_BOX}|\\(?!{_BOX}).|[{{}}]", re.DOTALL)  # an escaped brace is no brace
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{...}`, `\\fbox{...}` or `\\boxed 5`; None without one."""
    opened: list[int | None] = []  # start of a box's content; None for other braces
    start, end = -1, -1
    for match in _BOX_OR_BRACE.finditer(text):
        if match[1]:
            start, end = max((start, end), match.span(1))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(None if match[0] == "{" else match.end())
        elif match[0] == "}" and opened:
            content = opened.pop()
            if content is not None and content > start:
                start, end = content, match.start()
    if start < 0:
        return None
    boxed = text[start:end].strip()
    kept = boxed.rstrip(". ")
    return boxed[: len(kept) + 1] if kept.endswith("\\right") else kept  # `\\right.` closes a bracket


def final_answer(text: str, boxed_only: bool = False) -> str:
    """Return the final answer in a completion, "" if there is none.

    It is the content of the last `\\boxed{}` after the last `</think>`. Without a box, and unless `boxed_only`, it is
    the content of the last `<answer>` tag, else the text after the last "answer is" or "answer:", else the last line.
    """
    text = text.rpartition("</think>")[2]
    boxed = last_boxed(text)
    if boxed is not None or boxed_only:
        return boxed or ""
    _, tag, answer = text.rpartition("<answer>")
    return answer.partition("</answer>")[0].strip() if tag else last_phrase(text[-TAIL_CHARACTERS:])


def last_phrase(text: str) -> str:
    """Return the text after the last "answer is" or "answer:", or else the last line."""
    lines = re.split(r"(?i)answer(?: is|:)", text)[-1].strip().splitlines()
    return lines[-1].strip() if lines else ""


def normalise(text: str) -> str:
    """Normalise text for comparison: no markup, outer space, final full stop or case; `(A)` becomes `a`."""
    text = _TEXT_COMMAND.sub(r"\1", text)
    text = re.sub(r"\\left|\\right|\\[,!;:]|\$|\*\*", "", text)
    text = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text).rstrip(".").lower()
    return re.sub(r"^\((\w)\)$", r"\1", text)
