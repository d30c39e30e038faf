"""Freeze what verl's own loss functions give on the kit's batches, and what the kit measures of them.

    python tests/conformance/freeze_verl.py      # lit_rlvr/conformance/data/verl.npz

It needs verl at commit b178a3c. core_algos.py of that commit is enough, with `masked_sum` and `masked_mean` of
verl/utils/torch_functional.py and verl/utils/groupwise.py; its other imports are only names in annotations.

verl has two kinds of workers with FSDP, and the same loss functions normalise differently in them:

- `legacy` (the default, `trainer.use_legacy_worker_impl: auto`): `verl/workers/actor/dp_actor.py:578` gives them no
  counts of the batch, and divides by the number of micro-batches.
- `engine` (`disable`): `verl/workers/utils/losses.py:103` gives them the counts of the optimizer step over all ranks,
  and the micro-batches' losses are added up (`verl/workers/engine/fsdp/transformer_impl.py:504`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from lit_rlvr.conformance.batches import BATCHES, DATA, frozen_batch
from lit_rlvr.conformance.functions import check_estimator, check_loss, plain_step
from lit_rlvr.conformance.properties import Finding, replay_step

NO_DUAL_CLIP = 1e9
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "token-mean": ("DAPO", {"clip_ratio_high": 0.28}),
    "seq-mean-token-mean": ("GRPO", {}),
    "seq-mean-token-sum-norm": ("DrGRPO", {}),
    "gspo": ("GSPO", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
    "cispo": ("CISPO", {"clip_ratio_low": 1.0, "clip_ratio_high": 4.0}),
    "sapo": ("SAPO", {"tau_pos": 1.0, "tau_neg": 1.05}),
    "geo_mean": ("GMPO", {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}),
    "gpg": ("GPG", {}),
}
"""`loss_agg_mode` of the vanilla loss, or `loss_mode` -> the published loss and the settings that make it that."""


def verl_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    num_tokens: int,
    num_sequences: int,
    max_tokens: int,
    num_microbatches: int,
    world_size: int,
    *,
    mode: str,
    worker: str,
    clip_ratio_c: float,
) -> Tensor:
    """Return verl's loss () of some rows, as one of its workers computes it."""
    counts = {
        "dp_size": world_size,
        "batch_num_tokens": num_tokens,
        "global_batch_size": num_sequences,
        "loss_scale_factor": max_tokens,
    }
    defaults = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": clip_ratio_c}
    config = ActorConfig(**defaults | SETTINGS[mode][1], global_batch_info=counts if worker == "engine" else {})
    aggregation = mode if "-" in mode else "token-mean"
    loss, _ = core_algos.get_policy_loss_fn("vanilla" if "-" in mode else mode)(
        old_logp, logp, advantages.expand_as(logp), mask.to(logp.dtype), aggregation, config
    )
    return loss if worker == "engine" else loss / num_microbatches


def verl_advantage(rewards: Tensor, *, name: str, scaled: bool = True) -> Tensor:
    """Return verl's advantages (P, G)."""
    one = torch.ones(rewards.numel(), 1, dtype=rewards.dtype)
    prompts = np.arange(rewards.shape[0]).repeat(rewards.shape[1])
    options = {} if scaled else {"norm_adv_by_std_in_grpo": False}
    found, _ = core_algos.get_adv_estimator_fn(name)(rewards.reshape(-1, 1).clone(), one, prompts, **options)
    return found.view_as(rewards)


def measured(kind: str, name: str, findings: list[Finding]) -> dict[str, Any]:
    """Return the measured numbers, and the names and tolerances of the properties in the same order."""
    return {
        f"measured/{kind}/{name}": [finding.measured for finding in findings],
        f"properties/{kind}": [finding.name for finding in findings],
        f"tolerances/{kind}": [finding.tolerance for finding in findings],
    }


def main() -> None:
    arrays: dict[str, Any] = {}
    for mode, (published, _) in SETTINGS.items():
        own = partial(verl_loss, mode=mode, worker="engine", clip_ratio_c=3.0)  # the default
        for name in BATCHES:
            batch = frozen_batch(name)
            found = replay_step(plain_step(own, batch), batch)
            arrays |= {f"{name}/verl/{mode}/{key}": found[key].numpy() for key in ("loss", "dlogp")}
        for worker in ("legacy", "engine"):
            loss = partial(verl_loss, mode=mode, worker=worker, clip_ratio_c=NO_DUAL_CLIP)
            arrays |= measured("losses", f"{worker} {mode}", check_loss(loss, published))
    estimators: dict[str, tuple[str, Callable[..., Tensor]]] = {
        "grpo": ("grpo", partial(verl_advantage, name="grpo")),
        "grpo, norm_adv_by_std_in_grpo: false": ("dr_grpo", partial(verl_advantage, name="grpo", scaled=False)),
        "rloo": ("rloo", partial(verl_advantage, name="rloo")),
        "gpg": ("gpg", partial(verl_advantage, name="gpg")),
    }
    for name, (published, estimator) in estimators.items():
        arrays |= measured("advantages", name, check_estimator(estimator, published))
    np.savez_compressed(DATA / "verl.npz", **arrays)


if __name__ == "__main__":
    main()
