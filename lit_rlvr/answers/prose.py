"""Answers in prose: the part of a phrase or line that is the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Set as Collection
from dataclasses import dataclass, replace

from lit_rlvr.answers.asides import without_asides, without_contrast, without_subordinate
from lit_rlvr.answers.characters import plain_characters
from lit_rlvr.answers.clauses import (
    OWN_REASON_CLAUSE,
    before_reason,
    behind_colon,
    behind_reason,
    conclusion,
    end_of_clause,
    find_verb,
    is_unread_chain,
    without_parts,
)
from lit_rlvr.answers.counts import COUNTED_FROM, OFFSET, are_names, leading_count, only_count, with_spelt_unit
from lit_rlvr.answers.find import Found
from lit_rlvr.answers.latex import clean
from lit_rlvr.answers.names import YES_NO
from lit_rlvr.answers.numbers import SPOKEN_TIME, read_spoken_time
from lit_rlvr.answers.parse import BETWEEN, LONGEST, parse
from lit_rlvr.answers.retracted import (
    GOES_ON,
    IF_IT_WERE,
    begins_with_denial,
    contrast,
    correction,
    has_denial,
    is_counterfactual,
    is_denied,
    is_denied_before,
    without_denied,
)
from lit_rlvr.answers.spans import find_spans, is_value, with_unit, with_words_for_known, without_known
from lit_rlvr.answers.stated_names import (
    CLEFT,
    is_marked_answer,
    opening_verdict,
    stated_formula,
    stated_name,
    stated_subject,
    verdict_of_line,
)
from lit_rlvr.answers.units import read_numeral
from lit_rlvr.answers.values import Quantity, text_keys

_END_OF_CHAIN = re.compile(r"=\s*([^=<>]{1,60}?)[.\s]*$")
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


_VALUES = r"\s+(?=[-\d$(]|\\[a-z(]|[A-Za-z](?:_\S{1,4})?\s*=)"
_AND_WORD = re.compile(rf"(?<=[\d$)}}])\s+(?:und|et|y|e|och|og|\u0438){_VALUES}")
_OR_WORD = re.compile(rf"(?<=[\d$)}}])\s+(?:oder|ou|o|oppure|eller|\u0438\u043b\u0438){_VALUES}")
"""Words between values in other languages."""
_GERMAN = re.compile(r"\b(?:[Dd]er|[Dd]ie|[Dd]as|ist|sind|hat|und|[Ss]ie|[Ee]r|[Aa]lso|Jahre)\b.*[a-z]")
_THUS = re.compile(r",\s+(?:also|d\.\s?h\.|das hei\u00dft|folglich)\s+")
"""A conclusion in German, where "also" is no other answer."""
_EXACT = re.compile(
    r"\b(?:roughly|about|approximately|around)\s+(\$?\d[\d.,]*\d\$?),?\s+(?:\(which is|which is|\(i\.e\.)\s+([^()]+)\)?"
)
"""An approximation before its value: "about 1.41, which is the root of 2"."""
_ANGLES = re.compile(r"(?<![\w)}])<\s*(-?[\d./]+(?:\s*,\s*-?[\d./]+)+)\s*>")
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


@dataclass
class _Sentence:
    """A phrase or line that may hold the answer.

    Args:
        answer: what was found.
        keys: the forms of the reference as texts.
        text: the sentence without what the rules have left out so far.
        is_phrase: it stands behind "the answer is".
    """

    answer: Found
    keys: Collection[str]
    text: str
    is_phrase: bool

    def names(self, text: str) -> bool:
        """Return True if a text is the reference."""
        return not self.keys.isdisjoint(text_keys(parse(text)))


@dataclass
class _Statement:
    """What a sentence states.

    Args:
        sentence: the sentence.
        verb: the verb before the answer.
        behind: what stands behind the verb; all of the text without one.
        whole: the same, or all of the text if it denies or bounds what is behind the verb.
        clause: the first clause of `whole`.
    """

    sentence: _Sentence
    verb: re.Match[str] | None
    behind: str
    whole: str
    clause: str

    @property
    def text(self) -> str:
        """The text of the sentence."""
        return self.sentence.text

    @property
    def searched(self) -> str:
        """The clause if it has mathematics, else all of the text."""
        if find_spans(self.clause):
            return self.clause
        return self.text


def _in_sentence(answer: Found, keys: Collection[str]) -> Iterator[str]:
    """Yield the parts of a phrase or line that may be the answer."""
    sentence = _Sentence(answer, keys, _plain_sentence(answer), answer.where != "line")
    for decide in _DECIDING:
        decided = decide(sentence)
        if decided is not None:
            yield from decided
            return
    statement = _statement(sentence)
    for rule in _STATING:
        yield from rule(statement)
    if _is_cut_in_two(statement):
        yield from _end_of_chain(statement)
        return
    for rule in _NAMING:
        yield from rule(statement)


def _plain_sentence(answer: Found) -> str:
    """Return the text of an answer with plain signs, without what it denies or asks."""
    text = without_denied(plain_characters(_PROSE_DASH.sub(", ", answer.text)).strip())
    text = _ANGLES.sub(r"(\1)", _EXACT.sub(r"\1, or \2", _HEDGE.sub(" or ", text)))
    if _GERMAN.search(text):
        text = _THUS.sub(", so ", text)
    text = _OR_WORD.sub(" or ", _AND_WORD.sub(" and ", text))
    if _EXCLAIMED.search(text):
        text = text.removesuffix("!")
    if answer.where != "line":
        return text
    text = _ENUMERATED.sub("", text)
    asked = _ASKED.match(text) or _ASKED_FOR.match(text)
    if asked:
        return text[asked.end() :]
    return text


# ---- rules that decide at once: they return the only candidates, or None if they do not apply -----------------------

Decision = Iterable[str] | None


def _derivation(sentence: _Sentence) -> Decision:
    """Decide for the last step of a derivation."""
    text = sentence.answer.text
    if _DERIVATION.match(text) and (last := last_step(text)):
        return [last]
    return None


def _factorial(sentence: _Sentence) -> Decision:
    """Decide for a line that is a factorial; in a sentence, its mark may be an exclamation."""
    text = sentence.answer.text.strip(" *")
    if not sentence.is_phrase and re.fullmatch(r"\d+!", text):
        return [text]
    return None


def _correction(sentence: _Sentence) -> Decision:
    """Decide for what corrects the answer behind it."""
    corrected = _corrected(sentence.text, sentence.answer.behind)
    if corrected:
        return candidates(Found(conclusion(corrected), "phrase"), sentence.keys)
    return None


def _contrast(sentence: _Sentence) -> Decision:
    """Decide for what is said instead of a denied value: "not 6 but 5"."""
    instead = contrast(sentence.text)
    if instead and find_spans(instead):
        return candidates(Found(instead, "phrase"), sentence.keys)
    return None


def _unmet_condition(sentence: _Sentence) -> Decision:
    """Decide for the conclusion behind a value that would hold under another condition."""
    condition = re.search(IF_IT_WERE, sentence.text)
    if not sentence.is_phrase or condition is None:
        return None
    concluded = conclusion(sentence.text)
    if concluded != sentence.text:
        return candidates(Found(concluded, "line"), sentence.keys)
    return None


def _no_statement(sentence: _Sentence) -> Decision:
    """Decide that a denial, a question or a text that was cut off states nothing."""
    if sentence.is_phrase and begins_with_denial(sentence.text):
        return []
    if not sentence.is_phrase and sentence.text.endswith("?"):
        return _above(sentence.answer, sentence.keys)
    if _CUT_OFF.search(sentence.text):
        return []
    return None


def _list_literal(sentence: _Sentence) -> Decision:
    """Decide for the items of a list of strings of code."""
    listed = _STRINGS.fullmatch(sentence.text)
    if listed:
        return [re.sub(r"(?:^|(?<=,))\s*['\"]|['\"]\s*(?=,|$)", " ", listed[1]).strip()]
    return None


def _yes_or_no(sentence: _Sentence) -> Decision:
    """Decide for the verdict of a line, or of the text's first line, if the reference is one."""
    if sentence.keys.isdisjoint(YES_NO.keys()):
        return None
    verdict = verdict_of_line(sentence.text) or opening_verdict(sentence.answer.first)
    if verdict:
        return [verdict]
    return None


