"""The final answer of a completion, and its normalised text.

All functions are pure and linear in the text's length, because completions are untrusted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from lit_rlvr.answers.characters import plain_characters, with_carets
from lit_rlvr.answers.frames import is_frame, last_field, last_tag, single_backslashes, without_frame
from lit_rlvr.speech.thoughts import without_thoughts

BEHIND_CHARACTERS = 300  # of what follows an answer
TAIL_CHARACTERS = 2000  # without a marker, text further from the end is not the final answer
_BOX = r"\\(?:f?boxed|fbox)\s*\{|\\boxed\s*(?![A-Za-z])([^\s${}\\]++)(?!\{)"
_BOX_OR_BRACE = re.compile(rf"{_BOX}|\\(?!{_BOX}).|[{{}}]", re.DOTALL)  # an escaped brace is no brace
_MARKUP = r"\s|\$|\*|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])"
_SEPARATOR = r"[,;]|and(?![A-Za-z])|\\text\{[^{}]*(?:[,;]|\band)\s*\}"
_BOX_LABEL = r"[A-Za-z](?:_\w|_\{\w*\})?\s*="  # of the next box, such as y_2 =
_PART = (
    r"\d\s*[.)]|(?:[Pp]art\s*)?\(?[a-z]\)|[Pp]art\s+[A-Za-z0-9]+\s*[:.)]?|\(?(?:i{1,3}|iv|v)\)"  # (b), Part b:, (ii)
)
_BETWEEN_BOXES = re.compile(
    rf"(?:{_MARKUP})*+(?:{_SEPARATOR})(?:{_MARKUP}|{_SEPARATOR})*+(?:{_BOX_LABEL})?+(?:{_MARKUP})*+"
    rf"|[.;,]?(?:{_MARKUP})*+(?:{_PART})\s*:?(?:{_MARKUP})*+(?:{_BOX_LABEL})?+(?:{_MARKUP})*+"
)
_LINE_BETWEEN = re.compile(r"[$.]*[ \t]*\n\s*\$*")
_OR_BETWEEN = re.compile(
    rf"(?:{_MARKUP}|,)*+(?:or|\\text\{{\s*or\s*\}})(?![A-Za-z])(?:{_MARKUP})*+(?:{_BOX_LABEL})?+(?:{_MARKUP})*+"
)
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf)?|mathrm|mathbf|mathit|mbox|hbox)\s*\{([^{}]*)\}")
_NEXT_QUESTION = re.compile(
    r"^(?:[ \t]*(?:Question|Human|User|Q):|(?:user|human)[ \t]*$|[ \t]*(?:Question|Exercise|Problem)[ \t]+\d{1,3}[.:])",
    re.MULTILINE,
)
_SPECIAL = re.compile(r"<\|[A-Za-z_]+\|>|</s>|<(?:eos|end_of_turn)>")


@dataclass(frozen=True)
class Found:
    """A final answer.

    Args:
        text: the answer as it stands in the completion; "" = there is none.
        where: how it was found; only a box or a tag holds the answer and nothing else.
        boxes: the contents of several boxes, of which `text` is the last; else ().
        joiner: what stands between them: "or", or nothing but a new line.
        above: lines above a last one that may be a courtesy.
        first: the first line of a text whose answer is its last line.
        marked: what is bold or code at the end of a line or phrase.
        behind: what follows the answer, which may take it back.
        otherwise: what answers if `text` is only a heading or a note.
    """

    text: str
    where: Literal["box", "tag", "hash", "phrase", "line"]
    boxes: tuple[str, ...] = ()
    joiner: Literal["", "and", "or", "line"] = ""
    above: tuple[str, ...] = ()
    first: str = field(default="", compare=False)
    marked: str = field(default="", compare=False)
    behind: str = field(default="", compare=False)
    otherwise: Found | None = field(default=None, compare=False)


def find_answer(text: str, boxed_only: bool = False, open_thoughts: bool = False) -> Found:
    """Find the final answer in a completion.

    It is the content of the last `\\boxed{}` or `<answer>` tag, else the line behind the last `####`, else the text
    behind the last "answer is", else the last line. Thoughts hold no answer, also those that never end. A box that
    never closes takes back the boxes before it.

    Args:
        text: the completion.
        boxed_only: only boxes count.
        open_thoughts: thoughts that never end may hold the answer.
    """
    return _find(answer_region(text, boxed_only, open_thoughts), boxed_only)


def answer_region(text: str, boxed_only: bool = False, open_thoughts: bool = False) -> str:
    """Return the part of a completion in which its answer is.

    This is behind its thoughts, and before a question that it invents, if it has answered by then. It has if a box, tag
    or phrase says so, or if a number ends the paragraph before the question.

    Args:
        text: the completion.
        boxed_only, open_thoughts: as for `find_answer`.
    """
    text = with_carets(single_backslashes(without_thoughts(text, open_thoughts)))
    before = text[: next_question(text)[0]]
    if len(before) < len(text):
        answer = _find(before, boxed_only)
        ends = before.endswith("\n\n") and any(map(str.isdigit, answer.text))
        if answer.text and (answer.where != "line" or ends):
            text = before
    return text


def next_question(text: str) -> tuple[int, str]:
    """Return where a text goes on with a question behind other words, and how the question begins.

    Questions begin with "Question:", "Human:", "Q:" or a line "user". Without one, it returns the text's length and "".
    A base model, and one whose turns nothing ends, continues its prompts in this way. Code in a fence has no questions.
    """
    begin = len(text) - len(text.lstrip())
    fences = 0
    place = 0
    for match in _NEXT_QUESTION.finditer(text):
        fences = fences + text.count("```", place, match.start())
        place = match.start()
        if place > begin and fences % 2 == 0:
            return place, match[0].strip()
    return len(text), ""


def _find(text: str, boxed_only: bool) -> Found:
    text = text.replace("<|begin_of_box|>", "\\boxed{").replace("<|end_of_box|>", "}")
    text = _SPECIAL.sub("\n", text)
    boxes = _last_boxes(text)
    framed = None if boxed_only else _framed(text)
    if framed is not None and framed[0] > boxes.start:
        start, end, framed_text = framed
        inside = "\n".join(line for line in framed_text.splitlines() if not is_frame(line)).strip()
        boxes = _last_boxes(inside)
        if not boxes.contents and not boxes.is_open:
            return Found(inside, "tag", behind=_behind(text, end))
        boxes.end += start
    if boxes.is_open or (boxed_only and not boxes.contents):
        return Found("", "box")
    if boxes.contents:
        if boxed_only:
            behind = ""
        else:
            behind = _behind(text, boxes.end)
        if boxes.joiner in ("or", "line") and len(boxes.contents) > 1:
            return Found(boxes.text, "box", tuple(boxes.contents), boxes.joiner, behind=behind)
        if boxes.joiner:
            whole = boxes.text
        else:
            whole = _with_surroundings(text, boxes)
        return Found(whole, "box", behind=behind)
    tail = _DISPLAY.sub(_in_line, text[-TAIL_CHARACTERS:])
    line = _behind_hashes(text)
    if line is not None:
        return Found(line, "hash", otherwise=_without_heading(text, line))
    phrases = _phrases(tail)
    if phrases:
        return phrases[-1]
    return _last_line(tail, text)


def _framed(text: str) -> tuple[int, int, str] | None:
    """Return the last tag or field of JSON that holds an answer: where it begins and ends, and what is in it."""
    frames = [frame for frame in (last_tag(text), last_field(text)) if frame is not None]
    return max(frames, default=None)


def _behind(text: str, end: int) -> str:
    """Return what follows an answer, without the signs that close its mathematics."""
    return text[end : end + BEHIND_CHARACTERS].lstrip("$*_`\\)]} \n.")


_SIGN_BEFORE = re.compile(r"(?:(?:\$|=|\(|\[|\\approx)\s*(-|\\pm)\s*|(?<=\w\s)(-|\\pm))$")
_FRACTION_BEFORE = re.compile(r"(-?\s*)\\[dtc]?frac\s*\{\s*$")
_NUMERATOR_BEFORE = re.compile(r"(-?\s*)\\[dtc]?frac\s*\{([^{}]*)\}\s*\{\s*$")
_ROOT_BEFORE = re.compile(r"((?:-\s*)?\d*)\s*\\sqrt\s*\{\s*$")
_FACTOR_BEHIND = re.compile(
    r"\s*(/\s*\d+|\^\s*(?:\{[^{}]*\}|\d)|(?:\\times|\\cdot)\s*10\s*\^\s*(?:\{[^{}]*\}|\d)|\\pi(?![A-Za-z])|\\sqrt\s*\{[^{}]*\}"
    r"|[-+]\s*\d+(?=\s*(?:\$|\\[)\]])))"
)


def _with_surroundings(text: str, boxes: _Boxes) -> str:
    """Return a box's content with the sign, fraction, root or factor around it, as in `-\\boxed{5}`."""
    inside = boxes.text
    before = text[max(0, boxes.start - 80) : boxes.start]
    behind = text[boxes.end : boxes.end + 80]
    closed = behind.lstrip()[:1] == "}"
    if closed and (match := _NUMERATOR_BEFORE.search(before)):
        return f"{match[1]}\\frac{{{match[2]}}}{{{inside}}}"
    if closed and (match := _FRACTION_BEFORE.search(before)) and (below := re.match(r"\s*\}\s*\{([^{}]*)\}", behind)):
        return f"{match[1]}\\frac{{{inside}}}{{{below[1]}}}"
    if closed and (match := _ROOT_BEFORE.search(before)):
        return f"{match[1]}\\sqrt{{{inside}}}"
    sign = _SIGN_BEFORE.search(before)
    factor = _FACTOR_BEHIND.match(behind)
    if not sign and not factor:
        return inside
    is_sum = re.search(r"(?<=[^\s(^{])\s*[-+]", inside) is not None
    return f"{sign[1] or sign[2] if sign else ''}{f'({inside})' if is_sum else inside}{factor[1] if factor else ''}"


