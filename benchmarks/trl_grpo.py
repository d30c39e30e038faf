"""The contestant TRL: its GRPOTrainer on the same prompts, with the same reward, alternating with ours.

Started by the benchmarks: trl_grpo.py WORKLOAD (as JSON).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib import import_module
from typing import Any

import datasets
import torch
from common import peak_memory_mb
from lightning.pytorch import seed_everything
from transformers import AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from turns import Turns
from workload import Workload, gpu_memory_mb, wait_for_gpu

from lit_rlvr import datamodules
from lit_rlvr.datamodules.reading.stream import START_CURSOR
from lit_rlvr.types import Completion, Sample


def training_set(workload: Workload, tokenizer: Any) -> datasets.Dataset:
    """Return the prompts of our own stream in its order: chat messages and the answer.

    Raises:
        AssertionError: TRL would see other tokens than we do.
    """
    data = getattr(datamodules, workload.data)(**workload.data_options, prompts_per_rollout=workload.prompts)
    data.tokenizer = tokenizer
    data.setup("fit")
    prompts, _ = data.stream.take(workload.steps * workload.prompts, START_CURSOR)
    rows = [{"prompt": data.chat.messages(p.sample), "answer": p.sample.answer} for p in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        theirs = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert theirs == prompt.token_ids, "TRL's chat template gives other tokens than ours"
    return datasets.Dataset.from_list(rows)


class Score:
    """Our reward as a TRL reward function, which also stores the values for a step's report."""

    __name__ = "score"

    def __init__(self, workload: Workload) -> None:
        self._group_size = workload.group_size
        module, _, name = workload.reward.rpartition(".")
        self._rule = getattr(import_module(module), name)()
        self.end: set[int] = set()  # the tokens that end a completion
        self.report: dict[str, float] = {}

    def __call__(
        self, completions: list[Any], completion_ids: list[list[int]], answer: list[str], **kwargs: Any
    ) -> list[float]:
        started = time.perf_counter()
        pairs = []
        for messages, ids, gold in zip(completions, completion_ids, answer, strict=True):
            finish = "stop" if ids and ids[-1] in self.end else "length"
            text = messages[0]["content"]
            pairs.append((Completion(text, tuple(ids), finish), Sample("", "", gold)))  # type: ignore[arg-type]
        values = [result.value for result in self._rule.score(pairs)]
        right = torch.tensor(values).view(-1, self._group_size).sum(1)
        self.report = {
            "reward": sum(values) / len(values),
            "mixed_groups": int(((right > 0) & (right < self._group_size)).sum()),
            "tokens": sum(map(len, completion_ids)),
            "score": time.perf_counter() - started,
        }
        return values


class TimedTrainer(GRPOTrainer):
    """Records the duration of generation."""

    generate_seconds = 0.0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = super()._generate_single_turn(*args, **kwargs)
        self.generate_seconds = time.perf_counter() - started
        return result


class TakeTurns(TrainerCallback):
    """Measures each step from generation to the optimizer step, and reports it."""

    def __init__(self, score: Score) -> None:
        self._turns, self._score = Turns(), score
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._turns.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_gpu()
        seconds, generate = self._turns.seconds, self.trainer.generate_seconds
        report = self._score.report
        memory = {"peak_memory_mb": peak_memory_mb(), "peak_gpu_memory_mb": gpu_memory_mb()}
        parts = {"sync": 0.0, "generate": generate, "train": seconds - generate - report["score"]}
        control.should_training_stop = not self._turns.end({"seconds": seconds, **report, **parts, **memory})


def settings(workload: Workload, folder: str) -> GRPOConfig:
    """Return our algorithm in TRL's names, with TRL's settings that are fast and do not change the result."""
    chosen: dict[str, Any] = {
        "output_dir": folder,
        "seed": workload.seed,
        "max_steps": workload.steps,
        # the algorithm
        "learning_rate": workload.lr,
        "lr_scheduler_type": "constant",
        "num_generations": workload.group_size,
        "max_completion_length": workload.max_tokens,
        "temperature": 1.0,
        "beta": 0.0,
        "loss_type": "grpo",  # our GRPO's mean over sequences
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "shuffle_dataset": False,  # the prompts stand in our order
        "bf16": workload.precision == "bf16",
        "model_init_kwargs": {"dtype": "float32"},
        # speed
        "per_device_train_batch_size": workload.prompts * workload.group_size,
        "gradient_checkpointing": False,  # TRL's default True computes everything twice
        "optim": "adamw_torch_fused",
        "use_cpu": workload.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": workload.steps + 1,
    }
    return GRPOConfig(**chosen | workload.trl_options)


def main() -> None:
    workload = Workload(**json.loads(sys.argv[1]))
    logging.set_verbosity_error()
    seed_everything(workload.seed, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(workload.model, padding_side="left")
    with tempfile.TemporaryDirectory() as folder:
        trainer = TimedTrainer(
            model=workload.model,
            reward_funcs=(score := Score(workload)),
            args=settings(workload, folder),
            train_dataset=training_set(workload, tokenizer),
            processing_class=tokenizer,
            callbacks=[turns := TakeTurns(score)],
        )
        turns.trainer = trainer
        score.end = set(trainer.eos_token_ids)
        trainer.train()


if __name__ == "__main__":
    main()
