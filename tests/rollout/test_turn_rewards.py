"""Rewards of turns: from the environment to the advantage, the record, and the pages that show them."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ENDS, byte_tokenizer, make_prompt, make_rollout, random_ids
from tiny_engines import hf_engine
from tiny_environments import Echo, Infinite, Paying, Undeclared
from tiny_episodes import between
from tiny_runs import completions, metrics, tiny_config, write_config

from lit_rlvr.advantages import GiGPOAdvantage, GRPOAdvantage, StepReturns
from lit_rlvr.cli.main import run
from lit_rlvr.commands.report.closeup import turns_of
from lit_rlvr.commands.report.explain import token_details, turn_reward_rows, view
from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.environments import Calculator, Environment, EnvironmentReward, TurnRewards
from lit_rlvr.environments.base import rewards_with
from lit_rlvr.environments.tools import EnvironmentChoice
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rollout.assemble import assemble
from lit_rlvr.rollout.episodes import Episodes
from lit_rlvr.rollout.record import pack_rollout, unpack_rollout
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.gather import gather_groups, rewards_of_turns
from lit_rlvr.types import Completion, Rollout, Turn

PROMPTS = [make_prompt(random_ids(n, n), f"p{n}") for n in (7, 2, 30)]
SEEDS = [[100 * p + g for g in range(4)] for p in range(3)]
SAMPLING = Sampling(temperature=0.8, max_tokens=12, max_turns=4, max_observation_tokens=48)


@pytest.fixture
def play() -> Iterator[Any]:
    made: list[Episodes] = []

    def generate(environment: Environment, sampling: Sampling = SAMPLING, chat: Chat | None = None) -> Any:
        made.append(Episodes(environment, between()))
        if chat is not None:
            made[-1].between = BetweenTurns(chat, byte_tokenizer(), ENDS, "user")
        prompts = [replace(prompt, prefill=chat.prefill if chat else "") for prompt in PROMPTS]
        return hf_engine().generate(prompts, sampling, SEEDS, turns=made[-1])

    yield generate
    for episodes in made:
        episodes.close()


def scored(groups: list[list[Completion]], environment: Environment, weight: float = 0.5) -> Rollout:
    rewards = rewards_with(environment, [TurnRewards(weight=weight), EnvironmentReward(weight=2.0)])
    scores = score_rollout(rewards, groups, [prompt.sample for prompt in PROMPTS])
    return assemble(PROMPTS, groups, scores, SAMPLING)


def test_a_turn_has_the_reward_of_its_step_and_its_tokens(play: Any) -> None:
    groups = play(Paying())
    longest = 0
    for completion in (completion for group in groups for completion in group):
        for k, turn in enumerate(completion.turns):
            start, stop = turn.span
            assert byte_tokenizer().decode(completion.token_ids[start:stop], skip_special_tokens=True) == turn.text
            assert all(completion.sampled[start:stop])
            is_cut = k == len(completion.turns) - 1 and stop - start == 12 and completion.token_ids[-1] not in ENDS
            if is_cut or k % 2:
                assert turn.reward is None
                assert "reward" not in turn.recorded()
            else:
                assert turn.reward == turn.recorded()["reward"] == len(turn.text) / 4
            longest = max(longest, k)
        assert completion.turns[0].state == ""
        shown = [turn.observation for turn in completion.turns[:-1]]
        states = [turn.state for turn in completion.turns[1:]]
        assert len(set(zip(shown, states, strict=True))) == len(set(shown)) == len(set(states))
    assert longest >= 2


def test_forced_marks_do_not_begin_a_turn(play: Any) -> None:
    """Thoughts that are closed after 4 tokens leave a gap within the turn."""
    sampling = replace(SAMPLING, max_tokens=24, max_thought_tokens=4, max_observation_tokens=64)
    groups = play(Paying(), sampling, Chat(prefill="<think>\n"))
    rollout = Rollout.unscored(PROMPTS, groups, sampling, 4)
    gaps = 0
    for row, values, completion in zip(
        rollout.turns, rollout.turn_rewards, [c for group in groups for c in group], strict=True
    ):
        assert int(row.max()) == len(completion.turns) - 1
        gaps += sum(not all(completion.sampled[slice(*turn.span)]) for turn in completion.turns)
        for k, turn in enumerate(completion.turns):
            assert (values[row == k] == torch.tensor(turn.reward or 0.0)).all()
    assert gaps > 3


@pytest.mark.parametrize("cost", [0.0, 0.125])
def test_the_rewards_of_turns_and_the_rest_sum_to_the_completions(play: Any, cost: float) -> None:
    """By a slow loop over turns, with the row's own weight, and what terms take from the reward."""
    rollout = scored(play(Paying()), Paying())
    rollout.prompts[1] = replace(PROMPTS[1], sample=replace(PROMPTS[1].sample, rewards={"turns": 3.0}))
    rollout.rewards[1] = 3 * rollout.parts["turns"][1].nan_to_num()
    found = rewards_of_turns(rollout, rollout.rewards - cost)
    assert rollout.parts["turns"].isfinite().any()
    for p, group in enumerate(rollout.completions):
        for g, completion in enumerate(group):
            weight = 3.0 if p == 1 else 0.5
            rest = 0.0 if p == 1 else 2.0 * float(rollout.parts["environment"][p, g])
            for k, turn in enumerate(completion.turns):
                wanted = weight * (turn.reward or 0.0)
                if k == len(completion.turns) - 1:
                    wanted += rest - cost
                start, stop = turn.span
                assert found[4 * p + g, start:stop].tolist() == pytest.approx([wanted] * (stop - start), abs=1e-6)
            outside = found[4 * p + g][rollout.turns[4 * p + g] < 0]
            assert not outside.any()


