"""Answers in prose: the part of a phrase or line that is the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set as Collection
from dataclasses import replace
from functools import lru_cache

from lit_rlvr.answers.asides import without_asides, without_contrast, without_subordinate
from lit_rlvr.answers.characters import ALPHABET, plain_characters
from lit_rlvr.answers.find import Found
from lit_rlvr.answers.latex import clean
from lit_rlvr.answers.names import YES_NO
from lit_rlvr.answers.numbers import MONTH, SPOKEN_TIME, read_spoken_time
from lit_rlvr.answers.parse import BETWEEN, LONGEST, parse
from lit_rlvr.answers.retracted import (
    begins_with_denial,
    contrast,
    correction,
    has_denial,
    is_counterfactual,
    is_denied,
    is_denied_before,
    without_denied,
)
from lit_rlvr.answers.units import read_numeral, read_unit
from lit_rlvr.answers.values import Expression, Labelled, Number, Quantity, Reading, Series, Text, text_keys

_NUMBER = r"(?:[$\u20ac\u00a3\u00a5\u20b9]\s?)?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?|\.\d+"
_LATEX = r"\\[A-Za-z]+(?:\s*[\[{](?:[^{}\[\]]|\{(?:[^{}]|\{[^{}]*\})*\})*[\]}])*|\\[%$,;! {}]"
_LETTER = rf"(?<![{ALPHABET}'\\])[A-Za-z](?![{ALPHABET}'])"
_DATE = (
    rf"{MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?(?!\d)|\d{{1,2}}(?:st|nd|rd"
    rf"|th)?(?:\s+of)?\s+{MONTH}(?:,?\s+\d{{4}})?(?!\d)"
)
_SIGN = r"[-+*/^=<>!|_:\u00b1\u00d7\u00f7]"
_TOKEN = rf"(?:{_DATE}|\d++\s++out\s++of\s++\d++|\b1\s++in\s++\d++|{_NUMBER}|{_LATEX}|{_LETTER}|{_SIGN}|[()\[\]{{}},])"
_SPAN = re.compile(rf"{_TOKEN}(?:\s*{_TOKEN})*")
_DELIMITED = re.compile(r"\$\$?([^$]+)\$\$?(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_CLAUSE = re.compile(
    r"[.;?](?:\s|$)|!(?=\s+[A-Z][a-z]|\s*$)|,?\s+\(?(?:because|since|which|as|so|when|where|for|that|with|after"
    r"|altogether|in total|i\.e\.|if|but|by)\b"
    r"|,\s+(?=(?!and\b|or\b)[a-z]{2,})|\s+-\s+(?=[a-z]{2,})|(?<![-+*/=^])\s\((?![A-J]\))|(?<!\d\s):\s"
)
_THERE = re.compile(r"(?i)\bthere\s+(?:is|are|was|were|remains?)\s+")
_VERB = re.compile(
    r"(?<!that )(?<!which )(?<!who )(?<!where )\b(?:is|are|was|were|be|equals?|becomes?"
    r"|gives?(?! (?:away|back|up|out)\b)|gets?|obtain|have|has|yields?|returns?|prints?|outputs?"
    r"|est|sont|ist|sind|es(?! (?:gibt|sind|ist)\b)|son|\u00e8|sono|\u00e9|s\u00e3o|betr\u00e4gt|lautet|vale|vaut)"
    r"\s+(?:that\s+)?(?:(?:us|me|you|him|her|them)\s+)?(?:the\s+)?(?:(?:el|la|die|der|das|le|il|o)\s+(?=\d)|de\s+(?=[-$\\(\d]|[a-z]\s?[-+=]))?"
    r"(?:all\s+(?:real\s+)?(?:numbers\s+)?(?:\$?[a-z]\$?\s+(?:with|such that|where)\s+|(?=[$\\])))?"
)
_TO = (
    r"to(?!\s+\w+\s+(?:decimal|significant)\b)(?!\s+(?:the\s+(?!power\b|first\b|second\b|third\b|(?:four|fif|six|seven|eigh|nin|ten|n)th\b)[a-z]"
    r"|(?!(?:the|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|infinity)\b)[a-z]{2,}))"
)
"""Between the ends of a range, a base and its power, the terms of a ratio; not before a place or a verb."""
_GOES_ON = re.compile(
    rf"(?i)\$?\s*(?:(?:or|{_TO}|plus|minus|times|divided)\b|(?:percent|%)\s+of\b(?=[^.;]*(?:\d|\bit\b|\bthat\b))|\?|\(\s*wrong\b"
    r"|can\s+be\s+(?:written|expressed)\b|(?:if|when|for)\b.*"
    r"\b(?:if|otherwise|else)\b)"
)
"""Behind a value: it is not the answer, or not all of it."""
_OPERATION = re.compile(r"\d\S*\s+(?:divided|multiplied)$")
_END_OF_CHAIN = re.compile(r"=\s*([^=<>]{1,60}?)[.\s]*$")
_JOINED = re.compile(r"\s*(?:,|;|\band\b|\bor\b|,\s*and\b|,\s*or\b)\s*")
_DERIVED = re.compile(
    r"\\(?:Rightarrow|implies|Longrightarrow|therefore)(?![A-Za-z])|\u21d2|(?i:\b(?:so|hence|thus|therefore)\b),?"
    r"|\\\\(?=(?s:.*)\\end\s*\{(?:aligned|align\*?|gathered|split)\})"
)
"""Before the last step of a derivation."""
_PROSE_DASH = re.compile(r"\s+[\u2013\u2014]\s+|(?<=[a-z])[\u2013\u2014](?=[a-z])")


_WORDS = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")


def in_prose(text: str) -> str:
    """Return the last sentence of LaTeX that begins with words in `\\text`, as prose with mathematics in it.

    Other text gives "".
    """
    pieces = _WORDS.split(text)
    if pieces[0].strip("& ") or not any(len(words.split()) > 2 for words in pieces[1::2]):
        return ""
    pieces[::2] = [f"${inside}$" if (inside := _closed(piece)) else "" for piece in pieces[::2]]
    return re.split(r"\.\s+(?=[A-Z])", " ".join(piece.strip() for piece in pieces if piece))[-1]


def _closed(text: str) -> str:
    """Return a piece of LaTeX without outer space and a last brace that nothing opens."""
    text = text.strip()
    if text.count("}") > text.count("{"):
        return text.removesuffix("}").strip()
    return text


_VERDICT_WORD = "|".join(sorted(YES_NO, key=len, reverse=True))
_FIRST_WORD = re.compile(
    rf"(?i)(?:(?:[{ALPHABET}]+\s+){{0,2}}[{ALPHABET}]+[,:]\s+|so\s+)?({_VERDICT_WORD})(?![{ALPHABET}])(?=\s*(?:[,.;:!\uff0c\u3002-]|$))"
)
_LAST_WORD = re.compile(
    r"(?i)(?:[,:.!?]|\b(?:say|says|be|evaluates to|returns?|prints?|outputs?|yields?)\b)\s*(?:so\s+)?"
    rf"({_VERDICT_WORD})\W*$"
)
_SO = re.compile(
    r"(?i)(?:[,;.]|\s+and)\s+(?:i\.e\.,?\s+|(?:so|thus|hence|therefore|then|which (?:gives|means|makes(?! up))"
    r"|giving|making|namely|in other words|that is(?=,)|or equivalently)\b,?\s+"
    r"(?!that\b|far\b|many\b|much\b|long\b)(?:(?:us|me|you|them)\s+)?)"
    r"|(?<=\w)\.\s+(?:That|This)(?:'s|\s+(?:is|makes|gives|means))\s+(?!why\b|because\b|the same\b"
    r"|[^.]*\b(?:more|[a-z]{2,}er|less) than\b)(?=[^.]*\.?$)"
)
"""Before the conclusion of a line."""
_REASON_FIRST = re.compile(r"(?i)(?:since|because|as|if|when|given that)\s[^,]*,\s+(?:then\s+)?(?=[A-Za-z]{2})")
_VALUES = r"\s+(?=[-\d$(]|\\[a-z(]|[A-Za-z](?:_\S{1,4})?\s*=)"
_AND_WORD = re.compile(rf"(?<=[\d$)}}])\s+(?:und|et|y|e|och|og|\u0438){_VALUES}")
_OR_WORD = re.compile(rf"(?<=[\d$)}}])\s+(?:oder|ou|o|oppure|eller|\u0438\u043b\u0438){_VALUES}")
"""Words between values in other languages."""
_ANGLES = re.compile(r"<\s*(-?[\d.][^<>=]*,[^<>=]*)>")
"""A vector in angle brackets: "<2, 0, -5>"."""
_ASKS = re.compile(
    r"(?i)(?:so|now|first|next|then|here)?,?\s*(?:(?:we|i|you)\s+(?:want\b|(?:need|have|wish|are asked"
    r"|would like)\s+to\b)"
    r"|(?:find|compute|evaluate|calculate|determine|simplify)\b"
    r"|(?:the|this) (?:question|problem|task)\s+(?:asks|is asking)\b|we are asked (?:whether|if)\b)"
)
"""Before what a question asks for."""
_ASKED = re.compile(
    r"(?:[^?.!]*?\w[^?.!\w]+\w[^?!]*\?\W?|(?i:the|this) (?:question|problem|task)\s+(?:asks|is asking)\b[^.]*\.)"
    r"\s+(?=\w.*\w)"
)
"""A question before its answer in one line: "How many are left? There are 5."."""
_ASKED_FOR = re.compile(rf"{_ASKS.pattern}[^.!?=]*\.\s+(?=[A-Z\d$\\])")
"""A sentence that says what is asked for, before its answer in one line: "We need to find x. It is 5."."""
_ENUMERATED = re.compile(r"^\d{1,2}[.)]\s+(?=[A-Z][a-z])")
"""The number of a step at the beginning of a line."""
_CUT_OFF = re.compile(r"[\d$)}]\s*(?:[-+*/=\u00d7\u00f7]|\\times|\\cdot)\s*$")
"""An operation whose second number is missing: the text was cut off."""
_OPTION_LETTER = re.compile(r"(?<![\w'\\$])(?:[B-HJ-Z]|A(?=[.)!]*$))(?![\w'$])(?!\.\s?[A-Z])")
_CLOSED_CLASS = (
    r"in|of|per|from|at|on|by|to|than|with|for|and|or|more|less|fewer|each|every|within|during|after|before|until|about|"
    r"only|exactly|plus|minus|times|the|an?|is|are|was|were|grade|day|page|step|chapter|number|part|year|week|room|level|"
    r"over|under|between|through|into|out|as|if|when|where|which|that|because|since|so|but|not|nor|equals?"
)
_PREDICATE = re.compile(
    rf"[$\\]?\d[\d.,]*\$?\s+(?!(?:{_CLOSED_CLASS})\s)[{ALPHABET}]+\s[^.;]*?(?<!\d\s)\b(?!(?:{_CLOSED_CLASS})\s)[a-z]{{2,}}\s+(?=[$\\]?\d)"
)
"""The subject of a sentence that begins with a number, and a verb before another one: "10 ducks need 5 pounds"."""


def candidates(answer: Found, keys: Collection[str]) -> Iterator[str]:
    """Yield the parts of what was found that may be the answer, the likeliest first."""
    if not answer.text:
        return
    if answer.where in ("box", "tag"):
        yield from _in_box(answer, keys)
    elif prose := in_prose(answer.text):
        yield from candidates(replace(answer, text=prose), keys)
    else:
        yield from _in_sentence(answer, keys)


def _in_box(answer: Found, keys: Collection[str]) -> Iterator[str]:
    """Yield what a box or tag holds, and the last step of a derivation or the value of a sentence in it."""
    corrected = _corrected(answer.text, answer.behind)
    if corrected:
        yield from candidates(Found(corrected, "phrase"), keys)
        return
    prose = in_prose(answer.text)
    yield answer.text
    last = last_step(prose or answer.text)
    if last:
        if not prose:
            yield last
        yield from candidates(Found(last if prose else clean(last), "line"), keys)
    elif len(answer.text) <= LONGEST and re.search(r"[A-Za-z]{2}.*\s.*[A-Za-z]{2}", answer.text):
        is_sentence = re.match(r"(?!\\|(?i:yes|no|true|false)\b)[A-Za-z]+,?\s+[A-Za-z]", prose or answer.text)
        yield from candidates(Found(prose or clean(answer.text), "line" if is_sentence else "phrase"), keys)


def _in_sentence(answer: Found, keys: Collection[str]) -> Iterator[str]:
    """Yield the parts of a phrase or line that may be the answer."""
    if re.match(r"&|.*\\(?:begin\{a|Rightarrow|implies|therefore)", answer.text) and (last := last_step(answer.text)):
        yield last
        return
    # In a sentence, the mark may be an exclamation.
    if answer.where == "line" and re.fullmatch(r"\d+!", answer.text.strip(" *")):
        yield answer.text.strip(" *")
        return
    text = without_denied(plain_characters(_PROSE_DASH.sub(", ", answer.text)).strip())
    text = _ANGLES.sub(r"(\1)", _HEDGE.sub(" or ", text))
    text = _OR_WORD.sub(" or ", _AND_WORD.sub(" and ", text))
    if _EXCLAIMED.search(text):
        text = text.removesuffix("!")
    is_phrase = answer.where != "line"
    if not is_phrase:
        text = _ENUMERATED.sub("", text)
        asked = _ASKED.match(text) or _ASKED_FOR.match(text)
        if asked:
            text = text[asked.end() :]
    corrected = _corrected(text, answer.behind)
    if corrected:
        yield from candidates(Found(_conclusion(corrected), "phrase"), keys)
        return
    instead = contrast(text)
    if instead and _spans(instead):
        yield from candidates(Found(instead, "phrase"), keys)
        return
    if is_phrase and begins_with_denial(text):
        return
    if not is_phrase and text.endswith("?"):
        yield from _above(answer, keys)
        return
    if _CUT_OFF.search(text):
        return
    listed = re.fullmatch(r"\[(\s*['\"].*['\"]\s*)\]\.?", text)
    if listed:  # a list literal
        yield re.sub(r"(?:^|(?<=,))\s*['\"]|['\"]\s*(?=,|$)", " ", listed[1]).strip()
        return
    if not keys.isdisjoint(YES_NO.keys()) and (verdict := _verdict(text) or _verdict_before(answer.first)):
        yield verdict
        return
    if _is_marked_answer(answer.marked, text, keys):
        yield answer.marked
        return
    if is_phrase:
        text = _without_parts(_behind_reason(text, _OWN_REASON_CLAUSE))
    else:
        text = _before_reason(_without_parts(_conclusion(text)))
        main = without_contrast(text)
        if main != text and (_spans(main) or _only_count(main)):
            text = main
        text = without_subordinate(text, list(_spans(text)))
        text = _COUNTED_FROM.split(text)[0]
        if _ASKS.match(text) and "=" not in text:
            return
    share = _SHARE_OF.match(text)
    if share and read_numeral(share[1]) is not None and len(_spans(text)) == 1:
        yield share[1]
        return
    stated = _behind_colon(text)
    if stated and not is_phrase:
        yield stated
        return
    time = SPOKEN_TIME.search(text)
    if time and read_spoken_time(time[0]) and _states_time(text, time):
        yield time[0]
    verb = _verb(text, is_phrase)
    statement = text[verb.end() :] if verb else text
    count = _count(statement) if verb else ""
    if _OFFSET.match(statement[len(count) :]):
        count = ""
    if is_denied(statement[len(count) :]):
        count = ""
    if not re.search(r"\d", text):
        count = count or _only_count(text)
    if count and not _are_names(keys):
        yield _with_spelt_unit(text, count)
    if verb and (has_denial(text[: verb.end() + 4]) or _AT_LEAST.match(statement)):
        statement = text
    if _LISTED_WORDS.fullmatch(statement):
        clause = statement
    elif is_phrase or statement != text:
        clause = statement[: _cut(statement)]
    else:
        clause = statement
    rest = statement[len(clause) :]
    if _GOES_ON.match(rest) or is_denied(rest) or is_counterfactual(text, rest, is_phrase) or _is_unread_chain(clause):
        chain = _END_OF_CHAIN.search(text)
        if chain:
            yield chain[1]
        return
    with_article = f"the {clause}" if verb and verb[0].endswith("the ") else clause
    cleft = _CLEFT.match(text)
    for phrase in dict.fromkeys((text, clause, with_article, _NOTE.sub("", text), cleft[1] if cleft else clause)):
        if not keys.isdisjoint(text_keys(parse(phrase))):
            yield phrase
    if _LISTED_WORDS.fullmatch(statement):
        yield statement
    called = _CALLED.fullmatch(clause)
    if called and _is_value(called[1]):
        yield called[1]
    between = BETWEEN.search(text)
    if between and not re.search(r"\d", text[: between.start()]):
        yield between[0]
    named = _named(clause, keys) or _subject(text, keys) or _formula(text, keys)
    if named:
        yield named
    for phrase in dict.fromkeys((clause, text.rstrip(".")) if verb else (text.rstrip("."), clause)):
        if _is_value(phrase):
            yield phrase
    if _spans(clause):
        searched = clause
    else:
        searched = text
    total = _SUM_OF_UNITS.search(searched)
    if total and _is_sum(total[0]) and not has_denial(searched[: total.start()]):
        yield total[0]
    spans = _without_known(searched)
    if not is_phrase:
        spans = without_asides(searched, spans)
    for start, end in spans[:1] if is_phrase or searched is not text else spans[-1:]:
        before = re.split(r"[.;:,]\s", searched[:start])[-1]
        after = searched[end:]
        is_taken_back = is_denied_before(before, after) or is_denied(after)
        is_offset = not before and _OFFSET.match(after) is not None
        if not (
            is_taken_back or is_offset or _GOES_ON.match(after) or is_counterfactual(searched[:start], after, is_phrase)
        ):
            yield _with_unit(searched, start, end)
    if not spans:
        if len(text) < 200:
            yield text
            if clause != text and not has_denial(text):
                yield clause
        yield from _above(answer, keys)


_AT_LEAST = re.compile(r"at (?:least|most)\s")
_CALLED = re.compile(
    r"(?:equation|formula|function|expression|inequality|interval|range|set|form)\s+(\$[^$]+\$|\\\(.+\\\))\.?"
)
"""A formula behind the word for it: "equation $x + y = 1$"."""
_ITEM = r"[^\W\d_]+(?: (?!and\b)[^\W\d_]+)?"
_LISTED_WORDS = re.compile(rf"{_ITEM},\s+{_ITEM}(?:,\s+{_ITEM})*(?:,?\s+and\s+{_ITEM}|,\s+{_ITEM})\.?")
"""At least three items of one or two words: "red, green, and blue"."""


def _with_spelt_unit(text: str, count: str) -> str:
    """Return a number in words with the unit that stands behind it: "half a litre"."""
    _, _, behind = text.partition(count)
    unit = re.match(r"\s+(?:of\s+)?(?:an?\s+)?([A-Za-z]{3,})", behind)
    if unit and read_unit(unit[1]) is not None:
        return f"{count}{unit[0]}"
    return count


_CLEFT = re.compile(r"(?:(?:So|Thus|Hence|Therefore),?\s+)?[Ii]t(?:'s| is| was)\s+(.+?)\s+(?:who|that|which)\s")
"""The name that a sentence is about: "It was Darwin who wrote it."."""
_SHARE_OF = re.compile(
    r"(?i)(?:(?:so|thus|hence|therefore|then),?\s+)?([a-z]+(?:[- ][a-z]+){0,2}?)\s+of\s+"
    r"(?:(?:the|all|his|her|its|their|our)\s+){1,2}\d"
)
"""A share in words of a known number: "two fifths of the 30 pupils"."""
LONGEST_STATED = 80
"""The most characters of a value behind the colon of a sentence."""


def _behind_colon(text: str) -> str:
    """Return the value that stands behind the only colon of a sentence of three words or more; "" without one."""
    sentence, _, stated = text.removesuffix(".").partition(": ")
    is_sentence = len(sentence.split()) > 2 and not re.search(r"\d\s$", sentence)
    if is_sentence and len(stated) <= LONGEST_STATED and ":" not in stated and _is_value(stated):
        return stated
    return ""


_FROM_TIME = re.compile(r"(?i)\b(?:after|before|from|until|till|since|between|by)\s+$")


def _states_time(text: str, time: re.Match[str]) -> bool:
    """Return True for a time of day that its sentence neither denies nor counts from."""
    before = text[: time.start()]
    return not _FROM_TIME.search(before) and not is_denied_before(before, text[time.end() :])


_SUM_OF_UNITS = re.compile(r"\d+(?:\.\d+)?\s*[A-Za-z]+\.?\s*(?:,|and\b)?\s*\d+(?:\.\d+)?\s*[A-Za-z]+")


def _is_sum(text: str) -> bool:
    """Return True for a quantity in several units: "1 hour and 30 minutes"."""
    return any(isinstance(value, Quantity) and value.is_sum for value in parse(text))


def _are_names(keys: Collection[str]) -> bool:
    """Return True if the forms of a reference are words and none is a number in words."""
    return bool(keys) and all(key.isalpha() and read_numeral(key) is None for key in keys)


_REASON = re.compile(r",?\s+\(?(?:because|since(?!\s+\d{4}\b))\s")
_HOLDS = re.compile(r"\s*(?:works|holds|fits|suffices|satisfies\b.*|is (?:the|an?) (?:only |right |correct )?\w+)$")
_THEREFORE = re.compile(r"(?i)^\s*(?:(?:therefore|thus|hence|so)\b,?\s*)?$")
_STATES = re.compile(r"=|\b(?:is|are|was|were|equals?)\b")
"""In a reason that may state the answer itself: "because the sum is 12"."""
_REJECTS = re.compile(r"(?i)\b(?:fail|wrong|reject|exclud|discard|thought|ruled? out|too)")


def _before_reason(text: str) -> str:
    """Return what stands before the reason that a line ends with, if it states a value; else the line."""
    reason = _REASON.search(text)
    if reason is None:
        return text
    before = text[: reason.start()]
    first = next(iter(_spans(before)), None)
    if not _spans(text) and not _REJECTS.search(before) and not before.startswith(" "):
        return before
    if first is None or _REJECTS.search(before):
        return text
    verb = _verb(before, False)
    has_value_behind = verb is not None and len(_spans(before[verb.end() :])) > 0
    holds = not _THEREFORE.sub("", before[: first[0]]) and _HOLDS.match(before[first[1] :])
    is_only = len(_without_known(before)) == 1 and not _STATES.search(text, reason.end())
    if has_value_behind or holds or is_only or _is_value(before):
        return before
    return text


_EXCLAIMED = re.compile(r"(?<=[a-z]{3}\s)[$\\]*\d[\d.,]*\$?!$")
"""A number at the end of a sentence with an exclamation mark, which is no factorial: "That makes 24!"."""
_NOTE = re.compile(r"(?<=\w)\s+\((?!\s*(?:not?|wrong|false)\b)[^()]*\)\.?$")
"""A note in brackets at the end of a line: "Marie Curie (1867-1934)"."""
_PARTS = re.compile(
    r",\s+\S+\s+of (?:which|whom)\b|,?\s+of (?:which|whom)\b|,\s+(?:von denen|davon|darunter|de l[oa]s (?:cuales|que)"
    r"|dont|parmi lesquel(?:le)?s|di cui|d[oa]s quais|waarvan|из (?:них|которых))\s|[\uff0c,]?\u5176\u4e2d"
)


_HEDGE = re.compile(
    r"(?<=[,(])\s*(or|i\.e\.,?|which is)\s+(?:roughly|about|approximately|around|nearly|circa|\\approx)\s+"
    r"(?=[$\\]*\d)"
)
"""A word before an approximation of the value before it."""


def _without_parts(text: str) -> str:
    """Return a text without the parts of its count: "12, of which 4 are red"."""
    whole = _PARTS.split(text)[0]
    if _spans(whole):
        return whole
    return text


def _is_unread_chain(clause: str) -> bool:
    """Return True for an operation in words, and for steps with units that are no equation: "90 s * 2 m/s = 180 m"."""
    if _OPERATION.search(clause):
        return True
    delimited = _DELIMITED.match(clause)
    if delimited and _is_value(delimited[0]):
        return False
    return re.match(r"[\d$(\\].*[A-Za-z].*=", clause) is not None and not _is_value(clause)


def _above(answer: Found, keys: Collection[str]) -> Iterator[str]:
    """Yield the parts of the line above a last one without a value, unless that one is an answer in words."""
    if answer.above and not _OPTION_LETTER.search(answer.text) and not _verdict(answer.text):
        yield from candidates(Found(answer.above[-1], "line", above=answer.above[:-1]), keys)


def _corrected(text: str, behind: str) -> str:
    """Return the line that corrects an answer with another value, which stands behind it; "" if none does."""
    after = correction(f"{text}\n{behind}").partition("\n")[0]
    if not after:
        return ""
    values = [after[start:end] for start, end in _spans(after) if not re.search(r"\d\s*[-+*/]\s*\d", after[start:end])]
    if after in text:
        original = text[: text.find(after)]
    else:
        original = text
    before = [original[start:end] for start, end in _spans(original)]
    is_other = bool(values) and bool(before) and before[0].strip("$") not in [value.strip("$") for value in values]
    if is_other:
        return after
    return ""


def _verdict(text: str) -> str:
    """Return yes or no, in any language, if a sentence begins with it or ends with nothing else behind a comma."""
    match = _FIRST_WORD.match(text) or _LAST_WORD.search(text)
    if match:
        return match[1]
    return ""


def _verdict_before(first: str) -> str:
    """Return yes or no if the first line of a text begins with it."""
    match = _FIRST_WORD.match(first)
    if match:
        return match[1]
    return ""


def _is_marked_answer(marked: str, text: str, keys: Collection[str]) -> bool:
    """Return True if what is bold or code at the end of a text is the reference, and is not denied."""
    if not marked or keys.isdisjoint(text_keys(parse(marked))):
        return False
    return not is_denied_before(text.rpartition(marked)[0], "")


_OTHER_REASON = r"(?:since|because|as|given that)\s[^,;.]*,\s+(?:then\s+)?(?=[A-Za-z$\\])"
_OWN_REASON_CLAUSE = re.compile(rf"[;.]\s+{_OTHER_REASON}")
_OWN_REASON = re.compile(rf"[;.,]\s+(?:and\s+)?{_OTHER_REASON}")


def _behind_reason(text: str, pattern: re.Pattern[str]) -> str:
    """Return what stands behind the reason of a second clause, if it has a value: "2 or -2; since x > 0, x = 2"."""
    for reason in pattern.finditer(text):
        if _spans(text[reason.end() :]):
            return text[reason.end() :]
    return text


def _conclusion(text: str) -> str:
    """Return the conclusion of a line behind its last "so", if it has a value; else the line."""
    reason = _REASON_FIRST.match(text)
    if reason and _spans(text[reason.end() :]):
        text = text[reason.end() :]
    text = _behind_reason(text, _OWN_REASON)
    last = _SO.split(text)[-1]
    if _spans(last):
        return last
    return text


_KNOWN = re.compile(r"(?:all|both|the|these|those)\s+(?:of\s+)?(?:the\s+)?\d+\s+[a-z]{3}")
_INFINITIVE = re.compile(r"\d.*\bto\s+$")


def _verbs(text: str) -> Iterator[re.Match[str]]:
    """Yield the verbs of a text but an infinitive behind the answer: "wait 14 days to get all 42 stamps"."""
    for verb in _VERB.finditer(text):
        is_purpose = _INFINITIVE.search(text, 0, verb.start()) and _KNOWN.match(text, verb.end())
        if not is_purpose:
            yield verb


def _verb(text: str, is_phrase: bool) -> re.Match[str] | None:
    """Return the verb before the answer of a line, or of a phrase that is a sentence with another number before it."""
    if not is_phrase:
        return _THERE.search(text) or max(_verbs(text), key=re.Match.start, default=None)
    cut = _cut(text)
    end = cut if cut is not None else len(text)
    verb = max(_VERB.finditer(text, 0, end), key=re.Match.start, default=None)
    if verb and re.search(r"\d", text[: verb.start()]) and re.search(r"\d|\\", text[verb.end() : end]):
        return verb
    reason = re.search(r",|\b(?:because|since|as|so|if|when|where|which|that|but)\b", text)
    return _PREDICATE.match(text, 0, reason.start() if reason else len(text))


def _cut(text: str) -> int | None:
    """Return where the clause that a text begins with ends, outside brackets; None if it is all of the text."""
    for match in _CLAUSE.finditer(text):
        before = text[: match.start()]
        if all(before.count(opening) <= before.count(closing) for opening, closing in ("()", "[]", "{}")):
            return match.start()
    return None


_PLACED = re.compile(r"(?:[a-z]s?|\d)\s+(?:on|in|at)\s+(?:(?:an?|the)\s+)?([A-Z]\w+(?:\s+[A-Z]\w+)*)\W*$")
"""The name that a sentence ends with: "The 1st falls on a Monday."."""


def _named(clause: str, keys: Collection[str]) -> str:
    """Return what a clause says of its subject behind a participle or preposition: "facing East", "in Paris"."""
    match = re.match(
        r"(?:(?:so|then|now|thus|hence|therefore)\s+)?"
        r"(?:(?:an?|the)\s+(?:example|type|kind|form|case|instance)\s+of\s+)?"
        r"(?:(?:called|named|known as|[a-z]+ing|located|made|said to be)\s+)?(?:(?:in|at|on|to|as|by|the"
        r"|an?|towards?)\s+)*(.+)",
        clause,
    )
    placed = _PLACED.search(clause)
    if placed and not has_denial(clause):
        words = placed[1]
    elif match:
        words = re.sub(r"^\u662f|\u7684$", "", match[1].strip(" .!*"))
    else:
        words = ""
    chinese = re.search(r"[\u662f\u4e3a]\s*([\u4e00-\u9fff]+?)\u7684?[.\s]*$", clause)
    for name in (words, chinese[1] if chinese else ""):
        if name and not keys.isdisjoint(text_keys(parse(name))):
            return name
    return ""


_SUBJECT = re.compile(
    r"((?:[Tt]he )?[A-Z][^,;:.]{0,60}?)\s+(?:is|was|are|were)\s+(?:the|called|[^\W\d_]+'s)\s[^,;:.]*\.?"
)
"""A sentence whose subject is defined by the rest of it: "Paris is the capital of France."."""


_EXPLAINED = re.compile(r"([A-Z][\w-]*(?: [\w-]+){0,3}),\s+(?:which|who|the|an?)\s")
"""A name at the beginning of a line, and what it is: "Nitrogen, which is most of the air."."""


def _subject(text: str, keys: Collection[str]) -> str:
    """Return the subject of a sentence that says who or what it is, if it is the reference."""
    match = _SUBJECT.fullmatch(text) or _EXPLAINED.match(text)
    if match and not has_denial(text) and not keys.isdisjoint(text_keys(parse(match[1]))):
        return match[1]
    return ""


_SUBSTANCE = r"\d*[A-Z][A-Za-z]?[\w{}()^+-]*"
_SUBSTANCES = rf"{_SUBSTANCE}(?:\s+\+\s+{_SUBSTANCE})*"
_CHEMICAL = re.compile(rf"(?<![\w+])({_SUBSTANCES}\s*(?:-+>|\\to)\s*{_SUBSTANCES}|(?=\S*\d){_SUBSTANCE})\.?$")
"""A formula of chemistry at the end of a sentence."""


_IN_BRACKETS = re.compile(r"[a-z] \(([^()]+)\)\.?$")
"""Another name in brackets at the end: "silver chloride (AgCl)."."""


def _formula(text: str, keys: Collection[str]) -> str:
    """Return the chemical formula, reaction or other name that a sentence ends with, if it is the reference."""
    for pattern in (_CHEMICAL, _IN_BRACKETS):
        match = pattern.search(text)
        if match is None or keys.isdisjoint(text_keys(parse(match[1]))):
            continue
        if not is_denied_before(text[: match.start()], ""):
            return match[1]
    return ""


_GIVEN = re.compile(
    r"(?i)\b(?:the|these|those|both|all|my|your|his|her|its|our|their"
    r"|die|den|der|las|los|les|des|dos|dei|gli|delle|degli|alle[nr]?|todos los|todas las)\s+$"
)
"""Before a number of things that are known: "the 9 places"."""


_PROPERTY = re.compile(r"-(?:[a-z]+-)?[a-z]{2,}\s+[a-z]{3,}")
"""Behind a number that describes a thing: "the 200-litre tank"."""


def _without_known(text: str) -> list[tuple[int, int]]:
    """Return the spans of a text that are no ordinal ("7th"), count nothing known and describe nothing; all if there
    is no other."""
    spans = list(_spans(text))
    new = []
    for start, end in spans:
        is_ordinal = re.match(r"(?:st|nd|rd|th)\b", text[end:]) is not None
        is_given = _GIVEN.search(text[:start]) is not None and re.match(r"\s+[^\W\d_]{3}", text[end:]) is not None
        is_property = _PROPERTY.match(text, end) is not None
        if not (is_ordinal or is_given or is_property):
            new.append((start, end))
    return new or spans


_OR_TO = re.compile(rf"\s+(?:or|{_TO})\b")
"""Behind a number that is one of several."""
_AND_A_PART = re.compile(r"\s+and\s+(?:an?|one)\s+(?:half|third|quarter|fourth)")
"""Behind a number in words that is not all of it."""


def _count(text: str) -> str:
    """Return the number in words that a text begins with; "" if it begins with something else, or with "one of"."""
    words = re.match(r"(?:exactly |only |a total of )?([A-Za-z]+(?:[- ][A-Za-z]+){0,7})(?![-\w])(?! of\b)", text)
    if words is None:
        return ""
    pieces = re.split(r"(-| (?!of\b))", words[1])
    for length in range(len(pieces), 0, -2):
        run = "".join(pieces[:length])
        number = run.removesuffix(" of")
        value = read_numeral(number)
        if pieces[length : length + 1] == ["-"] or number.lower() in ("a", "an") or value is None:
            continue
        behind = text[words.start(1) + len(run) :]
        if _OR_TO.match(behind) or _AND_A_PART.match(behind):
            return ""
        # "one of" begins a part, "two thirds of" and "zero of them." do not
        if number == run or value.denominator > 1 or re.fullmatch(r" (?:them|these|those)\W*", behind):
            return number
    return ""


_FROM_ANOTHER_TIME = r"\s+(?:[a-z]+\s+)?(?:minute|hour|day|night|week|month|year)s?\s+(?:after|before|from|past)\b"
_OFFSET = re.compile(rf"(?i){_FROM_ANOTHER_TIME}")
"""Behind a number that says how far a time is from another one: "six days after Friday"."""
_COUNTED_FROM = re.compile(rf",\s+(?=[^\W\d_]+{_FROM_ANOTHER_TIME})")
"""Before what says how far a time is from another one, behind it: "on Tuesday, two days after Sunday"."""
_ASIDE = re.compile(
    r"(?i)\b(?:the|these|those|both|all|any|my|your|his|her|its|our|their|root of|multiple of|factor of|by|past"
    r"|exceeds?|to|in|into|of|for|from|need|consider|reject|exclude|rule out|discard|at|on)\s+$"
)
"""Before a number in words that is no answer: it is known, or part of something else."""


def _only_count(text: str) -> str:
    """Return the number in words that a text begins with, or else the only one in its first 300 characters.

    "One" and "half" count only at the beginning. A number that is denied or one of several is none.
    """
    counts = []
    end = 0
    for word in re.finditer(r"(?<![-\w])[A-Za-z]+", text[:300]):
        if word.start() < end:
            continue
        rest = text[word.start() : word.start() + 120]
        if read_numeral(word[0]) is not None and re.match(r"[A-Za-z-]+\s+(?:or|to)\s+[A-Za-z]", rest):
            return ""
        count = _count(rest)
        before = text[: word.start()]
        has_unit = bool(count) and _with_spelt_unit(rest, count) != count
        is_word = before and count.lower() in ("one", "half", "second")
        if not count or (is_word and not has_unit):
            continue
        if _OFFSET.match(rest, rest.find(count) + len(count)):
            continue
        end = word.start() + rest.find(count) + len(count)
        is_denied_here = is_denied(text[end:]) or is_denied_before(before, text[end:])
        is_aside = _ASIDE.search(before) is not None and not has_unit
        if not is_denied_here and not _GOES_ON.match(text[end:]) and not is_aside:
            counts.append(count)
    if len(counts) == 1:
        return counts[0]
    return ""


def last_step(text: str) -> str:
    """Return the last step of a derivation, behind its last relation; "" if the text is none."""
    *before, last = _DERIVED.split(text) if len(text) <= LONGEST else [text]
    worded = re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}", text) is not None and text.count("=") > 1
    rows = re.sub(r"\\(?:begin|end)\s*\{\w+\*?\}|&", "", text).split("\\\\")
    named = [re.match(r"\s*([A-Za-z]\w*)\s*=[^=]*$", row) for row in rows]
    if not (before or worded) or (len(named) > 1 and all(named) and len({row[1] for row in named if row}) > 1):
        return ""
    last = re.sub(r"\\end\s*\{\w+\*?\}|\\\)|&", " ", last).strip(" .\n")
    _, sign, value = re.split(r"\.\s|\\\\|\\q?quad", _closed(last))[-1].rpartition("=")
    if value.count("$") % 2:
        value = value.strip("$")
    if sign or before:
        return value
    return ""


def _items(value: Reading) -> Iterable[Sequence[Reading]]:
    if isinstance(value, Labelled):
        return (item for items in value.values.values() for item in items)
    if isinstance(value, Series):
        return value.items
    return ()


def _is_value(phrase: str) -> bool:
    """Return True if a whole phrase means something besides its words."""
    return len(phrase) < 200 and has_value(parse(phrase))


def has_value(values: Iterable[Reading]) -> bool:
    """Return True if a reading is more than words, or a list with words in it."""
    for value in values:
        worded = [all(isinstance(reading, Text) for reading in item) for item in _items(value)]
        if not isinstance(value, Text) and not any(worded):
            return True
    return False


@lru_cache(maxsize=1024)
def _spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return where mathematics stands in prose; lists of it ("3 and 4") are one."""
    spans: list[tuple[int, int]] = []
    taken = [match.span() for match in _DELIMITED.finditer(text) if _is_mathematics(match)]
    for match in _SPAN.finditer(text):
        if _is_exponent_of_unit(text, match):
            continue
        inside = next((span for span in taken if span[0] < match.end() and match.start() < span[1]), None)
        if inside is None:
            spans += _without_words(text, *match.span())
        elif inside not in spans:
            spans.append(inside)
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and _JOINED.fullmatch(text, joined[-1][1], start):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)


