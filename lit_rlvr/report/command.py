"""The command line of `report`, and the function that writes the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_rlvr.configs import Parser
from lit_rlvr.report.groups import read_groups
from lit_rlvr.report.page import page
from lit_rlvr.report.render import write_page
from lit_rlvr.terminal import show_result


def run(command: str, arguments: list[str]) -> None:
    """Run the command line of `report`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=write_report.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or folders of studies")
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="page to write; default: report.html, in the folder if only one is given",
    )
    config = parser.parse_args(arguments)
    path = write_report(config.runs, config.out)
    show_result({"page": str(path)}, lambda: print(f"Page: {path}"))


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about runs: settings, curves, accuracies, prompts, completions, tokens.

    The page groups runs that differ only by seed, and shows their curves as a mean with a band.

    Args:
        runs: folders of runs or of studies.
        out: the page; by default `report.html`, in the folder if only one is given.

    Raises:
        UserError: a folder holds no run, or the page cannot be written.
    """
    folders = [Path(run) for run in runs]
    target = Path(out) if out is not None else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_page(target, page(*read_groups(folders)), "--out")
    return target
