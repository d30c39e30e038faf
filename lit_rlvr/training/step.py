"""One optimizer step as tensors: its rows, their weights in the loss, and its micro-batches.

Normalisers are counted here, once per step, over all ranks and before cutting micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.distributed.collectives import (
    all_max,
    all_sum,
    gather_rows,
    index_tensor,
    rank,
    to_device,
)
from lit_rlvr.objectives import (
    GOLDEN_RATIO,
    Aggregation,
    LossInputs,
    Stats,
    StepTokens,
    aggregation_weights,
    count_by_sequence,
    importance_weights,
    log_ratio,
    loglinear_old,
    masked_mean,
)
from lit_rlvr.options import Importance
from lit_rlvr.policy.layout import cut_microbatches
from lit_rlvr.policy.logprobs import PolicyOutput
from lit_rlvr.policy.policy import Policy
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.trace import Trace
from lit_rlvr.types import Rollout


@dataclass
class PreparedRollout:
    """A rollout and what its updates need, computed once before the first update, for this rank's B rows.

    Args:
        rollout: the rollout of this rank.
        advantages: (B, 1) or (B, T).
        live: rows that can have a gradient.
        importance: `model.importance` of the run, with a correction chosen.
        age: (B, T) optimizer steps between the weights that sampled each token and those of the first update.
        trace: records what the updates do with its tokens; None = nothing does.
        metrics: of the rollout as a whole, logged with its first step.
        logs_weights: whether to log the weights of the importance correction: some token is old.
        old_logp: (B, T) log-probabilities at the beginning of the iteration, for the steps after the first, which
            fills in its own rows. None = there is no later step, or these are estimated (`loglinear_old`).
        steps_taken: optimizer steps taken on it so far.
        ref_logp: (B, T) log-probabilities under the reference policy; None unless the loss or a term in it needs it.
        entropy: (B, T) of the policy at the beginning of the iteration; None unless tokens are chosen by it, or a term
            in the rewards or advantages needs it.
    """

    rollout: Rollout
    advantages: Tensor
    live: list[int]
    importance: Importance
    age: Tensor
    trace: Trace | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    logs_weights: bool = False
    old_logp: Tensor | None = None
    steps_taken: int = 0
    ref_logp: Tensor | None = None
    entropy: Tensor | None = None

    @property
    def is_first_step(self) -> bool:
        """True if no step was taken or skipped yet, so that the weights are those of the iteration's beginning."""
        return self.steps_taken == 0


@dataclass(frozen=True)
class StepLimits:
    """How a step is cut into micro-batches.

    Args:
        device: where the step's tensors go.
        tokens_per_microbatch: the most input tokens in a micro-batch.
        shared_prefix: whether a prompt is computed once for its group.
        in_lockstep: run equally many micro-batches on every rank, because gathering sharded weights needs all ranks.
    """

    device: torch.device
    tokens_per_microbatch: int
    shared_prefix: bool
    in_lockstep: bool


@dataclass(frozen=True)
class ObservedTokens:
    """The tokens that an environment answered in a step's live rows, for a term that is a cost of these.

    Args:
        mask: (B, T) bool, the tokens.
        weight: (B, T) weight of each of them in the term, 0 elsewhere.
    """

    mask: Tensor
    weight: Tensor