_MARKED = re.compile(r"(?:\*\*([^*\n]+)\*\*|`([^`\n]+)`)[\s.!]*$")
FIRST_CHARACTERS = 200
"""The most characters of a first line that are read."""


def _marked(line: str) -> str:
    """Return what is bold or code at the end of a line; "" without it."""
    match = _MARKED.search(line)
    if match:
        return match[1] or match[2]
    return ""


def _last_line(tail: str, text: str) -> Found:
    """Return the last line of a text's tail that is not empty, with the lines above it."""
    tail = _without_check(tail)
    listed = _listed_values(_without_courtesies(tail))
    if listed:
        return Found(listed, "line")
    raw = [line for line in tail.splitlines() if _bare(line)] or [""]
    lines = [_bare(line) for line in raw]
    if len(lines) > 1 and len(lines[-1]) > 8 and lines[-2].startswith(lines[-1]):
        lines.pop()  # a loop that was cut off
        raw.pop()
    first = _bare(text.lstrip()[:FIRST_CHARACTERS].partition("\n")[0])
    above = tuple(lines[-4:-1])
    return Found(_without_loop(lines[-1]), "line", above=above, first=first, marked=_marked(raw[-1]))


_LOOP = re.compile(r"(?=[^A-Za-z]*[A-Za-z])(.{3,80}?)(?:\s+\1)+\s*(.*)")


