"""Computes the results of a suite from its judged completions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np

from lit_rlvr.common.terminal import one_line
from lit_rlvr.evaluation.records import RecordRow
from lit_rlvr.types import STATUSES, Sample

INTERVAL_RESAMPLES = 2000
"""Number of bootstrap samples for an interval."""

RowsByQuestion = Sequence[Sequence[RecordRow]]


def suite_results(samples: Sequence[Sample], sampled: RowsByQuestion, greedy: RowsByQuestion) -> dict[str, Any]:
    """Return the results of one suite; rates are in [0, 1], lengths in tokens.

    Args:
        samples: the suite's Q questions.
        sampled: n rows of each question, or nothing.
        greedy: one row of each question, or nothing.

    Returns:
        `pass@k` for powers of two up to n with `pass@k_ci95`, `avg@n`, `greedy` with `greedy_ci95`, `n`, `questions`,
        `length` (null if unknown), `truncated`, the share of each status, and `categories` with pass@1, greedy and
        questions of each. A failed check counts as wrong. A completion that no reward judges does not count, and
        a question with fewer than k judged completions does not count in pass@k. Rates without completions are null.
    """
    import torch

    from lit_rlvr.training.validation_metrics import pass_at_k, powers_up_to

    groups = sampled or greedy
    results: dict[str, Any] = {"n": len(sampled[0]) if sampled else 0, "questions": len(samples)}
    scores: dict[str, np.ndarray] = {}  # name -> (Q,)
    if sampled:
        shape = (len(sampled), len(sampled[0]))
        right = torch.tensor([bool(row["correct"]) for row in chain(*sampled)]).view(shape)  # (Q, n)
        counted = torch.tensor([_counts(row) for row in chain(*sampled)]).view(shape)  # (Q, n)
        pass_rates = {}
        for k in powers_up_to(right.shape[1]):
            pass_rates[f"pass@{k}"] = pass_at_k(right, k, counted).numpy()
        scores |= pass_rates
        results[f"avg@{right.shape[1]}"] = _mean(right[counted].double().numpy())
    if greedy:
        scores["greedy"] = np.array([bool(row["correct"]) if _counts(row) else np.nan for (row, *_) in greedy], float)
    for name, values in scores.items():
        known = values[~np.isnan(values)]
        results[name] = _mean(values)
        if len(known):
            results[f"{name}_ci95"] = bootstrap_interval(known)
        else:
            results[f"{name}_ci95"] = None
    rows = list(chain(*groups))
    if any(row["tokens"] for row in rows):
        results["length"] = float(np.mean([row["tokens"] for row in rows]))
    else:
        results["length"] = None
    results["truncated"] = float(np.mean([row["finish_reason"] == "length" for row in rows]))
    for status in STATUSES[1:]:
        results[status] = float(np.mean([row["status"] == status for row in rows]))
    results["categories"] = by_category(samples, {k: v for k, v in scores.items() if k in ("pass@1", "greedy")})
    return results


def _counts(row: RecordRow) -> bool:
    """Return whether a completion is right or wrong, or whether its check failed."""
    return row["correct"] is not None or row["status"] == "error"


def _mean(values: np.ndarray) -> float | None:
    """Return the mean without NaN; None if no value is left."""
    known = values[~np.isnan(values)]
    if len(known):
        return float(known.mean())
    return None


def bootstrap_interval(values: np.ndarray) -> list[float]:
    """Return the 95 % percentile bootstrap interval of a mean over questions (Efron 1979), with fixed draws."""
    draws = np.random.default_rng(0).integers(0, len(values), (INTERVAL_RESAMPLES, len(values)))
    return [float(bound) for bound in np.percentile(values[draws].mean(1), [2.5, 97.5])]


def by_category(samples: Sequence[Sample], scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Return the mean scores of each category over its questions that have one; empty without categories."""
    places: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(sample.category, []).append(i)
    places.pop("", None)
    categories: dict[str, dict[str, float | None]] = {}
    for name, at in sorted(places.items()):
        categories[name] = {"questions": len(at)}
        for score, values in scores.items():
            categories[name][score] = _mean(values[at])
    return categories


def markdown(results: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """Return a table of all suites and their average, one of further results, and one of categories for each suite."""
    names = set(chain.from_iterable(results.values()))
    columns = [f"pass@{k}" for k in sampled_ks(names)]
    if "greedy" in names:
        columns.append("greedy")
    extra = ["length", "truncated"]
    further = sorted(name for name in names if name.count("/") == 1)
    head = ["suite", "questions", "n", *columns, *extra]
    means = averages(results.values(), [*columns, *extra, *further])
    rows = []
    for name, result in results.items():
        scores = [_with_interval(result, column) for column in columns]
        others = [_metric_text(result.get(column)) for column in extra]
        rows.append([name, result["questions"], result["n"], *scores, *others])
    mean_texts = []
    for column in [*columns, *extra]:
        mean_texts.append(_metric_text(means.get(column)))
    rows.append(["**Avg.**", "", "", *mean_texts])
    parts = [f"# {title}", markdown_table(head, rows)]
    if further:
        lines = []
        for name in further:
            values = [*(result.get(name) for result in results.values()), means.get(name)]
            lines.append([name, *map(_metric_text, values)])
        parts.append(markdown_table(["result", *results, "**Avg.**"], lines))
    for name, r in results.items():
        if r["categories"]:
            measures = [c for c in ("pass@1", "greedy") if c in r]
            lines = []
            for category, part in r["categories"].items():
                texts = []
                for c in measures:
                    texts.append(_metric_text(part[c]))
                lines.append([category, part["questions"], *texts])
            parts += [f"## {name}", markdown_table(["category", "questions", *measures], lines)]
    return "\n\n".join([*parts, "Intervals: 95 %, bootstrap over questions.\n"])


def sampled_ks(names: Iterable[str]) -> list[int]:
    """Return the k of every pass@k among the names of results, the smallest first."""
    ks = []
    for name in names:
        if name.startswith("pass@") and name[5:].isdigit():
            ks.append(int(name.removeprefix("pass@")))
    return sorted(ks)


def averages(suites: Collection[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """Return the unweighted mean of each result over the suites that have it.

    The papers print pass@1 and pass@16 in this way.
    """
    means = {}
    for name in names:
        values = []
        for suite in suites:
            if suite.get(name) is not None:
                values.append(suite[name])
        if values:
            means[name] = fmean(values)
    return means


def _with_interval(results: Mapping[str, Any], name: str) -> str:
    if results.get(name) is None:
        return ""
    low, high = results[f"{name}_ci95"]
    return f"{results[name]:.3f} [{low:.2f}, {high:.2f}]"


def _metric_text(value: float | None) -> str:
    if value is None:
        return ""
    if value < 10:
        return f"{value:.3f}"
    return f"{value:.0f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table of printable cells, with numbers aligned right."""
    lines = []
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        cells = []
        for cell in row:
            cells.append(one_line(str(cell)).replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