_ALPHABETIC = re.compile(f"[{ALPHABET}]")
_UNIT_AND_EXPONENT = re.compile(r"[A-Za-z]\^\{?-?\d\}?")


def _is_exponent_of_unit(text: str, match: re.Match[str]) -> bool:
    """Return True for what a unit behind a number ends with: the "^{2}" of "cm^{2}", "m^{2}" behind "84"."""
    start = match.start()
    if match[0].startswith("^"):
        return start > 0 and _ALPHABETIC.match(text, start - 1) is not None
    if not _UNIT_AND_EXPONENT.fullmatch(match[0]):
        return False
    before = text[:start].rstrip()
    is_behind_number = before[-1:].isdecimal() or before.endswith(("}", "$", ")"))
    return len(before) < start and is_behind_number and read_unit(match[0]) is not None


def _is_mathematics(match: re.Match[str]) -> bool:
    """Return False for the prose between two prices."""
    inside = next(group for group in match.groups() if group is not None)
    is_price = bool(match[1]) and inside[-1:].isspace() and not inside[:1].isspace()
    return not re.search(r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s+[A-Za-z]{2,}", inside) and not is_price


def _without_words(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return a run of mathematics without the one-letter words, signs and brackets around it; [] if nothing is left."""
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
    if re.search(r"\d|\\", text[start:end]):
        return [(start, end)]
    return []


def _with_unit(text: str, start: int, end: int) -> str:
    """Return a run of mathematics with the words behind it that belong to it: a magnitude, a unit."""
    span = text[start:end]
    letters = rf"[{ALPHABET}\u4e00-\u9fff%/]"
    words = re.match(
        rf"(?:\s*(?!(?:and|or)\b)(?:{letters}|[.-](?={letters}))+(?:\^\{{?-?\d\}}?)?\.?){{1,3}}", text[end:]
    )
    if words:
        pieces = re.findall(rf"\s*[{ALPHABET}\u4e00-\u9fff%/-]+(?:\^\{{?-?\d\}}?)?\.?", words[0])
    else:
        pieces = []
    plain = parse(span)
    for count in range(len(pieces), 0, -1):
        if pieces[count - 1].strip() in ("a", "an"):  # "$5 a day"
            continue
        if pieces[count - 1].strip() == "in" and (count < len(pieces) or span[:1] == "$" or span[:2] == "\\$"):
            continue  # "$5 in total", no inches
        longer = span + "".join(pieces[:count]).rstrip(".")
        values = parse(longer)
        is_counted = any(isinstance(value, Number) and value.noun for value in values)
        new_values = [value for value in values if not isinstance(value, Text)]
        if any(isinstance(value, Expression) for value in new_values):  # "56 de bile" is no product
            continue
        if _is_value(longer) and (is_counted or new_values != [v for v in plain if not isinstance(v, Text)]):
            return longer
    return span
