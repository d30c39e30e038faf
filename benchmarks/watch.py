"""`lit-rlvr watch` on a long run of 2,000 steps with 128 saved prompts: seconds to read it, and seconds for each view.

`python benchmarks/watch.py [--steps 2000 --prompts 128 --group 8 --known 4096]`
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from starlette.testclient import TestClient

from lit_rlvr.watch.follow import FollowedFolders
from lit_rlvr.watch.server import application

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


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    for name, value in (("steps", 2000), ("prompts", 128), ("group", 8), ("known", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        run = Path(root, "run")
        write(run, **vars(options))
        size = (run / "completions.jsonl").stat().st_size
        folders = FollowedFolders([run])
        with TestClient(application(folders), base_url="http://127.0.0.1") as client:
            began = time.perf_counter()
            views = {
                "/": {}, "/now": {}, "/prompts": {"run": str(run)},
                "/prompts ": {"run": str(run), "order": "gain", "outcome": "solved", "words": "what"},
                "/prompt": {"run": str(run), "id": "7"},
                "/prompt ": {"run": str(run), "id": "7", "step": "64"},
                "/tokens": {"run": str(run), "id": "7", "step": "64", "sample": "0"},
            }  # fmt: skip
            during = {}
            while folders.unread or not folders.runs[str(run)].completions.size:
                for path in ("/", "/prompts", "/prompt"):
                    asked = time.perf_counter()
                    client.get(path, params=views[path])
                    during[path] = max(during.get(path, 0.0), time.perf_counter() - asked)
                time.sleep(0.5)
            print(f"{size / 2**20:,.0f} MiB of completions read in {time.perf_counter() - began:.1f} s")
            print("slowest view meanwhile:", ", ".join(f"{path} {took:.2f} s" for path, took in during.items()))
            for path, query in views.items():
                times = []
                for _ in range(5):
                    folders.versions["metrics"] += 1  # nothing is remembered
                    asked = time.perf_counter()
                    answer = client.get(path.strip(), params=query)
                    times.append(time.perf_counter() - asked)
                assert answer.status_code == 200, answer.text
                print(f"{path.strip():9} {min(times):.3f} to {max(times):.3f} s, {len(answer.content) / 1024:,.0f} KiB")
        print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
