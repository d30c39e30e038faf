"""Answers that their text takes back, denies or joins with another."""

from __future__ import annotations

import re

CORRECTION = (
    r"(?:(?:no|nope|nein|non|wait|hold on|sorry|oops|hmm+|espera|attendez"
    r"|perd\u00f3n)(?=[\s]*[,.;:!\u2014-]|\s+(?:it|that|this|the|i|wait|sorry)\b)"
    r"|actually|i (?:forgot|missed|overlooked|misread|miscounted)|(?:my|i made an?) (?:mistake|error|bad)"
    r"|correction|edit(?=\s*:)|rather(?! than)|really|instead(?! of)|i mean|i meant|make that|(?:scratch"
    r"|strike|forget) that|let me (?:correct|fix|revise|rephrase)(?: (?:that|this|it|myself))?|"
    r"on second thoughts?|on (?:further )?reflection|better(?: yet)?|(?:it )?should be|eigentlich|vielmehr"
    r"|plut\u00f4t|en fait|en realidad|mejor dicho)"
)
"""Words that take back what stands before them, if an answer stands behind them."""
MAYBE = (
    r"(?:maybe|perhaps|possibly|probably|potentially|alternatively|also|even|else|vielleicht"
    r"|peut-\u00eatre|quiz\u00e1s?)"
)
"""Words that join an answer with another one."""
NOT = "|".join(
    [
        r"not|never|cannot|neither|(?<!no )(?<!a )doubt(?:ed|ful|s)?",
        r"nicht|keine?[mnrs]?",
        r"no (?:es|son|hay)",
        r"n(?:e |['\u2019])\w+ pas",
        r"non (?:è|sono)",
        r"não(?: é| são)?",
        r"не",
        r"niet|geen",
        r"nie",
        r"inte",
        r"ikke",
        r"ei(?:vät)? ole",
        r"n(?:ení|ejsou)",
        r"nu (?:este|e|sunt)",
        r"không phải",
        r"bukan|tidak",
        r"ليست?",
    ]
)
"""Words that deny what stands behind them: en, de, es, fr, it, pt, ru, nl, pl, sv, da, fi, cs, ro, vi, id, ar."""
_BOUND = "|".join(
    [
        r"at (?:least|most)|between|up to",
        r"mindestens|höchstens|zwischen|bis zu",
        r"(?:al|por lo) menos|como m\w+|entre|hasta",
        r"au (?:moins|plus)|jusqu['\u2019]à",
        r"almeno|al (?:massimo|più|meno)|fino a",
        r"pelo menos|no m\w+|até",
        r"не (?:мен|бол)\w+",
        r"minstens|hoogstens|tussen",
        r"co (?:najmniej|najwyżej)|między",
        r"minst|högst|mellan",
        r"mindst|højst|høyst|mellem|mellom",
        r"vähintään|enintään",
        r"alespoň|nejméně|nejvýše|mezi",
        r"en (?:az|fazla|çok)",
        r"cel (?:puțin|mult)|între",
        r"(?:ít|nhiều) nhất|tối (?:đa|thiểu)",
        r"على (?:الأقل|الأكثر)",
    ]
)
_COMPARED = "|".join(
    [
        r"(?:more|less|greater|fewer|larger|smaller) than",
        r"(?:mehr|weniger|größer|kleiner) als",
        r"(?:más|menos) de",
        r"(?:plus|moins) de",
        r"(?:più|meno) di",
        r"(?:mais|menos) de",
        r"(?:больше|меньше|более|менее)(?: чем)?",
        r"(?:meer|minder|groter|kleiner) dan",
        r"(?:więcej|mniej) niż",
        r"(?:mer|fler|färre|mindre|större) än",
        r"(?:mere?|mindre|flere|færre|større) enn?d?",
        r"(?:enemmän|vähemmän|suurempi|pienempi) kuin",
        r"(?:více|méně|větší|menší) než",
        r"mai (?:mult|puțin|mare|mic) (?:de|decât)",
        r"(?:nhiều|ít|lớn|nhỏ) hơn",
        r"(?:أكثر|أقل|أكبر|أصغر) من",
    ]
)
"""Words that make a bound of the number behind them, in the same languages and in Turkish."""
_CHINESE_BOUND = "至[少多]|不(?:超过|少于|到|足)|[超大小多少][过于]|少なくとも|せいぜい|적어도|기껏해야"
VERB_LAST = (
    r"(?:\w{1,3}?\s*+)?(?:değil|では?(?:ありません|なく|ない)|じゃ(?:ありません|ない)|아[니닙닌]|नहीं)"
    r"|से\s+(?:अधिक|ज़्यादा|कम)|[개명원]?\s*+(?:이[상하]|미만|초과)"
)
"""Words that deny the value before them or make a bound of it: tr, ja, ko, hi."""
BOUND_BEHIND = r"[个個人円元本匹枚]?(?:以[上下内]|未[満满])"
"""Words that make a bound of the number right before them: ja, zh."""
_NEED = (
    r"must|ha[sd] to|have to|need|requir|tak|buy|us|brauch|benötig|necesit|requier|besoin|faut|serv|bisogn"
    r"|occorr|precis|нуж|треб"
)
_TO_VALUE = r"\s*\$?$"
_DENIED_BEFORE = re.compile(
    rf"(?i)\b(?:{NOT})\b|n't\b|不是|不等于|并非|{_CHINESE_BOUND}|\b(?:{_BOUND}|{_COMPARED}){_TO_VALUE}"
)
_NEEDED_BEFORE = re.compile(rf"(?i)\b(?:{_NEED})\w*\s+(?:\w+\s+)?(?:{_BOUND}){_TO_VALUE}|至[少多]需?要")
_BOUND_BEFORE = re.compile(rf"(?i)\b(?:{_BOUND}){_TO_VALUE}|至[少多]")
_NEEDED_BEHIND = re.compile(
    r"(?i)[^.;\n]{0,40}\b(?:needed|required|necessary|nötig|erforderlich|necesari[ao]s?|nécessaires?|necessari[aeio])\b"
)
_INSTEAD_OF = re.compile(
    r"(?i)(?<=[\w)}\]$])(?:[,;]|,?\s+(?:and|und|y|et|e|и|a|en|och|og|ja|și))\s+"
    r"(?:ce n['\u2019]est pas|not|nicht|no|non|não|не|niet|nie|inte|ikke|ei|nu)\s+"
    r"[$\\]*[-\d][^\s,;]*(?=[\s,;.!)]|$)"
)
"""A denial of another value behind an answer: "7, not 8"."""
_NOT_NAMED = re.compile(
    r"(?i)(?<=\w),\s+(?:and\s+)?(?:not|nicht|no|non(?:\s+pas)?|pas|n\u00e3o|niet)\s+[^\d,.;()]{1,40},(?=\s)"
)
"""A denial of another name behind an answer: "Ottawa, not Toronto, is the capital"."""
_ADDED_UP = re.compile(r"(?i)\b(?:add|sum|come|total|amount)\w*\s+up\s+to\s*\$?$")
_FALSE = (
    r"(?:not|never|wrong|incorrect|false|impossible|invalid|excluded|eliminated|ruled out|unlikely"
    r"|too|falsch|incorrecto|faux)"
)
_AUXILIARY = r"(?:is|are|was|were|seems?|looks?|appears?|can|could|would|must|should|does|do|did|has|have|ist|es|est)"
_DENIED = re.compile(
    rf"(?i){BOUND_BEHIND}|[\s)\]}}$*]*+(?:{_AUXILIARY}(?:\s+\w+){{0,2}}?\s+{_FALSE}\b|(?:{_AUXILIARY}|ca)n['\u2019]?t\b|cannot\b"
    r"|is\s+too\b|would\s+(?:only\s+)?(?:be|hold)\b[^.;]*\bif\b|\s*\u4e0d(?:\u662f|\u5bf9|\u6b63\u786e)|\s*\u662f?\u9519"
    rf"|{VERB_LAST})"
)
_WOULD = re.compile(r"(?i)\bwould\s+(?:only\s+)?(?:be|have\s+been|hold)\b")
IF_IT_WERE = r"if\b[^.;,\n]*?\b(?:were|had|was)(?:n['\u2019]t)?\b"
"""A condition that does not hold."""
_IF_IT_WERE = re.compile(rf"(?i)[\s)\]}}$]*{IF_IT_WERE}")
_OPEN_ENDED = re.compile(
    rf"(?i)[\s)\]}}$]*+(?:-ish\b|\+(?!\s*[\w\\({{])|,?\s*(?:or\s+)?{MAYBE}\b(?=[^.\n]*?(?:\d|\\frac))"
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
_NOT_BUT = re.compile(
    r"(?i)\bnot\s+(?!only\b)[^.;]{1,40}?(?:\bbut\s+(?:rather\s+)?|[,;]\s+(?:it|that)(?:['\u2019]s|\s+is)\s+)"
    r"(?=[^a-z]|[a-z]\b)"
)
_NOT_YET = re.compile(
    r"(?i)(?:\b(?:anything but|any value but|close to|near(?:ly)?|almost|other than|except(?: for)?"
    r"|instead of|rather than|far from|"
    r"different from|unlike|twice|double|triple|thrice|half(?: of)?|a (?:third|quarter) of|one less than|one more than|"
    r"just (?:under|over|below|above)|under|over|below|above|beyond|fast|casi|presque)|\bn't)\s*\$?$"
)

TO = (
    r"to(?!\s+\w+\s+(?:decimal|significant)\b)(?!\s+(?:the\s+(?!power\b|first\b|second\b|third\b|(?:four|fif|six|seven|eigh|nin|ten|n)th\b)[a-z]"
    r"|(?!(?:the|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|infinity)\b)[a-z]{2,}))"
)
"""Between the ends of a range, a base and its power, the terms of a ratio; not before a place or a verb."""
GOES_ON = re.compile(
    rf"(?i)\$?\s*(?:(?:or|{TO}|plus|minus|times|divided)\b|(?:percent|%)\s+of\b(?=[^.;]*(?:\d|\bit\b|\bthat\b))|\?|\(\s*wrong\b"
    r"|can\s+be\s+(?:written|expressed)\b|(?:if|when|for)\b.*"
    r"\b(?:if|otherwise|else)\b)"
)
"""Behind a value: it is not the answer, or not all of it."""


def is_denied(after: str) -> bool:
    """Return True if the text behind an answer says that it is wrong or open-ended: "is wrong", "can't be", "+"."""
    return _DENIED.match(after) is not None or _OPEN_ENDED.match(after) is not None


def is_counterfactual(text: str, after: str, is_phrase: bool) -> bool:
    """Return True if a value holds under a condition that its text denies: "it would be 7 if all were red".

    Args:
        text: what stands before the value.
        after: what stands behind it.
        is_phrase: the words before the value are not known, as behind "the answer would be".
    """
    return (is_phrase or _WOULD.search(text) is not None) and _IF_IT_WERE.match(after) is not None


def begins_with_denial(text: str) -> bool:
    """Return True if a text begins with a word that denies the value behind it: "not 5", "nicht 5"."""
    return _DENIED_BEFORE.match(text) is not None


def has_denial(before: str) -> bool:
    """Return True if a text has a word that denies the value behind it, or ends with one that makes a bound of it."""
    return _DENIED_BEFORE.search(before) is not None


def is_denied_before(before: str, after: str) -> bool:
    """Return True if what stands before a value denies it or makes a bound or another value of it.

    "At least 5 are needed" and "we need at least 5" answer 5.
    """
    if is_altered(before):
        return True
    if _BOUND_BEFORE.search(before) and (_NEEDED_BEFORE.search(before) or _NEEDED_BEHIND.match(after)):
        return False
    if _ADDED_UP.search(before):
        return False
    return has_denial(before)


def is_altered(before: str) -> bool:
    """Return True if the text before a value makes another one of it: "anything but", "close to", "twice"."""
    return _NOT_YET.search(before) is not None


def without_denied(text: str) -> str:
    """Return a text without the value that it denies behind its answer: "7, not 8" says 7."""
    return _NOT_NAMED.sub("", _INSTEAD_OF.sub("", text))


def contrast(text: str) -> str:
    """Return what a text says instead of a value that it denies: "not 6 but 5"; "" if it does not."""
    match = _NOT_BUT.search(text)
    if match:
        return text[match.end() :]
    return ""


def correction(after: str) -> str:
    """Return what stands behind the last word of a correction in the text behind an answer; "" without one."""
    corrected = [*_CORRECTED.finditer(after), *_CONTRASTED.finditer(after)]
    if corrected:
        return after[max(match.end() for match in corrected) :].lstrip(" ,:;.")
    return ""
