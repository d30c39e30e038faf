"""The replay: computes the advantages, weights and losses of training on given numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.errors import UserError, defined_at
from lit_rlvr.objectives import LossInputs, aggregation_weights, correction_weights
from lit_rlvr.parity.batch import FrozenBatch, read_batch


def replay(batch: Mapping[str, np.ndarray], algorithms: Mapping[str, RLVRModule]) -> dict[str, np.ndarray]:
    """Compute each algorithm's loss, advantages and gradient on a frozen batch.

    Args:
        batch: `logp`, `old_logp` (B, T), `mask` (B, T) bool, `rewards`, `correct` (P, G); and, if an algorithm needs
            them, `ref_logp` (B, T), `reference_rewards` (P, G) and the scalar `max_completion_length` (default T).
            Further optional arrays (B, T): `rollout_logp`, log-probabilities at sampling time, to which the algorithm's
            importance correction applies; `entropy` of the policy, for an entropy bonus, which is a constant here;
            `objective_mask` bool, tokens whose objective counts, where the others of `mask` count in normalisers and in
            the KL and entropy terms only.
        algorithms: name -> module; no model is loaded.

    Returns:
        Per name `NAME/loss` (), `NAME/advantages` (P, G) and `NAME/dlogp` (B, T), the loss's gradient with respect
        to `logp`; in float64 when the batch is.

    Raises:
        UserError: the batch is invalid, or lacks an array that an algorithm needs; the message names it.
    """
    frozen = read_batch(batch)
    results: dict[str, np.ndarray] = {}
    for name, algorithm in algorithms.items():
        try:
            found = replay_one(frozen, algorithm)
        except UserError as error:
            raise UserError(f"algorithms.{name}: {error}") from error
        results |= {f"{name}/{key}": value.numpy() for key, value in found.items()}
    return results


def replay_one(
    batch: FrozenBatch, algorithm: RLVRModule, parts: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Compute one algorithm's `loss`, `advantages` and `dlogp`.

    Args:
        parts: the rows of each micro-batch; each of the B rows is in exactly one. None = one micro-batch.
    """
    if algorithm.kl_coef > 0 and batch.ref is None:
        raise UserError("kl_coef is above 0, and the batch has no ref_logp; add the array or set kl_coef: 0")
    if algorithm.advantage.needs_reference and batch.group.reference_rewards is None:
        raise UserError("its advantage needs reference_rewards (P, G), and the batch has none; add the array")
    advantages, _ = algorithm.estimate(batch.group)  # (P, G)
    loss, gradient = loss_and_gradient(batch, algorithm, advantages, parts)
    return {"loss": loss, "advantages": advantages, "dlogp": gradient}


def loss_and_gradient(
    batch: FrozenBatch, algorithm: RLVRModule, advantages: Tensor, parts: Sequence[Sequence[int]] | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the loss () and its gradient (B, T) with respect to `logp`, summed over micro-batches.

    Args:
        advantages: (P, G).
        parts: as in `replay_one`.
    """
    with torch.enable_grad():
        logp = batch.logp.clone().requires_grad_(True)
        whole = frozen_inputs(batch, algorithm, logp, advantages)
        pieces = [whole] if parts is None else [rows_of(whole, rows) for rows in parts]
        loss = torch.stack([algorithm.loss(piece)[0] for piece in pieces]).sum()
        (gradient,) = torch.autograd.grad(loss, logp, allow_unused=True)
    if gradient is None:
        raise UserError(f"the loss of {defined_at(algorithm.objective)} does not depend on x.logp")
    return loss.detach(), gradient


def rows_of(x: LossInputs, rows: Sequence[int]) -> LossInputs:
    """Return some rows of the inputs, as a micro-batch has them."""
    at = torch.tensor(rows, dtype=torch.long)
    return replace(x, **{name: value[at] for name, value in vars(x).items() if value is not None})


def frozen_inputs(batch: FrozenBatch, algorithm: RLVRModule, logp: Tensor, advantages: Tensor) -> LossInputs:
    """Build the loss inputs of the whole batch, as one optimizer step.

    Args:
        logp: (B, T), with a gradient.
        advantages: (P, G).
    """
    prompts, size = advantages.shape
    rows = prompts * size
    weight = aggregation_weights(
        batch.mask, size, algorithm.aggregation, rows, int(batch.mask.sum()), batch.max_tokens
    ).to(logp.dtype)
    tokens, sequences = correction_weights(
        logp,
        batch.old,
        batch.old if batch.rollout is None else batch.rollout,
        batch.mask,
        advantages.to(logp.dtype).reshape(-1, 1),
        algorithm.correction(exact=batch.rollout is None),
    )
    if batch.objective_mask is not None:
        tokens = tokens * batch.objective_mask
    return LossInputs(
        logp=logp,
        old=batch.old,
        mask=batch.mask,
        advantages=advantages.to(logp.dtype).reshape(-1, 1),
        token_weight=weight * tokens,
        row_weight=sequences / rows,
        prompt=torch.arange(rows) // size,
        plain_weight=weight,
        ref=batch.ref if algorithm.kl_coef > 0 else None,
        entropy=batch.entropy,
    )
