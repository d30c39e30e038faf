"""One quickstart run per algorithm, with an equal number of rollouts: a table and the curves.

python benchmarks/algorithms.py --rollouts 12 --out runs/algorithms
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from lit_rlvr import algorithms

PANELS = (("rollout/reward", "Reward"), ("train/entropy", "Entropy (nats per token)"))


def runs(rollouts: int) -> dict[str, list[str]]:
    """Return name -> arguments: every algorithm, and A-GRAE on its three bases. Losses without a ratio take one
    update."""
    chosen: dict[str, list[str]] = {}
    for name in algorithms.__all__:
        if name != "RLVRModule":
            updates = 2 if getattr(algorithms, name).has_ratio else 1
            chosen[name] = ["--model", name, "--model.init_args.updates_per_rollout", str(updates),
                            "--trainer.max_steps", str(updates * rollouts)]  # fmt: skip
    chosen["DAPO"] += ["--model.init_args.max_sampling_rounds", "3"]  # at 2 % accuracy most groups are dead
    for name, base in (("GRPO", "grpo"), ("DAPO", "grpo"), ("DrGRPO", "dr_grpo")):
        advantage = ["--model.init_args.advantage", "AGRAE", "--model.init_args.advantage.base", base]
        chosen[f"{name} + A-GRAE"] = [*chosen[name], *advantage]
    return chosen


def fit(arguments: list[str], folder: Path, rollouts: int) -> None:
    """Run one quickstart into `folder`, unless it is there already."""
    if (folder / "summary.json").is_file():
        return
    command = [sys.executable, "-c", "from lit_rlvr.cli.main import main; main()", "fit", "--config", "quickstart"]
    command += [*arguments, "--trainer.default_root_dir", str(folder), "--overwrite", "true",
                "--trainer.val_check_interval", str(rollouts)]  # fmt: skip
    subprocess.run(command, check=True)


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
        axis.set_xlabel("rollouts of 16 prompts x 8 completions")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=9)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    options = parser.parse_args()
    folders: dict[str, Path] = {}
    table: dict[str, dict[str, float]] = {}
    for name, arguments in runs(options.rollouts).items():
        folders[name] = options.out / name.replace(" + ", "_")
        fit(arguments, folders[name], options.rollouts)
        summary = json.loads((folders[name] / "summary.json").read_text())
        keys = ("accuracy_before", "accuracy_after", "steps", "train_seconds")
        table[name] = {key: summary[key] for key in keys}
        print(f"{name:18}" + "".join(f"  {key} {value}" for key, value in table[name].items()), flush=True)
    draw(folders, options.out / "algorithms.png")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
