"""What `auto` stands for in `model.compute`, once the devices of a run are known."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lit_rlvr.common.log import log
from lit_rlvr.errors import UserError
from lit_rlvr.options import DEFAULT_TOKENS
from lit_rlvr.sizing.gpus import GIB
from lit_rlvr.sizing.strategies import MemoryEstimate, describe_run

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule


def choose_compute(trainer: Trainer, module: RLVRModule, data: PromptDataModule) -> None:
    """Replace each `auto` of model.compute but torch_compile's: on GPUs by what should fit on each of them.

    On a CPU, whose memory is not the run's alone, `auto` is the default number of tokens, without checkpointing.

    Args:
        trainer: says on which devices the run trains, and whether it shards the weights.
        module: the algorithm, before its weights load.
        data: the data.
    """
    tokens_are_open = module.budget.given == "auto"
    checkpointing_is_open = module.compute.gradient_checkpointing == "auto"
    if not tokens_are_open and not checkpointing_is_open:
        return
    tokens = DEFAULT_TOKENS
    checkpointing = False
    if trains_on_gpus(trainer):
        try:
            job, plan = describe_run(trainer, module, data)
        except UserError as error:
            log.warning("model.compute: auto is %d tokens without gradient checkpointing: %s", tokens, error)
        else:
            if checkpointing_is_open:
                plan = job.choice(plan.gpus, (plan.strategy.sharded, plan.strategy.offload), None)
            if tokens_are_open:
                plan = job.with_most_tokens(plan)
                _report(plan, job.step_tokens(plan.gpus))
            tokens = plan.budget
            checkpointing = plan.strategy.checkpointing
    if tokens_are_open:
        module.budget.choose(tokens)
    if checkpointing_is_open:
        module.models.use_checkpointing(checkpointing)


def trains_on_gpus(trainer: Trainer) -> bool:
    """Return whether the run has devices with memory of their own."""
    return trainer.strategy.root_device.type != "cpu"


def _report(plan: MemoryEstimate, step_tokens: int) -> None:
    """Say what was chosen, and why not more."""
    if not plan.fits:
        reason = "IT WILL NOT FIT: `lit-rlvr plan` proposes a strategy or adapters"
    elif plan.budget == step_tokens:
        reason = "all of an optimizer step"
    else:
        reason = "twice as many would not fit"
    checkpointing = ""
    if plan.strategy.checkpointing:
        checkpointing = " with gradient checkpointing"
    log.log(
        logging.INFO if plan.fits else logging.WARNING,
        "tokens_per_microbatch: %d%s: about %.3g of %.3g GiB on each device; %s",
        plan.budget,
        checkpointing,
        plan.needs / GIB,
        plan.gpus.gib,
        reason,
    )
