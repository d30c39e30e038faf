"""Judged completions on disk, from which an interrupted evaluation continues; and completions from elsewhere."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.run_files import read_json
from lit_rlvr.configs import changes
from lit_rlvr.errors import UserError
from lit_rlvr.types import Completion, Prompt, RewardResult, Sample, recorded_places

if TYPE_CHECKING:
    from lit_rlvr.rewards.combine import Scores

CompletionsById = dict[str, list[Completion]]
"""A question's id -> its completions, in file order."""


def read_completions(path: Path, suites: list[str]) -> dict[str, CompletionsById]:
    """Read completions by part ("math500/sampled", "math500/greedy").

    Args:
        path: JSON Lines with `id` (the question's) and `completion`; `suite` if there are several; `greedy` (true or
            false), `finish_reason` ("length" = truncated), `tokens` and `prefill` (the beginning of the answer that
            stood in the prompt, such as "<think>\\n") if known. The completions.jsonl of an evaluation has this form.
        suites: names of the suites to judge.

    Raises:
        UserError: a line does not have this form; the message gives its number.
    """
    completions: dict[str, CompletionsById] = defaultdict(lambda: defaultdict(list))
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--completions: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            part, question, completion = _parse_record(line, f"--completions: {path}:{number}", suites)
            completions[part][question].append(completion)
    if not completions:
        raise UserError(f"--completions: {path} is empty")
    return completions


def _parse_record(line: str, where: str, suites: list[str]) -> tuple[str, str, Completion]:
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
    if row.get("finish_reason") == "length":
        reason: Any = "length"
    else:
        reason = "stop"
    completion = Completion.made_elsewhere(row["completion"], int(row.get("tokens") or 0), reason)
    return f"{suite}/{kind}", row["id"], replace(completion, prefill=str(row.get("prefill") or ""))


def match(completions: CompletionsById, samples: list[Sample], part: str) -> list[Sample]:
    """Return the questions that have completions, and check that all have equally many.

    Raises:
        UserError: a completion belongs to no question, or questions have different numbers of completions.
    """
    ids = {sample.id for sample in samples}
    unknown = [name for name in completions if name not in ids]
    if unknown:
        raise UserError(f"--completions: {part}: there is no question {unknown[0]!r}; ids are like {samples[0].id!r}")
    counts = set()
    for group in completions.values():
        counts.add(len(group))
    if len(counts) > 1:
        raise UserError(f"--completions: {part}: some questions have {min(counts)} completions, others {max(counts)}")
    found = []
    for sample in samples:
        if sample.id in completions:
            found.append(sample)
    return found


RecordRow = dict[str, Any]
OUTPUT = ("settings.json", "completions.jsonl", "results.json", "results.md")
"""Files that an evaluation writes to its folder."""
SHARES = "completions-*-of-*.jsonl"
"""Files of an evaluation's processes, if there are several."""


