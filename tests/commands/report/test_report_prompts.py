"""Prompts: which are hard, which were solved, which groups are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, row

from lit_rlvr.commands.report.prompts import (
    Completions,
    hardest,
    histories,
    index_completions,
    newly_solved,
    prompt_text,
    samples,
)
from lit_rlvr.commands.report.runs import read_run

STATUS = {"e": "error"}


def index(folder: Path, rows: list[dict[str, Any]]) -> Completions:
    return index_completions(read_run(make_run(folder, rows=rows)))


def run(folder: Path, **outcomes: str) -> Completions:
    """Prompts by name, each with its outcomes at steps 2, 4, ...: `01` is a group of a wrong and a right completion,
    `e` one whose check failed, `-` no visit."""
    rows: list[dict[str, Any]] = []
    for name, visited in outcomes.items():
        for k, outcome in enumerate(visited.split()):
            marks = [(g, mark) for g, mark in enumerate(outcome) if mark != "-"]
            rows += [row(2 * k + 2, name, g, mark == "1", status=STATUS.get(mark, "ok")) for g, mark in marks]
    return index(folder, sorted(rows, key=lambda row: row["step"]))


@pytest.fixture
def runs(tmp_path: Path) -> list[Completions]:
    return [
        run(
            tmp_path / "0", hard="00 00 00", later="01 00 00", once="- 00", mixed="00 - 00", solved="00 01 11",
            lost="11 00 01", right="11",
        ),
        run(tmp_path / "1", hard="00", mixed="01", solved="00 - - 10", right="00 11"),
    ]  # fmt: skip


def test_hardest_prompts_were_wrong_in_every_run_at_the_end(runs: list[Completions]) -> None:
    found = hardest(histories(runs))
    assert [(prompt.id, prompt.wrong_visits, prompt.count, prompt.last.step) for prompt in found] == [
        ("hard", 4, 4, 6), ("later", 2, 3, 6), ("once", 1, 1, 4)
    ]  # fmt: skip
    assert "mixed" in [prompt.id for prompt in hardest(histories(runs[:1]))]


def test_newly_solved_prompts_went_from_none_to_some(runs: list[Completions]) -> None:
    found = newly_solved(histories(runs))
    assert [(prompt.id, len(prompt.solved_by), len(prompt.runs)) for prompt in found] == [
        ("solved", 2, 2), ("right", 1, 2)
    ]  # fmt: skip
    assert [(visit.step, visit.score) for visit in found[0].solved_by[1].visits] == [(2, "0 of 2"), (8, "1 of 2")]


def test_a_failed_check_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    prompts = histories([run(tmp_path, failed="ee ee", wrong="0e ee", solved="ee 11", right="1e ee")])
    assert [prompt.runs[0].visits[0].score for prompt in prompts] == ["0 of 0", "0 of 1", "0 of 0", "1 of 1"]
    assert [(prompt.id, prompt.wrong_visits) for prompt in hardest(prompts)] == [("wrong", 1)]
    assert newly_solved(prompts) == []


def test_samples_are_from_all_over_the_run(tmp_path: Path) -> None:
    rows = [row(step, "q", g, True, advantage=0.0) for step in range(1, 10) for g in (0, 1)]
    assert [visit.step for visit in samples(index(tmp_path / "alike", rows))] == [1, 4, 7]
    rows[11]["advantage"] = 0.5  # of step 6
    assert [visit.step for visit in samples(index(tmp_path / "alike", rows))] == [1, 6, 7]
    assert samples(index(tmp_path / "none", [])) == []
    assert [visit.step for visit in samples(run(tmp_path / "one", a="01"))] == [2]


def test_chat_prompts_are_shown_as_text() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    chat = [{"role": "system", "content": "Count."}, {"role": "user", "content": parts}]
    assert prompt_text(chat) == "system: Count.\nuser: <image>How many?"
    assert prompt_text("plain") == "plain" and prompt_text([1, {}]) == "1\nNone: None"
