"""One optimizer step as tensors, by hand: the weights of its tokens, its micro-batches, and what its loss gets.

Three groups of two, with completions of 3, 1 | 2, 2 | 2, 0 tokens.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_rollout
from torch import Tensor
from two_ranks import in_two_ranks

from lit_rlvr.algorithms import GRPO
from lit_rlvr.options import Importance
from lit_rlvr.policy.logprobs import PolicyOutput
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.step.loss_inputs import correction_weights, loss_inputs
from lit_rlvr.training.step.microbatches import StepLimits
from lit_rlvr.training.step.plan import StepPlan, plan_step
from lit_rlvr.training.step.prepared import PreparedRollout
from lit_rlvr.training.step.token_choice import chances

LIVE = [0, 1, 3, 4]
PLAIN = torch.tensor([[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0]])
"""(2, T) weights of the first group's tokens in a step of its own, as means over its two sequences."""


def a_plan(
    groups: list[int],
    live: list[int] = LIVE,
    budget: int = 100,
    shared_prefix: bool = True,
    lockstep: bool = False,
    loss: Any = None,
    sequences: tuple[int, ...] = (),
    **options: Any,
) -> StepPlan:
    """Plan a step of GRPO on some groups.

    Args:
        budget: the most input tokens in a micro-batch.
        loss: options of the loss. options: fields of the prepared rollout.
        sequences: lengths of those that the first completion has.
    """
    completions = [[[5, 6, 7], [5]], [[5, 6], [6, 7]], [[7, 8], []]]
    rollout = make_rollout([[1], [2], [3]], completions, sampling=Sampling(max_tokens=5))
    rollout.completions[0][0] = replace(rollout.completions[0][0], sequences=sequences)
    fields: dict[str, Any] = {"importance": Importance(), "age": torch.zeros_like(rollout.token_ids)}
    prepared = PreparedRollout(rollout, torch.tensor([[1.0], [-1.0]] * 3), live, **fields | options)
    limits = StepLimits(torch.device("cpu"), budget, shared_prefix, lockstep)
    return plan_step(prepared, groups, GRPO(loss=loss or {}), limits)


def inputs_of(plan: StepPlan, k: int = 0, logp: float = -1.0) -> tuple[Any, dict[str, Tensor]]:
    """Return the inputs of micro-batch k, all of whose tokens have one log-probability and entropy 0."""
    rows = torch.full((len(plan.microbatches[k]), 3), logp)
    return loss_inputs(plan, k, PolicyOutput(rows, torch.zeros_like(rows), None), plan.old_logprobs(k, rows))


# ---- the plan -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "counts_empty", "weights"),
    [  # weights of a token of the completions of 3, 1 and 2 tokens; of 6 tokens, 4 in the first group
        ("sequence_mean", True, (1 / (4 * 3), 1 / 4, 1 / (4 * 2))),
        ("sequence_mean", False, (1 / (3 * 3), 1 / 3, 1 / (3 * 2))),
        ("token_mean", True, (1 / 6, 1 / 6, 1 / 6)),
        ("group_token_mean", True, (1 / (2 * 4), 1 / (2 * 4), 1 / (2 * 2))),
        ("constant", True, (1 / (4 * 5), 1 / (4 * 5), 1 / (4 * 5))),
        ("constant", False, (1 / (3 * 5), 1 / (3 * 5), 1 / (3 * 5))),
        ("token_sum", True, (1 / 4, 1 / 4, 1 / 4)),
    ],
)
def test_a_token_weighs_its_share_of_the_step(
    aggregation: str, counts_empty: bool, weights: tuple[float, float, float]
) -> None:
    plan = a_plan([0, 2], loss={"aggregation": aggregation, "count_empty_rows": counts_empty})
    of_rows = torch.tensor([*weights[:2], 0.0, 0.0, weights[2], 0.0])  # group 1 is not in this step
    torch.testing.assert_close(plan.plain_weight, of_rows[:, None] * plan.mask)
    assert plan.sequence_share == pytest.approx(1 / 4 if counts_empty else 1 / 3)


@pytest.mark.parametrize(
    ("aggregation", "counts_empty", "weights"),
    [  # of the first completion's sequences of two tokens and one, and of completions of one and two tokens
        ("sequence_mean", True, ([1 / 10, 1 / 10, 1 / 5], 1 / 5, 1 / 10)),
        ("sequence_mean", False, ([1 / 8, 1 / 8, 1 / 4], 1 / 4, 1 / 8)),
        ("constant", True, ([1 / 25] * 3, 1 / 25, 1 / 25)),
        ("token_sum", False, ([1 / 4] * 3, 1 / 4, 1 / 4)),
    ],
)
def test_each_sequence_of_an_episode_may_count_as_one(
    aggregation: str, counts_empty: bool, weights: tuple[list[float], float, float]
) -> None:
    options = {"aggregation": aggregation, "count_empty_rows": counts_empty, "normalise_by": "sequence"}
    plan = a_plan([0, 2], loss=options, sequences=(2, 1))
    wanted = plan.mask * torch.tensor([0.0, weights[1], 0.0, 0.0, weights[2], 0.0])[:, None]
    wanted[0] = torch.tensor(weights[0])
    torch.testing.assert_close(plan.plain_weight, wanted)


