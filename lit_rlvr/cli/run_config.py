"""The settings of a run between the parser and the run: checked, then completed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.files import check_new, check_writable
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import expanded
from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.errors import UserError
from lit_rlvr.policy.precision import auto_precision
from lit_rlvr.run.run import DEFAULT_FOLDER
from lit_rlvr.sizing.gpus import GPUs
from lit_rlvr.sizing.strategies import describe_job

FSDP1 = ("fsdp", "fsdp_cpu_offload")
"""Lightning's names of its first FSDP; they select our FSDP2."""


def check_config(command: str, config: Namespace) -> None:
    """Refuse settings that cannot work; change nothing.

    Raises:
        UserError: names the option.
    """
    trainer = config.trainer
    measures = {"validate": "limit_val_batches", "test": "limit_test_batches"}.get(command)
    if measures and trainer[measures] == 0:
        raise UserError(f"trainer.{measures}: {trainer[measures]} leaves nothing to measure; leave it out")
    if str(getattr(trainer.strategy, "class_path", trainer.strategy)).endswith("FSDPStrategy"):
        raise UserError(
            "trainer.strategy: FSDP1 fails on backward passes inside a training step, cannot clip the norm and "
            "does not run on CPUs; use FSDP2 instead: --config configs/strategy/fsdp2.yaml"
        )
    if command == "filter":
        check_new(Path(config.out), "--out", ".jsonl")
    if command == "tune":
        check_new(Path(config.out), "--out", ".yaml", ".yml")
        check_within("(0, inf)", "tune", minutes=config.minutes)
    if command == "preview" and config.out is not None:
        check_writable(Path(config.out), "--out")
    if command == "fit" and config.ckpt_path and config.overwrite:
        raise UserError(
            f"--ckpt_path {config.ckpt_path} continues the run in {trainer.default_root_dir or DEFAULT_FOLDER}, and "
            "--overwrite true replaces it; give one of them"
        )


def resolve_config(command: str, config: Namespace) -> None:
    """Fill in what the trainer's options leave open: the run folder, `auto` precision, and FSDP2 for `fsdp`."""
    trainer = config.trainer
    trainer.default_root_dir = str(expanded(trainer.default_root_dir or DEFAULT_FOLDER))
    if trainer.precision == "auto":
        # GPUs have it
        if command == "plan":
            trainer.precision = "bf16-mixed"
        else:
            trainer.precision = auto_precision(trainer.accelerator)
    if trainer.strategy in FSDP1:
        log.info("trainer.strategy: %s is FSDP2 here: lit_rlvr.strategy.FSDP2", trainer.strategy)
        options = Namespace(process_group_backend=None, replicas=1, offload="offload" in trainer.strategy)
        trainer.strategy = Namespace(class_path="lit_rlvr.strategy.FSDP2", init_args=options)


def choose_strategy(command: str, config: Namespace, module: Any, data: Any) -> None:
    """Replace `auto` in trainer.strategy by what should fit on the GPUs, and with it that of gradient checkpointing.

    Args:
        command: the command, such as `fit`.
        config: with the classes that it names built.
        module: the algorithm.
        data: the data.
    """
    trainer = config.trainer
    if trainer.strategy != "auto" or command not in ("fit", "validate", "test"):
        return
    gpus = GPUs.of_trainer(trainer.accelerator, trainer.devices, trainer.num_nodes)
    if gpus is None:
        return
    job = describe_job(module, data, config.rollout, trainer.precision)
    checkpointing = module.compute.gradient_checkpointing
    plan = job.choice(gpus, None, None if checkpointing == "auto" else checkpointing)
    module.models.use_checkpointing(plan.strategy.checkpointing)
    if job.fits_each_machine(plan, trainer.num_nodes):
        copies = trainer.num_nodes
    else:
        copies = 1
    if plan.strategy.sharded:
        trainer.strategy = FSDP2(replicas=copies, offload=plan.strategy.offload)
    elif gpus.count > 1:
        trainer.strategy = "ddp"
    log.log(logging.INFO if plan.fits else logging.WARNING, "%s", job.reason(plan))
