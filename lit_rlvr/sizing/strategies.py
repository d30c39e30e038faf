"""Finds the strategies and settings that fit on given GPUs, for the job that a config describes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.engines.base import EngineMemory
from lit_rlvr.engines.vllm import GPU_SEQUENCES
from lit_rlvr.options import Lora
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.sizing.gpus import GIB, GPUs
from lit_rlvr.sizing.memory import (
    FLOAT,
    Microbatch,
    Shape,
    Strategy,
    Terms,
    frozen,
    generation_memory,
    kv_bytes_per_token,
    largest_microbatch,
    shape_of,
    state_memory,
    teaching_memory,
    training_memory,
)
from lit_rlvr.sizing.published import PUBLISHED
from lit_rlvr.training.teachers import teacher_folder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.rollout import RolloutCallback


FEWEST_TOKENS = 1024
"""Tokens of a micro-batch from which `auto` doubles them."""
MACHINE_GPUS = 8  # GPUs of a machine, where only their total is given
FREE = 0.1  # share of a GPU for its context, communication buffers and fragments
LEAST_SEQUENCES = 16
"""Sequences that vLLM should generate at once: with fewer, a rollout of long answers takes hours."""
ENOUGH_SEQUENCES = 64
"""Sequences at once from which vLLM computes more than it reads weights, so that training decides the strategy."""
STEP_TERMS = ("gathered", "activations", "temporary")
"""Terms of the training step only; generation uses the same memory at another time."""


@dataclass(frozen=True)
class MemoryEstimate:
    """A strategy, and the bytes it needs on each GPU.

    Args:
        strategy: the strategy.
        gpus: the GPUs of the run.
        budget: the plan's `tokens_per_microbatch`.
        terms: the bytes on each GPU, by term.
        host: bytes that it keeps in the CPUs' memory between steps, summed over all processes.
        vllm_sleeps: whether vLLM frees its memory while the model trains.
        sequences: sequences that one GPU's vLLM generates at once; None = the engine is another one.
    """

    strategy: Strategy
    gpus: GPUs
    budget: int
    terms: Terms
    host: float = 0.0
    vllm_sleeps: bool = True
    sequences: int | None = None

    @property
    def needs(self) -> float:
        """The bytes at the peak."""
        rollout = ("generation", "vLLM") if self.vllm_sleeps else ("generation",)
        always = sum(value for name, value in self.terms.items() if name not in (*STEP_TERMS, *rollout))
        of_step = sum(self.terms[name] for name in STEP_TERMS)
        of_rollout = sum(self.terms[name] for name in rollout)
        return always + max(of_step, of_rollout)

    @property
    def fits(self) -> bool:
        """True if each GPU holds the plan and keeps the share `FREE` free."""
        return self.needs <= (1 - FREE) * self.gpus.gib * GIB

    @property
    def name(self) -> str:
        """The plan in a few words, such as "FSDP2, offload"."""
        if self.strategy.sharded:
            parts = ["FSDP2"]
        elif self.gpus.count > 1:
            parts = ["DDP"]
        else:
            parts = ["alone"]
        if self.strategy.offload:
            parts.append("offload")
        if self.strategy.lora:
            parts.append("LoRA")
        if self.strategy.checkpointing:
            parts.append("checkpointing")
        return ", ".join(parts)


@dataclass(frozen=True)
class JobSizes:
    """The sizes of a config.

    Args:
        whole, adapted: the sizes of the model with all parameters trained, and with adapters.
        budget: `tokens_per_microbatch`.
        prompt: maximum tokens of a prompt.
        completion: maximum tokens of a completion.
        group: completions per prompt.
        prompts: prompts of a rollout.
        engine: what the engine takes of a GPU.
        size: bytes of a number in matrix products: 2 with bf16-mixed, 4 with 32-true.
        reference: whether there is a reference model.
        teachers: the teachers that are loaded.
        compared: the teacher whose divergence over the vocabulary the loss has; None = there is none.
        lora: whether the config trains adapters.
        shared_prefix: whether a prompt is computed once for its whole group.
        minibatches: optimizer steps that a rollout is split into.
        automatic: whether `tokens_per_microbatch` is `auto`, and `budget` only its default.
    """

    whole: Shape
    adapted: Shape
    budget: int
    prompt: int
    completion: int
    group: int
    prompts: int
    engine: EngineMemory
    size: int = 2
    reference: bool = False
    teachers: tuple[Shape, ...] = ()
    compared: Shape | None = None
    lora: bool = False
    shared_prefix: bool = True
    minibatches: int = 1
    automatic: bool = False

    def prompts_on_each(self, gpus: GPUs) -> int:
        """Return the prompts of a step on one GPU."""
        return max(1, self.prompts // gpus.count)

    def load(self, gpus: GPUs, budget: int) -> Microbatch:
        """Return the largest micro-batch."""
        return largest_microbatch(
            budget, self.prompt, self.completion, self.group, self.prompts_on_each(gpus), self.shared_prefix
        )

    def tokens_at_once(self, gpus: GPUs, max_sequences: int, shared: bool) -> float:
        """Return the tokens whose keys and values one GPU's engine holds at once.

        Args:
            gpus: the GPUs of the run.
            max_sequences: sequences that the engine generates at once.
            shared: whether a group's completions share the keys and values of their prompt.
        """
        sequences = min(max_sequences, self.prompts_on_each(gpus) * self.group)
        if shared:
            return sequences * (self.prompt / self.group + self.completion)
        return sequences * (self.prompt + self.completion)

    def vllm_share(self, gpus: GPUs, free: float) -> float:
        """Return vLLM's share of a GPU, in steps of 0.05.

        It is the configured share, or at least one in which `LEAST_SEQUENCES` are generated at once.

        Args:
            gpus: the GPUs of the run.
            free: the share that training leaves.
        """
        if not self.engine.share:
            return 0.0

        def share(max_sequences: int) -> float:
            tokens = self.tokens_at_once(gpus, max_sequences, True)
            needs = self._vllm_weights + tokens * kv_bytes_per_token(self.whole, self.size)
            return math.ceil(20 * needs / (gpus.gib * GIB)) / 20

        chosen = self.engine.share
        if self.engine.fitted:
            chosen = min(share(GPU_SEQUENCES), math.floor(20 * free) / 20)
        return max(share(LEAST_SEQUENCES), chosen)

    def sequences(self, gpus: GPUs, vllm: float) -> int:
        """Return how many sequences of full length vLLM generates at once on one GPU.

        Args:
            gpus: the GPUs of the run.
            vllm: bytes that it has there.
        """
        room = (vllm - self._vllm_weights) / kv_bytes_per_token(self.whole, self.size)
        at_once = int(room / (self.prompt / self.group + self.completion))
        return max(0, min(GPU_SEQUENCES, self.prompts_on_each(gpus) * self.group, at_once))

    @property
    def _vllm_weights(self) -> float:
        """The bytes of vLLM's weights, and of the memory to run them."""
        inside = self.whole.parameters - self.whole.outside
        if self.engine.quantized:
            layers = inside
        else:
            layers = inside * self.size
        return layers + self.whole.outside * self.size + 2 * GIB

    def plans(self, gpus: GPUs, budget: int | None = None) -> list[MemoryEstimate]:
        """Return a plan for every strategy, the fastest first, those with adapters last.

        Args:
            gpus: the GPUs of the run.
            budget: replaces the job's own budget.
        """
        plans = []
        for lora in (False, True):
            if self.lora and not lora:
                continue
            for sharded, offload in ((False, False), (True, False), (True, True)):
                is_alone = sharded and not offload and gpus.count == 1
                is_quantized = sharded and lora and self.adapted.quantized
                if is_alone or is_quantized:
                    continue
                for checkpointing in (False, True):
                    strategy = Strategy(sharded, checkpointing, lora, offload)
                    plans.append(self.plan(strategy, gpus, budget or self.budget))
        return plans

    def proposal(self, gpus: GPUs) -> MemoryEstimate | None:
        """Return the plan of the fastest strategy that fits.

        Prefer smaller micro-batches, then shards on the CPU, to adapters, because those change results.
        """
        budgets = [self.budget]
        while budgets[-1] // 2 >= self.prompt + self.completion:
            budgets.append(budgets[-1] // 2)
        plans = []
        for budget in budgets:
            for plan in self.plans(gpus, budget):
                if plan.fits:
                    plans.append(plan)
        best = min(plans, key=lambda plan: (plan.strategy.lora, plan.strategy.offload), default=None)
        if best is not None and self.automatic:
            return self.with_most_tokens(best)
        return best

    def choice(self, gpus: GPUs, placement: tuple[bool, bool] | None, checkpointing: bool | None) -> MemoryEstimate:
        """Return the plan of the fastest strategy that fits without a change of results, or else the smallest one.

        Shards on the CPU come last, and before them strategies that leave vLLM memory for few sequences at once.

        Args:
            gpus: the GPUs of the run.
            placement: whether weights are sharded and kept on the CPU; None = choose.
            checkpointing: None = choose.
        """
        plans = []
        if placement is None:
            for plan in self.plans(gpus):
                if plan.strategy.lora == self.lora:
                    plans.append(plan)
        else:  # also one that `plans` would not propose, such as shards on a single GPU
            sharded, offload = placement
            for recomputes in (False, True):
                strategy = Strategy(sharded, recomputes, self.lora, offload)
                plans.append(self.plan(strategy, gpus, self.budget))
        plans = [plan for plan in plans if checkpointing in (None, plan.strategy.checkpointing)]
        enough = min(ENOUGH_SEQUENCES, self.prompts_on_each(gpus) * self.group)
        return min(
            (plan for plan in plans if plan.fits),
            key=lambda plan: (plan.strategy.offload, plan.sequences is not None and plan.sequences < enough),
            default=min(plans, key=lambda plan: plan.needs),
        )

    def step_tokens(self, gpus: GPUs) -> int:
        """Return the input tokens of an optimizer step on one GPU, with everything at its maximum length."""
        prompts = math.ceil(self.prompts_on_each(gpus) / self.minibatches)
        inputs = self.completion - 1
        return prompts * (self.prompt * (1 if self.shared_prefix else self.group) + self.group * inputs)

    def with_most_tokens(self, plan: MemoryEstimate) -> MemoryEstimate:
        """Return a plan of this job with the most tokens in a micro-batch that fit: doubled up to those of a step."""
        enough = self.step_tokens(plan.gpus)
        best = self.plan(plan.strategy, plan.gpus, min(FEWEST_TOKENS, enough))
        while best.budget < enough:
            larger = self.plan(plan.strategy, plan.gpus, min(2 * best.budget, enough))
            if not larger.fits:
                break
            best = larger
        return best

    def fits_each_machine(self, plan: MemoryEstimate, machines: int) -> bool:
        """Return whether each machine holds a copy of the sharded model by itself.

        Then only gradients cross the network.
        """
        on_one_machine = replace(self, prompts=max(1, self.prompts // machines))
        gpus = GPUs(plan.gpus.count // machines, plan.gpus.gib)
        return plan.strategy.sharded and machines > 1 and on_one_machine.plan(plan.strategy, gpus, plan.budget).fits

    def reason(self, plan: MemoryEstimate) -> str:
        """Return one line that says what a plan needs, and what its faster alternatives would."""
        gpus = plan.gpus
        before = takewhile(lambda other: other != plan, self.plans(gpus))
        names = "; ".join(f"{p.name} {p.needs / GIB:.0f}" for p in before if p.strategy.lora == self.lora)
        if names:
            faster = f"; faster, but too large or without memory for vLLM: {names}"
        else:
            faster = ""
        if plan.fits:
            advice = ""
        else:
            advice = "; IT WILL NOT FIT: `lit-rlvr plan` proposes smaller micro-batches or adapters"
        return (
            f"strategy: {plan.name}: about {plan.needs / GIB:.0f} of {gpus.gib:.0f} GiB on each of {gpus.count} GPU(s)"
            f"{faster}{advice}"
        )

    def plan(self, strategy: Strategy, gpus: GPUs, budget: int) -> MemoryEstimate:
        """Return the plan of a strategy.

        Args:
            strategy: the strategy.
            gpus: the GPUs of the run.
            budget: `tokens_per_microbatch`.
        """
        shape = self.adapted if strategy.lora else self.whole
        terms = training_memory(shape, self.load(gpus, budget), strategy, gpus.count, self.size, self.reference)
        teacher = 0.0
        if self.teachers:
            teacher = sum(model.parameters * frozen(model, strategy, self.size) for model in self.teachers)
            if strategy.offload:
                terms["teacher"] = 0.0
            else:
                terms["teacher"] = teacher / (gpus.count if strategy.sharded else 1)
        if self.compared is not None:
            terms["temporary"] += teaching_memory(self.compared, self.load(gpus, budget), strategy, self.size)
        generation = 0.0
        if self.engine.in_place:
            sequences = min(256, self.prompts_on_each(gpus) * self.group)
            generation = generation_memory(
                shape, strategy, sequences, self.tokens_at_once(gpus, sequences, False), self.size
            )
        other_memory = sum(value for name, value in terms.items() if name not in STEP_TERMS or not self.engine.sleeps)
        vllm = self.vllm_share(gpus, 1 - FREE - other_memory / (gpus.gib * GIB)) * gpus.gib * GIB
        state = sum(state_memory(shape, strategy, self.size, self.reference).values())
        host = state + teacher if strategy.offload else 0.0
        terms |= {"vLLM": vllm, "generation": generation}
        at_once = None
        if self.engine.share:
            at_once = self.sequences(gpus, vllm)
        return MemoryEstimate(strategy, gpus, budget, terms, host, self.engine.sleeps, at_once)

    def arguments(self, plan: MemoryEstimate) -> str:
        """Return the arguments that the plan adds to the command line."""
        machines = math.ceil(plan.gpus.count / MACHINE_GPUS)
        copies = self.fits_each_machine(plan, machines)
        configs = {
            "ddp": not plan.strategy.sharded,
            "hsdp": copies,
            "multinode": machines > 1,
            "offload": plan.strategy.offload,
            "fsdp2": True,
        }
        strategy = next(name for name, wanted in configs.items() if wanted)
        share = plan.terms["vLLM"] / (plan.gpus.gib * GIB)
        least_share = 0.0
        if not self.engine.fitted:
            least_share = self.engine.share
        chosen = {
            f"--config strategy/{strategy}": plan.gpus.count > 1 or plan.strategy.sharded,
            f"--trainer.num_nodes {machines}": machines > 1,
            f"--trainer.strategy.init_args.replicas {machines}": copies,
            "--trainer.strategy.init_args.offload true": machines > 1 and plan.strategy.offload,
            "--model.init_args.compute.gradient_checkpointing true": plan.strategy.checkpointing,
            f"--model.init_args.compute.tokens_per_microbatch {plan.budget}": plan.budget != self.budget,
            "--model.init_args.lora.rank 16": plan.strategy.lora and not self.lora,
            f"--rollout.engine.init_args.gpu_memory_utilization {share:.2f}": share > least_share,
        }
        return " ".join(argument for argument, wanted in chosen.items() if wanted)


def _teachers(module: RLVRModule, config: Any) -> list[Shape]:
    """Return the sizes of the teachers that an algorithm loads, with the config of its own model."""
    options = module.teachers.options
    shapes = []
    if options is not None:
        for model in options.folders:
            shapes.append(shape_of(PUBLISHED.get(model) or load_model_config(teacher_folder(model))))
        if options.ema is not None:
            shapes.append(replace(shape_of(config), published=FLOAT))
    return shapes


def describe_job(
    module: RLVRModule,
    data: PromptDataModule,
    rollout: RolloutCallback,
    precision: str,
) -> JobSizes:
    """Collect the sizes of a config; read at most the config of the model, no weights.

    Args:
        module: the algorithm, before its weights load.
        data: the data.
        rollout: the engine and the sampling settings.
        precision: the Trainer's precision, such as `bf16-mixed`.
    """
    config = None
    if not module.model_source.config_overrides:
        config = PUBLISHED.get(module.model)
    if config is None:
        config = load_model_config(module.model_folder)
    teachers = _teachers(module, config)
    compared = None
    if module.teachers.in_loss:
        compared = teachers[0] if teachers else shape_of(config)
    prompts = data.prompts_per_rollout
    demonstrations = rollout.demonstrations.by_name.get(data.name)  # once the data are read
    if demonstrations is not None:
        prompts *= demonstrations.most_sequences
    return JobSizes(
        whole=shape_of(config, module.freeze_vision),
        adapted=shape_of(config, module.freeze_vision, module.lora or Lora(), module.model_source.adapter_folder),
        budget=module.budget.tokens,
        prompt=data.reading.max_prompt_tokens,
        completion=rollout.sampling.max_completion_tokens,
        group=rollout.completions_of(module),
        prompts=prompts,
        size=compute_dtype(precision).itemsize,
        engine=rollout.engine.memory(rollout.staleness),
        reference=module.needs_reference,
        teachers=tuple(teachers),
        compared=compared,
        lora=module.lora is not None,
        shared_prefix=module.compute.shared_prefix,
        minibatches=module.updates_per_rollout,
        automatic=module.budget.given == "auto",
    )


def describe_run(trainer: Trainer, module: RLVRModule, data: PromptDataModule) -> tuple[JobSizes, MemoryEstimate]:
    """Return the sizes of a run that a trainer is built for, and its plan for the trainer's devices.

    With copies of a sharded model, they are those of one copy.
    """
    if isinstance(trainer.strategy, FSDP2):
        sharded = trainer.strategy
    else:
        sharded = None
    copies, offload = (1, False) if sharded is None else (sharded.replicas, sharded.offload)
    job = describe_job(module, data, rollout_of(trainer), str(trainer.precision))
    job = replace(job, prompts=max(1, job.prompts // copies))
    chosen = Strategy(sharded is not None, module.compute.gradient_checkpointing is True, job.lora, offload)
    return job, job.plan(chosen, GPUs(trainer.world_size // copies, device_memory(trainer) / GIB), job.budget)


def device_memory(trainer: Trainer) -> float:
    """Return the bytes of memory of the smallest GPU on this machine that the run uses.

    Without GPUs, it is each process's share of the machine's memory.
    """
    strategy: Any = trainer.strategy
    if strategy.root_device.type == "cuda":
        devices = getattr(strategy, "parallel_devices", None) or [strategy.root_device]
        return float(min(torch.cuda.get_device_properties(device).total_memory for device in devices))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * trainer.num_nodes / trainer.world_size
