"""Writes the tables of advice into the page on runs that do not learn, from the table in the code.

`python docs/scripts/advice_page.py`
"""

from __future__ import annotations

import re
from pathlib import Path

from lit_rlvr.run.advice import ADVICE, TRIED

PAGE = Path(__file__).parents[1] / "it_does_not_learn.md"


def advice_table(state: str) -> str:
    """Return the rows of a state as a table, in the order in which a run shows them."""
    rows = [row for row in ADVICE if row.state == state]
    columns = ["case"] if any(row.case for row in rows) else []
    columns += ["what helps", "command"]
    columns += ["unless it has been tried"] if any(row.tried for row in rows) else []
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = {
            "case": row.case,
            "what helps": row.sentence.format_map(Unknown()),
            "command": f"`{row.command.format_map(Unknown())}`",
            "unless it has been tried": TRIED.get(row.tried, ""),
        }
        lines.append(f"| {' | '.join(cells[column] for column in columns)} |")
    return "\n".join(lines)


class Unknown(dict[str, "Unknown"]):
    """Numbers of no run: each is written as N."""

    def __missing__(self, name: str) -> Unknown:
        return self

    def __format__(self, form: str) -> str:
        return "N"


def advice_page(page: str) -> str:
    """Return the page with the current table at the end of each state's section."""
    for state in dict.fromkeys(row.state for row in ADVICE):
        section = re.search(rf"^## {re.escape(state)}\n.*?(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        if section is None:
            raise ValueError(f"{PAGE.name} has no section {state!r}")
        text = re.sub(r"^\|.*\n", "", section[0], flags=re.MULTILINE).rstrip()
        page = page.replace(section[0], f"{text}\n\n{advice_table(state)}\n\n")
    return page.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(advice_page(PAGE.read_text()))
