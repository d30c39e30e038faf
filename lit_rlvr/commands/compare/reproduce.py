"""`lit-rlvr reproduce apmpo/table1 --out DIR`: runs a paper's study and compares its results with the printed ones.

It decides the claims that are registered for the table. `lit-rlvr reproduce --list` names every table, figure and
claim of the papers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import starmap
from pathlib import Path
from typing import Any

from lit_rlvr.commands.compare.claims import claims_section, decide, lacking_pairs
from lit_rlvr.commands.compare.command import FailedCells, add_execution_options, check_suites, compare
from lit_rlvr.commands.compare.printed import Paper, PrintedTable, PrintedValue, load_printed
from lit_rlvr.commands.compare.study import load_study
from lit_rlvr.commands.compare.study_tables import percent
from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import require
from lit_rlvr.common.terminal import show_result
from lit_rlvr.configs import Parser, config_folder, load_yaml
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.results import markdown_table

ComparedTable = dict[str, dict[str, tuple[PrintedValue, Mapping[str, Any] | None]]]
"""Row -> column -> (the printed value, our spread over seeds; None where there is none)."""


def compared(paper: Paper, results: Mapping[str, Any]) -> Iterator[tuple[PrintedTable, ComparedTable]]:
    """Yield each printed table with its values next to ours."""
    for table in paper.tables:
        task = results["tasks"][table.task]
        rows: ComparedTable = {}
        for row, values in table.rows.items():
            rows[row] = {}
            for column, value in zip(table.columns, values, strict=True):
                rows[row][column] = (value, table.ours(row, column, task))
        yield table, rows


def comparison_tables(paper: Paper, results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of `compared` as Markdown."""
    for table, rows in compared(paper, results):
        lines = []
        for row, cells in rows.items():
            lines.append([row, _runs(cells.values()), *starmap(_cell, cells.values())])
        yield f"## {table.title}\n\n" + markdown_table(["ours (printed; difference)", "n", *table.columns], lines)


def _runs(cells: Iterable[tuple[PrintedValue, Mapping[str, Any] | None]]) -> str:
    """Return the number of our runs behind a row of a table; "-" without any."""
    counts = set()
    for _, value in cells:
        if value is not None:
            counts.add(value["n"])
    return " to ".join(map(str, sorted(counts))) or "-"


