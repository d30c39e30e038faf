"""Reads the sizes that `plan` needs from a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_rlvr.plan.memory import Lengths
from lit_rlvr.plan.shape import shape_of
from lit_rlvr.plan.ways import Job
from lit_rlvr.policy.loading import load_config
from lit_rlvr.policy.lora import Lora
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.rollout.hf import HFEngine
from lit_rlvr.rollout.vllm import VLLMEngine

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.rollout import RolloutCallback


def job_of(
    module: RLVRModule, data: PromptDataModule, rollout: RolloutCallback, precision: str, lengths: str | None = None
) -> Job:
    """Collect the sizes; only the model's config is read.

    Args:
        lengths: expected lengths of completions, for `Lengths.parse`; None = all as long as allowed.
    """
    config = load_config(module.model_folder)
    engine = rollout.generator
    own = engine if isinstance(engine, VLLMEngine) else None
    longest = rollout.sampling.reach
    share = 0.0 if own is None else own.gpu_memory_utilization or 0.4
    return Job(
        whole=shape_of(config, module.freeze_vision),
        adapted=shape_of(config, module.freeze_vision, module.lora or Lora()),
        budget=module.tokens_per_microbatch,
        prompt=data.max_prompt_tokens,
        completion=Lengths(longest, longest) if lengths is None else Lengths.parse(lengths, longest),
        group=rollout.group_size,
        prompts=data.prompts_per_step,
        size=compute_dtype(precision).itemsize,
        share=None if isinstance(engine, HFEngine) else share,
        fitted=lengths is not None and own is not None and own.gpu_memory_utilization is None,
        quantized=own is not None and own.quantized,
        vllm_sleeps=own is not None and own.sleep and not rollout.overlap,
        reference=module.kl_coef > 0 or module.advantage.needs_reference,
        lora=module.lora is not None,
        shared_prefix=module.shared_prefix,
    )