def _without_loop(line: str) -> str:
    """Return a line that says the same again and again, perhaps cut off, once: "A: 8 A: 8 A:"."""
    loop = _LOOP.fullmatch(line)
    if loop and loop[1].startswith(loop[2]):
        return loop[1]
    return line


_CHECK = re.compile(
    r"(?i)\W*(?:(?:let['\u2019]?s |we |to |quick |sanity |double[- ])*(?:check|verif)\w*|prob[ea]"
    r"|comprobaci[oó]n|v[eé]rif\w*|проверка|验证|检验)\W*?(?:[:,.]|$)"
)
"""The beginning of a line that checks the answer above it."""


def _without_check(tail: str) -> str:
    """Return a text without the check of its answer: its last paragraph from a line that begins one, or that follows a
    heading which says so."""
    lines = tail.rstrip().split("\n")
    start = len(lines)
    first = len(lines) - 1  # line of the last paragraph
    while first > 0 and lines[first].strip():
        if _CHECK.match(lines[first]):
            start = first
        first -= 1
    while first > 0 and not lines[first].strip():
        first -= 1
    if start == len(lines) and _CHECK.fullmatch(lines[first].strip()):
        start = first
    before = "\n".join(lines[:start])
    if start < len(lines) and re.search(r"\d", before):
        return before.rstrip()
    return tail


