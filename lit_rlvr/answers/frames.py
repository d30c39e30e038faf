"""Frames around an answer, which a prompt asked for or a template left: tags, JSON, fences, doubled backslashes."""

from __future__ import annotations

import re

_BACKSLASHES = re.compile(r"\\+")
_DOUBLED_COMMAND = re.compile(r"(?<!\\)\\\\(?:[A-Za-z]{3,}|[()\[\]])")
_TAG = re.compile(
    r"<(?P<name>(?:final[_ -]?)?(?:answer|ans|solution|result))>|\[(?P<bracketed>(?:final[_ -]?)?answer)\]",
    re.IGNORECASE,
)
_FIELD = re.compile(
    r"[{,]\s*\"[\w -]*(?:answer|result|solution)\"\s*:\s*(?P<value>\"(?:[^\"\\]|\\.)*\"|\[[^\[\]]*\]"
    r"|[^\s,{}\[\]\"][^,{}\n]*)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})\s*\w*\s*|\s*(?:\"{3}|'{3})\s*")
_MARK = re.compile(r"</?[A-Za-z]{2,}(?:_[A-Za-z]+)*/?>|<\|[A-Za-z_]+\|>")
_DOUBLE_BRACKETS = re.compile(r"\s*(?:<{2,}([^<>]*)>{2,}|\[\[([^\[\],;]*)\]\]|\"{3}(.*)\"{3})\s*[.]?\s*")


def single_backslashes(text: str) -> str:
    """Return a text whose backslashes are all doubled, as in escaped JSON, with single ones; another as it is."""
    if "\\\\" not in text or not _DOUBLED_COMMAND.search(text):
        return text
    if any(len(run) % 2 for run in _BACKSLASHES.findall(text)):
        return text
    return text.replace("\\\\", "\\")


def last_tag(text: str) -> tuple[int, int, str] | None:
    """Return where the last tag for an answer begins and ends, and what is in it; None without one.

    `<answer>` may be open at the end; other names, and `[ANSWER]`, count only with the tag that closes them.
    """
    for match in reversed(list(_TAG.finditer(text))):
        name = match["name"] or match["bracketed"]
        if match["name"]:
            closing = f"</{name}>"
        else:
            closing = f"[/{name}]"
        end = text.find(closing, match.end())
        if end >= 0:
            return match.start(), end + len(closing), text[match.end() : end].strip()
        if match[0] == "<answer>":
            return match.start(), len(text), text[match.end() :].strip()
    return None


def last_field(text: str) -> tuple[int, int, str] | None:
    """Return where the last field for an answer of a JSON object begins and ends, and its value; None without one."""
    if "{" in text:
        fields = list(_FIELD.finditer(text))
    else:
        fields = []
    if not fields or "{" not in text[: fields[-1].start() + 1]:
        return None
    value = fields[-1]["value"].strip()
    if value.startswith('"'):
        value = value[1:-1].replace('\\"', '"')
    return fields[-1].start(), fields[-1].end(), value.strip()


def is_frame(line: str) -> bool:
    """Return True for a line that only opens or closes a fence or a quotation."""
    return _FENCE.fullmatch(line) is not None


def without_frame(line: str) -> str:
    """Return a line without tags, and without double brackets or triple quotes around all of it."""
    line = _MARK.sub("", line)
    inside = _DOUBLE_BRACKETS.fullmatch(line)
    if inside:
        line = next(group for group in inside.groups() if group is not None)
    return line
