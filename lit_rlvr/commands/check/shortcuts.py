"""Short texts that answer nothing, which the check-up of a reward tries on every row: what pays them can be gamed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from lit_rlvr.commands.check.gold import PLAIN_NUMBER, Gold, may_answer
from lit_rlvr.commands.check.rewrites import PROGRAMS
from lit_rlvr.speech.prompts import prompt_text

CONSTANTS = ("0", "1", "2", "3", "-1", "10", "100", "x", "n", "\\pi", "\\infty", "\\emptyset", "None", "nan", "true")
FILLERS = ("answer", "The answer is", ".", "?", "...", "\\boxed{}", "\\boxed{?}", "<answer></answer>", "####")
QUERIES = ("SELECT 1", "SELECT NULL", "SELECT 1 WHERE 0", "SELECT name FROM sqlite_master")
PROGRAM_TEXTS = ("print()", "print(0)", "print(input())", "import sys\nprint(sys.stdin.read())")
FREQUENT = 5
"""Number of the data's most frequent answers, and of a prompt's numbers, that are tried."""


def frequent_answers(golds: Sequence[Gold]) -> list[str]:
    """Return the most frequent answers of the data, those that occur twice at least."""
    counts = Counter(gold.answer for gold in golds)
    answers = []
    for answer, count in counts.most_common(FREQUENT):
        if count > 1:
            answers.append(answer)
    return answers


def shortcuts(gold: Gold, frequent: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, the short text, the completion) for short texts that do not answer the row's question.

    Args:
        gold: the row's reference answer.
        frequent: the most frequent answers of the data.
    """
    if gold.kind in PROGRAMS:
        for text in QUERIES if gold.kind == "sql" else PROGRAM_TEXTS:
            yield "constant query" if gold.kind == "sql" else "constant program", text, gold.write(text)
        return
    numbers = list(dict.fromkeys(re.findall(PLAIN_NUMBER, prompt_text(gold.sample.prompt))))[:FREQUENT]
    letters = list(ascii_uppercase[: len(gold.sample.options)])
    tried: dict[str, Sequence[str]] = {
        "constant": CONSTANTS,
        "frequent answer": frequent,
        "number of the prompt": numbers,
        "letter": letters,
    }
    for kind, texts in tried.items():
        for text in texts:
            if not may_answer(text, gold):
                yield kind, text, gold.write(text)
    for text in FILLERS:
        yield "filler", text, text
    if len(numbers) > 1 and not any(may_answer(number, gold) for number in numbers):
        yield "all numbers of the prompt", "every number in a box", " ".join(map(gold.write, numbers))
    if not gold.sample.options and not may_answer("20", gold):
        yield "boxes with 0 to 20", "0 to 20, each in a box", " ".join(gold.write(str(number)) for number in range(21))
    if len(letters) > 1:
        yield "all letters", "every letter", gold.write(", ".join(letters))