class Records:
    """The `completions.jsonl` of a folder, and the settings of these completions.

    A row is one completion: part, id, sample (of samples), completion, extracted, correct, status,
    finish_reason, tokens, reward; the prefill and each reward's criteria, if there are any; with an environment also
    its turns, of which the completion is the last.

    Args:
        folder: created if necessary.
        settings: the settings that all completions depend on; the class refuses a folder with different ones.
        suites: suite -> the settings that its completions depend on. A folder may get further suites.
        share: name of the file for new completions if this process is one of several; without it, merge the files of
            all processes.

    Raises:
        UserError: the settings differ (the message says how).
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        suites: Mapping[str, dict[str, Any]] | None = None,
        share: str | None = None,
    ) -> None:
        merged = folder / "completions.jsonl"
        self.path = folder / share if share else merged
        settings_path = folder / "settings.json"
        self._groups: dict[tuple[str, str], list[RecordRow]] = {}
        settings = json.loads(json.dumps(settings | ({} if suites is None else {"suites": suites})))
        saved = read_json(settings_path)
        before = saved if isinstance(saved, dict) else None
        files = []
        for path in (merged, *sorted(folder.glob(SHARES))):
            if path.is_file():
                files.append(path)
        is_started = before is not None and bool(files)
        existing = []
        for name in OUTPUT:
            if (folder / name).exists():
                existing.append(name)
        if existing and not is_started and set(before or {}) != set(settings):
            raise UserError(f"--out: {folder} holds a {existing[0]} not from an evaluation; choose another folder")
        if before is not None and is_started:
            self._check(before, settings, folder)
            self._read([path for path in files if path == merged] if share else files)
            if suites is not None:
                settings["suites"] = before["suites"] | settings["suites"]
        if share:
            return  # the process that started this one has written the settings
        write_atomically(settings_path, json.dumps(settings, indent=2) + "\n")

    @staticmethod
    def _check(before: dict[str, Any], after: dict[str, Any], folder: Path) -> None:
        old_suites = before.get("suites")
        new_suites = after.get("suites")
        if isinstance(old_suites, dict) and isinstance(new_suites, dict):
            common = old_suites.keys() & new_suites.keys()  # the others are new, or not asked for this time
            before = before | {"suites": {name: old_suites[name] for name in common}}
            after = after | {"suites": {name: new_suites[name] for name in common}}
        differences = []
        for name, old, new in changes(before, after):
            differences.append(f"{name} was {old}, is {new}")
        difference = "; ".join(differences)
        if difference:
            raise UserError(f"--out: {folder} was begun with other settings ({difference}); choose another folder")

    def _read(self, files: Sequence[Path]) -> None:
        """Read complete groups, merge several files into the first, and drop a last group that a kill cut off."""
        rewrite = files[1:] != []
        for path in files:
            groups: dict[tuple[str, str], list[RecordRow]] = defaultdict(list)
            *lines, torn = path.read_text().split("\n")
            for line in lines:
                row = json.loads(line)
                groups[row["part"], row["id"]].append(row)
            complete = {}
            for key, rows in groups.items():
                if len(rows) >= rows[0]["samples"]:
                    complete[key] = rows
            rewrite |= bool(torn) or len(complete) < len(groups)
            self._groups = complete | self._groups
        if rewrite:
            write_atomically(self.path, "".join(map(_record_line, chain.from_iterable(self._groups.values()))))
            for path in {*files} - {self.path}:
                path.unlink()

    def missing(self, part: str, prompts: Iterable[Prompt]) -> list[Prompt]:
        """Return the prompts of a part that have no records yet."""
        without = []
        for prompt in prompts:
            if (part, prompt.sample.id) not in self._groups:
                without.append(prompt)
        return without

    def add(self, part: str, prompt: Prompt, completions: list[Completion], scores: Scores, p: int = 0) -> None:
        """Record group `p` of the scores in one write.

        Args:
            part: the suite or part of it that the prompt belongs to.
            prompt: the prompt.
            completions: its completions.
            scores: the scores of one or several groups.
            p: the number of the prompt's group in `scores`.
        """
        rows = group_rows(part, prompt, completions, scores, p)
        with self.path.open("a") as file:
            file.write("".join(map(_record_line, rows)))
        self._groups[part, prompt.sample.id] = rows

    def groups(self, part: str, prompts: Iterable[Prompt]) -> list[list[RecordRow]]:
        """Return the rows of each prompt; empty if the user did not request the part."""
        groups = []
        for p in prompts:
            if (part, p.sample.id) in self._groups:
                groups.append(self._groups[part, p.sample.id])
        return groups


def group_rows(part: str, prompt: Prompt, completions: list[Completion], scores: Scores, p: int) -> list[RecordRow]:
    """Return a judged group of one prompt as rows.

    `correct` is null if the check failed or no reward judges the answer, `reward` if the check failed or no reward
    judges the completion.

    Args:
        part: the suite or part of it that the prompt belongs to.
        prompt: the prompt.
        completions: its completions.
        scores: the scores of one or several groups.
        p: the number of the prompt's group in `scores`.
    """
    rows = []
    for g, completion in enumerate(completions):
        row: RecordRow = {
            "part": part,
            "id": prompt.sample.id,
            "sample": g,
            "samples": len(completions),
            "completion": completion.text,
        }
        if prompt.prefill:
            row["prefill"] = prompt.prefill
        if completion.turns:
            row["turns"] = [turn.recorded() for turn in completion.turns]
        row["extracted"] = next((r.detail for r in scores.details[p][g].values() if r.correct is not None), "")
        row["correct"] = None
        if scores.has_correct[p, g]:
            row["correct"] = bool(scores.correct[p, g])
        row["status"] = scores.statuses[p][g]
        row["finish_reason"] = completion.finish_reason
        row["tokens"] = completion.length
        row |= _criteria_of(scores.details[p][g])
        row |= recorded_places(scores.details[p][g])
        row["reward"] = None
        if scores.has_reward[p, g]:
            row["reward"] = round(float(scores.rewards[p, g]), 6)
        rows.append(row)
    return rows


def _criteria_of(results: Mapping[str, RewardResult]) -> RecordRow:
    criteria = {}
    for name, result in results.items():
        if result.criteria:
            criteria[name] = dict(result.criteria)
    return {"criteria": criteria} if criteria else {}


def _record_line(row: RecordRow) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