def _cell(printed: PrintedValue, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return f"- ({printed})"
    return f"{percent(value)} ({printed}; {100 * value['mean'] - printed.value:+.1f})"


def as_data(paper: Paper, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of `compared` for JSON: title -> row -> column -> values.

    The printed value and its deviation are in percent, our spread is in shares.
    """
    data: dict[str, Any] = {}
    for table, rows in compared(paper, results):
        data[table.title] = {}
        for row, cells in rows.items():
            data[table.title][row] = {}
            for column, (printed, value) in cells.items():
                of_paper = {"printed": printed.value, "deviation": printed.deviation}
                data[table.title][row][column] = {**of_paper, "ours": value}
    return data


EXPLANATION = """In percent (or GiB and seconds), mean ± sample standard deviation over our n runs; in brackets the
paper's value and our difference from it. The paper's deviations are over {seeds} seeds. How ours were
asked: `settings.json` in each run's folder `evaluation`."""


def reproduce(name: str, out: Path, jobs: int = 1, cluster: Mapping[str, Any] | None = None) -> None:
    """Run the study of a paper's table, and write `reproduced.md`.

    The page has our values next to the printed ones, and the verdicts on the paper's claims. If some cells failed,
    it has the others and names the failed ones; then this raises the error of `compare`.

    Args:
        name: name of the paper's file of printed tables.
        out: the study's folder.
        jobs: cells that run at the same time.
        cluster: options of `Cluster`, to run them as jobs of a cluster.

    Raises:
        UserError: as `compare` and `load_printed`.
    """
    paper = load_printed(name)
    study = load_study(paper.study)
    paper.check(study, [suite.name for suite in check_suites(study)])
    failure: FailedCells | None = None
    try:
        compare(study, out, jobs, cluster)
    except FailedCells as error:
        failure = error
    results = json.loads((out / "results.json").read_text())
    decided = decide(paper.claims, results)
    explained = " ".join(EXPLANATION.format(seeds=paper.seeds or "an unstated number of").split())
    parts = [
        f"# {name}",
        f"**Failed, so left out: {'; '.join(map(str, failure.cells))}.**" if failure else "",
        claims_section(decided) if decided else "",
        explained if paper.tables else "",
        *comparison_tables(paper, results),
    ]
    write_atomically(out / "reproduced.md", "\n\n".join(filter(None, parts)) + "\n")
    for result in decided:
        log.info("%s: %s", result.claim.says, result.verdict)
    for line in lacking_pairs(decided):
        log.warning("%s", line)
    log.info("Next to the printed values: %s", out / "reproduced.md")
    if failure:
        raise failure
    reproduced = as_data(paper, results) | ({"claims": [claim.as_data() for claim in decided]} if decided else {})
    show_result(reproduced, lambda: None)  # readable text is in reproduced.md


def paper_items() -> Iterator[tuple[str, str, str]]:
    """Yield every table and figure of the papers, and what tests each paper's claims: on a tiny model, and on GPUs.

    Yields:
        The name, such as `agrae, table 2`; the command that makes it, or why there is none; and what that takes, "" if
        there is no command.
    """
    folder = config_folder() / "printed"
    for paper, values in load_yaml((folder / "papers.yaml").read_text()).items():
        claims = values["claims"]
        runs = f"{len(load_study(claims['study']).cells)} runs of {claims['minutes']} minutes of training on one core"
        yield (
            f"{paper}, claims on a tiny model",
            f"lit-rlvr compare {claims['study']}",
            f"run: docs/findings.md; {runs}",
        )
        machine = f"the paper's machine: {values['machine']}"
        tables = []
        for path in (folder / paper).glob("*.yaml"):
            tables.append(f"{paper}/{path.stem}")
        for table in sorted(tables):
            printed_table = load_printed(table)
            for claim in printed_table.claims:
                if claim.primary:
                    takes = f"not run; {describe_cost(printed_table.study)}; {machine}"
                    yield f"{paper}, claim: {claim.says}", f"lit-rlvr reproduce {table}", takes
        for name, item in values["items"].items():
            if "none" in item:
                yield f"{paper}, {name}", f"none: {item['none']}", ""
                continue
            printed = item.get("printed", [])
            studies = dict.fromkeys([load_printed(table).study for table in printed] or [item["study"]])
            commands = [f"lit-rlvr reproduce {table}" for table in printed]
            if "figures" in item:
                commands.append(f"{', '.join(item['figures'])} of lit-rlvr compare {item['study']}")
            costs = "; ".join([*map(describe_cost, studies), machine])
            yield f"{paper}, {name}", "; ".join(commands), f"not run; {costs}"


@cache
def describe_cost(name: str) -> str:
    """Return what a study takes: its runs, and the steps of each."""
    study = load_study(name)
    unit, count = study.budget
    return f"{name}: {len(study.cells)} runs of {count} {unit}"


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Run the command line of `reproduce`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument(
        "table", type=str | None, nargs="?", help="a paper's table (apmpo/table1), or a YAML file with printed values"
    )
    parser.add_argument("--out", type=str | None, help="folder of the study; give the same one to continue")
    parser.add_argument("--list", action="store_true", help="name every table, figure and claim of the papers instead")
    add_execution_options(parser)
    config = parser.parse_args(list(arguments))
    if config.list:
        items = list(paper_items())
        lines = []
        for name, how, cost in items:
            if cost:
                lines.append(f"{name}: {how} ({cost})")
            else:
                lines.append(f"{name}: {how}")
        rows = []
        for name, how, cost in items:
            rows.append({"name": name, "how": how, "cost": cost})
        show_result(rows, lambda: print(*lines, sep="\n"))
        return
    if config.table is None or config.out is None:
        raise UserError(f"{command}: give a table and --out, or --list")
    require("scipy", command)
    reproduce(config.table, Path(config.out), config.jobs, config.cluster)
