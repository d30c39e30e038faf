"""The seconds that `lit-rlvr watch` takes to read a long run, and then to show each view of it.

The run folder is written for this: by default 2,000 steps of 128 prompts x 8 completions of 400 characters. Nothing is
kept between two requests of a view; the table has the fastest and the slowest of five.
"""

from __future__ import annotations

import csv
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from common import make_parser, peak_memory_mb, print_result, print_table
from starlette.testclient import TestClient

from lit_rlvr.commands.watch.application import application
from lit_rlvr.commands.watch.follow import FollowedFolders

METRICS = 90


def write(folder: Path, steps: int, prompts: int, group: int, known: int) -> None:
    """Write a run folder of that length; each completion has 400 characters."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed_everything: 0\nmodel: {class_path: lit_rlvr.algorithms.GRPO}\n")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "rollout/reward", "val/accuracy", *(f"train/metric_{k}" for k in range(METRICS))])
        for step in range(1, steps + 1):
            writer.writerow([step, step / steps, step / steps, *(draw.random() for _ in range(METRICS))])
    text = "so the answer is " * 23
    with (folder / "completions.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            for k in range(prompts):
                name = str((step * prompts + k) % known)
                for g in range(group):
                    correct = draw.random() < step / steps
                    file.write(json.dumps({
                        "step": step, "id": name, "sample": g, "prompt": f"What is {name} + 1?", "answer": "2",
                        "completion": text, "finish_reason": "stop", "tokens": 100, "reward": float(correct),
                        "correct": correct, "status": "ok", "advantage": 0.5,
                    }) + "\n")  # fmt: skip


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of the run")
    parser.add_argument("--prompts", type=int, default=128, help="saved prompts per step")
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--known", type=int, default=4096, help="different prompts")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as root:
        run = Path(root, "run")
        write(run, **vars(options))
        size = (run / "completions.jsonl").stat().st_size / 2**20
        folders = FollowedFolders([run])
        with TestClient(application(folders), base_url="http://127.0.0.1") as client:

            def ask(path: str, query: dict[str, str]) -> tuple[float, Any]:
                """Return the seconds of an answer, and the answer."""
                asked = time.perf_counter()
                answer = client.get(path, params=query)
                return time.perf_counter() - asked, answer

            began = time.perf_counter()
            of_the_run, of_a_prompt = {"run": str(run)}, {"run": str(run), "id": "7"}
            views: dict[str, tuple[str, dict[str, str]]] = {
                "runs": ("/", {}),
                "now": ("/now", {}),
                "prompts": ("/prompts", of_the_run),
                "prompts, filtered": ("/prompts", of_the_run | {"outcome": "solved", "words": "what"}),
                "prompt": ("/prompt", of_a_prompt),
                "prompt, one step": ("/prompt", of_a_prompt | {"step": "64"}),
            }
            during: dict[str, float] = {}
            while folders.unread or not folders.runs[str(run)].completions.size:
                for name in ("runs", "prompts", "prompt"):
                    during[name] = max(during.get(name, 0.0), ask(*views[name])[0])
                time.sleep(0.5)
            read = time.perf_counter() - began
            rows = []
            for name, view in views.items():
                times = []
                for _ in range(5):
                    folders.versions["metrics"] += 1  # nothing is remembered
                    seconds, answer = ask(*view)
                    assert answer.status_code == 200, answer.text
                    times.append(seconds)
                rows.append((name, min(times), max(times), len(answer.content) / 1024, during.get(name, "")))
    print(f"{size:,.0f} MiB of completions read in {read:.1f} s")
    print_table(("view", "fastest s", "slowest s", "KiB", "slowest s while reading"), rows)
    print_result(seconds_to_read=read, completions_mb=size, peak_memory_mb=peak_memory_mb(), views=rows)


if __name__ == "__main__":
    main()
