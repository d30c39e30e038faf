"""The readers of judges' replies, forgiving about form and strict about meaning, and of their usage."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lit_rlvr.common.arguments import given_text
from lit_rlvr.speech.thoughts import without_thoughts

Values = tuple[int | str, ...]
"""The possible values of a field."""
Fields = Sequence[tuple[str, Values]]
"""Name and possible values of each field that a judge fills in."""

# ---- what the text of a reply says ------------------------------------------------------------------------------


def find_judgement(text: str, fields: Fields) -> dict[str, Any] | None:
    """Return the fields of the judgement in a reply; None if there is none, or if it is not clear which one counts.

    The judgement is the last object that stands by itself: on lines of its own, behind a colon or between sentences.
    Objects within a sentence are quoted, unless the text ends with one. An object with text behind it counts only if no
    other one says something else.
    """
    text = _unquoted(text)
    whole = text.strip()
    given = Objects(whole, fields).at(0)
    if given is None or whole[given.end :].strip():
        whole = without_thoughts(text)
    found = []
    for object_ in Objects(whole, fields):
        found.append(Judgement(object_, read_fields(object_.pairs, fields)))
    judgements = []
    for judgement in found:
        if judgement.fields is not None:
            judgements.append(judgement)
    standing = []
    for judgement in judgements:
        if stands_alone(whole, judgement.object):
            standing.append(judgement)
    if not judgements:
        return None
    last = (standing or judgements)[-1]
    if last is judgements[-1] and not re.search(r"\w", whole[last.object.end :]):
        return last.fields
    if any(judgement.fields != last.fields for judgement in standing):
        return None
    if standing:
        return last.fields
    return None


def _unquoted(text: str) -> str:
    """Return the text that a JSON text stands for: some servers encode an object twice."""
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(inner, str):
        return inner
    return text


def stands_alone(text: str, given: Object) -> bool:
    """Return whether no sentence goes on from before an object to it, or from it to what is behind it."""
    before = text[: given.start].rpartition("\n")[2].rstrip(" \t\"'`*_(")
    behind = text[given.end :].partition("\n")[0].lstrip(" \t\"'`*_")
    begins = not before or not (before[-1].isalnum() or before[-1] in ",;")
    ends = not behind or not (behind[0].islower() or behind[0] in ",;")
    return begins and ends


class Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, in order; a key may stand in it more than once."""


class Object(NamedTuple):
    """An object in a text.

    Args:
        start, end: its place.
        pairs: what is in it.
    """

    start: int
    end: int
    pairs: Pairs


class Judgement(NamedTuple):
    """An object in a text, and the fields that it fills in, if it does."""

    object: Object
    fields: dict[str, Any] | None


class MalformedError(ValueError):
    """A text that is no object."""


_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_KEY = r"""(?:"[^"\n]*"|'[^'\n]*'|\u201c[^\u201d\n]*\u201d|[^\W\d][\w-]*)"""
_KEY_COLON = re.compile(rf"\s*({_KEY})\s*:\s*")
_BEHIND_VALUE = re.compile(rf"\s*(?:[,\n]\s*{_KEY}\s*:|,?\s*\}})")
_BEHIND_ITEM = re.compile(r"\s*[,\]]")
_BARE = re.compile(r"[^,{}\[\]\n\"']+")
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_WORDS = {"true": True, "false": False, "null": None, "none": None, "nan": None}
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
_MOST_DEPTH = 20


