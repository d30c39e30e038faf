"""Prompts: which are hard, which were solved, which groups are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from made_runs import row

from lit_rlvr.commands.report.prompts import hardest, histories, newly_solved, prompt_text, samples, visits
from lit_rlvr.commands.report.runs import RunRecord

STATUS = {"e": "error"}


def run(**outcomes: str) -> RunRecord:
    """Prompts by name, each with its outcomes at steps 2, 4, ...: `01` is a group of a wrong and a right completion,
    `e` one whose check failed, `-` no visit."""
    rows: list[dict[str, Any]] = []
    for name, visited in outcomes.items():
        for k, outcome in enumerate(visited.split()):
            marks = [(g, mark) for g, mark in enumerate(outcome) if mark != "-"]
            rows += [row(2 * k + 2, name, g, mark == "1", status=STATUS.get(mark, "ok")) for g, mark in marks]
    return RunRecord(Path("run"), rows=rows)


RUNS = [
    run(
        hard="00 00 00", later="01 00 00", once="- 00", mixed="00 - 00", solved="00 01 11", lost="11 00 01", right="11"
    ),
    run(hard="00", mixed="01", solved="00 - - 10", right="00 11"),
]


def test_visits_are_a_prompts_completions_of_a_step() -> None:
    found = visits(RUNS[0])
    assert [(visit.step, visit.id, visit.score) for visit in found[:3]] == [
        (2, "hard", "0 of 2"), (2, "later", "1 of 2"), (2, "mixed", "0 of 2")
    ]  # fmt: skip
    assert [visit.step for visit in found] == sorted(visit.step for visit in found)


def test_hardest_prompts_were_wrong_in_every_run_at_the_end() -> None:
    found = hardest(histories(RUNS))
    assert [(prompt.id, prompt.wrong_visits, prompt.count, prompt.last.step) for prompt in found] == [
        ("hard", 4, 4, 6), ("later", 2, 3, 6), ("once", 1, 1, 4)
    ]  # fmt: skip
    assert "mixed" in [prompt.id for prompt in hardest(histories(RUNS[:1]))]


def test_newly_solved_prompts_went_from_none_to_some() -> None:
    found = newly_solved(histories(RUNS))
    assert [(prompt.id, len(prompt.solved_by), len(prompt.visits)) for prompt in found] == [
        ("solved", 2, 2), ("right", 1, 2)
    ]  # fmt: skip
    assert [(visit.step, visit.score) for visit in found[0].solved_by[1]] == [(2, "0 of 2"), (8, "1 of 2")]


def test_a_failed_check_is_neither_right_nor_wrong() -> None:
    prompts = histories([run(failed="ee ee", wrong="0e ee", solved="ee 11", right="1e ee")])
    assert [prompt.visits[0][0].score for prompt in prompts] == ["0 of 0", "0 of 1", "0 of 0", "1 of 1"]
    assert [(prompt.id, prompt.wrong_visits) for prompt in hardest(prompts)] == [("wrong", 1)]
    assert newly_solved(prompts) == []


def test_samples_are_from_all_over_the_run() -> None:
    alike = RunRecord(
        Path("run"), rows=[row(step, "q", g, True, advantage=0.0) for step in range(1, 10) for g in (0, 1)]
    )
    assert [visit.step for visit in samples(alike)] == [1, 4, 7]
    alike.rows[11]["advantage"] = 0.5  # of step 6
    assert [visit.step for visit in samples(alike)] == [1, 6, 7]
    assert samples(RunRecord(Path("run"))) == [] and [visit.step for visit in samples(run(a="01"))] == [2]


def test_chat_prompts_are_shown_as_text() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    chat = [{"role": "system", "content": "Count."}, {"role": "user", "content": parts}]
    assert prompt_text(chat) == "system: Count.\nuser: <image>How many?"
    assert prompt_text("plain") == "plain" and prompt_text([1, {}]) == "1\nNone: None"