@pytest.mark.parametrize(
    ("budget", "shared_prefix", "microbatches"),
    [  # of 1 + 2 + 0 input tokens of group 0, without the last token of each completion, and 1 + 1 of group 2
        (5, True, [[0, 1, 4]]),
        (4, True, [[4], [0, 1]]),
        (1, True, [[1], [4], [0]]),
        (4, False, [[1, 4], [0]]),  # 2 rows padded to 2 tokens
    ],
)
def test_live_rows_of_the_step_s_groups_are_cut(
    budget: int, shared_prefix: bool, microbatches: list[list[int]]
) -> None:
    plan = a_plan([0, 2], budget=budget, shared_prefix=shared_prefix)
    assert (plan.microbatches, plan.num_counted) == (microbatches, len(microbatches))


def _rank_plans(rank: int) -> None:
    """Rank 0 has two micro-batches; rank 1 has one, or none."""
    groups = [2] if rank else [0, 2]
    for lockstep in (True, False):
        options: Any = dict(budget=4, lockstep=lockstep, loss={"aggregation": "token_mean"})
        plan = a_plan(groups, **options)
        microbatches = ([[4], [4]] if lockstep else [[4]]) if rank else [[4], [0, 1]]
        assert (plan.microbatches, plan.num_counted) == (microbatches, 1 if rank else 2)
        assert plan.sequence_share == 1 / (4 + 2)
        torch.testing.assert_close(plan.plain_weight[4], torch.tensor([1 / 8, 1 / 8, 0]))  # of 6 + 2 tokens
        x, _ = inputs_of(plan)
        assert (x.prompt.tolist(), x.row.tolist()) == ([2 + 3 * rank], [4 + 6 * rank]), "of all ranks' six and twelve"
        for k in range(len(plan.microbatches)):
            x, _ = inputs_of(plan, k)
            weighs = [bool(weight.any()) for weight in (x.token_weight, x.plain_weight, x.row_weight)]
            assert weighs == [k < plan.num_counted] * 3, "a repeated micro-batch weighs nothing"
        idle = a_plan(groups, live=[] if rank else LIVE, **options)
        assert len(idle.microbatches) == (1 if rank and not lockstep else 2), "of at least one are the metrics"
        assert idle.num_counted == (0 if rank else 2)


def test_ranks_share_normalisers_and_pad_micro_batches_in_lockstep(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_plans)


# ---- the inputs of the loss -----------------------------------------------------------------------------------

AGE = torch.tensor([[9, 9, 9], [9, 9, 9], [2, 0, 1], [6, 0, 0], [9, 9, 9], [9, 9, 9]])
STORED = -torch.arange(6.0)[:, None].expand(6, 3)


@pytest.mark.parametrize(
    ("steps", "stored", "wanted"),
    [
        (0, None, [[-1.0] * 3, [-1.0] * 3]),  # the current ones
        (0, STORED, [[-1.0] * 3, [-1.0] * 3]),  # which the first step keeps for the later ones
        (2, STORED, [[-2.0] * 3, [-3.0] * 3]),  # recomputed before the updates
        # loglinear: -4 at sampling time, -1 now, and age / (age + updates) of the way between
        (2, None, [[-4 + 3 * 2 / 4, -4, -4 + 3 * 1 / 3], [-4 + 3 * 6 / 8, -4, -4]]),
    ],
)
def test_old_logprobs_are_those_of_the_iteration_s_beginning(
    steps: int, stored: Tensor | None, wanted: list[list[float]]
) -> None:
    kept = None if stored is None else stored.clone()
    plan = a_plan([1], live=[2, 3], age=AGE, old_logp=kept, steps_taken=steps)
    plan.rollout_logp.fill_(-4.0)
    old_logp = inputs_of(plan)[0].old_logp
    torch.testing.assert_close(old_logp, torch.tensor(wanted))
    plan.prepared.keep_old_logprobs(plan.indices[0], old_logp)
    if kept is not None:
        torch.testing.assert_close(kept[2:4], torch.tensor(wanted))


