"""Writes results.md: the results as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlvr.compare.folder import State
from lit_rlvr.compare.markdown import BEFORE, table
from lit_rlvr.compare.significance import LEVEL, limits, power
from lit_rlvr.compare.study import Study
from lit_rlvr.compare.suite_tables import suite_tables

Spread = Mapping[str, Any] | None

LAST = (
    ("rollout/reward", "reward"),
    ("rollout/entropy", "entropy"),
    ("rollout/length", "length"),
    ("train/zero_advantage", "zero advantages"),
)
"""Metrics of the last rollout to show next to the budget used."""


SIGNAL = "figures/advantages.png"
"""The figure of `signal.py`, in the study's folder."""


def report(study: Study, results: Mapping[str, Any], figures: Mapping[str, list[Path]], failed: Sequence[State]) -> str:
    """The whole page.

    Args:
        results: the content of results.json.
        figures: task -> figures, in the study's folder.
    """
    unit, count = study.budget
    parts = [
        f"# {study.name}",
        f"{len(study.cells) - len(failed)} of {len(study.cells)} cells are done. Each ended with the iteration that "
        f"used up {count} {unit}. Compared: `{study.metric}` at the last step. Mean ± sample standard deviation over "
        f"seeds {', '.join(map(str, study.seeds))}.",
    ]
    for task in study.tasks:
        found = results["tasks"][task]
        parts += [f"## {task}", _main_table(study, found), _tested(study, found), *_pass_at_k(found), _used(found)]
        parts += [table.markdown() for table in suite_tables(study.suites, found)]
        parts += [f"![{path.stem}]({path.as_posix()})" for path in figures[task]]
    parts += _overall(study, results)
    parts += ["## What each advantage weights", f"![sum of the absolute advantages of a group]({SIGNAL})"]
    if failed:
        rows = [[str(state.cell), str(state.error)] for state in failed]
        parts += ["## Failed", table(["cell", "error"], rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plus_minus(spread: Spread, digits: int = 3) -> str:
    """`0.512 ± 0.013`."""
    if spread is None or spread.get("mean") is None:
        return "-"
    text = f"{spread['mean']:.{digits}f}"
    return text if spread["std"] is None else f"{text} ± {spread['std']:.{digits}f}"


def _main_table(study: Study, found: Mapping[str, Any]) -> str:
    rows = [[BEFORE, "", plus_minus(found["before"]), *[""] * 6]] if found["before"] else []
    for name, cell in found["cells"].items():
        versus = cell.get("versus_baseline")
        against = [""] * 5
        if versus:
            p_values = [_p(versus[key]) for key in ("p_t", "p_sign_flip", "p_holm")]
            against = [plus_minus(versus["difference"]), *p_values, interval(versus["improvement"])]
        rows.append([name, str(cell["n"]), plus_minus(cell), interval(cell["iqm"]), *against])
    tests = ["p: paired t", "p: sign flips", "p: Holm", f"P(beats {study.baseline})"]
    return table(["", "seeds", study.metric, "interquartile mean", f"minus {study.baseline}", *tests], rows)


def interval(found: Mapping[str, Any] | None) -> str:
    """`0.512 [0.49, 0.53]`, with the 95 % interval."""
    if found is None:
        return "-"
    text = f"{found['value']:.3f}"
    return text if found["ci95"] is None else f"{text} [{found['ci95'][0]:.2f}, {found['ci95'][1]:.2f}]"


def _overall(study: Study, results: Mapping[str, Any]) -> list[str]:
    """The cells over all tasks, if there are several."""
    if not results["overall"]:
        return []
    rows = [[name, interval(cell["iqm"]), interval(cell.get("improvement")) if name != study.baseline else ""]
            for name, cell in results["overall"].items()]  # fmt: skip
    return ["## All tasks", table(["", f"interquartile mean of {study.metric}", f"P(beats {study.baseline})"], rows)]


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return f"**{value:.3f}**" if value < LEVEL else f"{value:.3f}"


def _tested(study: Study, found: Mapping[str, Any]) -> str:
    """A note on the p-values, and on what so few seeds cannot show."""
    pairs = {cell["versus_baseline"]["pairs"] for cell in found["cells"].values() if "versus_baseline" in cell}
    comparisons = sum(cell.get("versus_baseline", {}).get("p_t") is not None for cell in found["cells"].values())
    return " ".join(
        [
            f"Two-sided tests of the differences from `{study.baseline}`, paired by seed: Student's t (assumes that "
            f"they are normal), the sign-flip permutation test, and the same after Holm's correction (comparisons: "
            f"{comparisons}). Bold: below {LEVEL:g}. Intervals: 95 %, stratified bootstrap.",
            *filter(None, [power(n, comparisons) for n in sorted(pairs - {0})]),
            *filter(None, [limits(n) for n in sorted(pairs - {0})]),
        ]
    )


def _pass_at_k(found: Mapping[str, Any]) -> list[str]:
    parts = []
    for name in sorted({name for cell in found["cells"].values() for name in cell["pass_at_k"]}):
        rows = {BEFORE: found["before_pass_at_k"].get(name, {})}
        rows |= {cell: values["pass_at_k"].get(name, {}) for cell, values in found["cells"].items()}
        ks = sorted({int(k) for row in rows.values() for k in row})
        lines = [[cell, *(plus_minus(row.get(str(k))) for k in ks)] for cell, row in rows.items() if row]
        parts.append(table([f"pass@k, {name}", *(str(k) for k in ks)], lines))
    return parts


def _used(found: Mapping[str, Any]) -> str:
    rows = []
    for name, cell in found["cells"].items():
        used = [plus_minus(cell["used"][unit], 0) for unit in ("steps", "samples", "tokens")]
        seconds = plus_minus(cell["seconds_per_step"].get("step"), 2)
        memory, collapsed = plus_minus(cell["peak_memory_mb"], 0), f"{cell['collapsed']} of {cell['n']}"
        last = [plus_minus(cell["last"].get(metric)) for metric, _ in LAST]
        rows.append([name, *used, seconds, memory, collapsed, _scientific(cell["loss_variance"]), *last])
    header = ["used, and the last rollout", "steps", "samples", "tokens", "seconds per rollout"]
    more = ["peak MiB", "collapsed", "loss variance"]
    return table([*header, *more, *(label for _, label in LAST)], rows)


def _scientific(spread: Spread) -> str:
    return "-" if spread is None else f"{spread['mean']:.2g}"
