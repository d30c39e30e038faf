"""The check of one completion's final answer against the reference, which runs in a reward worker.

find -> normalise characters -> parse by type -> compare by type: see `lit_rlvr.rewards.answers`. The parser of LaTeX is
Math-Verify's (latex2sympy2_extended). What Math-Verify does around it is replaced, because it reads words as products
of letters, drops units and labels, and compares small numbers by absolute error. The worker's limits stop checks that
take too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from lit_rlvr.rewards.answers.characters import plain_characters
from lit_rlvr.rewards.answers.compare import Rules, same
from lit_rlvr.rewards.answers.find import Found, find_answer, last_boxed
from lit_rlvr.rewards.answers.parse import Reading, Series, Text, clean, describe, parse

_UNEVALUATED = re.compile(
    r"(?=.*\d\)?\s*(?:[-+*\u00d7\u00f7]|\\times|\\cdot|\\div))(?:[-\d\s.,()+*\u00d7\u00f7]|\\times|\\cdot|\\div)+"
)
_SCIENTIFIC = re.compile(r".*(?:\*|\u00d7|\\times|\\cdot)\s*10\s*(?:\^.*|\*\*.*|[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+)")


def check_math(
    text: str,
    answer: str | Sequence[str],
    boxed_only: bool = False,
    decimals: int = 6,
    reference_precision: bool = False,
    open_thoughts: bool = False,
) -> tuple[bool, str, str]:
    """Compare the final answer in `text` with the reference `answer`, or with several, of which one suffices.

    `find_answer` says which answer is the final one. In prose it is the first part of the phrase that is a value ("7,
    because ..."). An unevaluated sum or product ("3 + 4") restates the question and is not an answer; `3 + 4 = 7`
    answers 7.

    Args:
        boxed_only, open_thoughts: see `find_answer`.
        decimals, reference_precision: see `Rules`.

    Returns:
        (correct, "ok" or, if there is no answer, "parse_fail", the extracted answer).
    """
    references = (answer,) if isinstance(answer, str) else tuple(answer)
    found = find_answer(text, boxed_only, open_thoughts)
    rules = Rules(decimals, reference_precision)
    results = [_judge(found, reference, rules) for reference in references]
    return next((result for result in results if result[0]), results[0])


def _judge(found: Found, answer: str, rules: Rules) -> tuple[bool, str, str]:
    golds = _reference(answer)
    if found.boxes:
        each = [_judge(Found(text, "box"), answer, rules) for text in found.boxes]
        if all(correct for correct, _, _ in (each if found.joiner == "or" else each[-1:])):
            return each[-1]
        together = _judge(Found(", ".join(dict.fromkeys(found.boxes)), "box"), answer, rules)
        return together if together[0] else (False, *each[-1][1:])
    for candidate in _candidates(found, golds):
        values = parse(candidate)
        if _same_text(golds, values):
            return True, "ok", candidate
        if is_restated(candidate) and not is_restated(_bare_reference(answer)):
            return False, "parse_fail", candidate
        if any(not isinstance(value, Text) for value in values):
            return same(golds, values, rules), "ok", candidate
        if found.where in ("box", "tag"):
            known = bool(values) and not any(not isinstance(value, Text) for value in golds)
            return False, "ok" if known else "parse_fail", candidate
    return False, "parse_fail", found.text


def is_restated(text: str) -> bool:
    """Return True for an unevaluated sum or product of numbers, which is not an answer."""
    return _UNEVALUATED.fullmatch(text.strip(" $")) is not None and _SCIENTIFIC.fullmatch(text) is None


def _same_text(golds: Sequence[Reading], values: Sequence[Reading]) -> bool:
    keys = {value.key for value in golds if isinstance(value, Text)}
    return any(isinstance(value, Text) and value.key in keys for value in values)


def explain_check(
    text: str, answer: str | Sequence[str], *options: Any
) -> list[tuple[str, str]]:
    """Return (stage, result) of each stage of `check_math` with the same arguments."""
    correct, status, extracted = check_math(text, answer, *options)
    references = (answer,) if isinstance(answer, str) else tuple(answer)
    boxed_only, _, _, open_thoughts = (*options, *(False, 6, False, False)[len(options) :])
    found = find_answer(text, boxed_only, open_thoughts)
    stages = [("found", f"{found.text!r} ({_PLACES[found.where]})" if found.text else "no answer")]
    if extracted != found.text:
        stages.append(("taken of it", repr(extracted)))
    stages.append(("characters", repr(clean(extracted))))
    stages.append(("the answer is", _listed(parse(extracted))))
    for reference in references:
        stages.append(("the reference is", f"{reference!r}: {_listed(_reference(reference))}"))
    verdict = "equal" if correct else "an unevaluated sum or product" if is_restated(extracted) else "not equal"
    return [*stages, ("compared", verdict if status == "ok" or extracted else "nothing to compare"), ("status", status)]


_PLACES = {"box": "in a box", "tag": "in a tag", "hash": "behind ####", "phrase": "behind \"answer\"", "line": "last line"}


def _listed(values: Sequence[Reading]) -> str:
    """Describe readings in a line, text last."""
    ordered = sorted(values, key=lambda value: isinstance(value, Text))
    return "; ".join(dict.fromkeys(map(describe, ordered))) or "nothing"


def is_readable(answer: str) -> bool:
    """Return True if the reference parses as mathematics."""
    return any(not isinstance(value, Text) for value in _reference(answer))


def _bare_reference(answer: str) -> str:
    """Return a reference without the tag, box or mark around it."""
    inside = re.fullmatch(r"(?s)\s*<answer>(.*?)</answer>\s*", answer)
    answer = inside[1] if inside else answer
    boxed = last_boxed(answer)
    return (answer.rpartition("####")[2] if boxed is None else boxed).strip()


@lru_cache(maxsize=4096)
def _reference(answer: str) -> tuple[Reading, ...]:
    return parse(_bare_reference(answer))


# ---- answers in prose -------------------------------------------------------------------------------------

_NUMBER = r"(?:[$\u20ac\u00a3\u00a5\u20b9]\s?)?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?|\.\d+"
_LATEX = r"\\[A-Za-z]+(?:\s*[\[{](?:[^{}\[\]]|\{(?:[^{}]|\{[^{}]*\})*\})*[\]}])*|\\[%$,;! {}]"
_LETTER = r"(?<![A-Za-z'\\])[A-Za-z](?![A-Za-z'])"
_SIGN = r"[-+*/^=<>!|_:\u00b1\u00d7\u00f7]"
_TOKEN = rf"(?:{_NUMBER}|{_LATEX}|{_LETTER}|{_SIGN}|[()\[\]{{}},])"
_SPAN = re.compile(rf"{_TOKEN}(?:\s*{_TOKEN})*")
_DELIMITED = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_CLAUSE = re.compile(
    r"[.;!?](?:\s|$)|,?\s+\(?(?:because|since|which|as|so|when|where|for|that|with|after|altogether|in total|i\.e\.|if|but|by)\b"
    r"|,\s+(?=(?!and\b|or\b)[a-z]{2,})|\s+-\s+(?=[a-z]{2,})|\s\(|:\s"
)
_NEGATED = re.compile(r"(?i)\b(?:not|cannot|never)\b|n't\b")
_JOINED = re.compile(r"\s*(?:,|;|\band\b|\bor\b|,\s*and\b|,\s*or\b)\s*")
_PROSE_DASH = re.compile(r"\s+[\u2013\u2014]\s+|(?<=[a-z])[\u2013\u2014](?=[a-z])")


def _candidates(found: Found, golds: Sequence[Reading]) -> Iterator[str]:
    """Yield the parts of what was found that may be the answer, the likeliest first."""
    if not found.text:
        return
    if found.where in ("box", "tag"):
        yield found.text
        if found.where == "tag" and " " in found.text:
            yield from _candidates(Found(found.text, "phrase"), golds)
        return
    text = plain_characters(_PROSE_DASH.sub(", ", found.text)).strip()
    is_phrase = found.where != "line"
    if is_phrase and _NEGATED.match(text):
        return
    clause = text[: cut.start()] if is_phrase and (cut := _CLAUSE.search(text)) else text
    for phrase in dict.fromkeys((text, clause)):
        if _same_text(golds, parse(phrase)):
            yield phrase
    for phrase in dict.fromkeys((text.rstrip("."), clause)):
        if _is_value(phrase):
            yield phrase
    searched = clause if next(_spans(clause), None) else text
    spans = list(_spans(searched))
    for start, end in spans[:1] if is_phrase else spans[-1:]:
        if not _NEGATED.search(re.split(r"[.;:,]\s", searched[:start])[-1]):
            yield _with_unit(searched, start, end)


def _is_value(phrase: str) -> bool:
    """Return True if a whole phrase means something besides its words."""
    return len(phrase) < 200 and any(
        not isinstance(value, Text)
        and not (isinstance(value, Series) and any(all(isinstance(v, Text) for v in item) for item in value.items))
        for value in parse(phrase)
    )


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where mathematics stands in prose; lists of it ("3 and 4") are one."""
    found: list[tuple[int, int]] = []
    taken = [match.span() for match in _DELIMITED.finditer(text) if _is_mathematics(match)]
    for match in _SPAN.finditer(text):
        inside = next((span for span in taken if span[0] < match.end() and match.start() < span[1]), None)
        if inside is None:
            found += _trimmed(text, *match.span())
        elif inside not in found:
            found.append(inside)
    joined: list[tuple[int, int]] = []
    for start, end in found:
        if joined and _JOINED.fullmatch(text, joined[-1][1], start):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    yield from joined


def _is_mathematics(match: re.Match[str]) -> bool:
    """Return False for the prose between two prices."""
    inside = next(group for group in match.groups() if group is not None)
    return not re.search(r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s+[A-Za-z]{2,}", inside) and not inside[-1:].isspace()


def _trimmed(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return a run of mathematics without the words of one letter, signs and brackets around it; [] if nothing is left."""
    run = text[start:end]
    if not re.search(r"\d|\\", run):
        return []
    lead = re.match(rf"(?:{_LETTER}(?!\s*[-=<>^_(+*/\\])\s*|[=:*/+^!,|_>)\]}}]\s*|-\s+(?=\\?[A-Za-z]))+", run)
    start += lead.end() if lead else 0
    run = text[start:end]
    tail = re.search(rf"(?:\s+{_LETTER}|\s*[=:*/+^,|_<>(\[{{-])+\s*$", run)
    end -= len(run) - tail.start() if tail else 0
    run = text[start:end]
    for opening, closing in ("()", "[]", "{}"):  # a bracket of the sentence
        if run.endswith(closing) and run.count(closing) > run.count(opening) and not re.search(r"[\[(].*[\])]$", run):
            end -= 1
    return [(start, end)] if re.search(r"\d|\\", text[start:end]) else []


def _with_unit(text: str, start: int, end: int) -> str:
    """Return a run of mathematics with the words behind it that belong to it: a magnitude, a unit."""
    span = text[start:end]
    words = re.match(r"(?:\s*[A-Za-z\u4e00-\u9fff%/.]+){1,3}", text[end:])
    pieces = re.findall(r"\s*[A-Za-z\u4e00-\u9fff%/]+\.?", words[0]) if words else []
    plain = parse(span)
    for count in range(len(pieces), 0, -1):
        longer = span + "".join(pieces[:count]).rstrip(".")
        values = parse(longer)
        if any(not isinstance(v, Text) for v in values) and [v for v in values if not isinstance(v, Text)] != [
            v for v in plain if not isinstance(v, Text)
        ]:
            return longer
    return span


check_math("\\boxed{\\frac{x}{2}}", "0.5x")  # fills caches, which must not count in the first answer's time
check_math("The answer is 1.", "2")
