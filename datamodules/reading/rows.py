"""The conversion of raw rows to `Sample`s: layouts, the column mapping, options, bad rows, unique ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_rlvr.common.columns import as_object, as_python, column_of, lookup, parse_text
from lit_rlvr.common.log import log
from lit_rlvr.datamodules.reading.cells import Answers, BadRow, as_answers, as_reward_weights, as_text, is_blank
from lit_rlvr.datamodules.reading.choices import read_options
from lit_rlvr.datamodules.reading.conversations import (
    Messages,
    as_conversation,
    sharegpt_to_messages,
    text_of,
    without_closing_turns,
)
from lit_rlvr.datamodules.reading.images import ImageOptions, as_images, as_videos, check_media, with_images
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video
from lit_rlvr.types import Sample

MAX_NAMED = 3
"""Most bad rows or dropped prompts that a message names."""


@rank_zero_only
def rank_zero_warn(message: str) -> None:
    """Log a warning on rank 0 only."""
    log.warning(message)


def abbreviate(items: list[str]) -> str:
    """Join the first few items; add the number of the others."""
    if len(items) > MAX_NAMED:
        more = f"; and {len(items) - MAX_NAMED} more"
    else:
        more = ""
    return "; ".join(items[:MAX_NAMED]) + more


def as_prompt(value: Any, is_optional: bool = False) -> str | list[dict[str, Any]]:
    """Read a cell as a prompt: text, or chat messages in a form that `as_conversation` reads.

    Args:
        value: the cell.
        is_optional: an environment says something first, so the prompt may be missing or empty.

    Raises:
        BadRow: it is empty, or holds messages that cannot be used.
    """
    messages = as_conversation(value)
    if messages is None:
        if is_optional and (value is None or value == ""):
            return ""
        return as_text(value, "prompt")
    users = []
    for message in messages:
        if message["role"] == "user":
            users.append(message)
    if not any(message["content"] for message in users) and not (is_optional and users):
        raise BadRow("no user message with content", "prompt")
    return messages


FALLBACKS = {
    "prompt": ("conversations", "messages"),
    "answer": ("solution", "reward_model.ground_truth", "ground_truth", "golden_answers", "answers"),
    "category": ("data_source",),
}
"""Field -> the columns that the data of TRL, verl, Search-R1, ShareGPT and SQuAD have instead of one of its name."""


def _read_cell(row: Mapping[str, Any], columns: Mapping[str, str], optional: frozenset[str], field: str) -> Any:
    """Return a field's cell of a row; None if the row has none and need not.

    Args:
        row: the source row.
        columns: field -> column.
        optional: fields that the row may lack, of prompt and answer.
        field: the field of a `Sample`.

    Raises:
        BadRow: the row lacks a column that is mapped or required.
    """
    column = columns.get(field, field)
    value = lookup(row, column)
    if value is None and field not in columns:
        value = find_cell(row, FALLBACKS.get(field, ()))
    head = column_of(column)
    if value is None and (field in columns or field in {"prompt", "answer"} - optional):
        if head not in row:
            raise BadRow(f"no column {column!r}; the columns are {', '.join(map(str, row))}", field)
        inner = parse_text(as_python(row[head]))
        if head != column and inner is not None and not isinstance(inner, Mapping | list):
            raise BadRow(
                f"{column!r} cannot be read, because {head!r} is no dict or list and no JSON text of one", field
            )
    if value is None and field == "image":
        return row.get("images", row.get("file_name"))
    return value


def map_columns(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    fallback_id: str,
    source: str,
    optional: frozenset[str] = frozenset(),
    answers: Answers = "any",
) -> Sample:
    """Make a `Sample` by a column mapping.

    Args:
        row: the source row.
        columns: field -> column. An omitted field is read from the column of the same name ("image" also from "images"
            and "file_name", "video" from "videos", others from their `FALLBACKS`); only prompt and answer are required.
        fallback_id: the id for a row without one.
        source: "file:row".
        optional: fields that the row may lack, of prompt and answer.
        answers: the meaning of a list of answers; see `as_answers`.

    Raises:
        BadRow: no prompt, no answer, or a mapped column that the row does not have.
    """
    cell = partial(_read_cell, row, columns, optional)
    row_id = cell("id")
    category = cell("category")
    images = as_images(cell("image"))
    others = {*columns.values(), *(("video", "videos") if "video" in columns else ())}
    clips = next((name for name in ("video", "videos") if name not in others and as_videos(row.get(name))), "")
    videos = as_videos(cell("video") if "video" in columns else row.get(clips))
    if "video" in columns and columns["video"] == columns.get("image"):
        videos = ()  # a column of both was read as images, each by its file
    check_media(row, {*columns.values(), clips}, images="image" not in columns and not (images or videos))
    prompt = as_prompt(sharegpt_to_messages(cell("prompt"), row.get("system")), "prompt" in optional)
    answer = None
    if "answer" not in columns and "prompt" not in optional and ("prompt" in columns or row.get("prompt") is None):
        answer = closing_answer(row, prompt, source if "answer" not in optional else None)
    if answer is None:
        answer = cell("answer")
    if "answer" in optional and is_blank(answer):
        answer_text, *aliases = ("",)
    else:
        answer_text, *aliases = as_answers(answer, answers)
    return Sample(
        id=fallback_id if row_id is None else as_text(row_id, "id"),
        prompt=prompt,
        answer=answer_text,
        images=tuple(sorted((*images, *videos), key=lambda medium: isinstance(medium, Video))),
        row=row,
        category="" if category is None else as_text(category, "category"),
        source=source,
        options=read_options(cell("options")).texts,
        aliases=tuple(aliases),
        rewards=as_reward_weights(cell("reward")) if "reward" in columns else None,
        answer_object=as_object(answer) if answers == "object" else None,
    )


def find_cell(row: Mapping[str, Any], columns: Iterable[str], default: Any = None) -> Any:
    """Return the cell of the first of the columns that the row has; the default if it has none."""
    return next((value for column in columns if (value := lookup(row, column)) is not None), default)


def closing_answer(row: Mapping[str, Any], prompt: str | Messages, source: str | None) -> str | None:
    """Return the assistant's turn that ends a conversation if no column gives the answer.

    It is reported for the file of the source, if there is one.
    """
    last: dict[str, Any] = {} if isinstance(prompt, str) else prompt[-1]
    if last.get("role") != "assistant" or find_cell(row, ("answer", *FALLBACKS["answer"])) is not None:
        return None
    if source is not None:
        _report_closing_answers(_file_of(source))
    return text_of(last["content"])


@cache
def _report_closing_answers(file: str) -> None:
    rank_zero_warn(
        f"{file}: no column gives the answer, so each conversation's last turn is the reference; if another column "
        "holds the answer, map it with `columns: {answer: COLUMN}`"
    )


def check_sample(sample: Sample, optional: frozenset[str] = frozenset()) -> None:
    """Refuse a sample, also one of a user's own `rows`, that training cannot use.

    Args:
        sample: the sample.
        optional: fields that may be empty, of prompt and answer.

    Raises:
        BadRow: the answer is empty, or a text is not valid Unicode (a lone surrogate).
    """
    if sample.answer or "answer" not in optional:
        as_text(sample.answer, "answer")
    answers = "".join(sample.references)
    for field, text in (("prompt", joined_text(sample.prompt)), ("answer", answers), ("id", sample.id)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"not valid Unicode ({error.reason})", field) from error


def joined_text(value: Any) -> str:
    """Join all text in a prompt: a string, messages with their keys, or the parts of a message."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return joined_text([*value.items()])
    if isinstance(value, list | tuple):
        return "".join(map(joined_text, value))
    return ""


