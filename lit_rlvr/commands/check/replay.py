"""The replay of a frozen batch: its arrays, and the advantages, weights and losses of training on them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_rlvr.advantages import GroupBatch
from lit_rlvr.advantages.base import impute
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.conformance import Batch, Step, replay_step
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, StepTokens, aggregation_weights
from lit_rlvr.training.step.loss_inputs import correction_weights
from lit_rlvr.training.terms import InitialLogprobs, Need, term_costs


def replay(batch: Mapping[str, np.ndarray], algorithms: Mapping[str, RLVRModule]) -> dict[str, np.ndarray]:
    """Compute each algorithm's loss, advantages and gradient on a frozen batch.

    Args:
        batch: `logp`, `old_logp` (B, T), `mask` (B, T) bool, `rewards`, `correct` (P, G); and, if an algorithm needs
            them, `ref_logp` (B, T), `reference_rewards` (P, G) and the scalar `max_completion_length` (default T).
            NaN in `rewards`, `correct` or `reference_rewards` is a missing judgement; a completion without a reward is
            out of the loss and of all statistics. Further optional arrays (B, T): `rollout_logp`, log-probabilities at
            sampling time, to which the algorithm's importance correction applies; `entropy` of the policy, for an
            entropy bonus, which is a constant here, and for `loss.top_entropy_quantile`; `turns`, each token's turn
            from 0, for an estimator of tokens; `objective_mask` bool, tokens whose objective counts, where the others
            of `mask` count in normalisers and in the KL and entropy terms only.
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
            values = replay_one(frozen, algorithm)
        except UserError as error:
            raise UserError(f"algorithms.{name}: {error}") from error
        results |= {f"{name}/{key}": value.numpy() for key, value in values.items()}
    return results


def replay_one(batch: FrozenBatch, algorithm: RLVRModule) -> dict[str, Tensor]:
    """Compute one algorithm's `loss`, `advantages` and `dlogp`."""
    if algorithm.kl.coef > 0 and batch.ref_logp is None:
        raise UserError("kl.coef is above 0, and the batch has no ref_logp; add the array or set kl.coef: 0")
    if algorithm.reference_completions is not None and batch.reference_rewards is None:
        raise UserError("its advantage needs reference_rewards (P, G), and the batch has none; add the array")
    return replay_step(algorithm_step(batch, algorithm), batch)


OF_A_MODEL: tuple[Need, ...] = ("teacher_logp", "divergence", "expert_imbalance", "observation_logp")
"""Fields of a model, which a batch has not: the terms that need them are left out."""


def algorithm_step(batch: FrozenBatch, algorithm: RLVRModule, advantages: Tensor | None = None) -> Step:
    """Return the optimizer step of an algorithm on a batch.

    Args:
        batch: the frozen batch.
        algorithm: the algorithm to measure.
        advantages: (P, G) or (B, T); None = the algorithm estimates them, and takes note of the rewards.
    """
    algorithm = copy(algorithm)
    algorithm.terms = [term for term in algorithm.terms if not {*OF_A_MODEL} & {*term.needs}]
    if advantages is None:
        groups = batch.groups
        scores = InitialLogprobs(batch.mask, batch.old_logp, batch.entropy, batch.ref_logp)
        taken, _ = algorithm.reward_costs(scores, groups.rewards)
        advantages, _ = algorithm.estimate(replace(groups, rewards=groups.rewards - taken))
        for term, cost in term_costs(algorithm.terms, "advantages", scores):
            if advantages.shape == groups.rewards.shape:
                rows = advantages.reshape(-1, 1)
            else:
                rows = advantages
            advantages = rows - term.coef * cost

    def loss(logp: Tensor, advantages: Tensor, rows: list[int], *_: int) -> Tensor:
        return algorithm.loss(rows_of(frozen_inputs(batch, algorithm, logp, advantages), rows))[0]

    return Step(advantages, loss, algorithm.objective)


def rows_of(x: LossInputs, rows: Sequence[int]) -> LossInputs:
    """Return some rows of the inputs, as a micro-batch has them."""
    at = torch.tensor(rows, dtype=torch.long)
    given = {}
    for name, value in vars(x).items():
        if value is not None:
            given[name] = value[at]
    return replace(x, **given)


