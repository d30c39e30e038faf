"""Write the table of docs/checkup.md: the errors of the shipped rewards on rewritten answers and short texts.

python docs/scripts/checkup_page.py
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from lit_rlvr.commands.check.checkup import Checkup, Rate, check_reward
from lit_rlvr.commands.check.command import build_reward
from lit_rlvr.commands.check.sets import read_set

HERE = Path(__file__).parent
PAGE = HERE.parent / "checkup.md"
BEGIN, END = "<!-- python docs/scripts/checkup_page.py -->", "<!-- end -->"
ROWS, SECONDS = 100, 600.0
SETS = (
    ("MathAnswer", "package:svamp/train.jsonl"),
    ("MathAnswer", "docs/scripts/checkup/math.jsonl"),
    ("Choice", "docs/scripts/checkup/choice.jsonl"),
    ("OpenAnswer", "docs/scripts/checkup/open.jsonl"),
    ("SQLExecution", "SyntheticSQL"),
    ("CodeTests", "docs/scripts/checkup/code.jsonl"),
)
"""Reward, and the rows that it judges."""


def measured(reward: str, data: str) -> Checkup:
    """Check a reward on a set."""
    judge = build_reward(reward, {})
    own = HERE.parent / data
    try:
        return check_reward(judge, read_set(str(own) if own.is_file() else data, ROWS, seed=0), SECONDS)
    finally:
        judge.close()


def share(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:.1%} ({low:.1%} to {high:.1%})"


def kinds(found: Checkup, keeps: bool) -> str:
    """Return the kinds with errors and how many of their texts are judged wrongly."""
    wrong = [(name, kind) for name, kind in found.kinds.items() if kind.keeps is keeps and kind.rate.errors]
    return ", ".join(f"{name} {kind.rate.errors}/{kind.rate.texts}" for name, kind in wrong) or "-"


def table() -> str:
    """Measure all rewards, and return the table with its date."""
    lines = [
        f"Measured on {date.today().isoformat()} by `docs/scripts/checkup_page.py`, with 95 % intervals. After a kind "
        "stand its errors and its texts.\n",
        "| reward | rows | right texts not paid | kinds | wrong texts paid | kinds |",
        "|---|---|---|---|---|---|",
    ]
    for reward, data in SETS:
        found = measured(reward, data)
        lines.append(
            f"| `{reward}` | {found.rows} of `{data}` | {share(found.right_texts)} | {kinds(found, True)} | "
            f"{share(found.wrong_texts)} | {kinds(found, False)} |"
        )
    return "\n".join(lines)


def main() -> None:
    page = PAGE.read_text()
    found = table()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{found}\n{END}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