def with_prompt(sample: Sample, optional: frozenset[str] = frozenset()) -> Sample:
    """Read the prompt of a sample as `as_prompt` does; drop the assistant's turns at its end, which hold the answer.

    Where an environment says something first, they stay: its message follows.

    Args:
        sample: the sample.
        optional: fields that may be empty, of prompt and answer.
    """
    prompt = as_prompt(sample.prompt, "prompt" in optional)
    if isinstance(prompt, str) or "prompt" in optional:
        return replace(sample, prompt=prompt)
    opening = without_closing_turns(prompt)
    return replace(sample, prompt=opening, closing_turns=tuple(prompt[len(opening) :]))


def filter_rows(
    rows: Iterable[Sample | BadRow],
    what: str,
    max_bad_rows: float,
    optional: frozenset[str] = frozenset(),
    images: ImageOptions = ImageOptions(),  # noqa: B008  # frozen
    reports: bool = True,
) -> tuple[list[Sample], list[BadRow]]:
    """Return the usable rows, with prompts read and images opened, and the bad ones.

    Report the bad ones and, once for each file, dropped turns of the assistant; refuse a file with too many bad rows.

    Args:
        rows: samples and bad rows.
        what: the set's name, which stands in for the file of rows without a source.
        max_bad_rows: the largest tolerated share of bad rows in each file.
        optional: fields that may be empty, of prompt and answer.
        images: where images are.
        reports: False = dropped turns are no surprise.
    """
    good: list[Sample] = []
    bad: list[BadRow] = []
    total: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        row = _with_source(row, f"{what}:{number}")
        file = _file_of(row.source)
        total[file] += 1
        try:
            if isinstance(row, BadRow):
                raise row
            row = with_prompt(row, optional)
            if row.closing_turns:
                closed[file] += 1
            row = with_images(row, images)
            check_sample(row, optional)
        except BadRow as error:
            error.source = row.source
            bad.append(error)
        else:
            good.append(row)
    if reports:
        for file, count in closed.items():
            rank_zero_warn(
                f"{file}: dropped the assistant's turns at the end of {count} of {total[file]} prompts, because they "
                "hold the answer; a text that every answer starts with belongs into `prefill`"
            )
    _report_bad_rows(bad, total, max_bad_rows)
    return good, bad