def _marked(sentence: _Sentence) -> Decision:
    """Decide for what is bold or code at the end, if it is the reference."""
    if is_marked_answer(sentence.answer.marked, sentence.text, sentence.keys):
        return [sentence.answer.marked]
    return None


def _asides(sentence: _Sentence) -> Decision:
    """Leave out of the sentence what is not stated: reasons, parts, contrasts, clauses about time."""
    text = sentence.text
    if sentence.is_phrase:
        sentence.text = without_parts(behind_reason(text, OWN_REASON_CLAUSE))
        return None
    text = before_reason(without_parts(conclusion(text)))
    main = without_contrast(text)
    if main != text and (find_spans(main) or only_count(main)):
        text = main
    text = without_subordinate(text, list(find_spans(text)))
    sentence.text = COUNTED_FROM.split(text)[0]
    if _ASKS.match(sentence.text) and "=" not in sentence.text:
        return []
    return None


def _share(sentence: _Sentence) -> Decision:
    """Decide for a share in words of a known number."""
    share = _SHARE_OF.match(sentence.text)
    if share and read_numeral(share[1]) is not None and len(find_spans(sentence.text)) == 1:
        return [share[1]]
    return None


def _colon(sentence: _Sentence) -> Decision:
    """Decide for the value behind a colon."""
    stated = behind_colon(sentence.text)
    if stated and not sentence.is_phrase:
        return [stated]
    return None


