"""The context of a run's engine: the model, the longest sequence, the most images, the memory."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from lit_rlvr.common.log import log
from lit_rlvr.common.seeds import run_seed
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.rollout.preflight.lengths import length_requirements, most_images
from lit_rlvr.rollout.preflight.sizes import most_completions, most_sampled_tokens
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import unallocated


def engine_context(rollout: RolloutSettings, trainer: Trainer, module: RLVRModule) -> EngineContext:
    """Return the context that the engine of a run is started with."""
    data = module.data
    requirements = length_requirements(rollout, data)
    images = most_images(requirements)
    needs_tower = any(images.values()) or rollout.environment is not None
    if not (module.policy.family is None or needs_tower or module.freeze_vision or module.lora):
        log.info("no prompt has an image; model.freeze_vision: true spares the vision tower's memory and syncs")
    return EngineContext(
        folder=module.model_folder,
        policy=module.policy,
        tokenizer=module.tokenizer,
        max_tokens=max(requirement.max_sequence_tokens for requirement in requirements),
        max_sequences=most_completions(rollout, module, data) // trainer.world_size,
        seed=run_seed(),
        dtype=module.plan.dtype,
        deterministic=rollout.deterministic,
        reserved=sum(unallocated(optimizer, module.policy.device) for optimizer in trainer.optimizers),
        tokens=most_sampled_tokens(rollout, trainer, module, data),
        run=Path(trainer.default_root_dir),
        streams=rollout.staleness > 0,
        max_images=images["max_images"],
        max_videos=images["max_videos"],
    )
