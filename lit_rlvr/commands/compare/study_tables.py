"""The tables of a study: results.md, and the papers' tables by benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lit_rlvr.commands.compare.significance import LEVEL, least_pairs, p_text
from lit_rlvr.commands.compare.study import BEFORE, Study
from lit_rlvr.commands.compare.study_folder import State
from lit_rlvr.evaluation.results import markdown_table, sampled_ks

Spread = Mapping[str, Any] | None
"""{mean, std, n} of a value over seeds; None without a value."""


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Spread]]) -> str:
    """Return a Markdown table of percentages under its title, with the best printed values of each column in bold.

    Args:
        title: title of the table.
        columns: names of the columns.
        rows: name -> column -> spread.
    """
    by_column = []
    for column in columns:
        by_column.append(_best_in_bold([percent(row.get(column)) for row in rows.values()]))
    return f"### {title}\n\n" + markdown_table(["", *columns], [*zip(rows, *by_column, strict=True)])


def _best_in_bold(cells: Sequence[str]) -> list[str]:
    """Mark the largest of a column's printed means, if they differ."""
    means = set()
    for cell in cells:
        if cell != "-":
            means.add(float(cell.partition(" ")[0]))
    best = f"{max(means):.1f}" if len(means) > 1 else None
    return [f"**{cell}**" if cell.partition(" ")[0] == best else cell for cell in cells]


def _diversity_measures(keys_of_suites: Iterable[set[str]]) -> list[str]:
    """Return the results that are measures of diversity, of the keys of each suite's results."""
    measures = set()
    for keys in keys_of_suites:
        for key in keys:
            if key.startswith("diversity/") and key.count("/") == 1:
                measures.add(key)
    return sorted(measures)