_DECIDING: tuple[Callable[[_Sentence], Decision], ...] = (
    _derivation, _factorial, _correction, _contrast, _unmet_condition, _no_statement, _list_literal, _yes_or_no,
    _marked, _asides, _share, _colon,
)  # fmt: skip


# ---- rules for what a sentence states: each yields candidates ------------------------------------------------------


def _statement(sentence: _Sentence) -> _Statement:
    """Return what a sentence states, behind its verb and in its first clause."""
    text = sentence.text
    verb = find_verb(text, sentence.is_phrase)
    behind = text[verb.end() :] if verb else text
    whole = behind
    if verb and (has_denial(_COUNTED_SUBJECT.sub(" ", text[: verb.end() + 4])) or _AT_LEAST.match(behind)):
        whole = text
    clause = whole
    if not _LISTED_WORDS.fullmatch(whole) and (sentence.is_phrase or whole != text):
        clause = whole[: end_of_clause(whole)]
    return _Statement(sentence, verb, behind, whole, clause)


def _time_of_day(statement: _Statement) -> Iterator[str]:
    """Yield a time of day in words."""
    time = SPOKEN_TIME.search(statement.text)
    if time and read_spoken_time(time[0]) and _states_time(statement.text, time):
        yield time[0]


def _share_in_words(statement: _Statement) -> Iterator[str]:
    """Yield a share of one in several: "one in four pupils"."""
    share = _ONE_IN.search(statement.text)
    count = read_numeral(share[1]) if share else None
    if count is not None and not find_spans(statement.text):
        yield f"1/{count}"


def _number_in_words(statement: _Statement) -> Iterator[str]:
    """Yield a number in words, with its unit."""
    count = leading_count(statement.behind) if statement.verb else ""
    after = statement.behind[len(count) :]
    if OFFSET.match(after) or is_denied(after):
        count = ""
    if not count and not re.search(r"\d", statement.text):
        count = only_count(statement.text)
    if count and not are_names(statement.sentence.keys):
        yield with_spelt_unit(statement.text, count)


_STATING = (_time_of_day, _share_in_words, _number_in_words)


def _is_cut_in_two(statement: _Statement) -> bool:
    """Return True if the clause is no statement of its own: a condition, an operation or a denial goes on behind it."""
    rest = statement.whole[len(statement.clause) :]
    if GOES_ON.match(rest) or is_denied(rest) or is_unread_chain(statement.clause):
        return True
    return is_counterfactual(statement.text, rest, statement.sentence.is_phrase)


def _end_of_chain(statement: _Statement) -> Iterator[str]:
    """Yield the value behind the last equals sign."""
    chain = _END_OF_CHAIN.search(statement.text)
    if chain:
        yield chain[1]


def _same_words(statement: _Statement) -> Iterator[str]:
    """Yield the text, its clause or the name that it is about, if it is the reference in words."""
    phrases = [statement.text, statement.clause]
    if statement.verb and statement.verb[0].endswith("the "):
        phrases.append(f"the {statement.clause}")
    phrases.append(_NOTE.sub("", statement.text))
    cleft = CLEFT.match(statement.text)
    if cleft:
        phrases.append(cleft[1])
    yield from filter(statement.sentence.names, dict.fromkeys(phrases))


