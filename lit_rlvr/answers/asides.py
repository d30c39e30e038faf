"""Numbers of a sentence that say when, for whom or from what, next to the one that it states."""

from __future__ import annotations

import re
from itertools import pairwise

from lit_rlvr.answers.units import read_unit

_WHEN = "|".join(
    [
        r"after|before|when|whenever|until|although|even though|though|by(?= [a-z]+ing\b)",
        r"nachdem|bevor|obwohl",
        r"después de|antes de|cuando|aunque|porque|ya que",
        r"après|avant|quand|lorsque|parce que|puisque",
        r"dopo|prima di|quando|anche se|perché|poiché",
        r"depois de|antes de|embora",
        r"nadat|voordat|omdat|wanneer|hoewel",
    ]
)
"""Words that begin a subordinate clause, or say when: en, de, es, fr, it, pt, nl."""
_AFTER_COMMA = "weil|denn|damit|car|pois|want|with|mit|con|avec|com|met"
"""Words that begin one behind a comma: others mean something else without it."""
_SUBORDINATE = re.compile(rf"(?i)(?<=[\w)$%.])(?:,?\s+(?:{_WHEN})|,\s+(?:{_AFTER_COMMA}))\s(?=[^,;:]*$)")
_CONTRAST = re.compile(
    r"(?i),?\s+(?:whereas|(?<=, )while(?! [a-z]+ing\b)|wohingegen|w\u00e4hrend"
    r"|mientras que|tandis que|alors que|enquanto que|terwijl)\s(?=[^;:]*$)"
)
"""Words before a clause about something else."""
_TO_DO = (
    r"(?:(?:in order to|so as to|to|para|pour|per|um|om)\s+(?!(?:get|give|obtain|find|yield|have|be)\b)[^\W\d_]{3,}"
    r"|(?:de|di|d['\u2019])\s*[^\W\d_]{2,}(?:[aei]r|[aei]re)\b)"
)
_CONJUNCTION = r"(?:and|but|so|then|und|aber|y|et|e)\s"
_AUXILIARY = r"(?:needs?|ha[sd]|have|wants?|able|going|used)\s+to\b"
_WORDS = rf"\s*\$?(?:\s+(?!{_CONJUNCTION})(?!{_AUXILIARY})[^\W\d_]+){{0,6}}?"
_ARTICLE = (
    r"(?:(?:the|his|her|its|their|my|our|your|an?|about|first|last|next|every|each|die|der|das|den|dem"
    r"|el|las?|los|les?|gli|i|os?|as?|de|het|ihre[mnr]?|seine[mnr]?|meine[mnr]?|ses|sus?|leurs?|suoi|sue|seus|suas)"
    r"\s+){0,3}"
)
_FROM = re.compile(
    rf"(?i){_WORDS},?\s+(?:between|zwischen|entre|tra|tussen|from|within|during|with|instead of|rather than)"
    rf"\s+{_ARTICLE}\$?"
)
_FOR = re.compile(
    rf"(?i){_WORDS}\s+(?:for|für|para|pour|per|voor|{_TO_DO})\s+{_ARTICLE}"
    r"(?:(?:average|mean|total|sum|speed|score|height|level|distance|weight)\s+of\s+)?\$?"
)
_TO_PAY = re.compile(
    rf"(?i){_WORDS}\s+(?:to|para|pour|per|um|om)\s+(?:save|buy|pay|cover|afford|reach|raise|ahorrar|comprar|pagar|reunir"
    rf"|\u00e9conomiser|acheter|payer|risparmiare|comprare|pagare)(?:\s+(?:up|for|off))?\s+{_ARTICLE}(?:remaining\s+)?\\?\$?"
)
"""Between a number and the sum that it is needed for: "6 weeks to save the remaining $90"."""
_NEXT_TO = re.compile(
    rf"(?i)[^.;]*?,?\s+(?:compared (?:with|to)|as opposed to|versus|(?:up|down) from|verglichen mit|frente a|contre)"
    rf"\s+{_ARTICLE}\\?\$?"
)
"""Between a number and the one that it is compared with."""
_IN = re.compile(rf"(?i){_WORDS}\s+(?:in|en|em|au cours de)\s+{_ARTICLE}")
_TIMES = ((("s", 1),), (("month", 1),))
_TRIALS = re.compile(r"flips|tosses|rolls|throws|spins|draws|trials|attempts|tries|games|shots")
_OF = re.compile(
    rf"(?i)\s+(?:of|von|van)\s+(?:{_ARTICLE}(?:originally|initially|urspr\u00fcnglich\w*|insgesamt)\s+)?"
    rf"|{_WORDS}\s+(?:sur|von|out of)\s+{_ARTICLE}(?:urspr\u00fcnglich\w*\s+|insgesamt\s+)?"
)
_TO_THE_OTHER_END = re.compile(r"\s*(?:to|until|till|-)\s*")
_NOUN = re.compile(r"\$?(?:\s+|-)[^\W\d_]|\s*[.!]?$")
_MONEY = re.compile(r"(?i)\s*(?:dollars?|cents?|euros?|pounds?)\b")
_THAN = "|".join(
    [
        r"(?:more|less|fewer|[a-z]{2,}er) than",
        r"(?:mehr|weniger|[a-zäöü]{3,}er) als",
        r"(?:más|menos) que",
        r"de (?:plus|moins) que",
        r"(?:più|meno) di",
        r"(?:mais|menos) (?:do )?que",
        r"(?:meer|minder) dan",
    ]
)
"""Words behind a number that is a difference, in the languages of `_WHEN`."""
_COMPARED = re.compile(rf"(?i)[%$]?(?:\s+[^\W\d_]+){{0,3}}?\s+(?:{_THAN})\b|\s+times\s+(?:as|the|more)\b")
_OPERATION = re.compile(
    r"(?i)\b(?:add|(?<!de )plus|subtract|minus|multipl|divid|combin|sum|product)[^,;.]*\d|\btak\w+\s[^.;]*?\bfrom\b"
)
_WAYS = re.compile(
    r"(?i)\s*\$?(?:\s*[^\W\d_]+){0,3}?\s+(?:ways|arrangements|M\u00f6glichkeiten|Arten|fa\u00e7ons|mani\u00e8res|formas|maneras|modi"
    r"|maneiras|manieren)\b(?![^.;]*(?:=|\b(?:is|are|so|equals)\b))"
)
"""Behind a number of ways, before what they are ways of."""
_TOTAL = re.compile(
    r"(?i)\W*(?:(?:so|thus|hence|therefore),?\s+)?(?:altogether|overall|all told|in (?:total|all)|insgesamt"
    r"|(?:en|au) total|in totale|no total|\u4e00\u5171|\u603b\u5171|\u5171)(?:(?![=\d]).){0,40}\d"
)
_PLACE = re.compile(
    rf"(?i)(?:\s(?:in|into|on|onto|among|across|dans|en|auf|an|em)\s+{_ARTICLE}|[\u88c5\u653e\u5206]\u5728?)$"
)
"""Before the second number of a sentence that begins with a total: "in all, 240 books in 8 boxes"."""
_RELATIVE = re.compile(
    r"(?i)[^.;]*?(?<!,)\s(?:that|which|who)\s+(?!(?:\w+\s+){0,3}(?:is|are|was|were|equals?|makes?|gives?)\b)(?:\w+\s+){1,3}\$?"
)
"""Between a number and one in a clause that says which thing is meant: "5 for the toy that costs 9"."""
_MULTIPLE = re.compile(
    r"(?i)[^.;]*?,\s+(?:which is |that is )?(?:twice|double|triple|half|(?:a|one|two) (?:third|quarter|fifth)s?(?: of)?"
    r"|[a-z]+ times)(?: as \w+ as)?\s+(?:of\s+)?(?:the|his|her|its|their)?\s*\$?"
)
"""Between a number and another one of which it is a multiple: "60, twice the 30 of the first"."""
_BRACKET = re.compile(r"\s\((?=[^()]*[A-Za-z]{3})[^()]*\)")
"""A note in brackets."""