class Objects:
    """The objects in a text: JSON and what resembles it.

    Backslashes may stand for themselves, texts may contain line breaks and quotes of their own kind, quotes may be
    single or missing, a comma may be missing at the end of a line or stand behind the last value.

    Args:
        text: the text.
        fields: the fields that the objects are to fill in.
    """

    def __init__(self, text: str, fields: Fields) -> None:
        self.text = text
        self.names = {plain_key(name) for name, _ in fields} | {"reason"}

    def __iter__(self) -> Iterator[Object]:
        """Yield the outermost objects, up to one that never ends: whatever is in it may be quoted."""
        place = self.text.find("{")
        while place >= 0:
            given = self.at(place)
            if given is None and self._opens(place):
                return
            if given is not None:
                yield given
            place = self.text.find("{", place + 1 if given is None else given.end)

    def at(self, start: int) -> Object | None:
        """Return the object that begins at a place; None if there is none."""
        if not self.text.startswith("{", start):
            return None
        try:
            pairs, end = json.JSONDecoder(strict=False, object_pairs_hook=Pairs).raw_decode(self.text, start)
        except (ValueError, RecursionError):
            try:
                pairs, end = self._object(start, 0)
            except MalformedError:
                return None
        return Object(start, end, pairs)

    def _opens(self, start: int) -> bool:
        """Return whether a brace begins an object, although that may never end."""
        key = _KEY_COLON.match(self.text, start + 1)
        return key is not None and (key[1][0] in _QUOTES or plain_key(key[1]) in self.names)

    def _object(self, start: int, depth: int) -> tuple[Pairs, int]:
        if depth > _MOST_DEPTH:
            raise MalformedError
        pairs = Pairs()
        place = self._skip(start + 1)
        while not self.text.startswith("}", place):
            key = _KEY_COLON.match(self.text, place)
            if key is None:
                raise MalformedError
            value, place = self._value(key.end(), _BEHIND_VALUE, depth)
            pairs.append((key[1].strip("".join(_QUOTES) + "".join(_QUOTES.values())), value))
            place = self._skip(place)
        return pairs, place + 1

    def _list(self, start: int, depth: int) -> tuple[list[Any], int]:
        if depth > _MOST_DEPTH:
            raise MalformedError
        items = []
        place = self._skip(start + 1)
        while not self.text.startswith("]", place):
            item, place = self._value(place, _BEHIND_ITEM, depth)
            items.append(item)
            place = self._skip(place)
        return items, place + 1

    def _value(self, place: int, behind: re.Pattern[str], depth: int) -> tuple[Any, int]:
        opening = self.text[place : place + 1]
        if opening == "{":
            return self._object(place, depth + 1)
        if opening == "[":
            return self._list(place, depth + 1)
        if opening in _QUOTES and opening:
            return self._quoted(place, behind)
        bare = _BARE.match(self.text, place)
        if bare is None:
            raise MalformedError
        word = bare[0].strip()
        if word.casefold() in _WORDS:
            return _WORDS[word.casefold()], bare.end()
        return float(word) if _NUMBER.fullmatch(word) else word, bare.end()

    def _quoted(self, start: int, behind: re.Pattern[str]) -> tuple[str, int]:
        """Return the text between quotes: the second one is the first that what may follow a value follows."""
        closing = _QUOTES[self.text[start]]
        place = start + 1
        while place < len(self.text):
            if self.text[place] == "\\":
                place += 2
                continue
            if self.text[place] == closing and behind.match(self.text, place + 1):
                return self.text[start + 1 : place], place + 1
            place += 1
        raise MalformedError

    def _skip(self, place: int) -> int:
        separator = _SEPARATOR.match(self.text, place)
        if separator is None:
            return place
        return separator.end()


def read_fields(pairs: Pairs, fields: Fields) -> dict[str, Any] | None:
    """Return the fields that an object fills in, itself or by an object in it; None if it does not fill in all.

    A field that stands in it twice, with two meanings, has none.
    """
    found: dict[str, Any] = {}
    for name, values in fields:
        meant = set()
        for key, value in pairs:
            if plain_key(key) == plain_key(name):
                meant.add(meaning(value, values))
        if len(meant) == 1:
            found[name] = meant.pop()
    if len(found) == len(fields) and None not in found.values():
        return found
    inner = []
    for _, value in pairs:
        if isinstance(value, Pairs):
            inner.append(read_fields(value, fields))
    filled = [judged for judged in inner if judged is not None]
    if len(filled) == 1 and not found:
        return filled[0]
    return None


# ---- what the value of a field means ----------------------------------------------------------------------------

_TRUTH: dict[int | str | None, bool] = {1: True, 0: False}
"""What says that something is so, or is not."""
for _so, _not_so in (
    ("yes", "no"), ("true", "false"), ("y", "n"), ("met", "unmet"), ("pass", "fail"), ("passed", "failed"),
    ("present", "absent"), ("satisfied", "unsatisfied"), ("fulfilled", "unfulfilled"), ("correct", "incorrect"),
):  # fmt: skip
    _TRUTH |= {_so: True, _not_so: False, f"not {_so}": False}
