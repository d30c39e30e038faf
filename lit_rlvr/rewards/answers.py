"""The final answer of a completion, and its normalised text.

All functions are pure and linear in the text's length, because completions are untrusted.
"""

from __future__ import annotations

import re

TAIL_CHARACTERS = 2000  # without a marker, text further from the end is not the final answer
_BOX = r"\\(?:f?boxed|fbox)\s*\{|\\boxed\s+([^\s${}]++)(?!\{)"
_BOX_OR_BRACE = re.compile(rf"{_BOX}|\\(?!{_BOX}).|[{{}}]", re.DOTALL)  # an escaped brace is no brace
_MARKUP = r"\s|\$|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])"
_SEPARATOR = r"[,;]|and(?![A-Za-z])|\\text\{[^{}]*(?:[,;]|\band)\s*\}"
_LABEL = r"[A-Za-z](?:_\w|_\{\w*\})?\s*="  # of the next box, such as y_2 =
_BETWEEN_BOXES = re.compile(
    rf"(?:{_MARKUP})*+(?:{_SEPARATOR})(?:{_MARKUP}|{_SEPARATOR})*+(?:{_LABEL})?+(?:{_MARKUP})*+"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{...}`, `\\fbox{...}` or `\\boxed 5`; None without one.

    Boxes that only commas, semicolons or "and" separate are one answer: their contents, with commas between. After "or"
    the same answer often follows in another form, so that the last one counts.
    """
    opened: list[tuple[int, int] | None] = []  # where a box and its content start; None for other braces
    contents: list[str] = []  # of the last boxes that are one answer
    start, end = -1, -1  # where the last box's content starts, and the box ends
    for match in _BOX_OR_BRACE.finditer(text):
        if match[1]:
            closed = match.start(), match.start(1), match.end(1)
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(None if match[0] == "{" else match.span())
            continue
        elif match[0] == "}" and opened and (box := opened.pop()) is not None:
            closed = *box, match.start()
        else:
            continue
        if closed[1] > start:  # else it is around the last one
            if contents and not _BETWEEN_BOXES.fullmatch(text, end, closed[0]):
                contents.clear()
            contents.append(_without_full_stop(text[closed[1] : closed[2]].strip()))
            start, end = closed[1], match.end()
    return ", ".join(dict.fromkeys(contents)) if contents else None


def _without_full_stop(boxed: str) -> str:
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
