"""What `rollout.staleness` gains with a real vLLM server: the server on one core and training on another.

A tiny Llama learns to sample tokens with even ids. Completions have log-normal lengths, drawn from their seeds, so that
no weights change them. For each staleness k: groups per second, steps and seconds to a mean reward of 0.9, and the busy
seconds of both sides: the trainer's are its processor time, the server's those in which it has requests (its processes
spin when they have none). Were both always busy, a step would take the busier side's seconds: with those of k = 0, they
are the bound.

With several corrections or seeds it is a study of learning: the mean reward of the last quarter of the steps.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import psutil
from common import make_parser, print_result, print_table, run_isolated, say

SIGMA = 0.9
"""Standard deviation of a length's logarithm."""
WARM_UP = 5
"""First steps that count for no rate: the queue fills, and the server compiles."""
SERVER_CORE, TRAINER_CORE = 0, 1


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(train(json.loads(sys.argv[1]))))
        return
    parser = make_parser(__doc__)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4], metavar="K")
    parser.add_argument("--corrections", nargs="+", default=["token_truncate"], help="`none` is the control")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--mean", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--longest", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--keep-cache", action="store_true", help="the engine's recompute_cache: false")
    parser.add_argument("--out", type=Path, help="the curves of all runs, as JSON")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log") as url:
        for seed in options.seeds:
            for correction in options.corrections:
                for k in options.staleness:
                    asked = vars(options) | {"k": k, "correction": correction, "seed": seed, "out": None}
                    run = run_isolated("overlap.py", **asked, url=url)
                    runs.append({"k": k, "correction": correction, "seed": seed} | run)
                    say(f"k = {k}, {correction}, seed {seed}: reward {run['rewards'][-1]:.3f}")
    if options.out:
        options.out.write_text(json.dumps(runs))
    if len(options.corrections) * len(options.seeds) == 1:
        report_rates(runs, options)
    else:
        report_learning(runs, options)


class serve:  # a context
    """A server on a core of its own."""

    def __init__(self, log: Path) -> None:
        from lit_rlvr.engines.transfer.network import free_port

        self.log, self.port = log, free_port()

    def __enter__(self) -> str:
        line = [sys.executable, "-c", "from lit_rlvr.cli.main import main; main()", "serve", "--model", "tiny-llama",
                "--port", str(self.port), "--max-model-len", "1024", "--max-num-seqs", "256",
                "--kv-cache-memory-bytes", str(1 << 29)]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                line,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
            )
        url = f"http://127.0.0.1:{self.port}"
        say("waiting for the server")
        while self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                return url
            except OSError:
                time.sleep(0.5)
        raise SystemExit(self.log.read_text()[-2000:])

    def __exit__(self, *_: object) -> None:
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.kill()
        self.process.wait()


