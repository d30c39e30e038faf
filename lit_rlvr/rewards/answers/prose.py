"""Answers in prose: the part of a phrase or line that is the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as Collection
from dataclasses import replace

from lit_rlvr.rewards.answers.characters import plain_characters
from lit_rlvr.rewards.answers.find import Found
from lit_rlvr.rewards.answers.latex import clean
from lit_rlvr.rewards.answers.parse import LONGEST, parse
from lit_rlvr.rewards.answers.units import read_numeral
from lit_rlvr.rewards.answers.values import Labelled, Reading, Series, Text, text_keys

_NUMBER = r"(?:[$\u20ac\u00a3\u00a5\u20b9]\s?)?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?|\.\d+"
_LATEX = r"\\[A-Za-z]+(?:\s*[\[{](?:[^{}\[\]]|\{(?:[^{}]|\{[^{}]*\})*\})*[\]}])*|\\[%$,;! {}]"
_LETTER = r"(?<![A-Za-z'\\])[A-Za-z](?![A-Za-z'])"
_SIGN = r"[-+*/^=<>!|_:\u00b1\u00d7\u00f7]"
_TOKEN = rf"(?:{_NUMBER}|{_LATEX}|{_LETTER}|{_SIGN}|[()\[\]{{}},])"
_SPAN = re.compile(rf"{_TOKEN}(?:\s*{_TOKEN})*")
_DELIMITED = re.compile(r"\$\$?([^$]+)\$\$?(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_CLAUSE = re.compile(
    r"[.;?](?:\s|$)|!(?=\s+[A-Z][a-z]|\s*$)|,?\s+\(?(?:because|since|which|as|so|when|where|for|that|with|after"
    r"|altogether|in total|i\.e\.|if|but|by)\b"
    r"|,\s+(?=(?!and\b|or\b)[a-z]{2,})|\s+-\s+(?=[a-z]{2,})|\s\((?![A-J]\))|:\s"
)
_THERE = re.compile(r"(?i)\bthere\s+(?:is|are|was|were|remains?)\s+")
_VERB = re.compile(
    r"(?<!that )(?<!which )(?<!who )(?<!where )\b(?:is|are|was|were|equals?|becomes?|gives?|get|obtain|have|has)\s+"
    r"(?:that\s+)?(?:the\s+)?"
)
_GOES_ON = re.compile(
    r"(?i)\$?\s*(?:(?:or|to|plus|minus|times|divided)\b|(?:percent|%)\s+of\b|\?|\(\s*wrong\b|(?:if|when|for)\b.*"
    r"\b(?:if|otherwise|else)\b)"
)
"""Behind a value: it is not the answer, or not all of it."""
_NEGATED = re.compile(
    r"(?i)\b(?:not|cannot|never)\b|n't\b|\u4e0d\u662f|\u4e0d\u7b49\u4e8e|\u5e76\u975e"
    r"|\u81f3[\u5c11\u591a]|\u4e0d(?:\u8d85\u8fc7|\u5c11\u4e8e)|[\u8d85\u5927\u5c0f][\u8fc7\u4e8e]"
    r"|\b(?:at (?:least|most)|(?:more|less|greater|fewer|larger|smaller) than|between|up to)\s*\$?$"
)
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
    return text.removesuffix("}").strip() if text.count("}") > text.count("{") else text


def candidates(answer: Found, keys: Collection[str]) -> Iterator[str]:
    """Yield the parts of what was found that may be the answer, the likeliest first."""
    if not answer.text:
        return
    prose = in_prose(answer.text)
    if answer.where in ("box", "tag"):
        yield answer.text
        if last := last_step(prose or answer.text):
            if not prose:
                yield last
            yield from candidates(Found(last if prose else clean(last), "line"), keys)
        elif len(answer.text) <= LONGEST and re.search(r"[A-Za-z]{2}.*\s.*[A-Za-z]{2}", answer.text):
            is_sentence = re.match(r"(?!\\|(?i:yes|no|true|false)\b)[A-Za-z]+,?\s+[A-Za-z]", prose or answer.text)
            yield from candidates(Found(prose or clean(answer.text), "line" if is_sentence else "phrase"), keys)
        return
    if prose:
        yield from candidates(replace(answer, text=prose), keys)
        return
    if re.match(r"&|.*\\(?:begin\{a|Rightarrow|implies|therefore)", answer.text) and (last := last_step(answer.text)):
        yield last
        return
    text = plain_characters(_PROSE_DASH.sub(", ", answer.text)).strip()
    is_phrase = answer.where != "line"
    if is_phrase and _NEGATED.match(text):
        return
    if listed := re.fullmatch(r"\[(\s*['\"].*['\"]\s*)\]\.?", text):  # a list literal
        yield re.sub(r"(?:^|(?<=,))\s*['\"]|['\"]\s*(?=,|$)", " ", listed[1]).strip()
        return
    verb = None if is_phrase else _THERE.search(text) or max(_VERB.finditer(text), key=re.Match.start, default=None)
    statement = text[verb.end() :] if verb else text
    if count := _count(statement if verb else text if not re.search(r"\d", text) else ""):
        yield count
    if verb and _NEGATED.search(text[: verb.end() + 4]):
        statement = text
    cut = _CLAUSE.search(statement) if is_phrase or statement != text else None
    clause = statement[: cut.start()] if cut else statement
    if _GOES_ON.match(statement, len(clause)):
        return
    for phrase in dict.fromkeys((text, clause)):
        if not keys.isdisjoint(text_keys(parse(phrase))):
            yield phrase
    for phrase in dict.fromkeys((text.rstrip("."), clause)):
        if _is_value(phrase):
            yield phrase
    searched = clause if next(_spans(clause), None) else text
    spans = list(_spans(searched))
    for start, end in spans[:1] if is_phrase or searched is not text else spans[-1:]:
        before, after = re.split(r"[.;:,]\s", searched[:start])[-1], searched[end:]
        if not _NEGATED.search(before) and not _GOES_ON.match(after):
            yield _with_unit(searched, start, end)
    if not spans:
        if len(text) < 200:
            yield text
        if answer.above:
            yield from candidates(Found(answer.above[-1], "line", above=answer.above[:-1]), keys)


def _count(text: str) -> str:
    """Return the number in words that a text begins with; "" if it begins with something else, or with "one of"."""
    words = re.match(r"(?:exactly |only |a total of )?([A-Za-z]+(?:[- ][A-Za-z]+){0,3})(?![-\w])(?! of\b)", text)
    pieces = re.split(r"(-| (?!of\b))", words[1]) if words else []
    for length in range(len(pieces), 0, -2):
        run = "".join(pieces[:length])
        if pieces[length : length + 1] != ["-"] and run.lower() not in ("a", "an") and read_numeral(run) is not None:
            return run
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
    value = value.strip("$") if value.count("$") % 2 else value
    return value if sign or before else ""


def _items(value: Reading) -> Iterable[Sequence[Reading]]:
    if isinstance(value, Labelled):
        return (item for items in value.values.values() for item in items)
    return value.items if isinstance(value, Series) else ()


def _is_value(phrase: str) -> bool:
    """Return True if a whole phrase means something besides its words."""
    return len(phrase) < 200 and any(
        not isinstance(value, Text) and not any(all(isinstance(v, Text) for v in item) for item in _items(value))
        for value in parse(phrase)
    )


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where mathematics stands in prose; lists of it ("3 and 4") are one."""
    spans: list[tuple[int, int]] = []
    taken = [match.span() for match in _DELIMITED.finditer(text) if _is_mathematics(match)]
    for match in _SPAN.finditer(text):
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
    yield from joined


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
    return [(start, end)] if re.search(r"\d|\\", text[start:end]) else []


def _with_unit(text: str, start: int, end: int) -> str:
    """Return a run of mathematics with the words behind it that belong to it: a magnitude, a unit."""
    span = text[start:end]
    words = re.match(r"(?:\s*(?!(?:and|or)\b)[A-Za-z\u4e00-\u9fff%/.]+){1,3}", text[end:])
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