_BULLET = re.compile(r"\s*(?:[-*+]|\u2022)\s+\$?((?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?[^\sA-Za-z=]+?)\$?[.,;]?\s*")
"""A line of a list whose item is a value without words or steps; it may have a letter as its name."""


def _first_values(rest: str) -> str:
    """Return the values of the list that a text begins with, at least two, with commas between; "" without one."""
    values: list[str] = []
    for line in re.sub(r"^[:*\s]*\n", "", rest).splitlines():
        bullet = _BULLET.fullmatch(line)
        if bullet is None:
            break
        values.append(bullet[1])
    if len(values) > 1:
        return ", ".join(values)
    return ""


def _without_courtesies(tail: str) -> str:
    """Return a text without its last paragraphs that have no number and no mathematics, at most two."""
    paragraphs = re.split(r"\n\s*\n", tail.rstrip())
    for _ in range(2):
        if len(paragraphs) > 1 and not re.search(r"[\d\\]", paragraphs[-1]):
            paragraphs.pop()
    return "\n\n".join(paragraphs)


def _listed_values(tail: str) -> str:
    """Return the values of the list that a text ends with, at least two, with commas between; "" without one."""
    values: list[str] = []
    for line in reversed(tail.rstrip().splitlines()):
        bullet = _BULLET.fullmatch(line)
        if bullet is None:
            break
        values.insert(0, bullet[1])
    if len(values) > 1:
        return ", ".join(values)
    return ""


def _without_heading(text: str, line: str) -> Found | None:
    """Return the answer of a text if the line behind its last `####` is a heading: words with more text below them."""
    _, _, below = text.rpartition("####")
    _, _, below = below.partition("\n")
    if re.search(r"[\d\\$]", line) or not below.strip():
        return None
    return _find(below, False)


def last_boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{...}`, `\\fbox{...}` or `\\boxed 5`; None without one.

    Boxes that only commas, semicolons, "and" or the names of parts ("(b)") separate are one answer: their contents,
    with commas between; with "or" between them, the answer has it, too.
    """
    boxes = _last_boxes(text)
    if not boxes.contents:
        return None
    if boxes.joiner == "or":
        return " or ".join(dict.fromkeys(boxes.contents))
    return boxes.text


@dataclass
class _Boxes:
    """The last boxes that may be one answer.

    Next to their contents, it holds what stands between them, where they end, and whether a later one never closes.
    """

    contents: list[str]
    joiner: Literal["", "and", "or", "line"] = ""
    start: int = -1
    end: int = -1
    is_open: bool = False

    @property
    def text(self) -> str:
        """The contents with commas between where all are meant, else the last."""
        if self.joiner == "and":
            return ", ".join(dict.fromkeys(self.contents))
        return self.contents[-1]


def _last_boxes(text: str) -> _Boxes:
    opened: list[tuple[int, int] | None] = []  # where a box and its content start; None for other braces
    boxes = _Boxes([])
    start = -1  # where the last box's content starts
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
            if boxes.contents:
                joiner = _joiner(text, boxes.end, closed[0])
            else:
                joiner = ""
            if not joiner or (boxes.joiner and joiner != boxes.joiner):
                boxes.contents.clear()
            boxes.joiner = joiner
            boxes.contents.append(_without_full_stop(text[closed[1] : closed[2]].strip()))
            start, boxes.start, boxes.end = closed[1], closed[0], match.end()
    boxes.is_open = any(box is not None and box[0] >= boxes.end for box in opened)
    return boxes


def _joiner(text: str, start: int, end: int) -> Literal["", "and", "or", "line"]:
    """Return how the text between two boxes joins them."""
    if _OR_BETWEEN.fullmatch(text, start, end):
        return "or"
    if _BETWEEN_BOXES.fullmatch(text, start, end):
        return "and"
    if _LINE_BETWEEN.fullmatch(text, start, end):
        return "line"
    return ""


def _without_full_stop(boxed: str) -> str:
    kept = boxed.rstrip(". ")
    if boxed.endswith("..."):
        return boxed
    # `\\right.` closes a bracket
    if kept.endswith("\\right"):
        return boxed[: len(kept) + 1]
    return kept


_HEADING = re.compile(r"(?i)\s*(?:\**(?:step|part|case|solution|explanation|conclusion)\b|\d+[.)]\s+[A-Za-z])")


def _behind_hashes(text: str) -> str | None:
    """Return the line behind the last `####` that is no heading."""
    head, mark, rest = text.rpartition("####")
    while mark:
        line = rest.strip().split("\n")[0].strip()
        if line and not _HEADING.match(line) and not head.endswith("#"):
            phrase = _phrase(line)
            if phrase is None:
                return line
            return phrase
        head, mark, rest = head.rpartition("####")
    return None