_EQUAL = {"tie", "tied", "ties", "draw", "equal", "equally", "same", "both", "neither"}
"""Words that say `tie`."""
_DENIES = {"not", "no", "never", "neither", "nor", "non", "against", "worse", "worst"}
_EXPLAINED = re.compile(r"([\w.]+(?: [\w.]+)?) ?(?:[(,;:\u2013\u2014]|- )(.*)")
"""A value with a remark behind it."""
_OF_HIGHEST = re.compile(r"(\d+)\s*(?:/|out of|of)\s*(\d+)")


def meaning(given: Any, values: Values) -> int | str | None:
    """Return the possible value that a field's value means; None if it means none, or it is not clear which."""
    if isinstance(given, list) and len(given) == 1 and not isinstance(given, Pairs):
        given = given[0]
    if isinstance(given, str):
        return _meaning_of_text(" ".join(given.split()).strip("\"'`*_.[](){}<> \u201c\u201d\u2018\u2019"), values)
    if isinstance(given, bool):
        return _of_truth(given, values)
    if isinstance(given, int | float):
        number = next((value for value in values if not isinstance(value, str) and value == given), None)
        if number is None and given in (0, 1):
            return _of_truth(_TRUTH.get(int(given)), values)
        return number
    return None


def _meaning_of_text(text: str, values: Values) -> int | str | None:
    numbers = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
    share = _OF_HIGHEST.fullmatch(text)
    if share and numbers and int(share[2]) == max(numbers):
        text = share[1]
    if _NUMBER.fullmatch(text):
        return meaning(float(text), values)
    folded = text.casefold()
    same = []
    for value in values:
        if isinstance(value, str) and value.casefold() == folded:
            same.append(value)
    if same:
        if len(same) == 1:
            return same[0]
        return None
    if folded in _TRUTH:
        return _of_truth(_TRUTH[folded], values)
    texts = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
    named = []
    for value in texts:
        if _is_labelled(text, value):
            named.append(value)
    if len(named) == 1:
        return named[0]
    if "tie" in texts and _says_equal(text, texts):
        return "tie"
    explained = _EXPLAINED.fullmatch(text)
    if explained and not _names_value(explained[2], values):
        return _meaning_of_text(explained[1], values)
    return None


def _names_value(text: str, values: Values) -> bool:
    """Return whether a text has a number, or a word that is one of the values or says that something is so."""
    words = {word.casefold() for word in re.findall(r"\w+", text)}
    meant = {str(value).casefold() for value in values} | {str(said).casefold() for said in _TRUTH}
    return bool(words & meant) or bool(re.search(r"\d", text))


def _of_truth(truth: bool | None, values: Values) -> int | str | None:
    """Return the value that a truth means, of two of which one says so and the other does not."""
    truths = {}
    for value in values:
        truths[_TRUTH.get(value)] = value
    if len(values) == 2 and truths.keys() == {True, False}:
        return truths.get(truth)
    return None


def _is_labelled(text: str, value: str) -> bool:
    """Return whether a text is a value behind a word for it, such as `Answer A` and `Response B is better`."""
    label = re.fullmatch(
        rf"(?:the )?(?:(\w+?)[ _:-]+)?[\W_]*{re.escape(value)}[\W_]*(?: is better)?", text, re.IGNORECASE
    )
    return label is not None and (label[1] or "").casefold() not in _DENIES


def _says_equal(text: str, texts: Sequence[str]) -> bool:
    """Return whether a text says that none is better: it names none of the others, or all of them."""
    words = set(re.findall(r"\w+", text))
    others = [value for value in texts if value != "tie"]
    named = [value for value in others if value in words]
    says = {word.casefold() for word in words}
    return bool(says & _EQUAL) and not says & (_DENIES - _EQUAL) and len(named) in (0, len(others))


def plain_key(name: str) -> str:
    """Return a key without case, quotes and separators."""
    return re.sub(r"[\W_]", "", name).casefold()


# ---- what a server sends ----------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """The tokens of a call: of the question, and of the answer."""

    prompt: int
    completion: int


class Received(NamedTuple):
    """What a server sent.

    Args:
        text: what the judge says.
        lack: why it may say less than it was asked for; "" if nothing shows.
        tokens: what it cost; None if the server does not say.
    """

    text: str
    lack: str
    tokens: Tokens | None


class NoAnswerError(ValueError):
    """A body that is no answer of a model, with a status that says all is well."""


