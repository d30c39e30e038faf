"""`lit-rlvr compare STUDY.yaml --out DIR`: runs a study's remaining cells and reports the results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlvr.cli.error_lines import failure_line
from lit_rlvr.commands.compare.cells import Cluster, run_cells
from lit_rlvr.commands.compare.figures import draw_figures
from lit_rlvr.commands.compare.study import Study, load_study
from lit_rlvr.commands.compare.study_folder import (
    State,
    StudyFolder,
    lock_study,
    next_command,
    read_suites,
    start_folder,
)
from lit_rlvr.commands.compare.study_results import read_cell, study_results
from lit_rlvr.commands.compare.study_tables import report
from lit_rlvr.commands.report.page import write_report
from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import require
from lit_rlvr.common.terminal import show_result
from lit_rlvr.configs import Parser
from lit_rlvr.errors import UserError

if TYPE_CHECKING:  # a finished study is read without Lightning and torch
    from lit_rlvr.evaluation.suites import Suite


class FailedCells(UserError):
    """The failure of some cells; `compare` raises it after it has written the results of the others.

    Args:
        failed: the failed cells.
        study: their study.
        root: its folder.
    """

    def __init__(self, failed: Sequence[State], study: Study, root: Path) -> None:
        self.cells = [state.cell for state in failed]
        failure = failed[0]
        super().__init__(
            f"{len(failed)} of {len(study.cells)} cells failed ({failure.cell}: {failure.error}); their logs are in "
            f"{root / failure.cell.folder} and so on; run the same command again to retry them"
        )


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `compare`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument("study", type=str, help="a study: a YAML file, or a shipped one by name (studies/smoke)")
    parser.add_argument("--out", type=str, required=True, help="folder of the study; give the same one to continue")
    add_execution_options(parser)
    config = parser.parse_args(arguments)
    require("scipy", command)
    compare(load_study(config.study), Path(config.out), config.jobs, config.cluster)
    show_result(
        json.loads((Path(config.out) / "results.json").read_text()), lambda: None
    )  # readable text is in results.md


def add_execution_options(parser: Parser) -> None:
    """Add the options that say where a study's cells run."""
    parser.add_argument("--jobs", type=int, default=1, help="cells that run at the same time")
    parser.add_argument(
        "--cluster",
        type=dict[str, Any] | None,
        help="run each cell as a Slurm job, by submitit's options: {slurm_partition: gpu, "
        "gpus_per_node: 8, timeout_min: 720}",
    )


def compare(study: Study, root: Path, jobs: int = 1, cluster: Mapping[str, Any] | None = None) -> None:
    """Run the cells of a study that are not done, and write its tables and figures.

    Args:
        study: the study.
        root: the study's folder; `study.json`, `results.json`, `results.md`, `figures/` and `runs/` go there.
        jobs: cells that run at the same time.
        cluster: options of `Cluster`, to run them as jobs of a cluster.

    Raises:
        UserError: a cell is invalid, or the folder belongs to another study.
        FailedCells: some cells failed; the results of the others are written.
    """
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} is not positive")
    if any(next_command(study, cell, root) is not None for cell in study.cells):
        check_cells(study)
        check_suites(study)
    with lock_study(root) as lock:
        folder = StudyFolder(root, study)
        try:
            run_cells(folder, jobs, lock, None if cluster is None else Cluster(root, cluster))
        except KeyboardInterrupt:
            for state in folder.with_status("running"):
                folder.set_status(state.cell, "interrupted")
            log.warning("Stopped; run the same command again to continue")
            raise
        _write_results(folder)


def check_cells(study: Study) -> None:
    """Refuse a study with a cell that `fit` would refuse, before the first cell trains.

    Raises:
        UserError: a cell is invalid; the message names it.
    """
    from lit_rlvr.cli.lightning_cli import ConfigCheck

    fit = ConfigCheck()
    for cell in study.cells:
        if cell.seed != study.seeds[0]:
            continue
        try:
            fit.check(deepcopy(cell.config))  # parsing changes it in place
        except Exception as error:
            line = failure_line(error)
            if line is None:
                raise
            messages = []
            for message in line.splitlines():
                messages.append(f"STUDY: {cell.task}, {cell.name}: {message}")
            raise UserError(*messages) from error


def check_suites(study: Study) -> list[Suite]:
    """Refuse suites that `evaluate` would refuse, before the first cell trains.

    Raises:
        UserError: there is no such suite or protocol, or two suites have the same name.
    """
    from lit_rlvr.evaluation.suites import find_suites

    return list(find_suites(study.all_suites, {}, {"protocol": study.protocol}))


def _write_results(folder: StudyFolder) -> None:
    """Write the results of finished cells.

    Raises:
        FailedCells: other cells failed.
    """
    root = folder.root
    study = folder.study
    runs = []
    for state in folder.with_status("done"):
        runs.append(read_cell(state.cell, root))
    if runs and not any(study.metric in run.last for run in runs):
        log.warning("metric: no run has %s at its last step; it has %s", study.metric, ", ".join(runs[0].last))
    starts = {}
    for task in study.tasks:
        suites = read_suites(root / start_folder(task))
        if suites:
            starts[task] = suites
    results = study_results(study, runs, starts)
    write_atomically(root / "results.json", json.dumps(results, indent=2) + "\n")
    figures = draw_figures(study, runs, root / "figures")
    failed = folder.with_status("failed")
    write_atomically(root / "results.md", report(study, results, figures, failed))
    log.info("Results: %s, and with the runs: %s", root / "results.md", write_report([root]))
    if failed:
        raise FailedCells(failed, study, root)