_TWO_WORDS = re.compile(r"\W*\w+\W+\w")
"""Before the number that a sentence states: its subject and its verb, not "In 4"."""
Span = tuple[int, int]


def without_contrast(text: str) -> str:
    """Return a sentence without the clause at its end that is about something else: "Ann is 4, whereas Tom is 9"."""
    match = _CONTRAST.search(text)
    if match:
        return text[: match.start()]
    return text


def without_subordinate(text: str, spans: list[Span]) -> str:
    """Return a sentence without the clause at its end that says when its value holds: "5 after 10 minutes".

    Args:
        text: the sentence.
        spans: where mathematics stands in it.
    """
    for match in _SUBORDINATE.finditer(text):
        if any(end <= match.start() + 1 and start > 0 for start, end in spans):
            return text[: match.start()]
    return text


def without_asides(text: str, spans: list[Span]) -> list[Span]:
    """Return the spans of a sentence without those that hang on an earlier one; all of them if there is no other.

    "16 oranges to make 4 cups", "12.5 percent from 2019 to 2020", "15 cards, which is 6 more than before" and "$27
    (with $2 tax)" state their first number. An operation ("take 3 from 10") states neither.
    """
    if len(spans) < 2 or _OPERATION.search(text):
        return spans
    if _WAYS.match(text, spans[0][1]):
        return spans[:1]
    if _TOTAL.match(text) and _PLACE.search(text, 0, spans[1][0]):
        return spans[:1]
    has_subject = _TWO_WORDS.match(text[: spans[0][0]]) is not None
    notes = [note.span() for note in _BRACKET.finditer(text)]
    stated = [spans[0]]
    was_aside = False
    for (_, previous), (start, end) in pairwise(spans):
        is_range = was_aside and _TO_THE_OTHER_END.fullmatch(text, previous, start) is not None
        in_note = any(note[0] < start and end <= note[1] for note in notes)
        hangs = is_range or in_note or _is_aside(text, previous, start, end)
        was_aside = (has_subject and hangs) or _COMPARED.match(text, end) is not None
        if not was_aside:
            stated.append((start, end))
    return stated


def _is_aside(text: str, previous: int, start: int, end: int) -> bool:
    """Return True if a number hangs on the one that ends at `previous`."""
    if _MULTIPLE.fullmatch(text, previous, start) or _RELATIVE.fullmatch(text, previous, start):
        return True
    if _TO_PAY.fullmatch(text, previous, start) or _NEXT_TO.fullmatch(text, previous, start):
        return True
    if _OF.fullmatch(text, previous, start) or _FROM.fullmatch(text, previous, start):
        return True
    if _IN.fullmatch(text, previous, start) and _is_time(text, end):
        return True
    is_price = text[start] in "$€£\\" or _MONEY.match(text, end) is not None
    return not is_price and _NOUN.match(text, end) is not None and _FOR.fullmatch(text, previous, start) is not None


def _is_time(text: str, end: int) -> bool:
    """Return True if a unit of time, or the word for trials, stands behind a number."""
    word = re.match(r"\s+([^\W\d_]+)", text[end:])
    unit = read_unit(word[1]) if word else None
    is_trial = word is not None and _TRIALS.fullmatch(word[1]) is not None
    return is_trial or (unit is not None and unit[1] in _TIMES)
