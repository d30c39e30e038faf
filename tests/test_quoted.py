"""What pages quote from the files of results that they link."""

import csv
import json
import re
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *(page for part in ("docs", "research", "benchmarks") for page in ROOT.glob(f"{part}/**/*.md")),
]
RESULTS = (".json", ".jsonl", ".csv", ".tsv", ".log")
FIRST_RUNS = ("pens_1", "pens_2", "change_0", "position_0", "clock_0", "largest_0")
WIDE_RUNS = ("pens_0_wide", "pens_1_wide", "pens_2_wide", "largest_0_wide", "clock_0_wide")
QUOTED = {
    "benchmarks/first_tasks.md": [f"benchmarks/first_tasks/{run}/summary.json" for run in FIRST_RUNS + WIDE_RUNS],
    "research/learning_rate.md": ["research/results/auto_lr_high.json"],
}
"""Page -> files of results that it links, whose numbers a test of this file recomputes."""


def rows_of(page: Path, first: str) -> list[list[str]]:
    """Return the cells of the table of a page whose first heading is given, without its two first lines."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_file_of_results_that_a_page_links_is_recomputed() -> None:
    linked: dict[str, list[str]] = {}
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            path = (page.parent / target).resolve()
            if path.suffix in RESULTS and path.is_file():
                linked.setdefault(str(page.relative_to(ROOT)), []).append(str(path.relative_to(ROOT)))
    assert linked == QUOTED


def test_the_learning_rate_that_is_too_high() -> None:
    results: Any = json.loads((ROOT / "research/results/auto_lr_high.json").read_text())
    cells = results["tasks"]["steps"]["cells"]
    fixed = cells["grpo_3e-4"]["mean"]
    start = {seed: run["best"] for seed, run in cells["grpo_auto_1e-2"]["by_seed"].items()}  # it only fell
    expected, regrets = [], []
    for cell in ("grpo_3e-4", "grpo_auto_1e-3", "grpo_auto_1e-2"):
        mean = cells[cell]["mean"]
        fallen = sum(value < start[seed] - 0.05 for seed, value in cells[cell]["values"].items())
        regret = "-" if cell == "grpo_3e-4" else f"{fixed - mean:.3f}"
        expected.append([f"{mean:.3f}", regret, f"{fallen} of {len(start)}"])
        regrets.append(fixed - mean)
    page = ROOT / "research/learning_rate.md"
    assert [row[1:] for row in rows_of(page, "| | last validation | regret")] == expected
    assert f"the mean regret is {fmean(regrets[1:]):.3f}." in page.read_text()
    before = results["tasks"]["steps"]["before"]["mean"]
    assert f"three seeds, {before:.3f}\nbefore training" in page.read_text()


TASKS = ("clock", "largest", "minutes")


def summary(task: str) -> dict[str, Any]:
    """Return the summary of a first task's run."""
    return dict(json.loads((ROOT / f"benchmarks/first_tasks/{task}/summary.json").read_text()))


def test_the_first_tasks() -> None:
    page = ROOT / "benchmarks/first_tasks.md"
    rows = {row[0].split("`")[1]: row for row in rows_of(page, "| task |")}
    assert tuple(rows) == TASKS
    gains, steps = [], []
    for task, row in rows.items():
        found = summary(task)
        before, after = found["accuracy_before"], found["accuracy_after"]
        assert abs(float(row[2]) - before) <= 0.0005  # 0.5625 is rounded up
        assert row[3] == f"{after:.3f}"
        assert row[5] == f"{found['train_seconds']:.0f}"
        with (ROOT / f"benchmarks/first_tasks/{task}/metrics.csv").open(newline="") as file:
            assert max(int(line["step"]) for line in csv.DictReader(file)) == found["steps"] == 30
        gains.append(f"{after - before:.2f}")
        steps.append(
            re.findall(r"step (\d+) of at most", (ROOT / f"benchmarks/first_tasks/{task}/tune.log").read_text())[-1]
        )
    text = " ".join(page.read_text().split())
    assert "the answers: {}, {} and {} steps".format(*steps) in text
    assert "GRPO adds {}, {} and {} in its 30".format(*gains) in text


def test_the_task_of_the_tutorial() -> None:
    page = ROOT / "benchmarks/first_tasks.md"
    rows = {row[0]: row for row in rows_of(page, "| seed |")}
    gains = []
    for label, row in rows.items():
        before, after, gain = map(float, row[2:5])
        assert abs(after - before - gain) <= 0.0011  # each is rounded
        gains.append(gain)
        linked = re.search(r"\(first_tasks/(\w+)/summary.json\)", label)
        if linked is None:
            continue
        found = summary(linked[1])
        names = ("accuracy_before_warm_start", "accuracy_before", "accuracy_after")
        assert row[1:4] == [f"{found[name]:.3f}" for name in names]
    assert f"**GRPO adds {sum(gains) / 3:.2f}**" in page.read_text()
    quoted = [row[3][:4] for row in rows.values()]
    tutorial = " ".join((ROOT / "docs/tutorials/own_task.md").read_text().split())
    assert "and {}, {} and {} after the 14 rollouts of three seeds".format(*quoted) in tutorial


def test_larger_rollouts_from_the_same_completions() -> None:
    page = ROOT / "benchmarks/first_tasks.md"
    tutorial = {row[0].strip("[").partition("]")[0]: row for row in rows_of(page, "| seed |")}
    rows = rows_of(page, "| the task's run |")
    for row, run in zip(rows, WIDE_RUNS, strict=True):
        task, seed, _ = run.split("_")
        assert f"`{task}`" in row[0] and f"{run}/" in row[0] and row[1] == seed
        wide = summary(run)
        assert [row[2], row[4]] == [f"{wide[name]:.3f}" for name in ("accuracy_before", "accuracy_after")]
        small = tutorial[seed][3] if task == "pens" else f"{summary(f'{task}_{seed}')['accuracy_after']:.3f}"
        assert row[3] == small
        assert float(row[4]) <= float(row[3]), "the page says so"


def test_the_tasks_that_the_tutorial_does_not_show() -> None:
    page = ROOT / "benchmarks/first_tasks.md"
    rows = rows_of(page, "| other task |")
    gains = []
    names = ("accuracy_before_warm_start", "accuracy_before", "accuracy_after")
    for row in rows:
        linked = re.search(r"\(first_tasks/(\w+)/summary.json\)", row[0])
        assert linked is not None
        found = summary(linked[1])
        after = found["accuracy_after"]
        gains.append(f"{after - found['accuracy_before']:.2f}")
        error = 2 * sqrt(after * (1 - after) / 128)
        assert row[2:] == [*(f"{found[name]:.3f}" for name in names), f"{error:.3f}", f"{found['constant_guess']:.3f}"]
    assert len(rows) == len([run for run in FIRST_RUNS if not run.startswith("pens")])
    assert "GRPO adds {}, {}, {} and {} to".format(*gains) in page.read_text()
    first, last = ([f"{float(row[k]):.2f}" for row in rows] for k in (2, 4))
    pairs = [f"{before} -> {after}" for before, after in zip(first, last, strict=True)]
    tutorial = " ".join((ROOT / "docs/tutorials/own_task.md").read_text().split())
    assert "{}, {}, {} and {}".format(*pairs) in tutorial