def suite_tables(study_suites: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of one task as Markdown.

    For each of the study's tables of suites they are: pass@1 (or greedy accuracy without samples) with the average; the
    same for the largest k; pass@k by k and accuracy by category of each suite; and the diversity measures.

    Args:
        study_suites: the study's tables of suites.
        task: the task's results, as in results.json.
    """
    for group in study_suites:
        rows = {}
        for name, cell in task["cells"].items():
            if group in cell["suites"] and cell["suites"][group]["suites"]:
                rows[name] = cell["suites"][group]
        if group in task.get("before_suites", {}):
            rows = {BEFORE: task["before_suites"][group], **rows}
        if not rows:
            continue
        suites = list(next(iter(rows.values()))["suites"])
        keys = {}
        for suite in suites:
            keys[suite] = set(chain(*(row["suites"].get(suite, {}) for row in rows.values())))
        columns = {suite: "pass@1" if "pass@1" in keys[suite] else "greedy" for suite in suites}
        yield _across(f"{group}: {'pass@1' if 'pass@1' in columns.values() else 'greedy'}", suites, columns, rows)
        largest = max((k for suite in suites for k in sampled_ks(keys[suite])), default=1)
        if largest > 1:
            measured = [suite for suite in suites if f"pass@{largest}" in keys[suite]]
            yield _across(f"{group}: pass@{largest}", measured, dict.fromkeys(measured, f"pass@{largest}"), rows)
        for suite in suites:
            ks = sampled_ks(keys[suite])
            if len(ks) > 1:
                suite_rows = {name: row["suites"].get(suite, {}) for name, row in rows.items()}
                yield _table(f"{suite}: pass@k", [f"pass@{k}" for k in ks], suite_rows)
        for suite in suites:
            yield from _by_category(suite, columns[suite], rows)
        for measure in _diversity_measures(keys.values()):
            measured = [suite for suite in suites if measure in keys[suite]]
            yield _across(
                f"{group}: {measure.removeprefix('diversity/')}", measured, dict.fromkeys(measured, measure), rows
            )


def _across(title: str, suites: Sequence[str], keys: Mapping[str, str], rows: Mapping[str, Any]) -> str:
    """Return a table with suites as columns, and their average."""
    same = set(keys.values())
    cells = {}
    for name, row in rows.items():
        of_suites = {}
        for suite in suites:
            of_suites[suite] = row["suites"].get(suite, {}).get(keys[suite])
        cells[name] = of_suites
        if len(same) == 1:
            cells[name]["Avg."] = row["average"].get(next(iter(same)))
    return _table(title, [*suites, "Avg."], cells)


def _by_category(suite: str, key: str, rows: Mapping[str, Any]) -> Iterator[str]:
    by_cell = {}
    for name, row in rows.items():
        by_cell[name] = row["suites"].get(suite, {}).get("categories", {})
    categories = list(dict.fromkeys(chain.from_iterable(by_cell.values())))
    if categories:
        cells = {}
        for name, row in by_cell.items():
            cells[name] = {category: values.get(key) for category, values in row.items()}
        yield _table(f"{suite}: {key} by category", categories, cells)


def percent(spread: Spread) -> str:
    """Return a spread as `68.4 ± 0.2`, in percent; "-" without a value."""
    return plus_minus(spread, 1, 100)


def report(study: Study, results: Mapping[str, Any], figures: Mapping[str, list[Path]], failed: Sequence[State]) -> str:
    """Return the page of results.

    Args:
        study: the study.
        results: the content of results.json.
        figures: task -> figures, in the study's folder.
        failed: cells that failed.
    """
    unit, count = study.budget
    parts = [
        f"# {study.name}",
        f"{len(study.cells) - len(failed)} of {len(study.cells)} cells are done. Each ended with the iteration that "
        f"used up {count} {unit}. Compared: `{study.metric}` at the last step. Mean ± sample standard deviation over "
        f"seeds {', '.join(map(str, study.seeds))}.",
    ]
    for task in study.tasks:
        result = results["tasks"][task]
        parts += [f"## {task}", _main_table(study, result), _tested(study, result), _used(result)]
        parts += suite_tables(study.suites, result)
        for path in figures[task]:
            parts.append(f"![{path.stem}]({path.as_posix()})")
    parts += _overall(study, results)
    if failed:
        errors = []
        for state in failed:
            errors.append((state.cell, state.error))
        parts += ["## Failed", markdown_table(["cell", "error"], errors)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plus_minus(spread: Spread, digits: int = 3, factor: float = 1) -> str:
    """Return a spread, times a factor, as `0.512 ± 0.013`; "-" without a value."""
    if spread is None or spread.get("mean") is None:
        return "-"
    text = f"{factor * spread['mean']:.{digits}f}"
    if spread["std"] is None:
        return text
    return f"{text} ± {factor * spread['std']:.{digits}f}"


def _main_table(study: Study, task: Mapping[str, Any]) -> str:
    if task["before"]:
        rows = [[BEFORE, "", plus_minus(task["before"]), *[""] * 6]]
    else:
        rows = []
    for name, cell in task["cells"].items():
        versus = cell.get("versus_baseline")
        against = [""] * 5
        if versus:
            p_values = []
            for key in ("p_t", "p_sign_flip", "p_holm"):
                p_values.append(_p(versus[key]))
            against = [plus_minus(versus["difference"]), *p_values, _interval(versus["improvement"])]
        rows.append([name, str(cell["n"]), plus_minus(cell), _interval(cell["iqm"]), *against])
    header = [
        "", "seeds", study.metric, "interquartile mean", f"minus {study.baseline}", "p: paired t", "p: sign flips",
        "p: Holm", f"P(beats {study.baseline})",
    ]  # fmt: skip
    return markdown_table(header, rows)


def _interval(value: Mapping[str, Any] | None) -> str:
    """Return a value as `0.512 [0.49, 0.53]`, with the 95 % interval."""
    if value is None:
        return "-"
    text = f"{value['value']:.3f}"
    if value["ci95"] is None:
        return text
    return f"{text} [{value['ci95'][0]:.2f}, {value['ci95'][1]:.2f}]"


def _overall(study: Study, results: Mapping[str, Any]) -> list[str]:
    """Return the table of the cells over all tasks, if there are several."""
    if not results["overall"]:
        return []
    rows = []
    for name, cell in results["overall"].items():
        improvement = ""
        if name != study.baseline:
            improvement = _interval(cell.get("improvement"))
        rows.append([name, _interval(cell["iqm"]), improvement])
    return [
        "## All tasks",
        markdown_table(["", f"interquartile mean of {study.metric}", f"P(beats {study.baseline})"], rows),
    ]


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    if value < LEVEL:
        return f"**{p_text(value)}**"
    return p_text(value)


def _tested(study: Study, task: Mapping[str, Any]) -> str:
    """Return a note on the p-values, and on what so few seeds cannot show."""
    pairs = set()
    for cell in task["cells"].values():
        if "versus_baseline" in cell:
            pairs.add(cell["versus_baseline"]["pairs"])
    comparisons = sum(cell.get("versus_baseline", {}).get("p_t") is not None for cell in task["cells"].values())
    few = []
    for n in sorted(pairs - {0}):
        if n < least_pairs(1):
            few.append(f"{n} seeds cannot reach {LEVEL:g} by sign flips.")
    tests = (
        f"Two-sided tests of the differences from `{study.baseline}`, paired by seed: Student's t (assumes that they "
        f"are normal), the sign-flip permutation test, and the same after Holm's correction (comparisons: "
        f"{comparisons}). Bold: below {LEVEL:g}. Intervals: 95 %, stratified bootstrap."
    )
    return " ".join([tests, *few])


def _used(task: Mapping[str, Any]) -> str:
    units = ("steps", "samples", "tokens")
    rows = []
    for name, cell in task["cells"].items():
        used = []
        for unit in units:
            used.append(plus_minus(cell["used"][unit], 0))
        seconds = plus_minus(cell["seconds_per_step"].get("step"), 2)
        if cell["loss_variance"] is None:
            variance = "-"
        else:
            variance = f"{cell['loss_variance']['mean']:.2g}"
        collapsed = f"{cell['collapsed']} of {cell['n']}"
        rows.append([name, *used, seconds, plus_minus(cell["peak_memory_mb"], 0), collapsed, variance])
    return markdown_table(["used", *units, "seconds per rollout", "peak MiB", "collapsed", "loss variance"], rows)
