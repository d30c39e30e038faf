"""`lit-rlvr convert FILE...`: renames the options in your files that have moved since an earlier version.

YAML files keep their comments and their order. In other files (Markdown, scripts) it converts options of the command
line and blocks of YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.terminal import show_result
from lit_rlvr.configs import Parser
from lit_rlvr.errors import MOVED, UserError, why_not_a_file

WIDTH = 120
"""Longest line with a group of options in braces."""
YAML_BLOCK = re.compile(r"(^ *```ya?ml[^\n]*\n)(.*?)(?=^ *```)", re.MULTILINE | re.DOTALL)
"""A block of YAML in Markdown: its first line, its content."""


def run(command: str, arguments: list[str]) -> None:
    """Run the command line of `convert`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument(
        "files", nargs="+", type=str, help="files to convert in place: configs, studies, scripts, notes"
    )
    files = {file: Path(file) for file in parser.parse_args(arguments).files}
    for file, path in files.items():
        if reason := why_not_a_file(path):
            raise UserError(f"{file}: {reason}")
    converted = {file: convert_file(path) for file, path in files.items()}
    lines = [f"{file}: {old} -> {new}" for file, moved in converted.items() for old, new in moved.items()]
    show_result(converted, lambda: print("\n".join(lines) or "nothing to rename"))


def convert_file(path: Path) -> dict[str, str]:
    """Rewrite a file with the options of today; return the former options that it had, and their names now.

    Raises:
        UserError: it is not text or not valid YAML, or has an option by both names; the message names the file.
    """
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file") from error
    found: dict[str, str] = {}

    def convert_block(block: re.Match[str]) -> str:
        try:
            return block[1] + convert_yaml(block[2], str(path), found)
        except yaml.YAMLError:  # an excerpt with an ellipsis
            return block[0]

    if path.suffix in (".yaml", ".yml"):
        try:
            new = convert_yaml(text, str(path), found)
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML ({getattr(error, 'problem', error)})") from error
    else:
        new = YAML_BLOCK.sub(convert_block, text)
    new = convert_options(new, found)
    if new != text:
        write_atomically(path, new)
    return found


def convert_options(text: str, found: dict[str, str]) -> str:
    """Replace the former options of a command line in a text."""

    def replace(option: re.Match[str]) -> str:
        new = moved_key(option[1])
        if not new:
            return option[0]
        found[option[1]] = new
        return f"--{new}"

    return re.sub(r"--(\w+(?:\.\w+)+)", replace, text)


def moved_key(key: str) -> str | None:
    """Return the name now of a dotted key that ends with a former option or continues one, "" if none replaces it; None
    for others."""
    parts = key.split(".")
    for end in range(len(parts), 1, -1):
        plain = [part for part in parts[:end] if part != "init_args"]
        for old, new in MOVED.items():
            then, now = old.split("."), new.split(".")
            if parts[end - 1] == then[-1] and plain[-len(then) :] == then:
                if not new:
                    return new
                same = shared_start(then, now)
                kept = end
                for part in reversed(then[same:]):
                    while parts[kept - 1] != part:
                        kept -= 1
                    kept -= 1
                return ".".join([*parts[:kept], *now[same:], *parts[end:]])
    return None


def shared_start(one: list[str], other: list[str]) -> int:
    """Return how many parts two keys have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass
class Entry:
    """An entry of a mapping in YAML.

    Args:
        parents: the mappings around it, from the outermost, which the parts of `path` are keys of.
        path: its dotted key in the document, one part a mapping.
    """

    parents: list[yaml.MappingNode]
    path: list[str]
    key: yaml.ScalarNode
    value: yaml.Node


def entries(
    node: yaml.Node | None, parents: tuple[yaml.MappingNode, ...] = (), path: tuple[str, ...] = ()
) -> Iterator[Entry]:
    """Yield all entries of a document."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from entries(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield Entry([*parents, node], [*path, key.value], key, value)
                yield from entries(value, (*parents, node), (*path, key.value))


def convert_yaml(text: str, where: str, found: dict[str, str]) -> str:
    """Move the former options of a YAML document to their places now; everything else stays as it is.

    Args:
        where: the file, for messages. found: receives the former options, and their names now.

    Raises:
        yaml.YAMLError: it is not valid.
        UserError: an option is there by both names.
    """
    while True:
        former = [
            (entry, new)
            for entry in entries(yaml.compose(text))
            if (new := moved_key(".".join(entry.path))) or (new == "" and entry.value.value in ("null", "~", "", "1"))
        ]
        if not former:
            return text
        entry, new = former[0]
        found[".".join(entry.path)] = new
        if new:
            text = _move(text, entry, new, where)
        else:
            start, end = _range(text, _outermost(entry, len(entry.parents) - 1))
            text = text[:start] + text[end:]