@dataclass
class StepPlan:
    """One optimizer step of this rank.

    Args:
        prepared: the rollout.
        groups: positions of this rank's groups in the step.
        mask: (B, T) bool, the tokens in the loss.
        rollout_logp: (B, T) log-probabilities at sampling time.
        plain_weight: (B, T) weight of each token in the loss, 0 outside this step's groups, without the importance
            correction.
        in_objective: (B, T) bool, the tokens whose objective counts; None = all.
        selected: (B, T) bool, the tokens that `LossModule.select` chose; None = the loss chooses none.
        correct: (B,) bool, the completions that a reward calls right; None = neither the loss nor a term needs it.
        observed: the tokens that an environment answered; None = no term needs them.
        sequence_share: a sequence's weight in a sequence-level loss: 1 / the step's sequences on all ranks.
        microbatches: lists of rows. The first `num_counted` of them count; the others repeat a micro-batch with
            weight 0, so that with sharded weights a rank with less work stays in lockstep with the others, and a rank
            without work has the metrics that all ranks sum.
        indices: the same rows as tensors on the device.
        num_counted: how many of them count.
    """

    prepared: PreparedRollout
    groups: list[int]
    mask: Tensor
    rollout_logp: Tensor
    plain_weight: Tensor
    in_objective: Tensor | None
    selected: Tensor | None
    correct: Tensor | None
    observed: ObservedTokens | None
    sequence_share: float
    microbatches: list[list[int]]
    indices: list[Tensor]
    num_counted: int

    def is_counted(self, k: int) -> bool:
        """Return whether micro-batch k counts."""
        return k < self.num_counted

    def old_logprobs(self, k: int, logp: Tensor) -> Tensor:
        """Return the log-probabilities (rows, T) of micro-batch k under the policy at the iteration's beginning.

        - In the first step: the current ones, because the weights are still the same. They are kept for later steps.
        - In later steps: those that were kept, or computed before the first step.
        - Else, with `prox_logp_method: loglinear`: between the current ones and those at sampling time.

        Args:
            k: number of the micro-batch.
            logp: (rows, T) under the current policy.
        """
        prepared = self.prepared
        index = self.indices[k]
        logp = logp.detach()
        if prepared.is_first_step:
            if prepared.old_logp is not None:
                prepared.old_logp[index] = logp.to(prepared.old_logp.dtype)
            return logp
        if prepared.old_logp is not None:
            return prepared.old_logp[index]
        age = to_device(prepared.age[self.microbatches[k]], logp.device)
        return loglinear_old(logp, self.rollout_logp[index], age, prepared.steps_taken)


def plan_step(
    prepared: PreparedRollout,
    groups: list[int],
    algorithm: LossModule,
    limits: StepLimits,
) -> StepPlan:
    """Count the step's normalisers over all ranks, choose its tokens, and cut its live rows.

    Collective: call it on every rank.

    Args:
        prepared: the rollout.
        groups: positions of this rank's groups in the step.
        algorithm: its loss says how tokens are averaged, and which are chosen.
        limits: how rows are cut, and where the step's tensors go.
    """
    rollout = prepared.rollout
    options = algorithm.loss_options
    device = limits.device
    rows = [p * rollout.group_size + g for p in groups for g in range(rollout.group_size)]
    places = None
    if options.normalise_by == "sequence":
        places = places_in_rows(rollout, rows)
    sequences, tokens = count_sequences_and_tokens(rollout, rows, options.count_empty_rows, places)
    if places is not None:
        places = to_device(places, device)
    mask = to_device(rollout.mask, device)
    index = index_tensor(rows, device)
    plain_weight = torch.zeros(mask.shape, device=device)
    plain_weight[index] = aggregation_weights(
        mask[index],
        rollout.group_size,
        options.aggregation,
        sequences,
        tokens,
        rollout.sampling.max_sampled_tokens,
        places,
    ).to(plain_weight.dtype)
    rollout_logp = to_device(rollout.rollout_logprobs, device)
    in_objective, selected = chosen_tokens(prepared, rows, mask, rollout_logp, algorithm)
    correct = None
    if algorithm.needs("correct"):
        correct = to_device(rollout.known_correct.flatten() > 0, device)
    observed = None
    if algorithm.needs("observation_logp"):
        observed = observed_tokens(rollout, rows, options.aggregation, sequences, device, places)
    live = set(prepared.live)
    microbatches, num_counted = cut_step(rollout, [i for i in rows if i in live], limits)
    return StepPlan(
        prepared=prepared,
        groups=groups,
        mask=mask,
        rollout_logp=rollout_logp,
        plain_weight=plain_weight,
        in_objective=in_objective,
        selected=selected,
        correct=correct,
        observed=observed,
        sequence_share=1.0 / sequences,
        microbatches=microbatches,
        indices=[index_tensor(microbatch, device) for microbatch in microbatches],
        num_counted=num_counted,
    )


