"""Reads completions generated elsewhere, to be judged."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.types import Completion, Sample

Given = dict[str, list[Completion]]
"""A question's id -> its completions, in file order."""


def read_completions(path: Path, suites: list[str]) -> dict[str, Given]:
    """Completions by part ("math500/sampled", "math500/greedy").

    Args:
        path: JSON Lines with `id` (the question's) and `completion`; `suite` if several are judged; `greedy` (true or
            false), `finish_reason` ("length" = truncated) and `tokens` if known. The completions.jsonl of an evaluation
            has this form.
        suites: names of the suites to judge.

    Raises:
        UserError: a line does not have this form; the message gives its number.
    """
    found: dict[str, Given] = defaultdict(lambda: defaultdict(list))
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--completions: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            part, question, completion = _read(line, f"--completions: {path}:{number}", suites)
            found[part][question].append(completion)
    if not found:
        raise UserError(f"--completions: {path} is empty")
    return found


def _read(line: str, where: str, suites: list[str]) -> tuple[str, str, Completion]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: broken JSON ({error})") from error
    for field in ("id", "completion"):
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{where}: no text in field {field!r}; a line holds `id` and `completion`")
    suite, _, kind = str(row.get("part") or row.get("suite") or (suites[0] if len(suites) == 1 else "")).partition("/")
    if suite not in suites:
        raise UserError(f"{where}: suite: {suite!r} is not one of {', '.join(suites)}")
    kind = kind or ("greedy" if row.get("greedy") else "sampled")
    reason: Any = "length" if row.get("finish_reason") == "length" else "stop"
    return (
        f"{suite}/{kind}",
        row["id"],
        Completion.made_elsewhere(row["completion"], int(row.get("tokens") or 0), reason),
    )


def match(given: Given, samples: list[Sample], part: str) -> list[Sample]:
    """The questions that have completions, each the same number of them.

    Raises:
        UserError: a completion belongs to no question, or questions have different numbers of completions.
    """
    ids = {sample.id for sample in samples}
    unknown = [name for name in given if name not in ids]
    if unknown:
        raise UserError(f"--completions: {part}: there is no question {unknown[0]!r}; ids are like {samples[0].id!r}")
    counts = {len(group) for group in given.values()}
    if len(counts) > 1:
        raise UserError(f"--completions: {part}: some questions have {min(counts)} completions, others {max(counts)}")
    return [sample for sample in samples if sample.id in given]
