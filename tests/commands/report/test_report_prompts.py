"""Prompts: which are hard, which were solved, which groups are shown."""

from pathlib import Path
from typing import Any

from made_runs import make_run, row

from lit_rlvr.commands.report.prompts import (
    CompletionsIndex,
    count_outcomes,
    index_completions,
    list_prompts,
)
from lit_rlvr.commands.report.runs import read_run

STATUS = {"e": "error"}


def index(folder: Path, rows: list[dict[str, Any]]) -> CompletionsIndex:
    return index_completions(read_run(make_run(folder, rows=rows)))


def run(folder: Path, **outcomes: str) -> CompletionsIndex:
    """Prompts by name, each with its outcomes at steps 2, 4, ...: `01` is a group of a wrong and a right completion,
    `e` one whose check failed, `-` no visit."""
    rows: list[dict[str, Any]] = []
    for name, visited in outcomes.items():
        for k, outcome in enumerate(visited.split()):
            marks = [(g, mark) for g, mark in enumerate(outcome) if mark != "-"]
            rows += [row(2 * k + 2, name, g, mark == "1", status=STATUS.get(mark, "ok")) for g, mark in marks]
    return index(folder, sorted(rows, key=lambda row: row["step"]))


def test_prompts_are_listed_by_what_became_of_them(tmp_path: Path) -> None:
    """Of equal outcomes the most visited first. A failed check is neither right nor wrong."""
    found = run(
        tmp_path,
        hard="00 00 00",
        once="- 00",
        later="01 00 00",
        solved="00 01 11",
        lost="11 00 01",
        right="11",
        failed="ee 11",
        wrong="0e ee",
    )
    assert [(prompt.id, prompt.outcome) for prompt in list_prompts(found)] == [
        ("hard", "never right"),
        ("wrong", "never right"),
        ("once", "never right"),
        ("later", "lost"),
        ("solved", "solved"),
        ("lost", "right from the start"),
        ("failed", "right from the start"),
        ("right", "right from the start"),
    ]
    assert count_outcomes(found) == {"never right": 3, "lost": 1, "solved": 1, "right from the start": 3}
    assert [prompt.id for prompt in list_prompts(found, "never right", "IS O")] == ["once"]
    assert [visit.score for visit in found.prompts["wrong"].visits] == ["0 of 1", "0 of 0"]
    assert found.prompts["solved"].bars == [(0, "step 2: 0 of 2"), (0.5, "step 4: 1 of 2"), (1, "step 6: 2 of 2")]
    many = run(tmp_path / "many", often="01 " * 81)
    assert len(many.prompts["often"].bars) == 27 and many.prompts["often"].bars[0] == (0.5, "steps 2 to 6: 3 of 6")
