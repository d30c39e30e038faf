"""AdamW and its learning-rate schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.errors import UserError

if TYPE_CHECKING:
    from lit_rlvr.algorithms.base import RLVRModule


def build_optimizer(module: RLVRModule) -> dict[str, Any]:
    """AdamW over the trainable parameters, and a schedule that training steps itself."""
    from transformers import get_scheduler

    parameters = [p for p in module.policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, module.lr, module.betas, weight_decay=module.weight_decay, fused=True)
    name = "constant_with_warmup" if module.lr_schedule == "constant" else module.lr_schedule
    steps = None if module.lr_schedule == "constant" else total_steps(module)
    return {"optimizer": optimizer, "lr_scheduler": get_scheduler(name, optimizer, module.warmup_steps, steps)}


def total_steps(module: RLVRModule) -> int:
    """Optimizer steps of the whole run, for schedules that fall.

    Raises:
        UserError: the run has no end.
    """
    trainer: Any = module.trainer
    if trainer.max_steps > 0:
        return int(trainer.max_steps)
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        raise UserError(
            f"model.lr_schedule: {module.lr_schedule} needs trainer.max_steps or trainer.max_epochs (a budget of "
            "samples or tokens ends at a step that is not known before); give one, or use constant"
        )
    batches = len(trainer.datamodule.train_dataloader())
    return int(batches * trainer.max_epochs * module.updates_per_rollout * module.epochs_per_rollout)


def apply_options(module: RLVRModule) -> None:
    """Let the options given now win over those that a checkpoint restored; without a change this changes nothing."""
    optimizer: Any = module.optimizers()
    scheduler: Any = module.lr_schedulers()
    scheduler.base_lrs = [module.lr for _ in scheduler.base_lrs]
    for group, scale in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        rate = module.lr * scale(scheduler.last_epoch)
        group |= {"initial_lr": module.lr, "lr": rate, "betas": module.betas, "weight_decay": module.weight_decay}
