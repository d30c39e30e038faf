"""The growth of memory, open files and processes in a long run: thousands of steps with a tiny model.

Starts `lit-rlvr fit --config smoke/resume` (a third of a million weights, a checkpoint every few steps, validation, two
reward workers) and looks at it from outside, all its processes together. Prints the growth over the second half of the
run and draws the curves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import linear_regression
from typing import Any

import psutil
from common import make_parser, print_result, print_table, say
from plots import Panel, draw


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--engine", default="hf", help="hf or vllm")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks")
    parser.add_argument("--out", type=Path, default=Path("runs/soak.png"), help="the picture")
    return parser.parse_args()


def measure(process: psutil.Process) -> tuple[float, int, int]:
    """Return MiB of memory, open files and number of all processes of a run."""
    memory, files, count = 0.0, 0, 0
    for each in [process, *process.children(recursive=True)]:
        try:
            memory += each.memory_full_info().uss / 2**20
            files += each.num_fds()
            count += 1
        except psutil.NoSuchProcess:  # a worker that has just been replaced
            continue
    return memory, files, count


def step_of(run: Path) -> int:
    """Return the last step in metrics.csv; 0 before the first."""
    path = run / "metrics.csv"
    lines = path.read_text().splitlines() if path.is_file() else []
    return int(lines[-1].partition(",")[0]) if len(lines) > 1 else 0


def main() -> None:
    options = parse()
    seen: list[tuple[int, float, int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        line = [sys.executable, "-c", "from lit_rlvr.cli.main import main; main()", "fit", "--config", "smoke/resume",
                "--trainer.max_steps", str(options.steps), "--rollout.validate_every_rollouts", "100",
                "--checkpoint.every", "10", "--rollout.engine", options.engine,
                "--trainer.default_root_dir", str(run)]  # fmt: skip
        started = time.monotonic()
        with (Path(folder) / "log").open("w") as log, subprocess.Popen(line, stdout=log, stderr=log) as child:
            process = psutil.Process(child.pid)
            while child.poll() is None:
                try:
                    found = measure(process)
                except psutil.NoSuchProcess:
                    break
                step = step_of(run)
                if step and (not seen or step > seen[-1][0]):
                    seen.append((step, *found))
                    say(f"step {step}: {found[0]:.0f} MiB, {found[1]} files, {found[2]} processes")
                time.sleep(options.every)
        if child.returncode:
            raise SystemExit((Path(folder) / "log").read_text()[-2000:])
        seconds = time.monotonic() - started
    half = [row for row in seen if row[0] > options.steps / 2]
    steps = [row[0] for row in half]
    slopes = {
        name: 1000 * linear_regression(steps, [row[k] for row in half]).slope
        for k, name in ((1, "MiB"), (2, "open files"), (3, "processes"))
    }
    print_table(
        ("", "growth per 1000 steps", "at the half", "at the end"),
        [(name, slope, float(half[0][k]), float(half[-1][k])) for k, (name, slope) in enumerate(slopes.items(), 1)],
    )
    x = [float(row[0]) for row in seen]
    draw(
        [
            Panel("memory of all processes", "step", "MiB", {"own memory": (x, [row[1] for row in seen])}, False),
            Panel(
                "open files and processes",
                "step",
                "count",
                {"open files": (x, [float(row[2]) for row in seen]), "processes": (x, [float(row[3]) for row in seen])},
                False,
            ),
        ],
        options.out,
    )
    print(f"picture: {options.out}")
    print_result(
        steps=options.steps,
        engine=options.engine,
        seconds=round(seconds, 1),
        growth_per_1000_steps=slopes,
        at_the_end=dict(zip(("step", *slopes), seen[-1], strict=True)),
    )


if __name__ == "__main__":
    main()
