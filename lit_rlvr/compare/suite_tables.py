"""The papers' tables of a study: cells by benchmarks with an average, pass@k, and categories, as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlvr.compare.markdown import BEFORE, table
from lit_rlvr.evaluation.results import sampled_ks


@dataclass(frozen=True)
class Table:
    """A table of percentages.

    Args:
        title: what it shows.
        columns: names of the columns after the first.
        rows: name -> its spreads ({mean, std, n}, or None), one per column.
    """

    title: str
    columns: list[str]
    rows: dict[str, list[Mapping[str, Any] | None]]

    def markdown(self) -> str:
        """A Markdown table under its title; each column's best cell is bold."""
        best = self._ranks()
        lines = []
        for name, found in self.rows.items():
            cells = [percent(spread) for spread in found]
            lines.append([name, *(f"**{c}**" if best.get((name, k)) == 0 else c for k, c in enumerate(cells))])
        return f"### {self.title}\n\n" + table(["", *self.columns], lines)

    def latex(self) -> str:
        """A LaTeX table (booktabs) with its caption; best cells are bold, second-best ones underlined."""
        marks = {0: r"\textbf{%s}", 1: r"\underline{%s}"}
        best = self._ranks()
        lines = [
            r"\begin{table}",
            rf"\caption{{{_tex(self.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\toprule",
            " & ".join(["", *map(_tex, self.columns)]) + r" \\",
            r"\midrule",
        ]
        for name, found in self.rows.items():
            cells = [percent(spread, r"$_{\pm%s}$") for spread in found]
            marked = [marks.get(best.get((name, k), 9), "%s") % cell for k, cell in enumerate(cells)]
            lines.append(" & ".join([_tex(name), *marked]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"

    def _ranks(self) -> dict[tuple[str, int], int]:
        """(row, column) -> 0 for the best of a column as printed, 1 for the second best; ties share a rank."""
        ranks: dict[tuple[str, int], int] = {}
        for k in range(len(self.columns)):
            printed = {name: round(100 * found["mean"], 1) for name, row in self.rows.items() if (found := row[k])}
            order = sorted(set(printed.values()), reverse=True)
            ranks |= {(name, k): order.index(value) for name, value in printed.items()} if len(order) > 1 else {}
        return ranks


def suite_tables(study_suites: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of one task.

    For each of the study's tables of suites: pass@1 (greedy accuracy where nothing was sampled) with the average; the
    same for the largest k; pass@k by k and accuracy by category of each suite; and the diversity measures.

    Args:
        study_suites: the study's tables of suites.
        found: the task in results.json.
    """
    for group in study_suites:
        rows = {name: cell["suites"][group] for name, cell in found["cells"].items() if group in cell["suites"]}
        rows = {name: row for name, row in rows.items() if row["suites"]}
        if group in found.get("before_suites", {}):
            rows = {BEFORE: found["before_suites"][group], **rows}
        if not rows:
            continue
        suites = list(next(iter(rows.values()))["suites"])
        keys = {suite: {key for row in rows.values() for key in row["suites"].get(suite, {})} for suite in suites}
        first = {suite: "pass@1" if "pass@1" in keys[suite] else "greedy" for suite in suites}
        title = "pass@1" if "pass@1" in first.values() else "greedy"
        yield _across(f"{group}: {title}", suites, first, rows)
        largest = max((k for suite in suites for k in sampled_ks(keys[suite])), default=1)
        if largest > 1:
            having = [suite for suite in suites if f"pass@{largest}" in keys[suite]]
            yield _across(f"{group}: pass@{largest}", having, dict.fromkeys(having, f"pass@{largest}"), rows)
        for suite in suites:
            ks = sampled_ks(keys[suite])
            if len(ks) > 1:
                columns = [f"pass@{k}" for k in ks]
                yield _columns(
                    f"{suite}: pass@k", columns, {n: row["suites"].get(suite, {}) for n, row in rows.items()}
                )
        for suite in suites:
            yield from _by_category(suite, first[suite], rows)
        measures = sorted(
            {k for found in keys.values() for k in found if k.startswith("diversity/") and k.count("/") == 1}
        )
        for measure in measures:
            having = [suite for suite in suites if measure in keys[suite]]
            yield _across(
                f"{group}: {measure.removeprefix('diversity/')}", having, dict.fromkeys(having, measure), rows
            )


def _across(title: str, suites: Sequence[str], keys: Mapping[str, str], rows: Mapping[str, Any]) -> Table:
    """Suites as columns, with their average."""
    same = set(keys.values())
    cells = {
        name: [
            *(row["suites"].get(suite, {}).get(keys[suite]) for suite in suites),
            row["average"].get(next(iter(same))) if len(same) == 1 else None,
        ]
        for name, row in rows.items()
    }
    return Table(title, [*suites, "Avg."], cells)


def _columns(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> Table:
    return Table(title, list(columns), {name: [row.get(column) for column in columns] for name, row in rows.items()})


def _by_category(suite: str, key: str, rows: Mapping[str, Any]) -> Iterator[Table]:
    found = {name: row["suites"].get(suite, {}).get("categories", {}) for name, row in rows.items()}
    categories = list(dict.fromkeys(category for row in found.values() for category in row))
    if categories:
        cells = {name: {c: values.get(key) for c, values in row.items()} for name, row in found.items()}
        yield _columns(f"{suite}: {key} by category", categories, cells)


def percent(spread: Mapping[str, Any] | None, deviation: str = " ± %s") -> str:
    """`68.4 ± 0.2`, in percent; "-" without a value."""
    if spread is None or spread["mean"] is None:
        return "-"
    text = f"{100 * spread['mean']:.1f}"
    return text if spread["std"] is None else text + deviation % f"{100 * spread['std']:.1f}"


def _tex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash{}"), *((c, rf"\{c}") for c in "&%$#_{}"), ("±", r"$\pm$")):
        text = text.replace(plain, escaped) if plain != "\\" else text.replace(plain, "\0")
    return text.replace("\0", r"\textbackslash{}")