@pytest.mark.parametrize(
    ("options", "tokens", "rows", "dropped"),
    [  # completions of three tokens with ratios 0.5, 3, 1, and of one with ratio 4
        ({"correction": "none"}, [[1.0, 1, 1], [1, 0, 0]], [1.0, 1], None),
        ({"correction": "token_truncate"}, [[0.5, 2, 1], [2, 0, 0]], [1.5 ** (1 / 3), 2], None),
        ({"correction": "token_mis"}, [[0.5, 0, 1], [0, 0, 0]], [1.5 ** (1 / 3), 0], 2),
        ({"correction": "sequence_truncate"}, [[1.5, 1.5, 1.5], [2, 0, 0]], [1.5, 2], None),
        ({"veto": 0.6}, [[0.0, 0, 0], [1, 0, 0]], [0.0, 1], 3),
        # with ratios 1/4 both have fallen by log(4) + 0.5 = 1.9; the second has a negative advantage
        ({"off_policy_threshold": 1.5}, [[1.0, 1, 1], [0, 0, 0]], [1.0, 0], 1),
    ],
)
def test_a_token_s_weight_is_its_plain_weight_times_the_correction(
    options: dict[str, Any], tokens: list[list[float]], rows: list[float], dropped: int | None
) -> None:
    """The policy has moved by -0.5 since the beginning of the iteration."""
    plan = a_plan([0], importance=Importance(**options), old_logp=torch.full((6, 3), -3.0), steps_taken=1)
    ratios = torch.tensor([[0.25] * 3, [0.25, 9, 9]] if "off_policy_threshold" in options else [[0.5, 3, 1], [4, 9, 9]])
    plan.rollout_logp[:2] = -3 - ratios.log()
    x, stats = inputs_of(plan, logp=-3.5)
    torch.testing.assert_close(x.plain_weight, PLAIN)
    torch.testing.assert_close(x.token_weight, PLAIN * torch.tensor(tokens))
    torch.testing.assert_close(x.row_weight, torch.tensor(rows) / 2)
    assert stats.get("importance_dropped") == dropped
    assert stats["engine_difference"] == pytest.approx(float(ratios.log().abs()[PLAIN > 0].sum()))
    assert stats["engine_ratio_squared"] == pytest.approx(float(ratios[PLAIN > 0].square().sum()))


def test_a_sequence_is_dropped_by_the_advantages_of_its_tokens_in_the_loss() -> None:
    """Not by those of padding, which keep the completion's own: -0.3, with a term that adds 0.8 to each token."""
    mask = torch.arange(10)[None] < 2
    advantages = torch.where(mask, 0.5, -0.3)
    logp, correction = torch.full((1, 10), -2.0), Importance("none", off_policy_threshold=0.5)
    for sign, kept in ((1, 1.0), (-1, 0.0)):
        weights = correction_weights(logp, logp + 1, logp + 1, mask, sign * advantages, correction)
        assert [float(weight.max()) for weight in weights] == [kept, kept]


def test_tokens_outside_the_objective_keep_their_plain_weight_and_are_not_called_dropped() -> None:
    """Half of the tokens, by their entropy at the beginning of the iteration."""
    entropy = torch.tensor([[1.0, 4, 3], [2, 9, 9]] + [[9.0] * 3] * 4)
    plan = a_plan(
        [0],
        loss={"top_entropy_quantile": 0.5},
        importance=Importance("token_mis"),
        old_logp=torch.full((6, 3), -1.0),
        entropy=entropy,
        staleness={"train/staleness/mean": 1.0},
    )
    plan.rollout_logp.fill_(-1.0)
    x, stats = inputs_of(plan)
    assert stats["weight"] == stats["weight_squared"] == 4, "the correction's, of all tokens"
    torch.testing.assert_close(x.token_weight, PLAIN * torch.tensor([[0, 1, 1], [0, 0, 0]]))
    torch.testing.assert_close(x.plain_weight, PLAIN)
    assert stats["importance_dropped"] == 0


def test_a_token_s_chance_is_that_of_its_prompt_completion_and_position() -> None:
    rollout = make_rollout([[1], [2, 3]], [[[5, 6, 7], [5, 6]], [[5], [5, 6]]])
    found = chances(rollout)
    assert found.shape == rollout.mask.shape and found.unique().numel() == found.numel()
    assert float(found.min()) >= 0 and float(found.max()) < 1
    moved = make_rollout([[2, 3], [1]], [[[5, 6, 7, 8], [5]], [[5], [5]]])
    moved.prompts = rollout.prompts[::-1]
    assert chances(moved)[:, :3].equal(found[[2, 3, 0, 1]])
    moved.repeats = [0, 1]
    assert not chances(moved)[2:, :3].eq(found[:2]).any(), "the same prompt again has other completions"
