"""One quickstart run per algorithm, with an equal number of rollouts: a table and the curves."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from common import make_parser, print_result, print_table

from lit_rlvr import algorithms

PANELS = (("rollout/reward", "Reward"), ("train/entropy", "Entropy (nats per token)"))
KEYS = ("accuracy_before", "accuracy_after", "steps", "train_seconds")


def parse() -> Any:
    parser = make_parser(__doc__)
    names = list(runs(0))
    parser.add_argument("--algorithms", nargs="+", choices=names, default=names, metavar="NAME", help="which runs")
    parser.add_argument("--config", default="quickstart", help="of `lit-rlvr fit`")
    parser.add_argument("--rollouts", type=int, default=24, help="of each run")
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"), help="folder of the runs and the picture")
    return parser.parse_args()


def runs(rollouts: int) -> dict[str, list[str]]:
    """Return name -> arguments: every algorithm, and A-GRAE on its three bases. Losses without a ratio take one
    update."""
    chosen: dict[str, list[str]] = {}
    for name in algorithms.__all__:
        if name not in ("RLVRModule", "OPD"):  # OPD learns from a teacher, not from rewards
            updates = 2 if getattr(algorithms, name).has_ratio else 1
            chosen[name] = ["--model", name, "--model.init_args.updates_per_rollout", str(updates),
                            "--trainer.max_steps", str(updates * rollouts)]  # fmt: skip
    chosen["DAPO"] += ["--model.init_args.max_sampling_rounds", "3"]  # at 2 % accuracy most groups are dead
    for name, base in (("GRPO", "grpo"), ("DAPO", "grpo"), ("DrGRPO", "dr_grpo")):
        advantage = ["--model.init_args.advantage", "AGRAE", "--model.init_args.advantage.base", base]
        chosen[f"{name} + A-GRAE"] = [*chosen[name], *advantage]
    return chosen


def fit(config: str, arguments: list[str], folder: Path, rollouts: int) -> None:
    """Run a config into `folder`, unless it is there already."""
    if (folder / "summary.json").is_file():
        return
    command = [sys.executable, "-c", "from lit_rlvr.cli.main import main; main()", "fit", "--config", config]
    command += [*arguments, "--trainer.default_root_dir", str(folder), "--overwrite", "true",
                "--rollout.validate_every_rollouts", str(rollouts)]  # fmt: skip
    subprocess.run(command, stdout=sys.stderr, check=True)


def draw(folders: dict[str, Path], path: Path) -> None:
    """Draw reward and entropy of every run against rollouts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 5.5), constrained_layout=True)
    colours = pyplot.get_cmap("tab20").colors
    for axis, (metric, label) in zip(axes, PANELS, strict=True):
        for colour, (name, folder) in zip(colours, folders.items(), strict=False):
            with (folder / "metrics.csv").open(newline="") as file:
                values = [row[metric] for row in csv.DictReader(file) if row["step"] != "0"]
            points = [(i, float(value)) for i, value in enumerate(values, 1) if value]
            axis.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.6)
        axis.set_title(label)
        axis.set_xlabel("rollouts")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=9)
    figure.savefig(path, dpi=100)


def main() -> None:
    options = parse()
    folders: dict[str, Path] = {}
    table: dict[str, dict[str, float]] = {}
    for name in options.algorithms:
        folders[name] = options.out / name.replace(" + ", "_")
        fit(options.config, runs(options.rollouts)[name], folders[name], options.rollouts)
        summary = json.loads((folders[name] / "summary.json").read_text())
        table[name] = {key: summary[key] for key in KEYS}
    draw(folders, options.out / "algorithms.png")
    print_table(("", *KEYS), [(name, *row.values()) for name, row in table.items()])
    print_result(rollouts=options.rollouts, runs=table)


if __name__ == "__main__":
    main()