def frozen_inputs(batch: FrozenBatch, algorithm: RLVRModule, logp: Tensor, advantages: Tensor) -> LossInputs:
    """Build the loss inputs of the whole batch, as one optimizer step.

    Args:
        batch: the frozen batch.
        algorithm: the algorithm to measure.
        logp: (B, T) log-probabilities, with a gradient.
        advantages: (P, G) or (B, T) advantages.
    """
    size = batch.rewards.shape[1]
    lengths = batch.mask.sum(1)  # (B,)
    if algorithm.loss_options.count_empty_rows:
        rows = len(lengths)
    else:
        rows = max(int((lengths > 0).sum()), 1)
    weight = aggregation_weights(
        batch.mask, size, algorithm.loss_options.aggregation, rows, int(lengths.sum()), batch.max_tokens
    ).to(logp.dtype)
    per_row = advantages.to(logp.dtype)
    # per_row: (B, 1) or (B, T)
    if advantages.shape == batch.rewards.shape:
        per_row = per_row.reshape(-1, 1)
    if batch.rollout_logp is None:
        rollout = batch.old_logp
    else:
        rollout = batch.rollout_logp
    tokens, sequences = correction_weights(
        logp, batch.old_logp, rollout, batch.mask, per_row, algorithm.resolve_importance(batch.rollout_logp is None)
    )
    if batch.objective_mask is not None:
        tokens = tokens * batch.objective_mask
    counted, selected = _chosen_tokens(batch, algorithm, per_row, rollout)
    return LossInputs(
        logp=logp,
        old_logp=batch.old_logp,
        mask=batch.mask,
        advantages=per_row,
        token_weight=weight * tokens if counted is None else weight * tokens * counted,
        row_weight=sequences / rows,
        prompt=torch.arange(len(lengths)) // size,
        plain_weight=weight,
        rollout_logp=rollout,
        ref_logp=batch.ref_logp,
        entropy=batch.entropy,
        correct=(batch.correct if batch.has_correct is None else batch.correct * batch.has_correct).reshape(-1),
        selected=selected,
        row=torch.arange(len(lengths)),
    )