def places_in_rows(rollout: Rollout, rows: list[int]) -> Tensor:
    """Return which sequence of its row each token belongs to (rows, T) int64, from 0."""
    size = rollout.group_size
    places = torch.zeros(len(rows), rollout.mask.shape[1], dtype=torch.long)
    for row, i in enumerate(rows):
        end = 0
        for place, length in enumerate(rollout.completions[i // size][i % size].sequence_lengths):
            places[row, end : end + length] = place
            end += length
    return places


def count_sequences_and_tokens(
    rollout: Rollout, rows: list[int], count_empty_rows: bool, places: Tensor | None = None
) -> tuple[float, float]:
    """Return the sequences and the tokens of a step over all ranks, at least 1 of each.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        rows: this rank's rows in the step.
        count_empty_rows: `loss.count_empty_rows`.
        places: (rows, T) which sequence of its row a token belongs to, if those with a token in the loss are counted;
            None = rows are counted.
    """
    mask = rollout.mask[rows]  # (rows, T)
    lengths = mask.sum(1)  # (rows,)
    if places is None:
        counted = (lengths > 0).long()
    else:
        counted = (count_by_sequence(mask.long(), places) > 0).sum(1)
    if count_empty_rows:
        counted = counted.clamp(min=1)
    sequences, tokens = all_sum(torch.stack([counted.sum(), lengths.sum()]).double()).tolist()
    return max(sequences, 1.0), max(tokens, 1.0)


def observed_tokens(
    rollout: Rollout,
    rows: list[int],
    aggregation: Aggregation,
    sequences: float,
    device: torch.device,
    places: Tensor | None = None,
) -> ObservedTokens:
    """Return the tokens that an environment answered in a step's live rows, weighted over those of all ranks.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        rows: this rank's rows in the step.
        aggregation: how tokens are averaged.
        sequences: the step's sequences on all ranks.
        device: where the tensors go.
        places: (rows, T) which sequence of its row a token belongs to, on the device, if each is averaged over by
            itself.
    """
    in_step = torch.zeros(len(rollout.mask), 1, dtype=torch.bool)
    in_step[rows] = True
    observed = rollout.observed & in_step & rollout.mask.any(1, keepdim=True)
    (tokens,) = all_sum(torch.tensor([observed.sum()], dtype=torch.float64)).tolist()
    mask = to_device(observed, device)
    weight = torch.zeros(mask.shape, device=device)
    index = index_tensor(rows, device)
    weight[index] = aggregation_weights(
        mask[index],
        rollout.group_size,
        aggregation,
        sequences,
        tokens,
        rollout.sampling.max_completion_tokens,
        places,
    ).to(weight.dtype)
    return ObservedTokens(mask, weight)


def cut_step(rollout: Rollout, live: list[int], limits: StepLimits) -> tuple[list[list[int]], int]:
    """Return the micro-batches of a step, as many as all ranks run together, and how many of them count.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        live: this rank's rows in the step that can have a gradient.
        limits: how rows are cut.
    """
    microbatches = cut_rows(rollout, live, limits.tokens_per_microbatch, limits.shared_prefix)
    num_counted = len(microbatches)
    most = all_max(num_counted, limits.device)
    if not limits.in_lockstep:
        # A rank that runs none would lack the metrics that all ranks sum.
        most = max(num_counted, min(most, 1))
    repeated = microbatches[0] if microbatches else [0]
    return microbatches + [repeated] * (most - num_counted), num_counted


def chosen_tokens(
    prepared: PreparedRollout, rows: list[int], mask: Tensor, rollout_logp: Tensor, algorithm: LossModule
) -> tuple[Tensor | None, Tensor | None]:
    """Return the results (B, T) of `LossModule.select_tokens` over all ranks' tokens of a step; None = it is not asked.

    Collective: call it on every rank.

    Args:
        prepared: the rollout.
        rows: this rank's rows in the step.
        mask: (B, T) bool, the tokens in the loss.
        rollout_logp: (B, T) log-probabilities at sampling time.
        algorithm: chooses.
    """
    if not algorithm.needs_step_tokens:
        return None, None
    assert prepared.old_logp is not None and prepared.entropy is not None
    in_step = torch.zeros_like(mask)
    index = index_tensor(rows, mask.device)
    in_step[index] = mask[index]
    advantages = prepared.advantages.to(mask.device).expand(mask.shape)
    chance = chances(prepared.rollout).to(mask.device)
    fields = (prepared.old_logp, rollout_logp, prepared.entropy, advantages, chance)
    columns = torch.stack([values[in_step].double() for values in fields])  # (5, N of this rank)
    sizes = [int(size) for size in gather_rows(torch.tensor([columns.shape[1]]))]
    padded = torch.nn.functional.pad(columns, (0, max(sizes) - columns.shape[1]))
    parts = gather_rows(padded[None])  # (ranks, 5, the longest)
    all_tokens = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)  # (5, N)
    first = sum(sizes[: rank()])
    results: list[Tensor | None] = []
    for chosen in algorithm.select_tokens(StepTokens(*(values.clone() for values in all_tokens))):
        if chosen is None:
            results.append(None)
            continue
        result = torch.zeros_like(mask)
        result[in_step] = chosen[first : first + columns.shape[1]]
        results.append(result)
    return results[0], results[1]


def chances(rollout: Rollout) -> Tensor:
    """Return a number in [0, 1) for each token (B, T) float64, which depends on its prompt, completion and position."""
    repeats = rollout.repeats or [0] * len(rollout.prompts)
    first = []
    for prompt, repeat in zip(rollout.prompts, repeats, strict=True):
        for g in range(rollout.group_size):
            first.append(derive_seed("chance", prompt.sample.id, repeat, g) / 2**62)
    positions = torch.arange(rollout.mask.shape[1], dtype=torch.float64)
    return (torch.tensor(first, dtype=torch.float64)[:, None] + GOLDEN_RATIO * positions).frac()


def loss_inputs(plan: StepPlan, k: int, output: PolicyOutput, old_logp: Tensor) -> tuple[LossInputs, Stats]:
    """Return the objective's inputs for micro-batch k, and sums over its tokens.

    Args:
        plan: the step.
        k: number of the micro-batch.
        output: (rows, T) each, the forward pass of the micro-batch, with entropies.
        old_logp: (rows, T) what `StepPlan.old_logprobs` returned.
    """
    logp, entropy, divergence, expert_imbalance = output
    assert entropy is not None
    prepared = plan.prepared
    is_counted = float(plan.is_counted(k))
    index = plan.indices[k]
    mask = plan.mask[index]
    observed = observation_logp = observation_weight = None
    if plan.observed is not None:
        observed = plan.observed.mask[index]
        observation_logp = torch.where(observed, logp, 0.0)
        observation_weight = plan.observed.weight[index] * is_counted
        logp = torch.where(observed, 0.0, logp)
        old_logp = torch.where(observed, 0.0, old_logp)
        entropy = torch.where(observed, 0.0, entropy)
    rollout_logp = plan.rollout_logp[index]
    if prepared.rollout.is_demonstration:
        rollout_logp = old_logp
    advantages = prepared.advantages[index]
    token_correction, row_correction = correction_weights(
        logp, old_logp, rollout_logp, mask, advantages, prepared.importance
    )
    plain_weight = plan.plain_weight[index] * is_counted
    token_weight = plain_weight * token_correction
    if plan.in_objective is not None:
        token_weight = token_weight * plan.in_objective[index]
    row = index + rank() * len(plan.mask)
    inputs = LossInputs(
        logp=logp,
        old_logp=old_logp,
        mask=mask,
        advantages=advantages,
        token_weight=token_weight,
        row_weight=row_correction * plan.sequence_share * is_counted,
        prompt=row // prepared.rollout.group_size,
        plain_weight=plain_weight,
        rollout_logp=rollout_logp,
        ref_logp=None if prepared.ref_logp is None else prepared.ref_logp[index],
        entropy=entropy,
        selected=None if plan.selected is None else plan.selected[index],
        correct=None if plan.correct is None else plan.correct[index],
        divergence=divergence,
        expert_imbalance=expert_imbalance,
        row=row,
        observation_logp=observation_logp,
        observed=observed,
        observation_weight=observation_weight,
    )
    return inputs, input_stats(inputs, token_correction, prepared)


def input_stats(x: LossInputs, token_correction: Tensor, prepared: PreparedRollout) -> Stats:
    """Return sums over the tokens of a micro-batch that do not depend on the objective.

    Args:
        x: the objective's inputs.
        token_correction: (B, T) the weights of the importance correction.
        prepared: the rollout.
    """
    mask = x.mask
    assert x.entropy is not None
    stats = {"tokens": mask.sum(), "entropy": torch.where(mask, x.entropy.detach(), 0.0).sum()}
    if x.observed is not None:
        stats["observed_tokens"] = x.observed.sum()
    if not prepared.rollout.is_demonstration:
        engine_log_ratio = log_ratio(x.old_logp, x.rollout_logp, mask)
        engine_ratio = engine_log_ratio.exp() * mask
        stats |= {
            "engine_difference": engine_log_ratio.abs().sum(),
            "engine_ratio": engine_ratio.sum(),
            "engine_ratio_squared": engine_ratio.square().sum(),
        }
    if prepared.importance.drops:
        stats["importance_dropped"] = ((token_correction == 0) & mask).sum()
    if prepared.logs_weights:
        stats |= {"weight": (token_correction * mask).sum(), "weight_squared": (token_correction * mask).square().sum()}
    return stats


def correction_weights(
    logp: Tensor, old_logp: Tensor, rollout_logp: Tensor, mask: Tensor, advantages: Tensor, correction: Importance
) -> tuple[Tensor, Tensor]:
    """Return the weights of `importance_weights`; those of sequences that `off_policy_threshold` drops are 0.

    Args:
        logp: (B, T) log-probabilities under the current policy.
        old_logp: (B, T) under the policy at the beginning of the iteration.
        rollout_logp: (B, T) at sampling time.
        mask: (B, T) bool, the tokens in the loss.
        advantages: (B, 1) or (B, T).
        correction: the options, with a correction chosen.

    Returns:
        Weights of tokens (B, T) and of rows (B,).
    """
    tokens, rows = importance_weights(
        old_logp, rollout_logp, mask, correction.mode, correction.cap, correction.floor, correction.veto
    )
    if correction.off_policy_threshold is None:
        return tokens, rows
    drift = masked_mean(log_ratio(rollout_logp, logp.detach(), mask), mask)  # (B,)
    kept = (torch.where(mask, advantages, 0.0).sum(1) >= 0) | (drift <= correction.off_policy_threshold)
    return tokens * kept[:, None], rows * kept


@torch.no_grad()
def logprobs_in_microbatches(
    policy: Policy, rollout: Rollout, rows: list[int], budget: int, in_lockstep: bool, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (B, T) log-probabilities and entropies of some rows under a policy, without gradients; 0 in the others.

    Args:
        policy: the policy.
        rollout: this rank's rollout.
        rows: the rows.
        budget: the most input tokens in a micro-batch.
        in_lockstep: as in `StepLimits`.
        entropy: False = the entropies are all 0.
    """
    logp = torch.zeros(rollout.mask.shape, device=policy.device)
    entropies = torch.zeros_like(logp)
    microbatches = cut_rows(rollout, rows, budget, policy.shared_prefix)
    if in_lockstep:
        idle = all_max(len(microbatches), policy.device) - len(microbatches)
    else:
        idle = 0
    for microbatch in microbatches:
        index = index_tensor(microbatch, policy.device)
        logp[index], of_rows = policy.logprobs(rollout, microbatch, entropy=entropy)
        if of_rows is not None:
            entropies[index] = of_rows
    for _ in range(idle):  # gathering sharded weights needs all ranks
        policy.logprobs(rollout, [0], entropy=entropy)
    return logp, entropies


def cut_rows(rollout: Rollout, rows: list[int], budget: int, shared_prefix: bool) -> list[list[int]]:
    """Cut rows of a rollout into micro-batches of at most `budget` input tokens."""
    prompt_lengths = [len(prompt.token_ids) for prompt in rollout.prompts]
    lengths = []
    for length, group in zip(prompt_lengths, rollout.completions, strict=True):
        for completion in group:
            if shared_prefix:
                repeated = 0
            else:
                repeated = length * (len(completion.sequence_lengths) - 1)
            lengths.append(len(completion.token_ids) + repeated)
    return cut_microbatches(prompt_lengths, lengths, rows, rollout.group_size, budget, shared_prefix)


def staleness_metrics(
    prepared: PreparedRollout, minibatches: list[list[int]], log_zero: bool = True
) -> dict[str, float]:
    """Return the ages of the tokens that training runs, over all ranks; {} if it runs none.

    These are the mean, the largest, and the share of tokens that follow older keys and values.

    Collective: call it on every rank.

    Args:
        prepared: the rollout.
        minibatches: positions of this rank's groups in each optimizer step; ages are logged in iterations, that is
            divided by the number of steps.
        log_zero: False = return {} also if no token is old.
    """
    rollout = prepared.rollout
    groups = {p for minibatch in minibatches for p in minibatch}
    rows = [i for i in prepared.live if i // rollout.group_size in groups]
    mask = rollout.mask[rows]
    age = prepared.age[rows][mask].double() / len(minibatches)
    oldest = float(age.max()) if len(age) else 0.0
    if rollout.stale_cache is None:
        stale = 0.0
    else:
        stale = float(rollout.stale_cache[rows][mask].sum())
    sums_of_rank = torch.tensor([[float(age.sum()), float(len(age)), stale, oldest]], dtype=torch.float64)
    sums, tokens, stales, largest = gather_rows(sums_of_rank).unbind(1)  # (ranks,) each
    if not tokens.sum() or not (log_zero or largest.max() > 0):
        return {}
    metrics = {"mean": sums.sum() / tokens.sum(), "max": largest.max()}
    if rollout.stale_cache is not None:
        metrics["stale_cache"] = stales.sum() / tokens.sum()
    return {f"train/staleness/{name}": float(value) for name, value in metrics.items()}