_MARKER = re.compile(
    r"(?i)(?:\banswers?\b(?:\s+to\s+(?:the|this|that|your)\s+(?:question|problem|exercise))?|\b(?:correct|right|best)\s+(?:option|choice)\b|\bsolutions?\b(?=\s+(?:is|are)\b)"
    r"|\u7b54\u6848|\u6545\u9009)[*_\s]*(?:\([^()\n]*\)\s*)?"
    r"(?:(?:is|are|would be)(?![A-Za-z])|[=:\uff1a\u4e3a\u662f\u3011]+)|\bfinal answer\b[*_#\s]*\n"
)
_MARKDOWN = re.compile(r"</?[biu]>|\*\*|__(?!\w)|(?<!\w)__|^[>#\s]+|`+")
_END_OF_PROOF = re.compile(
    r"(?:(?<=[\s.])|^)(?:\$?\\(?:blacksquare|square|qed|Box|tag\*?\{[^{}]*\})\$?|[\u220e\u25a0\u25a1]|Q\.E\.D\.)$"
)


def _phrase(text: str) -> str | None:
    """Return the first line behind the last "answer is" or "answer:"; None without such words."""
    phrases = _phrases(text)
    if phrases:
        return phrases[-1].text
    return None


def _phrases(text: str) -> list[Found]:
    """Return the first line behind each "answer is" or "answer:", each with the one before it as what else answers."""
    markers = list(_MARKER.finditer(text))
    found: list[Found] = []
    for marker in markers[-3:]:
        rest = text[marker.end() : marker.end() + TAIL_CHARACTERS]
        lines = [(line, bare) for line in rest.splitlines(keepends=True) if (bare := _bare(line))]
        bare = _first_values(rest) or (lines[0][1] if lines else "")
        behind = "".join(line for line, _ in lines[1:])[:BEHIND_CHARACTERS]
        marked = _marked(lines[0][0]) if lines else ""
        otherwise = found[-1] if found else None
        found.append(Found(bare, "phrase", marked=marked, behind=behind, otherwise=otherwise))
    return found


_DISPLAY = re.compile(r"\\\[(.*?)\\\]|\$\$(.*?)\$\$", re.DOTALL)


def _in_line(display: re.Match[str]) -> str:
    """Return displayed mathematics as mathematics in a line."""
    return f"\\({' '.join((display[1] or display[2] or '').split())}\\)"


def _bare(line: str) -> str:
    """Return a line without Markdown, frames and outer space; "" for a rule, a fence, or one that only closes LaTeX."""
    if is_frame(line):
        return ""
    bare = without_frame(_MARKDOWN.sub("", line.strip())).strip().lstrip(":").strip()
    bare = _END_OF_PROOF.sub("", bare).rstrip()
    if re.fullmatch(r"[-=*_\s]*|(?:\\end\s*\{\w+\*?\}|\\[\])]|[}$.\s])*", bare):
        return ""
    return bare


_SYMBOL = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


_LOOKS = re.compile(r"\\left|\\right|\\[,!;:]|\$|\*\*")
_BRACED = re.compile(r"([_^])\{([\w+-])\}")
_SPACE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")
_QUOTED = re.compile(r"^\((\w)\)$|^([\"'])(.*)\2$|^``(.*)''$")


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """Normalise text for comparison: no markup, outer space or quotes, final full stop or case; `(A)` becomes `a`."""
    text = _TEXT_COMMAND.sub(r"\1", with_carets(plain_characters(text)))
    text = _LOOKS.sub("", text)
    text = _BRACED.sub(r"\1\2", text)
    text = _SPACE.sub("", text).rstrip(".")
    symbols = set(_SYMBOL.findall(text))
    if not any(symbol.swapcase() in symbols for symbol in symbols):  # m/M is not M/m
        text = text.lower()
    return _QUOTED.sub(r"\1\3\4", text)
