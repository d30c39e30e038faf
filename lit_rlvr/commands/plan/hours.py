"""Estimates the time of a run on GPUs of a named kind, from their data sheets. It was never compared with a GPU.

A token costs two operations per parameter, and those of its attention, in each forward pass; a training step costs
three times as much, four with checkpointing. vLLM reads the weights for each decoding step, and for each token the keys
and values of those before it. The shares of a data sheet that are reached are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lit_rlvr.commands.plan.gpus import DATA_SHEETS, GPUs
from lit_rlvr.commands.plan.memory import Lengths, kv_bytes_per_token
from lit_rlvr.commands.plan.strategies import JobSizes, Plan
from lit_rlvr.commands.plan.timing import HOUR
from lit_rlvr.engines.vllm import GPU_SEQUENCES

TRAIN_SHARE = 0.4
"""Share of the data sheet's matrix products that training reaches."""
FORWARD_SHARE = 0.5
"""The same of forward passes, in vLLM and of log-probabilities."""
READ_SHARE = 0.7
"""Share of the data sheet's bandwidth that decoding reaches."""
STEP_SECONDS = 0.003
"""Duration of a decoding step besides reading and computing."""


@dataclass(frozen=True)
class Duration:
    """The estimated time of one training iteration, in seconds.

    Args:
        generate: of the rollout.
        train: of its log-probabilities and optimizer steps.
        completion_hours: GPU hours of 1,000 completions of validation or evaluation, as many at once as vLLM has memory
            for.
        gpus: number of GPUs.
        iterations: of the run; None = not known.
    """

    generate: float
    train: float
    completion_hours: float
    gpus: int
    iterations: int | None

    @property
    def seconds(self) -> float:
        return self.generate + self.train

    @property
    def hours(self) -> float | None:
        """The hours of the run, without validation; None if its iterations are not known."""
        return None if self.iterations is None else self.iterations * self.seconds / HOUR

    def as_data(self) -> dict[str, Any]:
        """Return the estimate for JSON."""
        hours = self.hours
        return {
            "seconds_per_iteration": self.seconds,
            "parts": {"generate": self.generate, "train": self.train},
            "iterations": self.iterations,
            "hours": hours,
            "gpu_hours": None if hours is None else hours * self.gpus,
            "gpu_hours_per_1000_completions": self.completion_hours,
        }

    def text(self, job: JobSizes, gpus: GPUs) -> str:
        """Return the estimate in words."""
        whole = "the number of iterations is not known: give trainer.max_steps"
        if self.hours is not None:
            whole = f"{self.iterations} iterations {self.hours:.3g} hours ({self.hours * self.gpus:.3g} GPU hours)"
        on_each = job.prompts * job.group / gpus.count
        return (
            f"Time, estimated from the data sheet and never compared with a GPU: {self.seconds:.3g} s an iteration on "
            f"{gpus.count} x {gpus.kind} (generate {self.generate:.3g}, train {self.train:.3g}); {whole}; 1,000 "
            f"completions of validation or evaluation {self.completion_hours:.2g} GPU hours. Assumed: all prompts have "
            f"the {job.prompt} tokens that data.init_args.reading.max_prompt_tokens allows, completions "
            f"{job.completion.mean} tokens in training and {job.evaluated.mean} in validation and evaluation; "
            f"{TRAIN_SHARE:.0%} of the matrix products in training and {FORWARD_SHARE:.0%} in forward passes, "
            f"{READ_SHARE:.0%} of the memory's bandwidth. Each GPU generates {on_each:.4g} completions of a rollout; "
            "if they are few, fewer GPUs take fewer GPU hours."
        )


def duration(job: JobSizes, plan: Plan, gpus: GPUs) -> Duration | None:
    """Return the time of an iteration of a plan.

    It is None without a data sheet, if vLLM is not on these GPUs, and with shards on the CPU, which wait for the bus.
    """
    if gpus.kind is None or not plan.sequences or plan.strategy.offload:
        return None
    sheet, text = DATA_SHEETS[gpus.kind], job.whole.text
    forward_rate, train_rate = (share * sheet.tflops * 1e12 for share in (FORWARD_SHARE, TRAIN_SHARE))
    read_rate = READ_SHARE * sheet.bandwidth * 1e12
    weights, operations = 2 * job.whole.parameters, 2 * job.whole.active  # bytes in bfloat16; of a token
    prompts, completions = job.prompts / gpus.count, job.prompts * job.group / gpus.count  # of one GPU

    def keys(lengths: Lengths) -> float:
        """Return the tokens that a token of a completion attends to, on average."""
        return job.prompt + lengths.mean / 2

    def generation(lengths: Lengths, completions: float, prompts: float, at_once: float, longest: float) -> float:
        """Return the seconds that one GPU takes for these completions."""
        decoded = completions * lengths.mean
        steps = max(longest, decoded / at_once)
        reading = steps * weights + decoded * kv_bytes_per_token(job.whole, 2) * keys(lengths)
        computing = (decoded + prompts * job.prompt) * operations
        return steps * STEP_SECONDS + reading / read_rate + computing / forward_rate

    at_once, longest = min(plan.sequences, completions), job.completion.longest
    generate = generation(job.completion, completions, prompts, at_once, longest)
    evaluation = replace(job, prompts=GPU_SEQUENCES * gpus.count, completion=job.evaluated)
    many = max(1, evaluation.sequences(gpus, plan.terms["vLLM"]))

    tokens = completions * job.completion.mean + job.prompt * (prompts if job.shared_prefix else completions)
    forward = tokens * (operations + 4 * text.count * text.heads * keys(job.completion))
    passes = 4 if plan.strategy.checkpointing else 3
    train = passes * forward / train_rate + job.forwards * forward / forward_rate
    further = generation(job.evaluated, 1000, 1000, many, 0) / HOUR
    return Duration(job.models * generate, train, further, gpus.count, job.iterations)
