"""The index of a completions.jsonl that is being written, against a slow reading of the whole file."""

import json
import os
from itertools import groupby
from pathlib import Path

from made_runs import make_run, row

from lit_rlvr.commands.report.prompts import CompletionsIndex

ROWS = [
    row(step, f"{(7 * step + k) % 5}+1", g, correct=(step * k + g) % 3 == 0, completion=f"é {step} {k} {g}")
    for step in range(2, 40, 2)
    for k in range(2)
    for g in range(4)
]

"""Instead of a number of right completions: the checks failed."""


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_it_knows_what_the_whole_file_says(tmp_path: Path) -> None:
    index = CompletionsIndex(make_run(tmp_path / "run", rows=ROWS) / "completions.jsonl")
    assert index.follow(60)
    slow = [list(rows) for _, rows in groupby(ROWS, key=lambda row: (row["step"], row["id"]))]
    assert sum(len(prompt.visits) for prompt in index.prompts.values()) == len(slow) > 30
    for rows in slow:
        visit = next(v for v in index.prompts[rows[0]["id"]].visits if v.step == rows[0]["step"])
        rewards, right = sum(row["reward"] for row in rows), sum(row["correct"] for row in rows)
        assert (visit.correct, visit.judged, visit.count, visit.reward) == (right, 4, 4, rewards)
        assert visit.has_gradient == any(row["advantage"] for row in rows)
        assert index.read_group(visit) == rows


def test_it_follows_a_file_while_it_grows_in_any_pieces(tmp_path: Path) -> None:
    """Also torn in the middle of a line and of a letter."""
    path, whole = tmp_path / "completions.jsonl", lines(ROWS).encode()
    index = CompletionsIndex(path)
    assert index.follow(60) and not index.prompts, "it need not be there"
    for first in range(0, len(whole), 777):
        with path.open("ab") as file:
            file.write(whole[first : first + 777])
        index.follow(60)
    once = CompletionsIndex(path)
    once.follow(60)
    assert (index.prompts, index.unreadable, index.rows) == (once.prompts, 0, len(ROWS))


def test_a_resumed_run_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text(lines(ROWS))
    index = CompletionsIndex(path)
    index.follow(60)
    shorter = tmp_path / "shorter"
    shorter.write_text(lines(ROWS[:80]))
    os.replace(shorter, path)
    index.follow(60)
    assert index.rows == 80 and max(p.step for prompt in index.prompts.values() for p in prompt.visits) == 20
    visit = index.prompts["0+1"].visits[0]
    path.unlink()
    index.follow(60)
    assert not index.prompts and index.read_group(visit) == []