def _list_of_words(statement: _Statement) -> Iterator[str]:
    """Yield a list of at least three names."""
    if _LISTED_WORDS.fullmatch(statement.whole):
        yield statement.whole


def _called_formula(statement: _Statement) -> Iterator[str]:
    """Yield a formula behind the word for it, and a range in words."""
    called = _CALLED.fullmatch(statement.clause)
    if called and is_value(called[1]):
        yield called[1]
    multiple = _MULTIPLE_OF_UNKNOWN.fullmatch(statement.clause)
    if multiple and statement.verb:
        yield multiple[1]
    between = BETWEEN.search(statement.text)
    if between and not re.search(r"\d", statement.text[: between.start()]):
        yield between[0]


def _changed_value(statement: _Statement) -> Iterator[str]:
    """Yield what something changes to: "the price was lowered from 80 to 60"."""
    change = _CHANGE.search(statement.clause)
    if change and is_value(change[1]):
        yield change[1]


def _name(statement: _Statement) -> Iterator[str]:
    """Yield the name that a sentence states, if it is the reference."""
    keys = statement.sentence.keys
    name = (
        stated_name(statement.clause, keys)
        or stated_subject(statement.text, keys)
        or stated_formula(statement.text, keys)
    )
    if name:
        yield name


def _whole_value(statement: _Statement) -> Iterator[str]:
    """Yield the clause and the text if all of it is a value."""
    phrases = [statement.clause, statement.text.rstrip(".")]
    if statement.verb is None:
        phrases.reverse()
    yield from filter(is_value, dict.fromkeys(phrases))


def _sum_of_units(statement: _Statement) -> Iterator[str]:
    """Yield a quantity in several units."""
    total = _SUM_OF_UNITS.search(statement.searched)
    if total and _is_sum(total[0]) and not has_denial(statement.searched[: total.start()]):
        yield total[0]


def _one_value(statement: _Statement) -> Iterator[str]:
    """Yield the value that the clause or the text states: the first one behind a verb, else the last one."""
    searched = statement.searched
    is_phrase = statement.sentence.is_phrase
    spans = without_known(searched)
    if not is_phrase:
        spans = without_asides(with_words_for_known(searched, spans), spans)
    if not spans:
        yield from _without_value(statement)
        return
    start, end = spans[-1]
    if is_phrase or searched is not statement.text:
        start, end = spans[0]
    if _is_stated(searched, start, end, is_phrase):
        yield with_unit(searched, start, end)


def _is_stated(text: str, start: int, end: int, is_phrase: bool) -> bool:
    """Return True if a text says that the value at a place is the answer, and not more or less than that."""
    before = re.split(r"[.;:,]\s", text[:start])[-1]
    after = text[end:]
    if is_denied_before(before, after) or is_denied(after) or GOES_ON.match(after):
        return False
    if not before and OFFSET.match(after):
        return False
    return not is_counterfactual(text[:start], after, is_phrase)


def _without_value(statement: _Statement) -> Iterator[str]:
    """Yield a text without mathematics and its clause as they stand, and what the line above them says."""
    if len(statement.text) < LONGEST_WORDS:
        yield statement.text
        if statement.clause != statement.text and not has_denial(statement.text):
            yield statement.clause
    yield from _above(statement.sentence.answer, statement.sentence.keys)


_NAMING = (_same_words, _list_of_words, _called_formula, _changed_value, _name, _whole_value, _sum_of_units, _one_value)

