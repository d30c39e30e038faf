"""The command line of `parity`: reads a batch and algorithms, writes the results, and prints a summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.commands.check.replay import load_arrays, replay
from lit_rlvr.common.files import check_new
from lit_rlvr.common.terminal import Terminal, show_result, table_of
from lit_rlvr.common.user_code import find_user_line
from lit_rlvr.configs import Parser, find_config, read_config
from lit_rlvr.errors import UserError, user_error_in


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `parity`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=run_parity.__doc__)
    parser.add_argument("batch", type=str, help="the frozen batch: an .npz file")
    parser.add_argument("--config", type=str, required=True, help="YAML: {algorithms: {NAME: {class_path, init_args}}}")
    parser.add_argument("--out", type=str, required=True, help="the .npz file to write")
    config = parser.parse_args(arguments)
    run_parity(config.batch, config.config, config.out)


def run_parity(batch_path: Path | str, config: Path | str, out: Path | str) -> None:
    """Replay a batch file through the algorithms of a config, write the results, and print a summary.

    Args:
        batch_path: .npz with the arrays that `replay` takes.
        config: YAML with `algorithms: {NAME: {class_path, init_args}}`.
        out: .npz to write.

    Raises:
        UserError: `out` exists already, or cannot be written.
    """
    arrays = load_arrays(Path(batch_path))
    check_new(Path(out), "--out")
    algorithms = load_algorithms(Path(config))
    results = replay(arrays, algorithms)
    rows = algorithm_summary(list(algorithms), results, np.asarray(arrays["mask"]).astype(bool))
    show_result(rows, lambda: print_table(rows))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with Path(out).open("xb") as file:  # np.savez would add .npz to a name without it
        np.savez(file, **results)  # type: ignore[arg-type]


def load_algorithms(path: Path) -> dict[str, RLVRModule]:
    """Build the modules that a YAML file names under `algorithms: {NAME: {class_path, init_args}}`, as `fit` would.

    Raises:
        UserError: the file is not such a mapping, or names a class or an option that does not exist.
    """
    algorithms = read_config(find_config(str(path)), ("algorithms",)).get("algorithms")
    if not isinstance(algorithms, dict) or not algorithms:
        raise UserError(f"--config: {path} must hold `algorithms: {{NAME: {{class_path: ..., init_args: ...}}}}`")
    algorithms_by_name = {}
    for name, spec in algorithms.items():
        algorithms_by_name[str(name)] = build_object(spec, f"--config: {path}: algorithms.{name}")
    return algorithms_by_name


def build_object(spec: Any, where: str, kind: type = RLVRModule) -> Any:
    """Build an object of a `kind` of class from its `class_path` and `init_args`, as `fit` would.

    Raises:
        UserError: there is no such class or option; the message begins with `where`.
    """
    from jsonargparse import ArgumentError

    from lit_rlvr.cli.error_lines import explain_parse_error

    if not isinstance(spec, str) and not (isinstance(spec, dict) and "class_path" in spec):
        raise UserError(f"{where}: must be {{class_path: ..., init_args: ...}} or the name of a class")
    parser = Parser()
    parser.add_subclass_arguments(kind, "algorithm", fail_untyped=False, required=True)
    try:
        return parser.instantiate(parser.parse_object({"algorithm": spec})).algorithm
    except ArgumentError as error:
        if find_user_line(error):
            raise  # the command's line names the place in the user's code
        raise UserError(f"{where}: {explain_parse_error(error).removeprefix('algorithm').lstrip('.: ')}") from error
    except (UserError, ValueError) as error:
        cause = user_error_in(error)
        if cause is None:
            raise
        raise UserError(f"{where}: {cause}") from error


def algorithm_summary(
    names: list[str], results: Mapping[str, np.ndarray], mask: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return each algorithm's loss, the size of its advantages and gradient, and its share of zero gradients."""
    summaries = {}
    for name in names:
        summaries[name] = {
            "loss": float(results[f"{name}/loss"]),
            "mean_advantage": float(np.abs(results[f"{name}/advantages"]).mean()),
            "gradient": float(np.abs(results[f"{name}/dlogp"]).sum()),
            "zero_gradient": float((results[f"{name}/dlogp"][mask] == 0).mean()) if mask.any() else 1.0,
        }
    return summaries


def print_table(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line per algorithm of `algorithm_summary`."""
    cells = []
    for name, row in rows.items():
        loss = f"{row['loss']:.6g}"
        advantage = f"{row['mean_advantage']:.4g}"
        gradient = f"{row['gradient']:.4g}"
        zero_gradient = f"{row['zero_gradient']:.1%}"
        cells.append((name, loss, advantage, gradient, zero_gradient))
    columns = ("algorithm", "loss", "mean |A|", "sum |dlogp|", "zero gradient")
    caption = "zero gradient: share of the tokens in the loss"
    Terminal().print_table(table_of(columns, cells, title="Replay of one frozen batch", caption=caption))