def test_without_rewards_of_turns_all_of_the_reward_is_the_last_turns(play: Any) -> None:
    groups = play(Echo())
    scores = score_rollout(rewards_with(Echo(), None), groups, [prompt.sample for prompt in PROMPTS])
    rollout = assemble(PROMPTS, groups, scores, SAMPLING)
    assert set(rollout.parts) == {"environment"}
    found = gather_groups(rollout, rollout.rewards, StepReturns())
    assert found.turn_rewards is not None and found.turns is not None
    last = found.turns == found.turns.amax(1, keepdim=True)
    assert torch.equal(found.turn_rewards, rollout.rewards.reshape(-1, 1) * (last & (found.turns >= 0)))
    assert gather_groups(rollout, rollout.rewards, GRPOAdvantage()).turn_rewards is None


def test_states_are_those_of_equal_answers_to_the_group(play: Any) -> None:
    rollout = scored(play(Paying()), Paying())
    group = gather_groups(rollout, rollout.rewards, GiGPOAdvantage())
    assert group.states is not None and group.turns is not None
    for p, of_prompt in enumerate(rollout.completions):
        shown: dict[int, set[str]] = {}
        for g, completion in enumerate(of_prompt):
            before = ["", *(turn.observation for turn in completion.turns)]
            for k in range(len(completion.turns)):
                row = 4 * p + g
                (number,) = group.states[row][group.turns[row] == k].unique().tolist()
                shown.setdefault(number, set()).add(before[k] or "")
        assert shown[0] == {""}
        assert all(len(texts) == 1 for texts in shown.values())
        assert len({text for texts in shown.values() for text in texts}) == len(shown)
    assert GiGPOAdvantage()(group).abs().sum() > 0


def test_a_record_keeps_the_turns(play: Any) -> None:
    rollout = scored(play(Paying()), Paying())
    arrays = pack_rollout(rollout, {})
    about = json.loads(bytes(arrays.pop("about")))
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    again = unpack_rollout(about, tensors, PROMPTS, SAMPLING, byte_tokenizer())
    fields = [[vars(t) for c in group for t in c.turns] for group in rollout.completions]
    assert [[vars(t) for c in group for t in c.turns] for group in again.completions] == fields
    for name in ("turns", "turn_rewards", "states"):
        assert torch.equal(getattr(again, name), getattr(rollout, name)), name
    del about["turns"]  # as written by earlier versions
    earlier = unpack_rollout(about, tensors, PROMPTS, SAMPLING, byte_tokenizer())
    assert earlier.states is None
    assert torch.equal(earlier.turns, rollout.turns)
    with pytest.raises(UserError, match=r"^advantage gigpo: needs the states before turns"):
        GiGPOAdvantage()(gather_groups(earlier, earlier.rewards, GiGPOAdvantage()))


def test_a_reward_of_a_turn_that_is_not_declared_ends_the_run(play: Any) -> None:
    with pytest.raises(UserError, match=r"^rollout.environment: step of Undeclared gives a turn a reward; set rewards"):
        play(Undeclared())


def test_a_reward_of_a_turn_that_is_not_finite_is_that_completions_failure(play: Any) -> None:
    for completion in (completion for group in play(Infinite()) for completion in group):
        if completion.outcome is not None:  # else its first turn was cut
            assert completion.outcome.status == "error"
            assert "must be a finite number or None, got inf" in (completion.outcome.detail or "")


