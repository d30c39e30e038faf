"""`lit-rlvr fit --dry-run`: checks a config without weights, and describes the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_rlvr.advantages import REGISTRY
from lit_rlvr.commands.preview import describe_prompts, describe_set, print_prompts
from lit_rlvr.common.paths import shown
from lit_rlvr.common.terminal import Terminal, show_result
from lit_rlvr.environments.base import environment_fingerprint
from lit_rlvr.objectives import resolve_correction
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.rollout.preflight.data import warn_of_answers
from lit_rlvr.rollout.preflight.sizes import log_sizes
from lit_rlvr.run.parts import RunParts
from lit_rlvr.sizing.gpus import GIB
from lit_rlvr.sizing.strategies import describe_run
from lit_rlvr.training.optimizer import steps_per_iteration, train_whole_rollouts, warn_of_rate

PROMPTS = 2
"""Number of prompts that a dry run shows."""


def settings(run: RunParts) -> dict[str, Any]:
    """Return the parts and limits of the run by name."""
    trainer = run.trainer
    module = run.module
    data = run.data
    rollout = run.rollout
    dtype = compute_dtype(str(trainer.precision))
    correct = None
    if rollout.has_reward:
        correct = next((reward.name for reward in rollout.rewards if reward.correct_from), RULE_OF_CORRECT)
    tokens = run.limits.get("tokens")
    iterations = run.iterations
    if tokens is None:
        limits = []
    else:
        limits = [f"until {tokens} tokens are generated"]
    if iterations is not None:
        passes = iterations * data.prompts_per_rollout / len(data.prompts["train"])
        limits.append(
            f"{iterations * steps_per_iteration(module)} optimizer steps, {iterations} iterations, "
            f"{passes:.3g} passes over the training prompts"
        )
    return {
        "run folder": shown(trainer.default_root_dir),
        "algorithm": type(module).__name__,
        "advantage": None if module.demonstrates else _advantage_name(module.advantage),
        "model": f"{module.model} ({module.model_folder})",
        "data": describe_set(data, "train"),
        "validation": [describe_set(d, "validation") for d in data.validated if d.prompts["validation"]],
        "rewards": [f"{reward.weight:g} x {reward.name}" for reward in rollout.rewards if rollout.has_reward],
        "correct": correct,
        "environment": environment_fingerprint(rollout.environment),
        "engine": rollout.engine.name,
        "strategy": type(trainer.strategy).__name__,
        "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
        "precision": str(trainer.precision),
        "importance correction": resolve_correction(module.importance.correction, rollout.engine.is_exact(dtype)),
        "warm start": f"at most {run.warm_start.steps} supervised steps" if run.warm_start.steps else None,
        "sequences per rollout": data.prompts_per_rollout * rollout.completions_of(module),
        "steps": ", at most ".join(limits) or "no limit: the run ends with Ctrl-C, or after trainer.max_time",
    }


def sizes(run: RunParts) -> dict[str, Any]:
    """Return the numbers of iterations, sequences and validations of the whole run."""
    trainer = run.trainer
    data = run.data
    rollout = run.rollout
    iterations = run.iterations
    every = rollout.validate_every_rollouts
    during = (iterations or 0) // every if every else 1  # by epochs counts as once, at the end
    return {
        "iterations": iterations,
        "prompts": data.prompts_per_rollout,
        "sequences": data.prompts_per_rollout * rollout.completions_of(run.module),
        "validations": 1 + during if trainer.limit_val_batches else 0,
        "validation_completions": sum(
            len(d.prompts["validation"]) * rollout.samples_of(d.name) for d in data.validated
        ),
    }


def memory(run: RunParts) -> dict[str, Any]:
    """Return the estimated memory of one process as the run is configured, in GiB."""
    job, plan = describe_run(run.trainer, run.module, run.data)
    return {
        "parameters": job.whole.parameters,
        "trained": (job.adapted if job.lora else job.whole).trained,
        "strategy": plan.name,
        "terms": {name: value / GIB for name, value in plan.terms.items() if value},
        "needs": plan.needs / GIB,
        "of": plan.gpus.gib,
        "fits": plan.fits,
    }


def dry_run(run: RunParts) -> None:
    """Read the data, check everything that can be checked without weights, and print what `fit` would do.

    Raises:
        UserError: `fit` would refuse the run, too.
    """
    train_whole_rollouts(run.trainer, steps_per_iteration(run.module))
    run.prepare()
    log_sizes(run.rollout, run.module, run.plan, run.data)
    warn_of_answers(run.rollout, run.data, run.rollout.long_answers)
    if run.iterations is None:
        steps = None
    else:
        steps = run.iterations * steps_per_iteration(run.module)
    warn_of_rate(run.module.lr, run.module.optim, steps)
    report = {
        "run": settings(run),
        "sizes": sizes(run),
        "memory": memory(run),
        "prompts": describe_prompts(run.data, "train", PROMPTS, None, run.module, run.rollout),
    }
    show_result(report, lambda: print_run(report))


RULE_OF_CORRECT = (
    "as the first reward that reports it says, else where the first reward is 1; `correct_from: true` on a reward "
    "chooses another"
)
"""The source of `correct` without a `correct_from`."""


def _advantage_name(advantage: object) -> str:
    """Return the registered name of an estimator, or else the name of its class or function."""
    registered = next((name for name, cls in REGISTRY.items() if type(advantage) is cls), None)
    return registered or str(getattr(advantage, "__name__", type(advantage).__name__))


def print_run(report: Mapping[str, Any]) -> None:
    """Print a dry run as readable text."""
    console = Terminal()
    for name, value in report["run"].items():
        for line in value if isinstance(value, list) else [value]:
            if line is not None:
                console.print(f"{name}: {line}", soft_wrap=True)
    used = report["memory"]
    too_much = ", WHICH IS TOO MUCH (`lit-rlvr plan` proposes a strategy or adapters that fit)"
    terms = ", ".join(f"{name} {value:.2f}" for name, value in used["terms"].items())
    console.print(
        f"memory: {used['parameters']:,} parameters, {used['trained']:,} trained ({used['strategy']}); about "
        f"{used['needs']:.2f} of {used['of']:.1f} GiB on each device{'' if used['fits'] else too_much}: {terms}",
        soft_wrap=True,
    )
    print_prompts(report["prompts"])
