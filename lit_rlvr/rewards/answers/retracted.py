"""Answers that their text takes back, denies or joins with another."""

from __future__ import annotations

import re

CORRECTION = (
    r"(?:(?:no|nope|nein|non|wait|hold on|sorry|oops|hmm+|espera|attendez"
    r"|perd\u00f3n)(?=[\s]*[,.;:!\u2014-]|\s+(?:it|that|this|the|i)\b)"
    r"|actually|correction|rather(?! than)|really|instead(?! of)|i mean|i meant|make that|(?:scratch"
    r"|strike|forget) that|let me (?:correct|fix|revise|rephrase)(?: (?:that|this|it|myself))?|"
    r"on second thoughts?|better(?: yet)?|(?:it )?should be|eigentlich|vielmehr|plut\u00f4t|en fait"
    r"|en realidad|mejor dicho)"
)
"""Words that take back what stands before them, if an answer stands behind them."""
MAYBE = (
    r"(?:maybe|perhaps|possibly|probably|potentially|alternatively|also|even|else|vielleicht"
    r"|peut-\u00eatre|quiz\u00e1s?)"
)
"""Words that join an answer with another one."""
_FALSE = (
    r"(?:not|never|wrong|incorrect|false|impossible|invalid|excluded|eliminated|ruled out|unlikely"
    r"|too|falsch|incorrecto|faux)"
)
_AUXILIARY = r"(?:is|are|was|were|seems?|looks?|appears?|can|could|would|must|should|does|do|did|has|have|ist|es|est)"
_DENIED = re.compile(
    rf"(?i)[\s)\]}}$*]*(?:{_AUXILIARY}(?:\s+\w+){{0,2}}?\s+{_FALSE}\b|(?:{_AUXILIARY}|ca)n['\u2019]?t\b|cannot\b"
    r"|is\s+too\b|\s*\u4e0d(?:\u662f|\u5bf9|\u6b63\u786e)|\s*\u662f?\u9519)"
)
_OPEN_ENDED = re.compile(
    rf"(?i)[\s)\]}}$]*(?:-ish\b|\+(?!\s*[\w\\({{])|,?\s*(?:or\s+)?{MAYBE}\b(?=[^.\n]*?(?:\d|\\frac))"
    rf"|,?\s*(?:and\s+)?(?:upwards|and up)\b"
    r"|,?\s*give or take\b)"
)
_CORRECTED = re.compile(
    rf"(?i)(?:^|[.,;:!?(\u2014\u3002\n-]|\.{{3}}|\b(?:but|or|and|although|though|well|oh)\b)[\s\W]*"
    rf"(?:(?:but|or|and|well|oh|ah|although|though|it(?:['\u2019]s| is)|that(?:['\u2019]s| is)|this is)[\s,]+)*"
    rf"{CORRECTION}(?![\w'])"
)
PREFERRED = (
    r"(?:is|was|would be|must be|should be|seems|looks|appears|fits)(?: \w+){0,2}? "
    r"(?:better|best|correct|right|true|answer|likelier|more (?:likely|plausible|accurate|precise)|it)(?![^\W_])"
)
"""Words by which a text prefers another answer to the one before."""
_CONTRASTED = re.compile(
    rf"(?i)\b(?:but|although|though|however|yet|while|whereas)\b[\s,]+(?=[^.;\n]{{1,30}}?\s{PREFERRED})"
)
_NOT_BUT = re.compile(r"(?i)\bnot\s+(?!only\b)[^.;]{1,40}?\bbut\s+(?:rather\s+)?(?=[^a-z]|[a-z]\b)")
_NOT_YET = re.compile(
    r"(?i)(?:\b(?:anything but|any value but|close to|near(?:ly)?|almost|other than|except(?: for)?"
    r"|instead of|rather than|far from|"
    r"different from|unlike|twice|double|triple|thrice|half(?: of)?|a (?:third|quarter) of|one less than|one more than|"
    r"just (?:under|over|below|above)|under|over|below|above|beyond|fast|casi|presque)|\bn't)\s*\$?$"
)


def is_denied(after: str) -> bool:
    """Return True if the text behind an answer says that it is wrong or open-ended: "is wrong", "can't be", "+"."""
    return _DENIED.match(after) is not None or _OPEN_ENDED.match(after) is not None


def is_altered(before: str) -> bool:
    """Return True if the text before a value makes another one of it: "anything but", "close to", "twice"."""
    return _NOT_YET.search(before) is not None


def contrast(text: str) -> str:
    """Return what a text says instead of a value that it denies: "not 6 but 5"; "" if it does not."""
    match = _NOT_BUT.search(text)
    return text[match.end() :] if match else ""


def correction(after: str) -> str:
    """Return what stands behind the last word of a correction in the text behind an answer; "" without one."""
    corrected = [*_CORRECTED.finditer(after), *_CONTRASTED.finditer(after)]
    return after[max(match.end() for match in corrected) :].lstrip(" ,:;.") if corrected else ""