def train(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the rewards of a run's steps, and the rates after the first ones."""
    os.sched_setaffinity(0, {TRAINER_CORE})
    import torch
    from lightning.pytorch import Callback, seed_everything

    from lit_rlvr import GRPO, Arithmetic, RolloutCallback, Sampling, Trainer
    from lit_rlvr.engines.server import VLLMServerEngine
    from lit_rlvr.engines.transfer import FileTransfer
    from lit_rlvr.rewards import Reward
    from lit_rlvr.rollout import limits
    from lit_rlvr.rollout.record import Replay

    class LogNormalLengths(VLLMServerEngine):
        """Ends each completion after a length drawn from its seed, and counts the seconds in which any runs."""

        running, since, served = 0, 0.0, 0.0

        def busy_seconds(self) -> float:
            return self.served + (time.perf_counter() - self.since if self.running else 0.0)

        async def _episode(self, dispatch: Any, place: Any, row: Any, *others: Any) -> Any:
            draw = torch.randn((), generator=torch.Generator().manual_seed(row.seed))
            length = math.exp(math.log(asked["mean"]) - SIGMA**2 / 2 + SIGMA * float(draw))
            row.limit = max(2, min(row.limit, round(length)))
            if not self.running:
                self.since = time.perf_counter()
            self.running += 1
            try:
                return await super()._episode(dispatch, place, row, *others)
            finally:
                self.running -= 1
                if not self.running:
                    self.served += time.perf_counter() - self.since

    class EvenTokens(Reward):
        """The share of tokens with an even id."""

        def __call__(self, completion: Any, sample: Any) -> float:
            return mean(token % 2 == 0 for token in completion.token_ids)

    class Clock(Callback):
        """Notes each step's reward, age of weights, wall clock, and busy seconds of both sides."""

        def __init__(self) -> None:
            self.rewards: list[float] = []
            self.ages: list[float] = []
            self.stale: list[float] = []
            self.tokens: list[int] = []
            self.seconds: list[tuple[float, float, float]] = []

        def on_train_start(self, *_: Any) -> None:
            self.note()

        def note(self) -> None:
            self.seconds.append((time.perf_counter(), processor_time(), engine.busy_seconds()))

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            rollout = batch.rollout
            self.rewards.append(float(rollout.rewards.mean()))
            self.ages.append(float(trainer.callback_metrics.get("train/staleness/mean", 0.0)))
            self.stale.append(float(trainer.callback_metrics.get("train/staleness/stale_cache", 0.0)))
            self.tokens.append(int(rollout.lengths.sum()))
            self.note()

    if asked["correction"] == "none":
        limits._check_staleness = lambda *_: None  # the control, which fit refuses
    seed_everything(asked["seed"], verbose=False)
    torch.set_num_threads(1)
    recompute = not asked["keep_cache"]
    clock, engine = Clock(), LogNormalLengths([asked["url"]], FileTransfer(), timeout=120, recompute_cache=recompute)
    module = GRPO(model="tiny-llama", lr=asked["lr"], importance={"correction": asked["correction"]})
    rollout = RolloutCallback(
        group_size=asked["group_size"],
        rewards=[EvenTokens(truncated_is_wrong=False)],
        staleness=asked["k"],
        replay=Replay(record=0.0),
        sampling=Sampling(max_tokens=asked["longest"], banned_token_ids=eos_tokens()),
        engine=engine,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=asked["steps"],
            precision="32-true",
            accelerator="cpu",
            default_root_dir=folder + "/run",
            limit_val_batches=0,
            callbacks=[rollout, clock],
        )
        trainer.fit(module, datamodule=Arithmetic(prompts_per_rollout=asked["prompts"]))
    first, last = clock.seconds[min(WARM_UP, asked["steps"] - 1)], clock.seconds[-1]
    steps = len(clock.seconds) - 1 - min(WARM_UP, asked["steps"] - 1)
    wall, trainer_busy, server_busy = ((b - a) / steps for a, b in zip(first, last, strict=True))
    smooth = [mean(clock.rewards[max(0, n - 2) : n + 1]) for n in range(len(clock.rewards))]
    reached = next((n for n, reward in enumerate(smooth) if reward >= 0.9), None)
    return {
        "rewards": clock.rewards,
        "step_seconds": wall,
        "groups_per_second": asked["prompts"] / wall,
        "trainer_seconds": trainer_busy,
        "server_seconds": server_busy,
        "tokens": mean(clock.tokens),
        "age": mean(clock.ages),
        "stale_cache": mean(clock.stale),
        "steps_to_reward": None if reached is None else reached + 1,
        "seconds_to_reward": None if reached is None else clock.seconds[reached + 1][0] - clock.seconds[0][0],
    }


def eos_tokens() -> tuple[int, ...]:
    """Return the tokens that would end a completion before its length."""
    from lit_rlvr.policy.loading import load_policy
    from lit_rlvr.policy.sources import resolve_model

    return tuple(load_policy(resolve_model("tiny-llama")).eos_token_ids)


def processor_time() -> float:
    """Return the processor seconds of this process and those it started."""
    process = psutil.Process()
    times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
    return sum(used.user + used.system for used in times)


def report_rates(runs: list[dict[str, Any]], options: Any) -> None:
    """Print groups per second, busy seconds and the bound by these."""
    first, rows = runs[0], []
    bound = max(first["trainer_seconds"], first["server_seconds"])
    for run in runs:
        run["speed_up"] = run["groups_per_second"] / first["groups_per_second"]
        run["of_bound"] = bound / run["step_seconds"]
        run["trainer_idle"] = 1 - run["trainer_seconds"] / run["step_seconds"]
        run["server_idle"] = 1 - run["server_seconds"] / run["step_seconds"]
        rows.append([run["k"], run["step_seconds"], run["groups_per_second"], run["speed_up"], run["trainer_seconds"],
                     run["server_seconds"], run["trainer_idle"], run["server_idle"], run["of_bound"], run["age"],
                     run["steps_to_reward"], run["seconds_to_reward"]])  # fmt: skip
    print_table(
        ["k", "s a step", "groups/s", "x", "trainer busy s", "server busy s", "trainer idle", "server idle",
         "of the bound", "mean age", "steps to 0.9", "s to 0.9"], rows,
    )  # fmt: skip
    print_result(steps=options.steps, runs=[{k: v for k, v in run.items() if k != "rewards"} for run in runs])


def report_learning(runs: list[dict[str, Any]], options: Any) -> None:
    """Print the last rewards of each correction and staleness over the seeds."""
    last = max(1, options.steps // 4)
    rows, cells = [], {}
    for correction in options.corrections:
        for k in options.staleness:
            found = [run for run in runs if (run["correction"], run["k"]) == (correction, k)]
            rewards = [mean(run["rewards"][-last:]) for run in found]
            reached = [run["steps_to_reward"] for run in found]
            cells[f"{correction}, k = {k}"] = rewards
            rows.append(
                [
                    correction,
                    k,
                    mean(rewards),
                    stdev(rewards) if len(rewards) > 1 else math.nan,
                    " ".join(map(str, reached)),
                    mean(run["age"] for run in found),
                ]
            )
    print_table(["correction", "k", "last rewards", "deviation", "steps to 0.9, by seed", "mean age"], rows)
    print_result(steps=options.steps, last_rewards=cells)


if __name__ == "__main__":
    main()
