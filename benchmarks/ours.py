"""The contestant `lit-rlvr fit`: the plain command on a written config, with one callback that alternates with TRL.

Started by the benchmarks: ours.py WORKLOAD (as JSON).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import PRECISIONS, peak_memory_mb
from lightning.pytorch import Callback
from turns import Turns
from workload import Workload, gpu_memory_mb, wait_for_gpu


class TakeTurns(Callback):
    """Measures each iteration from the weight sync to the optimizer step, and reports it.

    Stands before the run's own callbacks, so what they write between iterations is in our turn, but not in the
    time of the step, as the other contestant's logging is not.
    """

    def __init__(self) -> None:
        self._turns: Turns | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._turns is None:
            self._turns = Turns()
        self._turns.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self._turns is not None
        wait_for_gpu()
        seconds = self._turns.seconds
        times = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("time/")}
        parts = {name: times[f"time/{name}"] for name in ("sync", "generate", "score", "train")}
        if pl_module.iteration == 1:  # the engine starts in the first rollout; start-up counts for nobody
            seconds -= times["time/rollout"] - parts["sync"] - parts["generate"] - parts["score"]
        right = batch.rollout.correct.sum(1)
        go_on = self._turns.end(
            {
                "seconds": seconds,
                "reward": float(batch.rollout.rewards.mean()),
                "mixed_groups": int(((right > 0) & (right < batch.rollout.group_size)).sum()),
                "tokens": int(batch.rollout.lengths.sum()),
                "peak_memory_mb": peak_memory_mb(),
                "peak_gpu_memory_mb": gpu_memory_mb(),
                **parts,
            }
        )
        trainer.should_stop = trainer.should_stop or not go_on


def settings(workload: Workload, folder: str) -> dict[str, Any]:
    """Return the config of `lit-rlvr fit`: the workload, its options, and the product's defaults for everything
    else."""
    return {
        "seed_everything": workload.seed,
        "model": {
            "class_path": "GRPO",
            "init_args": {"model": workload.model, "lr": workload.lr, **workload.options},
        },
        "data": {
            "class_path": workload.data,
            "init_args": {**workload.data_options, "prompts_per_rollout": workload.prompts},
        },
        "rollout": {
            "group_size": workload.group_size,
            "engine": workload.engine,
            "staleness": workload.staleness,
            "sampling": {"temperature": 1.0, "max_tokens": workload.max_tokens},
            "evaluation": {"sampling": {"temperature": 0.0, "max_tokens": workload.max_tokens}},
            "rewards": [{"class_path": workload.reward}],
        },
        "checkpoint": {"every": 0},
        "trainer": {
            "max_steps": workload.steps,
            "precision": PRECISIONS[workload.precision],
            "accelerator": workload.device,
            "devices": 1,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "default_root_dir": folder,
            "callbacks": [{"class_path": "ours.TakeTurns"}],
        },
    }


def main() -> None:
    from lit_rlvr.cli.main import main as lit_rlvr

    workload = Workload(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "benchmark.yaml")
        config.write_text(json.dumps(settings(workload, folder + "/run")))
        sys.argv[1:] = ["fit", "--config", str(config)]
        lit_rlvr()


if __name__ == "__main__":
    main()
