"""Advantages of turns against slow loops over episodes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from slow_loops import slow_gigpo_turns, slow_step_returns_turns
from torch import Tensor

from lit_rlvr.advantages import (
    AGRAE,
    REGISTRY,
    Advantage,
    GiGPOAdvantage,
    GroupBatch,
    HardFocused,
    StepReturns,
    resolve_advantage,
)
from lit_rlvr.algorithms import GRPO, GSPO, GSPOToken
from lit_rlvr.errors import UserError

Episodes = list[list[list[Any]]]


class Played:
    """P x G episodes of 1 to 4 turns with rewards and few states, and their tokens with gaps between turns."""

    def __init__(self, seed: int, prompts: int = 5, size: int = 4) -> None:
        rng = np.random.default_rng(seed)
        turns = rng.integers(1, 5, (prompts, size))
        turns[0] = 1
        self.rewards: Episodes = [[rng.choice([0.0, 0.1, -0.5, 1.0], n).tolist() for n in row] for row in turns]
        self.states: Episodes = [[[0, *rng.integers(1, 4, n - 1).tolist()] for n in row] for row in turns]
        self.lengths: Episodes = [[rng.integers(1, 4, n).tolist() for n in row] for row in turns]
        end = rng.choice([0.0, 1.0], turns.shape)
        end[1] = 1.0
        self.r = [[math.fsum([*own, end[p, g]]) for g, own in enumerate(group)] for p, group in enumerate(self.rewards)]

    def groups(self, dtype: torch.dtype = torch.float64) -> GroupBatch:
        rows: list[list[tuple[int, float, int]]] = []
        for p, group in enumerate(self.lengths):
            for g, of_turns in enumerate(group):
                row: list[tuple[int, float, int]] = [(-1, 0.0, 0)]
                for k, length in enumerate(of_turns):
                    own = self.rewards[p][g][k]
                    if k == len(of_turns) - 1:
                        own += self.r[p][g] - math.fsum(self.rewards[p][g])
                    row += [(k, own, self.states[p][g][k])] * length + [(-1, 0.0, 0)] * 2
                rows.append(row)
        width = max(map(len, rows))
        turns, rewards, states = (
            torch.tensor(np.array([[*values, *[empty] * (width - len(values))] for values in columns]))
            for columns, empty in (([[token[i] for token in row] for row in rows], (-1, 0.0, 0)[i]) for i in range(3))
        )
        r = torch.tensor(self.r, dtype=dtype)
        return GroupBatch(
            r, (r > 1).to(dtype), mask=turns >= 0, turns=turns, turn_rewards=rewards.to(dtype), states=states
        )

    def of_tokens(self, found: Episodes) -> np.ndarray:
        """The values of turns as `Played.groups` lays out their tokens."""
        groups = self.groups()
        assert groups.turns is not None
        size = len(self.r[0])
        return np.array(
            [
                [0.0 if k < 0 else found[b // size][b % size][k] for k in row]
                for b, row in enumerate(groups.turns.tolist())
            ]
        )


@pytest.mark.parametrize(
    "options", [{}, {"discount": 1.0}, {"step_weight": 0.3, "scale": "none"}, {"unbiased_std": True, "discount": 0.0}]
)
def test_gigpo_is_the_slow_loop(options: dict[str, Any]) -> None:
    for seed in range(4):
        played = Played(seed)
        found = GiGPOAdvantage(**options)(played.groups())
        expected = played.of_tokens(slow_gigpo_turns(played.r, played.rewards, played.states, **options))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert found[8:].round(decimals=6).unique().numel() > 8


BASES = sorted(name for name, cls in REGISTRY.items() if cls.of_rewards)


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("base", BASES)
def test_returns_of_steps_are_compared_as_in_the_slow_loop(base: str, discount: float) -> None:
    for seed in range(3):
        played = Played(seed)
        found = StepReturns(base, discount)(played.groups())
        slow = slow_step_returns_turns(played.r, played.rewards, played.lengths, base, discount)
        np.testing.assert_allclose(found, played.of_tokens(slow), rtol=1e-9, atol=1e-12)


def test_the_bases_are_those_that_look_at_rewards_alone() -> None:
    assert BASES == ["dr_grpo", "gpg", "grpo", "grpo_passk", "maxrl", "opo", "reinforce_pp", "rloo"]
    for name in set(REGISTRY) - {*BASES, "gigpo", "step_returns"}:
        with pytest.raises(UserError, match=rf"^advantage step_returns.base: {REGISTRY[name].__name__} looks at more"):
            StepReturns(name)


def test_estimators_of_turns_have_no_other_on_top_and_losses_on_sequences_refuse_them() -> None:
    for cls in (HardFocused, AGRAE, StepReturns):
        for base in ("gigpo", "step_returns"):
            with pytest.raises(UserError, match=r"gives each token an advantage; take a base that gives one"):
                cls(base)
    played = Played(0)
    with pytest.raises(UserError, match=r"GiGPOAdvantage.* and GSPO weighs whole sequences; .* GSPOToken"):
        GSPO(advantage="gigpo").estimate(played.groups())
    for loss in (GRPO, GSPOToken):
        assert loss(advantage="gigpo").estimate(played.groups())[0].shape == played.groups().turns.shape  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_turns_whose_returns_are_equal_have_no_advantage_also_by_rounding(dtype: torch.dtype) -> None:
    """The earlier turns differ, by numbers that are rounded; the later ones earn the same."""
    turns = torch.tensor([[0, 0, -1, 1, -1, 2]] * 4)
    own = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.2, 0.7], [0.6, 0.2, 0.7], [0.0, 0.2, 0.7]], dtype=dtype)
    rewards = own.gather(1, turns.clamp(min=0))
    groups = GroupBatch(
        own.sum(1)[None],
        torch.ones(1, 4),
        mask=turns >= 0,
        turns=turns,
        turn_rewards=rewards,
        states=turns.clamp(min=0),
    )
    found = StepReturns()(groups)
    assert found.dtype == dtype
    assert not found[:, 3:].any()
    assert (found[:, 0] != 0).all()
    steps = GiGPOAdvantage(discount=1.0)(groups) - GiGPOAdvantage(step_weight=0.0)(groups)
    assert not steps[:, 3:].any()
    assert (steps[:, 0] != 0).all()


@pytest.mark.parametrize("estimator", [StepReturns(discount=0.9), GiGPOAdvantage()])
def test_completions_without_a_reward_are_left_out(estimator: Advantage) -> None:
    played = Played(1, prompts=3)
    whole = played.groups()
    whole.has_reward[:, 3] = False
    assert whole.turns is not None and whole.turn_rewards is not None
    found = estimator(whole)
    assert not (found.reshape(3, 4, -1)[:, 3] * (estimator.registered_name == "step_returns")).any()
    for name in ("r", "rewards", "states", "lengths"):
        setattr(played, name, [group[:3] for group in getattr(played, name)])
    alone = estimator(played.groups())
    width = alone.shape[1]
    torch.testing.assert_close(found.reshape(3, 4, -1)[:, :3, :width].reshape(9, width), alone)


def test_without_rewards_of_turns_the_last_turn_has_the_completions() -> None:
    played = Played(2)
    played.rewards = [[[0.0] * len(own) for own in group] for group in played.rewards]
    given = played.groups()
    without = played.groups()
    without.turn_rewards = None
    for estimator in (StepReturns(discount=0.5), GiGPOAdvantage()):
        assert torch.equal(estimator(given), estimator(without))


def test_a_completion_of_one_turn_is_as_without_turns() -> None:
    played = Played(3)
    for name in ("rewards", "states", "lengths"):
        setattr(played, name, [[own[:1] for own in group] for group in getattr(played, name)])
    groups = played.groups()
    assert groups.turns is not None
    plain = resolve_advantage("grpo")(groups).reshape(-1, 1)
    is_token = groups.turns >= 0
    torch.testing.assert_close(StepReturns(discount=0.1)(groups), plain * is_token)
    torch.testing.assert_close(GiGPOAdvantage(step_weight=0.5)(groups), 1.5 * plain * is_token)


def test_gigpo_says_that_it_lacks_the_states() -> None:
    groups = Played(0).groups()
    groups.states = None
    with pytest.raises(UserError, match=r"^advantage gigpo: needs the states before turns, .*; add `states`$"):
        GiGPOAdvantage()(groups)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("step_returns", {"discount": 1.1}),
        ("gigpo", {"discount": -0.1}),
        ("gigpo", {"step_weight": -1.0}),
        ("gigpo", {"eps": -1.0}),
    ],
)
def test_options_outside_their_range_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"advantage {name}.*must lie in"):
        REGISTRY[name](**options)


def test_the_order_of_completions_does_not_matter() -> None:
    groups = Played(4).groups()
    flipped = {
        name: value.flip(1)
        if name in ("rewards", "correct", "has_reward", "has_correct")
        else value.reshape(5, 4, -1).flip(1).reshape(20, -1)
        for name, value in vars(groups).items()
        if isinstance(value, Tensor)
    }
    for estimator in (StepReturns(discount=0.9), GiGPOAdvantage()):
        found = estimator(GroupBatch(**flipped)).reshape(5, 4, -1).flip(1).reshape(20, -1)
        torch.testing.assert_close(found, estimator(groups), rtol=1e-9, atol=1e-12)