def _with_source(row: Sample | BadRow, source: str) -> Sample | BadRow:
    """Return a row with this source if it has none."""
    if row.source:
        return row
    if isinstance(row, Sample):
        return replace(row, source=source)
    return BadRow(row.reason, row.field, source)


def _report_bad_rows(bad: Sequence[BadRow], total: Mapping[str, int], max_bad_rows: float) -> None:
    """Warn of the bad rows of each file, of which `total` has the number of rows; refuse too many."""
    for file, count in Counter(_file_of(row.source) for row in bad).items():
        examples = abbreviate([str(row) for row in bad if _file_of(row.source) == file])
        if count > max_bad_rows * total[file]:
            raise UserError(
                f"{file}: {count} of {total[file]} rows cannot be used and max_bad_rows is {max_bad_rows:g}: "
                f"{examples}. Correct these rows, map other columns with `columns`, or raise max_bad_rows."
            )
        rank_zero_warn(f"{file}: skipped {count} of {total[file]} rows: {examples}")


def check_ids(samples: Iterable[Sample]) -> None:
    """Refuse two rows with the same id, which is the key of seeds, records and saved groups.

    Raises:
        UserError: two rows have the same id; the message names the first such pair.
    """
    by_id: dict[str, Sample] = {}
    for sample in samples:
        other = by_id.setdefault(sample.id, sample)
        if other is not sample:
            raise UserError(
                f"{other.source} and {sample.source}: both rows have the id {sample.id!r}; give every row a unique "
                "id, or map a column that has one with `columns: {id: COLUMN}`"
            )


def with_distinct_ids(samples: Sequence[Sample]) -> list[Sample]:
    """Put the name of its set before each id that several sets have."""
    names: dict[str, set[str]] = {}
    for sample in samples:
        names.setdefault(sample.id, set()).add(sample.dataset)
    renamed = []
    for s in samples:
        if len(names[s.id]) > 1:
            renamed.append(replace(s, id=f"{s.dataset}:{s.id}"))
        else:
            renamed.append(s)
    return renamed


def _file_of(source: str) -> str:
    """Return the file of "file:row"."""
    return source.rpartition(":")[0]


DataRow = Mapping[str, Any]