LONGEST_WORDS = 200
"""The most characters of an answer in words."""
_DERIVATION = re.compile(r"&|.*\\(?:begin\{a|Rightarrow|implies|therefore)")
_STRINGS = re.compile(r"\[(\s*['\"].*['\"]\s*)\]\.?")
_MULTIPLE_OF_UNKNOWN = re.compile(r"\$?\d+[a-z]\s*=\s*([-\d.][^=$]*?)\$?\.?")
"""A multiple of an unknown with its value: "the angle is 3x = 90"."""
_COUNTED_SUBJECT = re.compile(
    r"(?i)\b(?:probability|chance|likelihood|odds|number|share|percentage|fraction|proportion)\b[^.;:]*?(?=\b(?:is|are|was|equals)\b)"
)
"""What is counted or how likely it is, which may have a denial: "the number of people who do not dance is"."""
_ONE_IN = re.compile(r"\b[Oo]ne\s+(?:in|out\s+of)\s+(?:every\s+)?([a-z]+)\b")
_CHANGE = re.compile(r"^[a-z]+(?:ed|en)\s+from\s+\S+\s+to\s+([^,;]+?)\.?$")
_AT_LEAST = re.compile(r"at (?:least|most)\s")
_CALLED = re.compile(
    r"(?:equation|formula|function|expression|inequality|interval|range|set|form)\s+(\$[^$]+\$|\\\(.+\\\))\.?"
)
"""A formula behind the word for it: "equation $x + y = 1$"."""
_ITEM = r"[^\W\d_]+(?: (?!and\b)[^\W\d_]+)?"
_LISTED_WORDS = re.compile(rf"{_ITEM},\s+{_ITEM}(?:,\s+{_ITEM})*(?:,?\s+and\s+{_ITEM}|,\s+{_ITEM})\.?")
"""At least three items of one or two words: "red, green, and blue"."""
_SHARE_OF = re.compile(
    r"(?i)(?:(?:so|thus|hence|therefore|then),?\s+)?([a-z]+(?:[- ][a-z]+){0,2}?)\s+of\s+"
    r"(?:(?:the|all|his|her|its|their|our)\s+){1,2}\d"
)
"""A share in words of a known number: "two fifths of the 30 pupils"."""
_FROM_TIME = re.compile(r"(?i)\b(?:after|before|from|until|till|since|between|by)\s+$")


def _states_time(text: str, time: re.Match[str]) -> bool:
    """Return True for a time of day that its sentence neither denies nor counts from."""
    before = text[: time.start()]
    return not _FROM_TIME.search(before) and not is_denied_before(before, text[time.end() :])


_SUM_OF_UNITS = re.compile(r"\d+(?:\.\d+)?\s*[A-Za-z]+\.?\s*(?:,|(?:and|y|und|et|e|en)\b)?\s*\d+(?:\.\d+)?\s*[A-Za-z]+")


def _is_sum(text: str) -> bool:
    """Return True for a quantity in several units: "1 hour and 30 minutes"."""
    return any(isinstance(value, Quantity) and value.is_sum for value in parse(text))


_EXCLAIMED = re.compile(r"(?<=[a-z]{3}\s)[$\\]*\d[\d.,]*\$?!$")
"""A number at the end of a sentence with an exclamation mark, which is no factorial: "That makes 24!"."""
_NOTE = re.compile(r"(?<=\w)\s+\((?!\s*(?:not?|wrong|false)\b)[^()]*\)\.?$")
"""A note in brackets at the end of a line: "Marie Curie (1867-1934)"."""
_HEDGE = re.compile(
    r"(?<=[,(])\s*(?:or|i\.e\.,?|which is|also|d\.h\.|bzw\.|soit|es decir,?|o sea|ou seja|cio\u00e8)\s+"
    r"(?:roughly|about|approximately|around|nearly|circa|\\approx|rund|etwa|ca\.|ungef\u00e4hr|environ|aproximadamente)\s+"
    r"(?=[$\\]*\d)"
)
"""A word before an approximation of the value before it."""


def _above(answer: Found, keys: Collection[str]) -> Iterator[str]:
    """Yield the parts of the line above a last one without a value, unless that one is an answer in words."""
    if answer.above and not _OPTION_LETTER.search(answer.text) and not verdict_of_line(answer.text):
        yield from candidates(Found(answer.above[-1], "line", above=answer.above[:-1]), keys)


def _corrected(text: str, behind: str) -> str:
    """Return the line that corrects an answer with another value, which stands behind it; "" if none does."""
    after = correction(f"{text}\n{behind}").partition("\n")[0]
    if not after:
        return ""
    values = [
        after[start:end] for start, end in find_spans(after) if not re.search(r"\d\s*[-+*/]\s*\d", after[start:end])
    ]
    if after in text:
        original = text[: text.find(after)]
    else:
        original = text
    before = [original[start:end] for start, end in find_spans(original)]
    is_other = bool(values) and bool(before) and before[0].strip("$") not in [value.strip("$") for value in values]
    if is_other:
        return after
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