def parse_body(body: str) -> Any:
    """Return the value of a body in JSON.

    Raises:
        NoAnswerError: it is none.
    """
    if not body.strip():
        raise NoAnswerError("the server sends an empty answer")
    if body.startswith(("data:", "event:")):
        raise NoAnswerError("the server streams its answer, which is not read; turn that off in the server")
    if body.lstrip().startswith("<"):
        raise NoAnswerError(
            f"the server sends a page and no answer ({given_text(body.strip())}); most servers' base_url ends with /v1"
        )
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoAnswerError(f"the server sends no JSON but {given_text(body.strip())}") from error


def read_chat(body: Any) -> Received:
    """Read the reply to a chat request.

    Raises:
        NoAnswerError: it has no message, as when it tells of an error.
    """
    if not isinstance(body, Mapping):
        raise NoAnswerError(f"the server sends no answer but {given_text(body)}")
    choices = body.get("choices")
    choice = None
    if isinstance(choices, list) and choices:
        choice = choices[0]
    if not isinstance(choice, Mapping):
        error = body.get("error") or body.get("detail") or body.get("message")
        if not error:
            raise NoAnswerError(f"the server sends an answer without choices: {given_text(dict(body))}")
        if isinstance(error, Mapping):
            error = error.get("message", error)
        raise NoAnswerError(f"the server sends an error as an answer: {given_text(error)}")
    message = choice.get("message")
    if not isinstance(message, Mapping):
        message = {"content": choice.get("text")}
    text = without_surrogates(_content_text(message.get("content")))
    return Received(text, _lack(choice, message, text), read_usage(body.get("usage")))


def _content_text(content: Any) -> str:
    """Return the text of a message's content: a text, a part, or a list of parts, of which thoughts do not count."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(_content_text, content))
    if isinstance(content, Mapping):
        if re.search("think|reason", str(content.get("type", ""))):
            return ""
        inner = content.get("text", content.get("value"))
        if inner is not None:
            return _content_text(inner)
        if "type" in content:
            return ""
        return json.dumps(content)
    if content is None:
        return ""
    return json.dumps(content)


def _lack(choice: Mapping[str, Any], message: Mapping[str, Any], text: str) -> str:
    """Return why a message may say less than it was asked for."""
    reason = str(choice.get("finish_reason") or "").casefold()
    if "filter" in reason:
        return "the server's filter has stopped it (finish_reason content_filter)"
    if message.get("refusal"):
        return f"the judge refuses: {given_text(message['refusal'])}"
    if message.get("tool_calls"):
        return "it calls a tool in place of an answer"
    thoughts = bool(message.get("reasoning_content") or message.get("reasoning")) or bool(text.strip())
    has_answer = bool(without_thoughts(text).strip())
    if reason in ("length", "max_tokens"):
        if thoughts and not has_answer:
            return (
                "it was cut off in its thoughts; raise server.max_tokens, or turn thinking off (for many models: "
                "server.extra_body: {chat_template_kwargs: {enable_thinking: false}})"
            )
        return "it was cut off; raise server.max_tokens"
    if not has_answer:
        if thoughts:
            return "it has thoughts and no answer"
        return "it is empty"
    return ""


_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
_MOST_TOKENS = 2**40


def read_usage(usage: Any, has_completion: bool = True) -> Tokens | None:
    """Return the tokens that a server counted; None if it does not say them in numbers that can be.

    Args:
        usage: what the server says.
        has_completion: it counts an answer's tokens, too.
    """
    if not isinstance(usage, Mapping):
        return None
    counts = {}
    for name, value in usage.items():
        counts[name] = _count(value)
    prompt = _first_known(counts, _PROMPT)
    completion = _first_known(counts, _COMPLETION)
    total = counts.get("total_tokens")
    if completion is None and not has_completion:
        completion = 0
    if completion is None and prompt is not None and total is not None and total >= prompt:
        completion = total - prompt
    if prompt is None or completion is None:
        return None
    return Tokens(prompt, completion)


def _first_known(counts: Mapping[str, int | None], names: Sequence[str]) -> int | None:
    known = []
    for name in names:
        if counts.get(name) is not None:
            known.append(counts[name])
    if known:
        return known[0]
    return None


def _count(value: Any) -> int | None:
    """Return a number of tokens; None for what is none."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if 0 <= value <= _MOST_TOKENS and value == int(value):
        return int(value)
    return None


def without_surrogates(text: str) -> str:
    """Return a text with `?` for what is no Unicode: half of a pair of surrogates."""
    return text.encode("utf-8", "replace").decode()