def _move(text: str, entry: Entry, new: str, where: str) -> str:
    """Move one entry to the dotted key `new`."""
    old_parts, new_parts = ".".join(entry.path).split("."), new.split(".")
    same = shared_start(old_parts, new_parts)
    above = len(".".join(entry.path[:-1]).split(".")) if len(entry.path) > 1 else 0  # parts of the mappings around it
    if same >= above and (len(new_parts) == len(old_parts) or "." in entry.path[-1]):  # another name in its mapping
        return text[: entry.key.start_mark.index] + ".".join(new_parts[above:]) + text[entry.key.end_mark.index :]
    starts = [".".join(entry.path[:count]).count(".") + bool(count) for count in range(len(entry.path))]
    depth = max(count for count, parts in enumerate(starts) if parts <= same)  # a name in the path may have dots
    mapping, names = entry.parents[depth], new_parts[same:]
    while inner := [value for key, value in mapping.value if key.value == names[0]]:
        if len(names) == 1 or not isinstance(inner[0], yaml.MappingNode):
            raise UserError(f"{where}: has both {'.'.join(entry.path)} and {new}; remove one")
        mapping, names = inner[0], names[1:]
    if mapping is entry.parents[-1]:
        return _wrap(text, entry, names)
    value = text[entry.key.end_mark.index : _end(entry.value)]
    is_block = not entry.parents[-1].flow_style and not mapping.flow_style
    if mapping.flow_style and isinstance(entry.value, yaml.CollectionNode) and not entry.value.flow_style:
        plain = yaml.safe_load(yaml.serialize(entry.value))
        value = ": " + yaml.safe_dump(plain, default_flow_style=True, width=10**6).strip()
    comment = _comment(text, entry)
    opening = "".join(f"{name}: {{" for name in names[:-1])
    addition = f"{opening}{names[-1]}{value}{'}' * (len(names) - 1)}"
    removed = _outermost(entry, depth + 1)
    if mapping.flow_style:
        end = mapping.end_mark.index - 1
        head = text[:end].rstrip()
        insertion = len(head), f"{', ' if mapping.value[1:] or removed.parents[-1] is not mapping else ''}{addition}"
        line_end = _line_end(text, mapping.end_mark.index)
        line = text[text.rfind("\n", 0, insertion[0]) + 1 : line_end]
        there = text[mapping.end_mark.index : line_end]
        is_new = bool(comment) and comment.strip() not in there and "\n" not in text[mapping.start_mark.index : end]
        if (is_new or len(line) + len(insertion[1]) > WIDTH) and not entry.parents[-1].flow_style:
            block = _as_block(text, mapping)
            if block is not None:
                return block
    else:
        last = mapping.value[-1][1]
        at = _line_end(text, _end(last))
        column = mapping.value[0][0].start_mark.column
        if is_block and "\n" in value:
            addition = _indented(addition, column - entry.key.start_mark.column)
        insertion = at, f"\n{' ' * column}{addition}{comment}"
    edits = sorted([(*_range(text, removed), ""), (insertion[0], insertion[0], insertion[1])], reverse=True)
    for start, end, replacement in edits:
        text = text[:start] + replacement + text[end:]
    return text


def _outermost(entry: Entry, least: int) -> Entry:
    """Return the outermost entry that contains nothing else, inside the `least` outermost mappings."""
    while len(entry.parents) > least and len(entry.parents[-1].value) == 1:
        key = next(key for key, value in entry.parents[-2].value if value is entry.parents[-1])
        entry = Entry(entry.parents[:-1], entry.path[:-1], key, entry.parents[-1])
    return entry


def _range(text: str, entry: Entry) -> tuple[int, int]:
    """Return the range of the text of an entry."""
    return _flow_range(text, entry) if entry.parents[-1].flow_style else _lines(text, entry)


def _wrap(text: str, entry: Entry, names: list[str]) -> str:
    """Put an entry into new mappings, in its place."""
    start, end = entry.key.start_mark.index, _end(entry.value)
    value = text[entry.key.end_mark.index : end]
    if "\n" not in value or entry.parents[-1].flow_style:
        opening = "".join(f"{name}: {{" for name in names[:-1])
        return f"{text[:start]}{opening}{names[-1]}{value}{'}' * (len(names) - 1)}{text[end:]}"
    column = entry.key.start_mark.column
    heads = "".join(f"{name}:\n{' ' * (column + 2 * (i + 1))}" for i, name in enumerate(names[:-1]))
    return text[:start] + heads + _indented(names[-1] + value, 2 * (len(names) - 1)) + text[end:]


def _as_block(text: str, mapping: yaml.MappingNode) -> str | None:
    """Return the text with a mapping in braces, which is the value of a key on its line, written one entry a line."""
    start, end = mapping.start_mark.index, mapping.end_mark.index
    begin = text.rfind("\n", 0, start) + 1
    head = re.fullmatch(r"( *)[\w.]+: *", text[begin:start])
    if head is None:
        return None
    at = _line_end(text, end)
    indent = " " * (len(head[1]) + 2)
    pairs = [text[key.start_mark.index : value.end_mark.index] for key, value in mapping.value]
    body = "".join(f"\n{indent}{pair}{text[end:at]}" for pair in pairs)
    return text[:start].rstrip() + body + text[at:]


def _end(node: yaml.Node) -> int:
    """Return where the text of a value ends, without the comments and line breaks after a block."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _lines(text: str, entry: Entry) -> tuple[int, int]:
    """Return the range of an entry's lines in a block."""
    start, end = text.rfind("\n", 0, entry.key.start_mark.index), _line_end(text, _end(entry.value))
    return (start, end) if start >= 0 else (0, end + 1)


def _comment(text: str, entry: Entry) -> str:
    """Return the comment after an entry of a block, with the spaces before it."""
    if entry.parents[-1].flow_style:
        return ""
    end = _end(entry.value)
    return text[end : _line_end(text, end)]


def _flow_range(text: str, entry: Entry) -> tuple[int, int]:
    """Return the range of an entry in braces, with one of its commas."""
    start, end = entry.key.start_mark.index, _end(entry.value)
    before, after = re.search(r",\s*$", text[:start]), re.match(r"\s*,\s*", text[end:])
    if before:
        return before.start(), end
    return start, end + (after.end() if after else 0)


def _indented(text: str, columns: int) -> str:
    """Return a text with its lines, except the first, moved to the right, or to the left."""
    first, *others = text.split("\n")
    moved = [" " * columns + line if columns >= 0 else line[-columns:] for line in others]
    return "\n".join([first, *(line if line.strip() else "" for line in moved)])
