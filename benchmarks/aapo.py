"""The cost of AAPO's reference rollouts on top of GRPO's step, on a CPU, over a run that visits its prompts repeatedly.

Three runs of a config's task on --prompts prompts, 16 a rollout, one update per rollout: GRPO, AAPO with
`reference_rollouts: pool`, and AAPO with `fresh`. Seconds of an iteration = rollout + training, from metrics.csv,
without the first. ratio = mean seconds over GRPO's; the pool is filled at the first visits, so its mean falls with the
number of visits while its median is that of a later visit.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

from common import make_parser, print_result, print_table, say

PER_ROLLOUT = 16
"""Prompts of a rollout."""
RUNS = {
    "GRPO": ["--model", "GRPO"],
    "AAPO, pool": ["--model", "AAPO", "--model.init_args.reference_rollouts", "pool"],
    "AAPO, fresh": ["--model", "AAPO", "--model.init_args.reference_rollouts", "fresh"],
}


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="quickstart", help="of `lit-rlvr fit`")
    parser.add_argument("--prompts", type=int, default=32, help="of the training set")
    parser.add_argument("--rollouts", type=int, default=24, help="iterations of each run")
    return parser.parse_args()


def fit(arguments: list[str], options: Any, folder: Path) -> list[dict[str, float]]:
    """Return the clock columns of a run, iteration by iteration."""
    command = [sys.executable, "-c", "from lit_rlvr.cli.main import main; main()", "fit", "--config", options.config]
    command += [*arguments, "--model.init_args.updates_per_rollout", "1", "--trainer.max_steps", str(options.rollouts),
                "--data.reading.limit", str(options.prompts), "--data.prompts_per_rollout", str(PER_ROLLOUT),
                "--trainer.limit_val_batches", "0", "--trainer.default_root_dir", str(folder)]  # fmt: skip
    subprocess.run(command, check=True, stdout=sys.stderr)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["time/train"]]
    return [{name: float(value) for name, value in row.items() if name.startswith("time/") and value} for row in rows]


def main() -> None:
    options = parse()
    rows, results = [], {}
    with TemporaryDirectory() as folder:
        for name, arguments in RUNS.items():
            say(f"{name}: {options.rollouts} iterations")
            times = fit(arguments, options, Path(folder, name))[1:]
            steps = [t["time/rollout"] + t["time/train"] for t in times]
            reference = [t.get("time/reference", 0.0) for t in times]
            results[name] = {"mean": mean(steps), "median": median(steps), "reference": mean(reference)}
    base = results["GRPO"]
    for name, found in results.items():
        found |= {"ratio": found["mean"] / base["mean"], "ratio_of_medians": found["median"] / base["median"]}
        rows.append((name, *found.values()))
    print_table(("", "mean s", "median s", "reference s", "ratio", "ratio of medians"), rows)
    print_result(runs=results, visits=options.rollouts * PER_ROLLOUT / options.prompts)


if __name__ == "__main__":
    main()