def test_a_run_counts_the_rewards_of_turns_once() -> None:
    assert [reward.name for reward in rewards_with(Paying(), None)] == ["environment", "turns"]
    assert [reward.name for reward in rewards_with(Calculator(error_cost=0.5), None)] == ["turns"]
    assert [reward.name for reward in rewards_with(Echo(), [])] == ["environment"]
    listed = rewards_with(Paying(), [TurnRewards(weight=0.25)])
    assert [(reward.name, reward.weight) for reward in listed] == [("turns", 0.25), ("environment", 1.0)]
    with pytest.raises(
        UserError, match=r"^rollout.rewards: TurnRewards needs a rollout.environment with rewards_turns"
    ):
        rewards_with(Echo(), [TurnRewards()])
    assert EnvironmentChoice({"a": Paying(), "b": Echo()}).rewards_turns
    assert not EnvironmentChoice({"b": Echo()}).rewards_turns


def test_the_reward_of_the_turns_is_their_sum() -> None:
    def judge(*rewards: float | None) -> Any:
        turns = tuple(Turn("", reward=reward) for reward in rewards)
        return TurnRewards()(Completion("", (1,), "length", turns=turns), PROMPTS[0].sample)

    assert judge(0.25, None, -1.0).value == -0.75
    assert judge(0.25).correct is None
    assert judge(None, None) is None


def test_a_failed_call_costs_its_turn() -> None:
    calculator = Calculator(error_cost=0.25)
    assert calculator.rewards_turns and not Calculator().rewards_turns
    two = "<call>calculate('1+')</call><call>nothing()</call><call>calculate('1+1')</call>"
    rewards = [calculator.step(Turn(text)).reward for text in (two, "<call>calculate('2')</call>", "no call")]
    assert rewards == [-0.5, 0.0, 0.0]
    assert Calculator().step(Turn(two)).reward is None
    with pytest.raises(UserError, match=r"rollout.environment.error_cost: -1.*must lie in"):
        Calculator(error_cost=-1.0)


def test_pages_show_the_rewards_of_turns() -> None:
    row = {"turns": [{"text": "a", "observation": "b", "reward": 0.5}, {"text": "c", "observation": None}]}
    assert turns_of(row) == [("a", "b", 0.5), ("c", None, None)]
    assert turn_reward_rows([{}, {"turn_rewards": [0.5, None]}, {"turn_rewards": [0.25]}]) == [
        ("0", "", "0.5", "0.25"),
        ("1", "", "", ""),
    ]
    assert turn_reward_rows([{}, {}]) == []


def test_a_token_without_an_advantage_of_its_own_is_not_clipped() -> None:
    completion = {
        "tokens": ["a", "b"],
        "weight": [0.0, 0.0],
        "ratio": [1.0, 1.5],
        "logp": [-1.0, -1.0],
        "advantage": 0.5,
        "token_advantage": [0.0, 1.0],
    }
    assert [is_clipped for _, _, is_clipped, _ in token_details(completion)] == [False, True]
    assert token_details(completion)[1][3].endswith("advantage +1.000")
    del completion["token_advantage"]
    assert [is_clipped for _, _, is_clipped, _ in token_details(completion)] == [True, True]


@pytest.mark.parametrize("advantage", ["gigpo", "step_returns"])
def test_a_run_trains_on_rewards_of_turns_and_shows_them(
    advantage: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_model_folder)
    config["model"]["init_args"]["advantage"] = advantage
    config["rollout"] |= {"environment": "tiny_environments.Paying", "rewards": []}
    config["rollout"]["sampling"] |= {"max_tokens": 6, "max_turns": 3, "max_observation_tokens": 48}
    config["trainer"] |= {"max_steps": 2, "limit_val_batches": 0}
    monkeypatch.chdir(tmp_path)
    assert run(["fit", "--config", str(write_config(tmp_path / "config.yaml", config))]) == 0
    turns = [turn for row in completions(tmp_path / "run") for turn in row["turns"]]
    assert any(turn.get("reward") for turn in turns)
    logged = metrics(tmp_path / "run")
    assert all(math.isfinite(float(row["reward/turns"])) and float(row["train/grad_norm"]) > 0 for row in logged)
    saved = sorted((tmp_path / "run" / "rollouts").glob("step-*.json"))
    groups = json.loads(saved[0].read_text())["groups"] if saved else []
    for group in groups:
        assert view(group)["turn_rewards"]


def test_a_made_rollout_without_turns_has_one_turn() -> None:
    rollout = make_rollout([[1]], [[[65, 66], [67]]], [[0.0, 1.0]])
    assert rollout.turns.tolist() == [[0, 0], [0, -1]]
    assert rollout.turn_rewards.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert rollout.states.tolist() == [[0, 0], [0, 0]]
    assert rewards_of_turns(rollout, rollout.rewards).tolist() == [[0.0, 0.0], [1.0, 0.0]]
