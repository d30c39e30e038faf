"""The papers' printed values: they belong to their studies, agree with themselves, and stand next to ours."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml
from tiny_rewards import judged_as_is
from tiny_runs import CLI

from lit_rlvr.commands.compare.claims import AVERAGE, PrintedClaim
from lit_rlvr.commands.compare.command import FailedCells, check_suites
from lit_rlvr.commands.compare.printed import Paper, PrintedTable, PrintedValue, load_printed
from lit_rlvr.commands.compare.reproduce import comparison_tables, reproduce
from lit_rlvr.commands.compare.study import Study, load_study
from lit_rlvr.commands.compare.study_folder import State
from lit_rlvr.commands.compare.study_tables import BEFORE
from lit_rlvr.configs import config_folder
from lit_rlvr.errors import UserError

FOLDER = config_folder() / "printed"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.yaml"))
CONTRADICTIONS = {
    ("aapo/table1_1.5b", "open-rs", "grpo"),
    ("aapo/table1_7b", "simplerl-qwen", BEFORE),
    ("aapo/table1_llama", "llama-3.2-3b", "gpg"),
    ("aapo/table2_3_7b", "simplerl-qwen", "no_clip"),
    ("apmpo/table10", "deepseek-r1-1.5b", "eps_0.1_0.3"),
    ("apmpo/table3", "deepseek-r1-1.5b", "adaptive_lower"),
    ("apmpo/table3", "qwen2.5-3b", "adaptive_lower"),
    ("apmpo/table6", "qwen2.5-math-1.5b", "grpo"),
}
"""Printed averages that are not those of their rows."""


@pytest.mark.first_case_fast
@pytest.mark.parametrize("name", NAMES)
def test_printed_tables_and_claims_belong_to_their_study(name: str) -> None:
    paper = load_printed(name)
    study = load_study(paper.study)
    suites = {suite.name: suite.protocol.samples for suite in check_suites(study)}
    paper.check(study, [*suites])
    assert all({*table.columns} - {AVERAGE} for table in paper.tables)
    asked = [(t.suite or c, t.metric or c) for t in paper.tables for c in t.columns if AVERAGE not in (c, t.metric)]
    asked += [(suite, claim.metric) for claim in paper.claims for suite in claim.averaged]
    for suite, metric in asked:
        if match := re.fullmatch(r"(?:pass@|avg@)(\d+)", metric):
            assert int(match[1]) <= suites[suite], f"the study samples too few completions for {metric}"
        else:
            assert metric in ("greedy", "run", "length") or (study.diversity and metric.startswith("diversity/"))


def test_tables_and_claims_of_what_the_study_has_not_are_refused() -> None:
    study, suites = load_study("studies/agrae_ablation"), ["math", "aime25"]
    task, values = study.tasks[0], [PrintedValue(1.0, None)]
    right = [
        PrintedTable(task, "math", "pass@1", ["CT"], {BEFORE: values, "grpo": values}),
        PrintedTable(task, None, "pass@256", ["math", AVERAGE], {"full": values * 2}),
        PrintedTable(task, None, "run", ["GiB"], {"grpo": values}),
    ]
    claim = PrintedClaim("s", "1", task, "pass@1", "full", BEFORE, suite="math")
    Paper("s", None, right, [claim, replace(claim, less=0.5)]).check(study, suites)
    for wrong, said in (
        (PrintedTable("t", None, "pass@1", ["math"], {}), "task 't'; it has "),
        (PrintedTable(task, None, "pass@1", ["math"], {"gpo": values}), "cell 'gpo'; it has "),
        (PrintedTable(task, None, "pass@1", ["maths"], {}), "suite or column 'maths'; it has math, "),
        (PrintedTable(task, "maths", None, ["pass@1"], {}), "suite or column 'maths'; it has math, "),
        (PrintedTable(task, None, "run", ["GB"], {}), "suite or column 'GB'; it has GiB, seconds"),
        (replace(claim, less="gpo"), "cell 'gpo'; it has "),
        (replace(claim, suite=AVERAGE, suites=["math", "amc"]), "suite or column 'amc'; it has math, "),
    ):
        paper = Paper("s", None, [wrong]) if isinstance(wrong, PrintedTable) else Paper("s", None, [], [wrong])
        with pytest.raises(UserError, match=f"agrae_ablation has no {said}"):
            paper.check(study, suites)


def test_printed_averages_are_those_of_their_rows() -> None:
    """But for misprints, which the comments of the files name."""
    wrong = set()
    for name in NAMES:
        for table in load_printed(name).tables:
            for row, values in table.rows.items():
                if AVERAGE in table.columns:
                    *parts, average = [value.value for value in values]
                    if abs(mean(parts) - average) > 0.0501:  # half of the last digit
                        wrong.add((name, table.task, row))
    assert wrong == CONTRADICTIONS


def spread(value: float, std: float | None = None, n: int = 1) -> dict[str, Any]:
    return {"mean": value, "std": std, "n": n}


def results() -> dict[str, Any]:
    def of(first: dict[str, Any], second: dict[str, Any], average: dict[str, Any]) -> dict[str, Any]:
        suites = {"a": {"pass@1": first, "categories": {"CT": {"pass@1": second}}}, "b": {"pass@1": second}}
        return {"suites": suites, "average": {"pass@1": average}}

    ours = of(spread(0.5, 0.01, 3), spread(0.3, 0.01, 3), spread(0.4, 0.01, 3))
    start = of(spread(0.2), spread(0.1), spread(0.15))
    return {"tasks": {"t": {"cells": {"grpo": {"suites": {"math": ours}}}, "before_suites": {"math": start}}}}


def test_our_values_stand_next_to_the_papers() -> None:
    rows = {
        BEFORE: [PrintedValue(20.0, None)] * 3,
        "grpo": [PrintedValue(50.0, 1.0), PrintedValue(20.0, 1.0), PrintedValue(40.5, None)],
    }
    first = PrintedTable("t", None, "pass@1", ["a", "b", AVERAGE], rows)
    second = PrintedTable(
        "t", "a", None, ["pass@1", "pass@64"], {"grpo": [PrintedValue(45.0, None), PrintedValue(99.0, None)]}
    )
    third = PrintedTable("t", "a", "pass@1", ["CT"], {"grpo": [PrintedValue(30.0, None)]})
    pages = list(comparison_tables(Paper("s", 3, [first, second, third]), results()))
    assert "| before training | 1 | 20.0 (20.0; +0.0) | 10.0 (20.0; -10.0) | 15.0 (20.0; -5.0) |" in pages[0]
    assert "50.0 ± 1.0 (50.0 ± 1.0; +0.0)" in pages[0] and "30.0 ± 1.0 (20.0 ± 1.0; +10.0)" in pages[0]
    assert "| grpo | 3 | 50.0 ± 1.0 (45.0; +5.0) | - (99.0) |" in pages[1]
    assert pages[1].startswith("## t, a\n")
    assert "30.0 ± 1.0 (30.0; +0.0)" in pages[2]


def test_what_is_no_table_is_one_line(tmp_path: Path) -> None:
    for text, said in (
        ("tables: [{task: t}]", "mine.yaml has no 'columns'; see the shipped ones in "),
        ("study: s", "mine.yaml has no 'tables'; see the shipped ones in "),
        ("[1]", "mine.yaml has no 'tables'"),
        ("", "mine.yaml has no 'tables'"),
        ("study: s\ntables: [1]", "does not have the form"),
        ("study: s\ntables: [{task: t, columns: [a], rows: {grpo: [many]}}]", "'many' is neither a number nor"),
        ("study: s\ntables: [{task: t, columns: [a], rows: {grpo: [1, 2]}}]", "grpo has 2 values for 1 columns"),
    ):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_printed(str(path))
        assert said in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no table 'apmpo/tabel1'; did you mean 'apmpo/table1'"):
        load_printed("apmpo/tabel1")


@pytest.mark.slow
def test_a_table_of_ones_own_is_reproduced(
    run_folder: Path, lit_rlvr: CLI, forks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command from beginning to end, on a tiny study."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(run_folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "helpers"), prepend=os.pathsep)
    rows = [{"problem": f"{i}?", "answer": str(i)} for i in range(4)]
    (run_folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "data": {"class_path": "TextMath", "init_args": {"test": str(run_folder / "own.jsonl")}},
        "rewards": [judged_as_is("first_token")],
    }
    (run_folder / "own.yaml").write_text(yaml.safe_dump(own))
    study = {
        "name": "tiny",
        "base": "tiny.yaml",
        "tasks": {"sums": {}},
        "cells": {"grpo": {}},
        "seeds": [0],
        "baseline": "grpo",
        "budget": {"steps": 1},
        "suites": [{"suite": "own.yaml", "samples": 0}],
    }
    (run_folder / "study.yaml").write_text(yaml.safe_dump(study))
    printed = {
        "study": "study.yaml",
        "tables": [
            {"task": "sums", "metric": "greedy", "columns": ["own", "Avg."], "rows": {"grpo": [30.0, "30.0 ± 1.0"]}},
        ],
        "claims": [
            {
                "says": "It is right more than never",
                "where": "1",
                "task": "sums",
                "suite": "own",
                "metric": "greedy",
                "more": "grpo",
                "less": -0.5,
                "primary": True,
            }
        ],
    }
    (run_folder / "mine.yaml").write_text(yaml.safe_dump(printed))
    done = lit_rlvr("reproduce", "mine.yaml", "--out", "out", "--json", status=0)
    found = json.loads(Path("out/results.json").read_text())["tasks"]["sums"]["cells"]["grpo"]
    ours = 100 * found["suites"]["suites"]["suites"]["own"]["greedy"]["mean"]
    page = Path("out/reproduced.md").read_text()
    assert f"| grpo | 1 | {ours:.1f} (30.0; {ours - 30:+.1f}) | {ours:.1f} (30.0 ± 1.0; {ours - 30:+.1f}) |" in page
    cell = json.loads(done.out)["sums, greedy"]["grpo"]["Avg."]
    assert (cell["printed"], cell["deviation"]) == (30.0, 1.0) and 100 * cell["ours"]["mean"] == pytest.approx(ours)
    (verdict,) = json.loads(done.out)["claims"]
    assert (verdict["verdict"], verdict["n"], verdict["p"]) == ("cannot tell", 1, 1.0)
    assert (
        verdict["difference"] == pytest.approx(ours / 100 + 0.5)
        and "It is right more than never: cannot tell" in done.err
    )
    lacking = "Too few seeds: sign flips need 6 pairs to reach 0.05 among 1 primary claim, and the results have 1."
    assert lacking in page and lacking in done.err
    again = lit_rlvr("compare", "study.yaml", "--out", "out", "--json")
    assert json.loads(again.out) == json.loads(Path("out/results.json").read_text())


def test_a_failed_cell_leaves_the_verdicts_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has what there is and names what failed. A study that does not start has no page."""
    monkeypatch.chdir(tmp_path)
    study = {
        "name": "tiny",
        "base": "quickstart",
        "tasks": {"sums": {}},
        "cells": {"grpo": {}, "wrong": {}},
        "seeds": [0],
        "baseline": "grpo",
        "budget": {"steps": 4},
    }
    Path("study.yaml").write_text(yaml.safe_dump(study))
    shared = {"where": "1", "task": "sums", "metric": "rollout/reward", "primary": True}
    claims = [
        {"says": "It is right more than never", "more": "grpo", "less": -0.5} | shared,
        {"says": "Wrong is worse", "more": "grpo", "less": "wrong"} | shared,
    ]
    Path("mine.yaml").write_text(yaml.safe_dump({"study": "study.yaml", "claims": claims}))
    cells = {"grpo": {"by_seed": {"0": {"quarters": {"rollout/reward": [0.1] * 4}}}}, "wrong": {"by_seed": {}}}

    def compared(study: Study, out: Path, jobs: int, cluster: None) -> None:
        out.mkdir()
        (out / "results.json").write_text(json.dumps({"tasks": {"sums": {"cells": cells}}}))
        raise FailedCells([State(study.cells[1], "failed", "out of memory")], study, out)

    monkeypatch.setattr("lit_rlvr.commands.compare.reproduce.compare", compared)
    with pytest.raises(FailedCells, match=r"1 of 2 cells failed \(sums, wrong, seed 0: out of memory\)"):
        reproduce("mine.yaml", Path("out"))
    page = Path("out/reproduced.md").read_text()
    assert "\n\n**Failed, so left out: sums, wrong, seed 0.**\n\n" in page
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert "It is right more than never" in rows[0] and " | 1 | 1.000, 1.000 | **cannot tell**" in rows[0]
    assert "Wrong is worse" in rows[1] and "| 0 | - | **cannot tell** |" in rows[1]
    assert "Wrong is worse: no pair of runs has rollout/reward, last quarter of training." in page

    Path("out/reproduced.md").unlink()
    with pytest.raises(FileExistsError):  # anything but failed cells
        reproduce("mine.yaml", Path("out"))
    assert not Path("out/reproduced.md").exists()