def _chosen_tokens(
    batch: FrozenBatch, algorithm: RLVRModule, advantages: Tensor, rollout: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the results (B, T) of `choose_tokens` on the whole batch; None = it is not asked.

    Args:
        batch: the frozen batch.
        algorithm: the algorithm to measure.
        advantages: (B, 1) or (B, T) advantages.
        rollout: (B, T) log-probabilities at sampling time.
    """
    if not algorithm.needs_step_tokens:
        return None, None
    if batch.entropy is None and algorithm.loss_options.top_entropy_quantile < 1:
        raise UserError("loss.top_entropy_quantile is below 1, and the batch has no entropy; add the array")
    if batch.entropy is None:
        entropy = torch.zeros_like(batch.old_logp)
    else:
        entropy = batch.entropy
    in_loss = batch.mask
    tokens = StepTokens(
        batch.old_logp[in_loss], rollout[in_loss], entropy[in_loss], advantages.expand(in_loss.shape)[in_loss]
    )
    counted, selected = algorithm.choose_tokens(tokens)
    return _as_mask(counted, in_loss), _as_mask(selected, in_loss)


def _as_mask(chosen: torch.Tensor | None, in_loss: torch.Tensor) -> torch.Tensor | None:
    """Return a choice among the tokens in the loss as a mask (B, T); None stays None."""
    if chosen is None:
        return None
    return torch.zeros_like(in_loss).masked_scatter(in_loss, chosen)


@dataclass
class FrozenBatch(Batch):
    """A batch whose completions may lack a reward.

    Args:
        has_reward, has_correct: (P, G) bool as in `GroupBatch`; None = all have a reward that says which are right.
    """

    has_reward: Tensor | None = None
    has_correct: Tensor | None = None

    @property
    def groups(self) -> GroupBatch:
        """The input of an estimator."""
        return GroupBatch(
            self.rewards,
            self.correct,
            self.reference_rewards,
            self.lengths,
            mask=self.mask,
            turns=self.turns,
            has_reward=self.has_reward,  # type: ignore[arg-type]
            has_correct=self.has_correct,  # type: ignore[arg-type]
        )


def read_batch(arrays: Mapping[str, np.ndarray]) -> FrozenBatch:
    """Check a batch's arrays and convert them to tensors of the widest float type among them.

    Raises:
        UserError: an array is missing, has the wrong shape or type, or holds a number that is not finite.
    """
    tokens, groups, mask = _checked_arrays(arrays)
    rewards = groups["rewards"]
    rewarded = ~np.isnan(rewards)
    judged = rewarded & ~np.isnan(groups["correct"])
    if not np.isin(groups["correct"][judged], (0, 1)).all():
        raise UserError("batch: correct must hold only 0 and 1, or NaN if nothing says which; it is not the reward")
    dtype = np.result_type(np.float32, *(array.dtype for array in [*tokens.values(), *groups.values()]))

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(dtype))

    lengths = mask.sum(1).reshape(rewards.shape)  # (P, G)
    mask = mask & rewarded.reshape(-1, 1)
    filled = {}
    for name, array in tokens.items():
        filled[name] = tensor(np.where(mask, array, 0))
    reference_rewards = None
    if "reference_rewards" in groups:
        reference_rewards = tensor(groups["reference_rewards"])
    objective_mask = None
    if "objective_mask" in arrays:
        objective_mask = torch.from_numpy(_mask(arrays, "objective_mask", mask.shape))
    return FrozenBatch(
        logp=filled["logp"],
        old_logp=filled["old_logp"],
        ref_logp=filled.get("ref_logp"),
        mask=torch.from_numpy(mask),
        rewards=impute(tensor(rewards), torch.from_numpy(~rewarded)),
        correct=impute(tensor(groups["correct"]), torch.from_numpy(~judged)),
        reference_rewards=reference_rewards,
        lengths=tensor(lengths),
        has_reward=torch.from_numpy(rewarded),
        has_correct=torch.from_numpy(judged),
        max_tokens=_max_tokens(arrays, mask.shape[1]),
        turns=_turns(arrays, mask),
        entropy=filled.get("entropy"),
        rollout_logp=filled.get("rollout_logp"),
        objective_mask=objective_mask,
    )


def _checked_arrays(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Return the arrays (B, T) of tokens, those (P, G) of completions, and the mask (B, T), as they are given."""
    for name in ("logp", "old_logp", "mask", "rewards", "correct"):
        if name not in arrays:
            raise UserError(f"batch: array {name!r} is missing (found: {', '.join(sorted(arrays)) or 'none'}); add it")
    logp = _float_array(arrays, "logp")
    rewards = _float_array(arrays, "rewards")
    if logp.ndim != 2 or rewards.ndim != 2:
        raise UserError(f"batch: logp must be (B, T) and rewards (P, G), got {logp.shape} and {rewards.shape}")
    if rewards.size != len(logp) or not logp.size:
        raise UserError(
            f"batch: rewards {rewards.shape} stand for {rewards.size} completions and logp has {len(logp)} rows; "
            "B must be P * G, at least 1, and T at least 1"
        )
    mask = _mask(arrays, "mask", logp.shape)
    tokens = {"logp": logp}
    for name in ("old_logp", "ref_logp", "rollout_logp", "entropy"):
        if name in arrays:
            tokens[name] = _float_array(arrays, name)
    groups = {"rewards": rewards}
    for name in ("correct", "reference_rewards"):
        if name in arrays:
            groups[name] = _float_array(arrays, name)
    for name, array in tokens.items():
        _check(name, array, logp.shape, "logp", mask)
    for name, array in groups.items():
        _check(name, array, rewards.shape, "rewards", ~np.isnan(array))
    return tokens, groups, mask


def _float_array(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    array = np.asarray(arrays[name])
    if array.dtype.kind == "f":
        return array
    return array.astype(np.float32)


def _mask(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(arrays[name])
    if mask.shape != shape or not np.isin(mask, (0, 1)).all():
        raise UserError(f"batch: {name} must be bool (True = in the loss) of logp's shape {shape}, got {mask.shape}")
    return mask.astype(bool)


def _turns(arrays: Mapping[str, np.ndarray], mask: np.ndarray) -> Tensor:
    """Return the turn (B, T) of each token, -1 where masked; all are of the first one if the batch has no `turns`."""
    if "turns" in arrays:
        turns = np.asarray(arrays["turns"])
    else:
        turns = np.zeros(mask.shape, dtype=np.int64)
    if turns.shape != mask.shape or turns.dtype.kind not in "iu" or (turns[mask] < 0).any():
        raise UserError(f"batch: turns must be whole numbers from 0 of logp's shape {mask.shape}, got {turns.shape}")
    return torch.from_numpy(np.where(mask, turns, -1))


def _check(name: str, array: np.ndarray, shape: tuple[int, ...], like: str, used: np.ndarray) -> None:
    """Check the shape, and that all used numbers are finite (masked log-probabilities are not used)."""
    if array.shape != shape:
        raise UserError(f"batch: {name} has shape {array.shape}, not that of {like}, {shape}")
    bad = np.argwhere(used & ~np.isfinite(array))
    if len(bad):
        at = ", ".join(map(str, bad[0]))
        raise UserError(f"batch: {name}[{at}] is {array[tuple(bad[0])]} ({len(bad)} such); mask it or repair the batch")


def _max_tokens(arrays: Mapping[str, np.ndarray], width: int) -> int:
    value = np.asarray(arrays.get("max_completion_length", width))
    if value.size != 1 or not np.isfinite(value).all() or int(value.item()) != value.item() or value.item() < 1:
        raise UserError(f"batch: max_completion_length must be one positive whole number, got {value}")
    return int(value.item())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Load the arrays of an .npz file.

    Raises:
        UserError: it is not an .npz file, or holds objects instead of numbers.
    """
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise UserError(f"batch: {path} is no .npz file; write one with numpy's savez")
        with np.load(path, allow_pickle=False) as data:
            arrays = {}
            for name in data.files:
                arrays[name] = data[name]
            return arrays
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"batch: {path} is not a readable .npz of plain arrays: {str(error).splitlines()[0]}"
        ) from error
