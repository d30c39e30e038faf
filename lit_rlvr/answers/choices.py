"""The options of a multiple-choice question that an answer names.

All functions are pure and linear in the text's length, because completions are untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from string import ascii_uppercase

from lit_rlvr.answers.characters import ALPHABET, plain_characters
from lit_rlvr.answers.find import answer_region, find_answer, last_boxed, normalise
from lit_rlvr.answers.retracted import CORRECTION, IF_IT_WERE, MAYBE, NOT, PREFERRED

YES_NO_OPTIONS = ("yes", "no")
LETTERS = ascii_uppercase[:10]
"""The letters of a question whose options are not known."""

_FORMATS = (
    r"(?:text|math)(?:bf|it|rm|tt|sf|sc|normal)?|bf|it|rm|tt|sf|bfseries|bold(?:symbol|ed)?|bm|emph|underline|mbox|hbox|"
    r"displaystyle|large|Large|huge|Huge|q?quad"
)
_MARKUP = re.compile(
    rf"\\(?:{_FORMATS})(?![A-Za-z])|\\[()\[\],;:! ]|[$`*~]|(?<!\w)__|__(?!\w)|^[ \t]*[#>]+", re.MULTILINE
)
_TAG = re.compile(r"</?\|?[A-Za-z_]+\|?>")
_BRACES = re.compile(r"(?<![\w}^])\{([^{}]*)\}")
_CJK = "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_SCRIPTS = re.compile(rf"(?<={_CJK})(?=[A-Za-z(])|(?<=[A-Za-z)])(?={_CJK})")
_BRACKETS = str.maketrans("\u3010\u3011\u3016\u3017\u300a\u300b\u300e\u300f", "()()()()")

_ANSWER = (
    "answer|option|choice|answers|solution|opci\u00f3n|op\u00e7\u00e3o|opzione|optie|alternativa|variante|\u0432\u0430\u0440\u0438\u0430\u043d\u0442|"
    "r\u00e9ponse|antwort|l\u00f6sung|respuesta|risposta|resposta|\u043e\u0442\u0432\u0435\u0442|"
    "\u7b54\u6848|\u7b54\u3048|\u6b63\u89e3|\u6545\u9009|\u9009\u9879|\uc815?\ub2f5"
)
_MARKER = re.compile(
    rf"(?:{_ANSWER})(?:(?! [A-Z]\b)[ \w]){{0,30}}?\s*"
    r"(?:[:=]|\b(?:is|are|would be|should be|must be|est|ist|es|\u00e9|\u00e8)\b"
    r"|\u5e94\u8be5\u662f|\u5e94\u4e3a|(?<!\u4e0d)\u662f|(?<![\u56e0\u8ba4\u4f5c\u6210])\u4e3a|\u306f|[\uc740\ub294])(?!\s*n[o']t\s*$)|\(\u7b54\u6848\)\s*:?",
    re.IGNORECASE,
)
_LISTED = re.compile(r"[ \t]*(?:[-+\u2022][ \t]*)?\(?([A-Za-z])[.:)]+(?=\s)")
_FILLER = (
    r"so|thus|hence|therefore|then|clearly|obviously|definitely|probably|likely|i|i'd|i'll|we|you|my|the|this|that|it|"
    r"its|it's|that's|one|is|are|be|was|would|should|must|will|can|think|believe|say|guess|choose|chose|pick|picked|"
    r"select|selected|go|going|went|with|for|to|answer|final|correct|right|best|most|appropriate|true|option|choice|"
    r"letter|both|either|but|la|el|le|il|lo|die|der|das|letra|lettre|lettera|buchstabe|\u6b63\u786e|\u7b54\u6848|\u9009\u9879|\u9009\u62e9|\u5e94\u8be5|\u6240\u4ee5|\u56e0\u6b64|"
    r"\u672c\u9898|(?:\u672c\u9898|\u7b54\u6848|\u56e0\u6b64|\u6240\u4ee5)\u5e94?\u9009|\u5e94\u9009|\u6545\u9009|\u6545|\u9009|\u662f|\u4e3a|\u5e94|\u9879"
)
_FILLERS = rf"(?i:(?:[\s:,=\"'(\[|-]|(?<![^\W_])(?:{_FILLER})(?![^\W_]))*)"
_CAUSE = r"because|since|as|for|due|given|considering|\u56e0\u4e3a|\u7531\u4e8e"
_REASON = re.compile(
    rf"(?i)(?<![^\W_])(?:{_CAUSE}|while|whereas|although|though|but|which(?! (?:leaves|means)\b)|where|explanation"
    r"|reason|\u7406\u7531|\u89e3\u91ca)(?![^\W_])"
)
_REASON_CLAUSE = re.compile(rf"{_REASON.pattern}[^,.;\n]*")
_VERDICT = (
    r"(?:(?:is|was|would be|must be|should be|seems|looks|appears|fits|matches)(?: \w+){0,2} "
    r"(?:correct|right|best|answer|choice|option|true|one)|best|remains|is left|it is)(?![^\W_])"
    r"|\u662f?\u6b63\u786e|\u9009?\u9879"
)
_CALLED_RIGHT = re.compile(rf"\)?\s+(?:{_VERDICT})")
_SPOKEN = (
    r"(?:it|that|this|the|correct|right|best|better|answer|option|choice|letter|is|be|should|must|would|may|might|i|i'd|we|think|"
    r"choose|pick|mean|meant|say|wait|no|actually|sorry|go|with|for|rather|really)"
)
_NEXT_WORD = (
    rf"(?:{_CAUSE}|but|so|or|and|rather|instead|not|here|\u662f\u6b63|\u3067\u3059|\u3060|\uc785\ub2c8\ub2e4)"
    rf"(?![^\W_])|{_VERDICT}"
)
_NOT = (
    rf"(?:(?<![^\W_])(?:{NOT}|neither|nor|rather than|instead of|over|other than|except|unlike|(?:anything|all|any) but"
    r"|close to|far from|different from|(?:rule|ruled|ruling) out|(?:eliminat|exclud|reject|discard)\w+)|n't|"
    r"\u4e0d\u662f|\u4e0d\u9009|\u800c\u975e)"
    r"(?:\s+(?:be|have|been|the|an?|option|choice|answer|letter|for|\u9009\u9879))*(?:\s+(?:[:(\"']\s*)?|[:(\"']\s*)"
)
_SEVERAL = r"\(?[A-Z]\)?(?:\s*,\s*\(?[A-Z]\)?)*,?\s+(?:and|or|und|et|y)\s+\(?[A-Z]\)?(?![^\W_])"
_EXCLUDED = r"(?:wrong|incorrect|false|impossible|excluded|eliminated|rejected|discarded|(?:ruled )?out)(?![^\W_])"
_OTHERS = re.compile(
    rf"(?<![^\W_]){_SEVERAL}\s+(?:(?:can|could|must|may|should) be|are) {_EXCLUDED}"
    rf"|(?<![^\W_]){_SEVERAL}\s+(?:fail|(?:do|can)(?: ?not|n['\u2019]t)\s+(?:work|fit|hold|apply|match))(?![^\W_])"
    rf"|(?i:\b(?:rul\w+ out|eliminat\w+|exclud\w+|reject\w+|discard\w+))\s+{_SEVERAL}"
)
"""Several options that a text excludes together: "A, B and D are wrong", "ruling out A and C"."""
_WRONG_ANSWER = re.compile(
    r"(?i)(?<![^\W_])(?:wrong|incorrect|false|falsche|mauvaise|fausse|incorrecta"
    rf"|\u043d\u0435\u043f\u0440\u0430\u0432\u0438\u043b\u044c\u043d\w+)\s+(?:{_ANSWER})[^.;\n]*"
)
"""An answer that a text calls wrong: "Wrong answer: D"."""
_WRONG = (
    r"\s*\)?\s*\?\s*(?:no|nope|not)(?![^\W_])|\)?\s+(?:(?:is|was|are|can|could|would|must|should|does|do|did|has)\s*n[o']t|(?:is|was|are|seems|looks)"
    r"(?: \w+)? (?:wrong|incorrect|false|excluded|eliminated|impossible|unlikely)|\u4e0d\u6b63\u786e|\u9519)(?![^\W_])"
    rf"|\)?\s+would\s+(?:be|have\s+been|hold)\b[^.;,\n]*?\b{IF_IT_WERE}"
)


def named_options(
    completion: str, boxed_only: bool, texts: tuple[str, ...], has_letters: bool, letters: str = LETTERS
) -> frozenset[int]:
    """Return the numbers of the options that a completion's answer names, from 0.

    They are several only for options with the same text. An answer that names two options names none; one that is
    corrected ("D. No, it is A.") is what it is corrected to.

    Args:
        completion: the text of the completion.
        boxed_only: only boxes hold an answer.
        texts: the options; () = only letters are known.
        has_letters: False if only the texts name an option.
        letters: the letters of options whose texts are not known.
    """
    answer = find_answer(completion, boxed_only)
    if not answer.text:
        return frozenset()
    reader = _reader(texts, has_letters, letters)
    if answer.where in ("box", "tag"):
        if not boxed_only:
            corrected = reader.corrected(f". {_without_markup(answer.behind)}")
        else:
            corrected = frozenset()
        return corrected or _named_in(_without_markup("; ".join(answer.boxes) or answer.text), reader)
    if answer.where == "hash":
        return _named_in(_without_markup(answer.text), reader)
    return _named_in(_without_markup(answer_region(completion)), reader)


def _named_in(region: str, reader: _Reader) -> frozenset[int]:
    """Return the options that a text without markup names: behind its last marker, else in its last lines or first."""
    exact = reader.exact(region)
    if exact:
        return exact
    region = _WRONG_ANSWER.sub(" ", region)
    for stated in reversed(_MARKER.split(region)[1:]):
        line, _, below = stated.strip().partition("\n")
        named = reader.named(line)
        if named is not None:
            return reader.corrected(f". {below.strip()[:300]}") or named
    return next(filter(None, map(reader.named, _outer_lines(region))), frozenset())


def referenced_options(reference: str, texts: tuple[str, ...], has_letters: bool) -> frozenset[int]:
    """Return the numbers of the options that a reference answer names; none if it is no option."""
    answer = _without_markup(last_boxed(reference) or reference)
    reader = _reader(texts, has_letters)
    return reader.exact(answer) or (has_letters and reader.marked(answer)) or frozenset()


def _without_markup(text: str) -> str:
    """Return the text without markup, tags and brackets of other scripts."""
    text = _TAG.sub("\n", plain_characters(text).translate(_BRACKETS))
    text = _MARKUP.sub(" ", text)
    for _ in range(2):
        text = _BRACES.sub(r"\1", text)
    return _SCRIPTS.sub(" ", text).strip()


def _outer_lines(region: str) -> Iterator[str]:
    """Yield the last line and the first one; leave out a line of a list that names several letters."""
    paragraphs = [part.strip().splitlines() for part in re.split(r"\n\s*\n", region) if part.strip()]
    if paragraphs:
        outer = [(paragraphs[-1], -1), *_above_courtesies(paragraphs), (paragraphs[0], 0)]
    else:
        outer = []
    for paragraph, line in outer:
        listed = [_LISTED.match(text) for text in paragraph]
        letters = {match[1].upper() for match in listed if match}
        if not (listed[line] and len(letters) > 1):
            yield paragraph[line]


def _above_courtesies(paragraphs: list[list[str]]) -> list[tuple[list[str], int]]:
    """Return the last line above at most two last paragraphs of one line without a number."""
    count = 0
    while count < min(2, len(paragraphs) - 1):
        last = paragraphs[-1 - count]
        if len(last) > 1 or any(map(str.isdigit, last[0])):
            break
        count += 1
    return [(paragraphs[-2 - k], -1) for k in range(count)]


_LETTER_GROUPS = ("letter", "bracketed", "right", "only", "small")
"""Names of the groups that hold a letter in the patterns of `_Reader`."""


class _Reader:
    """The patterns of one question's options.

    Args:
        texts: the options.
        has_letters: their letters name them, too.
        letters: those of options without known texts.
    """

    def __init__(self, texts: tuple[str, ...], has_letters: bool, letters: str = LETTERS) -> None:
        if has_letters:
            letters = ascii_uppercase[: len(texts)] or letters
        else:
            letters = ""
        self._texts = [_without_markup(text).rstrip(". ") for text in texts]
        self.is_yes_no = {*map(normalise, texts)} == {*YES_NO_OPTIONS}
        known = {*self._texts, *map(_without_article, self._texts)} - {""} if not self.is_yes_no else ()
        words = sorted(known, key=len, reverse=True)
        text = "|".join(re.sub(r"\\?\s+", r"\\s+", re.escape(word)) for word in words) or "(?!)"
        any_letter = f"[{letters}{letters.lower()}]" if letters else "(?!)"
        letter = rf"(?<![^\W_])(?<![^\W_]['\u2019])(?P<letter>{any_letter})(?![^\W_]|['\u2019]\w)"
        end = (
            rf"\s*$|\s*[,;:!?)\]}}\"'|\u2014\u2013](?!\d)|\s*\)|\s*\.(?![A-Za-z0-9])|\s*-(?=\s|$)|\s+\("
            rf"|\s+(?i:{_NEXT_WORD})"
        )
        named_text = rf"(?<![^\W_])(?i:(?:an?|the)\s+)?(?P<text>(?i:{text}))"
        text = rf"{named_text}(?={end}|\s+{any_letter}(?![^\W_]))"
        own_text = rf"[.:)\s-]*(?i:{text.replace('?P<text>', '?:')})"
        self._pure = re.compile(rf"\W*(?i:(?:option|choice|answer)\W*)?{letter}\W*")
        self._first = re.compile(
            rf"{_FILLERS}(?:{text}|{letter}(?={end}|\.(?![A-Za-z]\.)|\s*[/&(]|\s+{any_letter}(?![^\W_])|{own_text}))"
        )
        separator = r"(?!\.\s+(?:Both|Either)\b)[\s,;:.?!()\[\]\"'|/&+\u2014\u2013-]*"
        separator += rf"(?i:(?:(?:or|and|else|plus|both|either|option|choice|letter|{MAYBE})\b[\s(]*)*)"
        follows = rf"\s*$|\s*[.,:;?!)/&|]|\s+(?i:or|and)\b|\s+{any_letter}(?![^\W_])"
        follows += r"|\s+(?i:both|are|fit|work|apply|hold|seem|look)\b"
        self._next = re.compile(rf"{separator}(?:{text}|{letter}(?={follows}|{own_text}))")
        upper = f"[{letters}]" if letters else "(?!)"
        self._list = re.compile(rf"(?<![^\W_])(?P<letter>{upper})(?:\)|[.:](?=\s+\S))")
        stated = r"(?<![^\W_])"
        stated += r"(?i:option|choice|letter|answer|is|be|choose|pick|select|with|so|hence|thus|therefore"
        stated += r"|leaves?|leaving|means"
        stated += r"|\u9009|\u9009\u9879|\u662f|\u4e3a)"
        upper_letter = letter.replace(any_letter, upper)
        self._stated = re.compile(
            rf"{stated}\s*:?\s*\(?(?:{text}|{upper_letter}(?={end}|\s*[/&]))"
            rf"|\({upper_letter.replace('?P<letter>', '?P<bracketed>')}\)"
            rf"|\({letter.replace('?P<letter>', '?P<small>')}\)(?=\s+{_VERDICT})"
            rf"|{upper_letter.replace('?P<letter>', '?P<right>')}(?=\)?\s+(?:{_VERDICT}|(?:is|does)[.!]?\s*$))"
            rf"|(?i:\bonly)\s+{upper_letter.replace('?P<letter>', '?P<only>')}(?=\s+[a-z]+(?:s|es|can)?(?![^\W_]))"
        )
        self._compile_changes(letter, upper_letter, text, named_text, end)

    def _compile_changes(self, letter: str, upper_letter: str, text: str, named_text: str, end: str) -> None:
        """Compile the patterns of what is corrected, left over, placed at the end or denied.

        Args:
            letter: the pattern of a letter.
            upper_letter: the pattern of a capital letter.
            text: the pattern of an option's text with what may follow it.
            named_text: the same without what follows.
            end: the pattern of what may follow a letter.
        """
        correct = rf"(?:^|[\s.,;:!?(\u2014])(?i:{CORRECTION})(?![\w'])[\s,:;.!\u2014-]*(?i:{_SPOKEN}\b[\s,:;.(-]*)*"
        self._corrected = re.compile(rf"{correct}(?:{text}|{upper_letter}(?={end}))")
        contrast = r"(?i:\b(?:but|although|though|however|yet|while|whereas))\b[\s,]+(?:\w+\s+){0,2}?\(?"
        self._contrasted = re.compile(rf"{contrast}(?:{upper_letter}|{named_text})\)?\s+(?i:{PREFERRED})")
        remaining = r"(?i:\b(?:leaves|leaving)(?:\s+(?:us|me|only|with|just|option|choice|answer))*)\s*\(?"
        self._left = re.compile(rf"{remaining}(?:{upper_letter}(?={end})|{named_text})")
        titled = rf"(?i:(?<![^\W_])(?:{_ANSWER}|letra|lettre|buchstabe))\s*:?\s*\(?{upper_letter}\)?"
        ends = (
            rf"(?:(?<![{ALPHABET}])[{ALPHABET}]{{1,3}}\s+"
            rf"|[\u3000-\u9fff\uac00-\ud7af]\s*)\(?{upper_letter.replace('?P<letter>', '?P<right>')}\W*$"
        )
        placed = rf"(?i:{_ANSWER})[^.;\n]{{0,40}}?\s\(?{upper_letter.replace('?P<letter>', '?P<bracketed>')}\W*$"
        self._placed = re.compile(rf"{titled}|{ends}|{placed}")
        item = rf"(?:{letter.replace('?P<letter>', '?:')}|{text.replace('?P<text>', '?:')})"
        self._negated = re.compile(
            rf"(?i:{_NOT}){item}(?:\s*(?i:or|nor)\s+\(?{item})*|{letter.replace('?P<letter>', '?:')}(?i:{_WRONG})"
        )

    def exact(self, answer: str) -> frozenset[int]:
        """Return the options of an answer that is only a letter or only an option's text."""
        match = self._pure.fullmatch(answer)
        if match:
            return self._numbers(match)
        return self._with_text(answer)

    def marked(self, answer: str) -> frozenset[int]:
        """Return the option of an answer that is a letter and its text: "B) liver", "(B) liver"."""
        listed = re.fullmatch(r"(?:\(?([A-Za-z])\)|([A-Z])[.:])\s*(\S.*)", answer, re.DOTALL)
        if listed is None or (listed[2] and not self._texts and not listed[3][0].isupper()):  # "E. coli"
            return frozenset()
        return self.named(answer) or frozenset()

    def named(self, phrase: str) -> frozenset[int] | None:
        """Return the options that a phrase names; None if it mentions no option.

        Options that contradict each other or are negated are none.
        """
        exact = self.exact(phrase)
        if exact:
            return exact
        if self.is_yes_no and (stated := self._yes_or_no(phrase)):
            return stated
        asserted, negated = self._negated.subn(" ", _OTHERS.sub(" ", phrase))
        corrected = self.corrected(asserted)
        if corrected:
            return corrected
        opening = self._first.match(asserted)
        if opening is not None:
            mentions, place = self._chain(opening, asserted)
            reason = _REASON.search(asserted, place)
            mentions += self._list.finditer(asserted, place, reason.start() if reason else len(asserted))
        else:
            asserted = _REASON_CLAUSE.sub(" ", asserted)
            mentions = [
                mention for stated in self._stated.finditer(asserted) for mention in self._chain(stated, asserted)[0]
            ]
        called_right = [mention for mention in mentions if _CALLED_RIGHT.match(asserted, mention.end())]
        mentions = called_right or mentions
        if not mentions and not negated:
            mentions = list(self._placed.finditer(phrase))
        if not mentions:
            if negated:
                return frozenset()
            return None
        return frozenset.intersection(*map(self._numbers, mentions))

    def corrected(self, phrase: str) -> frozenset[int]:
        """Return the option that a phrase says instead of those before; else none.

        It is a correction ("D. No, it is A.") or what is left over ("that leaves A").
        """
        for pattern in (self._corrected, self._contrasted, self._left):
            for match in pattern.finditer(self._negated.sub(" ", phrase)):
                if match.start():
                    return frozenset.intersection(*map(self._numbers, self._chain(match, phrase)[0]))
        return frozenset()

    def _chain(self, first: re.Match[str], phrase: str) -> tuple[list[re.Match[str]], int]:
        """Return a mention with those that follow it directly, as in "A, B or C", and where they end."""
        mentions = [first]
        while match := self._next.match(phrase, mentions[-1].end()):
            mentions.append(match)
        return mentions, mentions[-1].end()

    def _numbers(self, match: re.Match[str]) -> frozenset[int]:
        """Return the options of a match, by its letter or its text."""
        groups = match.groupdict()
        letter = next((groups[name] for name in _LETTER_GROUPS if groups.get(name)), "")
        if letter:
            return frozenset({ascii_uppercase.index(letter.upper())})
        return self._with_text(match["text"])

    def _with_text(self, answer: str) -> frozenset[int]:
        """Return the options with a text: as it stands, else in any case, else without an article."""
        for form in (lambda text: text.strip(". "), normalise, lambda text: normalise(_without_article(text))):
            wanted = form(answer)
            numbers = frozenset(n for n, text in enumerate(self._texts) if wanted and form(text) == wanted)
            if numbers:
                break
        if len({normalise(self._texts[n]) for n in numbers}) == 1:
            return numbers
        return frozenset()

    def _yes_or_no(self, phrase: str) -> frozenset[int]:
        """Return the option "yes" or "no" if the phrase begins with it and does not contain the other."""
        answer = normalise(_REASON.split(phrase)[0])
        words = set(re.findall(r"\b(yes|no)\b", answer))
        match = re.match(r"(yes|no)\b", answer)
        if match and len(words) == 1:
            return self._with_text(match[1])
        return frozenset()


_reader = lru_cache(maxsize=64)(_Reader)


def _without_article(text: str) -> str:
    return re.sub(r"^(?i:an?|the)\s+(?=\S)", "", text)
