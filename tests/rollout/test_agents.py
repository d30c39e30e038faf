"""Agents: programs that call the run's endpoint. Their rows hold the tokens that were sampled."""

import itertools
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from slow_loops import slow_gigpo_turns, slow_step_returns_turns
from tiny import END, ENDS, byte_tokenizer, plain_logprobs, start_engine, tiny_llama
from tiny_engines import Streaming, hf_engine
from tiny_fit import assert_same, fit, naive_gradients
from tiny_runs import CLI, FIT, STRATEGIES, completions, in_two_processes, metrics, to
from tiny_vlms import save_qwen2_5_vl, slow

from lit_rlvr.advantages import GiGPOAdvantage
from lit_rlvr.agents.conversation import Conversations, fingerprint
from lit_rlvr.agents.play import AgentEpisodes
from lit_rlvr.agents.processes import LAUNCHER
from lit_rlvr.agents.replies import anthropic_body, openai_body, read_reply
from lit_rlvr.agents.requests import ChatRequest, RequestError, SamplingRules, read_openai
from lit_rlvr.agents.session import Group, Limits, Session, completion_of, shared_start
from lit_rlvr.commands import evaluate, filter as filter_command
from lit_rlvr.commands.report.explain import call_rows
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.images import ImageOptions
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.synced import SyncedEngine, trainer_logprobs
from lit_rlvr.environments import Agent, EnvironmentReward, SingleTurn, TurnRewards, as_environment
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.processes import SHARE_VARIABLE
from lit_rlvr.evaluation.sampler import Sampler
from lit_rlvr.policy.loading import load_image_processor, load_policy, load_tokenizer
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rollout.assemble import assemble
from lit_rlvr.rollout.preflight.lengths import length_requirements, most_images
from lit_rlvr.rollout.record import Replay
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.gather import gather_groups
from lit_rlvr.training.trace import calls_of
from lit_rlvr.types import Completion, Prompt, Sample

SCRIPT = Path(__file__).parents[1] / "helpers" / "tiny_agent.py"
DATA: Any = SimpleNamespace(
    name="tiny", chat=Chat(), tokenizer=byte_tokenizer(), reading=SimpleNamespace(max_prompt_tokens=256)
)
MODES = [  # of `faulty_agent.py`
    "well", "parallel", "garbage", "ten_megabytes", "another_key", "gone_in_stream", "late_reward", "silent", "crash",
]  # fmt: skip
SAMPLING = Sampling(max_tokens=12, max_turns=4, max_observation_tokens=128)
PROMPTS = [Prompt(Sample(f"p{n}", f"{n} + 1 = ?", str(n + 1)), [1]) for n in range(2)]
SEEDS = [[10 * p + g for g in range(3)] for p in range(2)]


class Spy:
    """An engine that remembers what it was asked and what it sampled."""

    def __init__(self) -> None:
        self.engine = hf_engine()
        self.said: list[tuple[tuple[int, ...], Completion]] = []

    def generate(self, prompts: Any, sampling: Any, seeds: Any, done: Any, turns: Any) -> list[list[Completion]]:
        groups = self.engine.generate(prompts, sampling, seeds, None, turns)
        self.said += [(tuple(p.token_ids), group[0]) for p, group in zip(prompts, groups, strict=True)]
        return groups


@pytest.fixture
def play() -> Iterator[Any]:
    made: list[AgentEpisodes] = []

    def run(
        *arguments: str,
        script: Path | str = SCRIPT,
        sampling: Sampling = SAMPLING,
        spy: Any = None,
        seeds: list[list[int]] = SEEDS,
        prompts: list[Prompt] = PROMPTS,
        **options: Any,
    ) -> Any:
        agent = Agent([sys.executable, str(script), *arguments], **options)
        made.append(AgentEpisodes(agent, ENDS, "tiny", 0, True))
        spy = spy or Spy()
        prompts, groups = made[-1].play(prompts[: len(seeds)], sampling, seeds, None, DATA, spy.generate, True)
        return SimpleNamespace(prompts=prompts, groups=groups, spy=spy, counts=made[-1].counts)

    run.made = made  # type: ignore[attr-defined]
    yield run
    for episodes in made:
        episodes.close()


@torch.no_grad()
def assert_exact(played: Any) -> None:
    """Each sequence is a prompt and completions of the engine; each completion is trained once, in its place."""
    said = {(prompt, completion.token_ids): completion for prompt, completion in played.spy.said}
    for prompt, group in zip(played.prompts, played.groups, strict=True):
        for row in group:
            place = 0
            for length in row.sequence_lengths:
                ids = row.token_ids[place : place + length]
                flags = row.sampled[place : place + length]
                logprobs = row.logprobs[place : place + length]
                whole = (*prompt.token_ids, *ids)
                at = 0
                while at < length:
                    end = at + 1
                    while end < length and flags[end] == flags[at]:
                        end += 1
                    if flags[at]:
                        turn = said.pop((whole[: len(prompt.token_ids) + at], ids[at:end]))
                        assert logprobs[at:end] == turn.logprobs
                    at = end
                expected, _ = plain_logprobs(played.spy.engine.policy.model, prompt.token_ids, ids, SAMPLING)
                kept = torch.tensor(flags)
                torch.testing.assert_close(torch.tensor(logprobs)[kept], expected[kept], atol=1e-4, rtol=0)
                place += length
            assert place == len(row.token_ids)
    assert not said, "everything that was sampled is trained"


def assert_exact_with_auxiliary(played: Any) -> None:
    """As `assert_exact`, where one completion of each episode is auxiliary."""
    trained = {turn.text for row in rows_of(played) for turn in row.turns}
    played.spy.said = [(ids, turn) for ids, turn in played.spy.said if turn.text in trained]
    assert_exact(played)


def rows_of(played: Any) -> list[Completion]:
    return [row for group in played.groups for row in group]


def test_an_episode_whose_requests_extend_a_path_is_one_row_of_the_sampled_tokens(play: Any) -> None:
    played = play("turns")
    said = list(played.spy.said)
    assert_exact(played)
    rows = rows_of(played)
    assert all(len(row.turns) == 3 and row.outcome is not None for row in rows)
    cut = {turn.text for _, turn in said if turn.truncated}
    whole = [row for row in rows if not cut & {turn.text for turn in row.turns[:2]}]
    assert whole and all(row.sequences == () for row in whole)
    others = [row for row in rows if row not in whole]
    assert others and all(len(row.sequences) > 1 for row in others), "what was cut is not extended"
    for row in whole:
        assert [turn.observation for turn in row.turns] == ["how?", "why?", None]
        observed = byte_tokenizer().decode([t for t, kept in zip(row.token_ids, row.sampled, strict=True) if not kept])
        assert "<|im_start|>user\nhow?<|im_end|>\n<|im_start|>assistant\n" in observed
    assert played.counts["ended"] == 6 and played.counts["sequences"] == sum(len(r.sequence_lengths) for r in rows)


def test_branches_and_new_conversations_are_sequences_that_share_a_message_once(play: Any) -> None:
    played = play("branches")
    assert_exact(played)
    for row in rows_of(played):
        assert len(row.turns) == 4 and len(row.sequences) in (3, 4)
        assert row.text == row.turns[-1].text


def test_a_row_does_not_depend_on_the_other_episodes(play: Any) -> None:
    together = rows_of(play("turns"))
    alone = rows_of(play("turns", parallel=1))
    texts = [[turn.text for turn in row.turns] for row in together]
    assert texts == [[turn.text for turn in row.turns] for row in alone]


def test_workers_play_one_episode_after_another(play: Any) -> None:
    """Two processes play six episodes, with the same rows; one that dies is replaced."""
    played = play("turns", "worker", workers=2)
    assert_exact(played)
    outcomes = [row.outcome for row in rows_of(played)]
    assert len({outcome.detail for outcome in outcomes}) == 2
    others = [row.outcome for row in rows_of(play("turns"))]
    assert [outcome.value for outcome in outcomes] == [outcome.value for outcome in others]
    assert play("crash", "worker", workers=2).counts["crashed"] == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_of_an_episode_is_noticed_when_it_happens(
    workers: int, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without looking at the program from time to time."""
    monkeypatch.setattr("lit_rlvr.agents.processes.IDLE_SECONDS", 600.0)
    arguments = ["turns", "worker"][: 1 + workers]
    began = time.monotonic()
    played = play(*arguments, workers=workers, seeds=[[0]], timeout=100.0)
    assert played.counts["ended"] == 1 and time.monotonic() - began < 60, played.counts


def observation_cost(rollout: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean cross-entropy of "how?" and "why?", which follow the first turn if that is not cut off, and its
    gradients."""
    model = tiny_llama()
    costs = []
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        for row in group:
            first, end = row.turns[0].span
            assert row.sampled[first:end] == (True,) * (end - first) and not any(row.sampled[:first])
            place = 0
            for length in row.sequence_lengths[: 2 if len(row.sequences) == 3 else 0]:
                ids = row.token_ids[place : place + length]
                last = max(t for t in range(length) if not row.sampled[place + t]) + 1
                logprobs, _ = plain_logprobs(model, prompt.token_ids, ids, SAMPLING)
                costs.append(-logprobs[end:last])
                assert "<|im_start|>user\n" in byte_tokenizer().decode(ids[end:last])
                place += length
    cost = torch.cat(costs).mean()
    cost.backward()
    return float(cost.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def expected_advantages(rollout: Any, slow: Any, *lengths_or_states: str) -> torch.Tensor:
    """Return the advantages (B, T) of a slow loop on what the agents say that they were paid."""
    paid = [[json.loads(of["environment"].detail) for of in group] for group in rollout.details]
    rewards = [[[reward for reward, _ in row] for row in group] for group in paid]
    states = [[[state for _, state in row] for row in group] for group in paid]
    lengths = [
        [[b - a for a, b in (turn.span for turn in row.turns)] for row in group] for group in rollout.completions
    ]
    others = [{"states": states, "lengths": lengths}[name] for name in lengths_or_states]
    found = slow(rollout.rewards.tolist(), rewards, *others)
    expected = torch.zeros(rollout.token_ids.shape)
    rows = [row for group in rollout.completions for row in group]
    for number, (row, of_row) in enumerate(zip(rows, (of for group in found for of in group), strict=True)):
        assert sum(b - a for a, b in (turn.span for turn in row.turns)) == row.length
        for turn, value in zip(row.turns, of_row, strict=True):
            expected[number, slice(*turn.span)] = value
    return expected


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_that_of_a_slow_loop_over_sequences(
    shared: bool, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Each sequence of an episode is scored alone; the loss averages over the tokens of the whole episode, or of each.

    With rewards of messages, each has its own advantage, also where several sequences share it.
    """
    cases = (
        ("sequence_mean", "grpo", "episode"),
        ("sequence_mean", "grpo", "sequence"),
        ("token_mean", "step_returns", "episode"),
    )
    for aggregation, advantage, counted in cases:
        is_paid = advantage != "grpo"
        mode = {True: "paid", False: "branches"}[is_paid]
        agent = Agent([sys.executable, str(SCRIPT), mode], rewards_turns=is_paid)
        terms: Any = {"aggregation": aggregation, "normalise_by": counted, "observation_coef": 0.5 * is_paid}
        _, seen = fit(
            tiny_model_folder,
            tmp_path,
            environment=agent,
            sampling=replace(SAMPLING, max_tokens=9),
            rewards=None,
            prompts_per_rollout=3,
            max_failure_rate=0.0,
            loss=terms,
            advantage=advantage,
            compute={"shared_prefix": shared, "tokens_per_microbatch": 400},
            skip_nothing=is_paid,
        )
        (rollout,) = seen.rollouts
        assert all(len(row.sequences) >= 3 for group in rollout.completions for row in group)
        if is_paid:
            own = expected_advantages(rollout, slow_step_returns_turns, "lengths")
            assert len(own.unique()) > 20
            loss, expected = naive_gradients(rollout, range(3), aggregation, advantages=own)
            cost, observed = observation_cost(rollout)
            loss += 0.5 * cost
            expected = {name: value + 0.5 * observed[name] for name, value in expected.items()}
        else:
            loss, expected = naive_gradients(rollout, range(3), aggregation, by_sequence=counted == "sequence")
        assert_same(seen.gradients[0], expected)
        assert seen.metrics[0]["train/loss"] == pytest.approx(loss, abs=1e-6)
        assert seen.metrics[0]["rollout/agent/sequences"] >= 3 and seen.metrics[0]["rollout/turns"] == 4
        assert seen.metrics[0]["train/engine_difference"] < 1e-4


def test_messages_with_equal_prompts_are_compared_and_shared_ones_get_their_credit_once(play: Any) -> None:
    """GiGPO against its slow loop: the states are the prompts of conversations, and what the agent adds."""
    played = play("paid", rewards_turns=True, sampling=replace(SAMPLING, max_tokens=9))
    rewards = [EnvironmentReward(), TurnRewards()]
    scores = score_rollout(rewards, played.groups, [prompt.sample for prompt in PROMPTS])
    rollout = assemble(
        played.prompts,
        played.groups,
        scores,
        SAMPLING,
        mask_truncated=False,
        exact=True,
        version=None,
        has_teacher=False,
    )
    estimator = GiGPOAdvantage(discount=0.5)
    found = estimator(gather_groups(rollout, rollout.rewards, estimator))
    torch.testing.assert_close(
        found.float(), expected_advantages(rollout, partial(slow_gigpo_turns, discount=0.5), "states")
    )
    uncut = [row for row in rows_of(played) if len(row.sequences) == 3]
    saved = [calls_of(row) | {"turn_rewards": [turn.reward for turn in row.turns]} for row in uncut]
    shown = call_rows(dict(enumerate(saved, 7)))
    assert [row[:3] for row in shown[:4]] == [("7", "0", "0"), ("7", "1", "0"), ("7", "2", "1"), ("7", "3", "2")]
    assert [int(row[3]) for row in shown[:4]] == [end - start for start, end in (t.span for t in uncut[0].turns)]
    assert shown[0][4] == shown[3][4] == "0" and int(shown[1][4]) > 20 and shown[1][5] == ""


def test_recorded_episodes_of_several_sequences_are_trained_again_exactly(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    agent = Agent([sys.executable, str(SCRIPT), "branches"])
    options: Any = dict(
        environment=agent, sampling=replace(SAMPLING, max_tokens=9), rewards=None, prompts_per_rollout=2
    )
    _, first = fit(tiny_model_folder, tmp_path / "first", replay=Replay(record=1.0), **options)
    again = Replay(rollouts_from=str(tmp_path / "first"))
    _, second = fit(tiny_model_folder, tmp_path / "second", replay=again, **options)
    kept = [[row.sequences for group in seen.rollouts[0].completions for row in group] for seen in (first, second)]
    assert kept[0] == kept[1] and all(kept[0])
    assert all(torch.equal(gradient, second.gradients[0][name]) for name, gradient in first.gradients[0].items())


@pytest.fixture(scope="module")
def sharp_vlm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Qwen2.5-VL whose log-probabilities differ by nats between images, with the data of a run."""
    folder = save_qwen2_5_vl(tmp_path_factory.mktemp("vlm"))
    data = SimpleNamespace(
        name="vlm",
        chat=Chat(),
        tokenizer=load_tokenizer(str(folder)),
        reading=SimpleNamespace(max_prompt_tokens=512),
        images=ImageOptions(),
        image_processor=load_image_processor(str(folder)),
    )
    return SimpleNamespace(policy=load_policy(str(folder)), data=data)


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_images_in_requests_are_those_that_training_computes_on(shared: bool, sharp_vlm: Any) -> None:
    """The sequences of the first prompt's episodes begin with the same picture, those of the second with others."""
    policy = sharp_vlm.policy
    policy.shared_prefix = shared
    seen: list[tuple[Prompt, Completion]] = []
    engine = HFEngine()
    start_engine(engine, policy)

    def generate(prompts: list[Prompt], *others: Any) -> Any:
        groups = engine.generate(prompts, *others)
        seen.extend((prompt, group[0]) for prompt, group in zip(prompts, groups, strict=True))
        return groups

    sampling = replace(SAMPLING, max_tokens=9, max_episode_tokens=400).with_banned(policy.placeholder_ids)
    agent = Agent([sys.executable, str(SCRIPT), "pictures"])
    episodes = AgentEpisodes(agent, policy.eos_token_ids, "tiny", 0, True, takes_images=True)
    try:
        prompts, groups = episodes.play(PROMPTS, sampling, [[4, 5], [6, 8]], None, sharp_vlm.data, generate, True)
    finally:
        episodes.close()
    rows = [row for group in groups for row in group]
    assert all(row.outcome is not None and row.outcome.status == "ok" for row in rows), rows[0].outcome
    assert all(len(row.turns) == 4 and len(row.sequences) in (3, 4) for row in rows)
    for row in rows:  # a first turn that was cut has no other behind it
        assert row.turns[0].images == (len(row.sequences) == 3) and not any(turn.images for turn in row.turns[1:])
    sampled = {(*prompt.token_ids, *turn.token_ids): (prompt, turn) for prompt, turn in seen}
    assert len(sampled) == 16 and {len(prompt.pixels.images) for prompt, _ in seen} == {1, 2}
    for prompt, turn in seen:
        expected = slow(policy, prompt, turn.token_ids, policy.placeholder_ids)
        torch.testing.assert_close(torch.tensor(turn.logprobs), expected, atol=1e-4, rtol=0)
    computed = trainer_logprobs(policy, prompts, groups, sampling)
    for row, logprobs in zip(rows, computed, strict=True):
        own = torch.tensor(row.sampled)
        torch.testing.assert_close(logprobs[own], torch.tensor(row.logprobs)[own], atol=1e-4, rtol=0)
    assert prompts[0].pixels is not None and len(prompts[0].pixels.images) == 1, "all its sequences begin with it"
    assert prompts[1].pixels is None and prompts[1].token_ids, "its sequences begin with three pictures"


class Noting(Streaming):
    """Remembers the weights that sampled each message; the last one of an episode waits for newer weights.

    Args:
        concurrent: takes weights while episodes are played.
    """

    def __init__(self, concurrent: bool) -> None:
        super().__init__()
        self.concurrent = concurrent
        self.notes: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, torch.nn.Module]] = {}
        self.waits = True

    def generate(self, prompts: Any, sampling: Any, seeds: Any, done: Any = None, turns: Any = None) -> Any:
        with self._turn:
            groups = super().generate(prompts, sampling, seeds, done, turns)
            model = deepcopy(self.copy.model)
            for prompt, (turn, *_) in zip(prompts, groups, strict=True):
                self.notes[tuple(prompt.token_ids), turn.token_ids] = self._syncs - 1, model
            return groups

    def generate_stream(self, prompts: Any, *others: Any) -> None:
        is_first = "why?" in byte_tokenizer().decode(prompts[0].token_ids) and self.waits
        if is_first:
            self.waits = False
            wait_until(lambda: self._syncs > 1)
        super().generate_stream(prompts, *others)


@torch.no_grad()
@pytest.mark.first_case_fast
@pytest.mark.parametrize("concurrent", [True, False])
def test_episodes_under_staleness_have_the_version_of_the_weights_that_sampled_each_message(
    concurrent: bool, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """On servers weights may change in the middle of an episode; its tokens are then those of several versions."""
    engine = Noting(concurrent)
    _, seen = fit(
        tiny_model_folder,
        tmp_path,
        steps=3,
        engine=engine,
        environment=Agent([sys.executable, str(SCRIPT), "turns", "worker"], workers=3),
        sampling=SAMPLING,
        rewards=None,
        prompts_per_rollout=2,
        group_size=2,
        staleness=1,
        max_failure_rate=0.0,
    )
    ages = set()
    mixed = 0
    for step, rollout in enumerate(seen.rollouts):
        rows = [(prompt, row) for prompt, g in zip(rollout.prompts, rollout.completions, strict=True) for row in g]
        for number, (prompt, row) in enumerate(rows):
            begins = [0, *itertools.accumulate(row.sequence_lengths)]
            versions = set()
            for turn in row.turns:
                first, end = turn.span
                begin = max(begin for begin in begins if begin <= first)
                before = (*prompt.token_ids, *row.token_ids[begin:first])
                version, model = engine.notes[before, row.token_ids[first:end]]
                assert rollout.versions[number, first:end].tolist() == [version] * (end - first)
                expected, _ = plain_logprobs(model, before, row.token_ids[first:end], SAMPLING)
                torch.testing.assert_close(torch.tensor(row.logprobs[first:end]), expected, atol=1e-4, rtol=0)
                ages.add(step - version)
                versions.add(version)
            mixed += len(versions) > 1
        assert seen.metrics[step]["rollout/agent/sequences"] >= 1
    assert ages == {0, 1} and (mixed > 0) == concurrent


def test_what_cannot_be_trained_is_refused_and_a_retry_is_answered_from_memory(play: Any) -> None:
    played = play("refusals")
    assert_exact_with_auxiliary(played)
    for row in rows_of(played):
        assert row.outcome is not None and (row.outcome.status, row.outcome.value) == ("ok", 0.5), row.outcome
        assert len(row.turns) == 1
        rows = call_rows({3: calls_of(row)})
        assert [cells[:3] for cells in rows] == [("3", "0", "0"), ("3", "auxiliary", "not trained")]
        assert int(rows[1][3]) > 0
    assert played.counts["auxiliary"] == 6 and played.counts["refused"] > 6 * 15


@pytest.mark.parametrize(("mode", "status"), [("silent", "error"), ("crash", "error")])
def test_an_agent_that_fails_costs_its_own_episode(mode: str, status: str, play: Any) -> None:
    played = play(mode)
    for row in rows_of(played):
        assert row.outcome is not None and row.outcome.status == status
        assert row.outcome.detail.startswith("environment: the agent")
    assert played.counts[{"silent": "silent", "crash": "crashed"}[mode]] == 6


@pytest.mark.slow
def test_an_endless_agent_is_killed_with_its_children(play: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    played = play("endless", timeout=8.0, env={"PIDS": str(pids)})
    assert played.counts["timeout"] == 6
    assert all(row.outcome.status == "timeout" and row.truncated and row.length for row in rows_of(played))
    numbers = [int(line) for line in pids.read_text().split()]
    assert len(numbers) == 6 and not any(Path(f"/proc/{pid}").exists() for pid in numbers)


@pytest.mark.slow
def test_many_agents_at_once_that_misbehave_cost_their_own_episodes_alone(play: Any) -> None:
    """256 programs: what each does wrong is told by its seed; see `faulty_agent.py`."""
    seeds = [[128 * p + g for g in range(128)] for p in range(2)]
    spy = Scripted()
    script = str(SCRIPT.with_name("faulty_agent.py"))
    longer = replace(SAMPLING, max_tokens=64)
    played = play(script, script="-IS", seeds=seeds, spy=spy, parallel=256, timeout=300.0, sampling=longer)
    by_mode: dict[str, list[Completion]] = {}
    for seed, row in enumerate(rows_of(played)):
        by_mode.setdefault(MODES[seed % len(MODES)], []).append(row)
    for mode, of_mode in by_mode.items():
        outcomes = {(row.outcome.status, row.outcome.value) for row in of_mode if row.outcome is not None}
        turns = {len(row.turns) for row in of_mode}
        expected = {"silent": ("error", 0.0), "crash": ("error", 0.0), "late_reward": ("ok", 0.5)}
        assert outcomes == {expected.get(mode, ("ok", 0.25))}, (mode, of_mode[0].outcome)
        if mode == "parallel":
            assert turns == {2} and all(len(row.sequences) == 2 for row in of_mode)
        elif mode == "gone_in_stream":  # its answer may have been on its way
            assert turns <= {1, 2}
        else:
            assert turns == {int(mode != "silent")}, mode
    counts = played.counts
    assert counts["silent"] == len(by_mode["silent"]) and counts["crashed"] == len(by_mode["crash"])
    assert counts["timeout"] == 0 and counts["episodes"] == 256
    assert counts["refused"] == len(by_mode["ten_megabytes"])


def test_an_engine_that_fails_ends_the_agents_and_plays_again_after_that(play: Any) -> None:
    class Broken(Spy):
        def generate(self, *arguments: Any) -> Any:
            raise RuntimeError("the engine died")

    with pytest.raises(RuntimeError, match="the engine died"):
        play("turns", spy=Broken())
    (episodes,) = play.made
    _, groups = episodes.play(PROMPTS, SAMPLING, SEEDS, None, DATA, Spy().generate, True)
    assert [row.outcome.status for group in groups for row in group] == ["ok"] * 6


@pytest.mark.parametrize(
    ("code", "timeout", "failure"),
    [
        ("import time; time.sleep(60)", 0.3, "did not end within 0.3 s"),
        ("print('x' * 300_000, flush=True); print(len(input()) > 300_000 and 'it was read')", 60.0, "exit status 1"),
    ],
)
def test_a_worker_that_does_not_read_a_long_task_costs_its_own_episode(
    code: str, timeout: float, failure: str, play: Any
) -> None:
    """One never reads; the other reads once all that it writes is read."""
    prompt = Prompt(Sample("long", "?", "", row={"text": "x" * 300_000}), [1])
    played = play(code, script="-c", prompts=[prompt], seeds=[[0]], workers=1, timeout=timeout)
    (row,) = rows_of(played)
    assert row.outcome is not None and failure in row.outcome.detail, row.outcome


def test_a_row_never_has_more_tokens_than_an_episode_may_have() -> None:
    """Requests of all kinds, of episodes whose prompts begin with equal and with different texts."""
    rng = random.Random(0)
    limits = Limits(replace(SAMPLING, max_turns=6, max_episode_tokens=150), 256, 0)
    conversations = Conversations(Chat(), byte_tokenizer(), ENDS)
    refused = 0
    longest = 0
    for case in range(15):
        group = Group(limits)
        group.sessions += [Session(f"{g}", PROMPTS[0].sample, g, group, conversations) for g in range(3)]
        for _ in range(12):
            session = rng.choice(group.sessions)
            messages = [{"role": "user", "content": rng.choice(["1 + 1 = ?", "1 + 2 = ?", "Sum up."])}]
            if session.messages and rng.random() < 0.7:
                before = rng.choice(session.messages)
                assert before.reply is not None
                messages = [*before.request.messages, before.reply.message, {"role": "user", "content": "how?"}]
            try:
                begun = session.begin(ChatRequest(messages, count=rng.choice([1, 1, 2])), is_auxiliary=False)
            except RequestError as error:
                refused += "too long" in error.message
                continue
            for message in begun:
                ids = tuple(rng.choices(range(97, 110), k=message.limit - 1))
                text = byte_tokenizer().decode(ids)
                session.finish(message, Completion(text, (*ids, END), "stop", (0.0,) * message.limit))
        start = len(shared_start(group.sessions)[0])
        lengths = [len(completion_of(session, start).token_ids) for session in group.sessions]
        assert max(lengths) <= 150, (case, lengths)
        longest = max(longest, *lengths)
    assert refused and longest > 130


def test_arguments_of_the_chat_template_in_a_row_reach_its_conversations() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ mood }}|" + tokenizer.chat_template
    conversations = Conversations(Chat(chat_template_kwargs={"mood": "calm"}), tokenizer, ENDS)
    sample = Sample("own", "?", "", row={"chat_template_kwargs": '{"mood": "wild"}'})
    of_row = conversations.for_row(sample)
    asked = [{"role": "user", "content": "?"}]
    assert tokenizer.decode(of_row.prompt(asked, ())[0]).startswith("wild|")
    assert conversations.for_row(sample) is of_row
    other = conversations.for_row(PROMPTS[0].sample)
    assert tokenizer.decode(other.prompt(asked, ())[0]).startswith("calm|")


class Scripted(Spy):
    """An engine that calls a tool when it is asked, and answers when it has the result."""

    def generate(self, prompts: Any, sampling: Any, seeds: Any, done: Any, turns: Any) -> list[list[Completion]]:
        groups = []
        for prompt in prompts:
            asked = byte_tokenizer().decode(prompt.token_ids)
            text = "5" if "5" in asked.rpartition("</call>")[2] else "I add. <call>add(2, b=3)</call>"
            ids = (*byte_tokenizer()(text).input_ids, END)
            groups.append([Completion(text, ids, "stop", tuple(-0.1 * n for n in range(len(ids))))])
        self.said += [(tuple(p.token_ids), group[0]) for p, group in zip(prompts, groups, strict=True)]
        return groups


@pytest.mark.parametrize(
    "client",
    [
        "openai",
        pytest.param("openai_stream", marks=pytest.mark.exhaustive),
        pytest.param("anthropic", marks=pytest.mark.exhaustive),
        pytest.param("anthropic_stream", marks=pytest.mark.slow),
    ],
)
def test_the_clients_of_openai_and_anthropic_call_tools(client: str, play: Any) -> None:
    pytest.importorskip(client.partition("_")[0])
    spy = Scripted()
    played = play(
        client, script=SCRIPT.with_name("client_agent.py"), spy=spy, sampling=replace(SAMPLING, max_tokens=64)
    )
    for row in rows_of(played):
        assert row.outcome is not None and (row.outcome.status, row.outcome.value) == ("ok", 1.0), row.outcome
        assert row.sequences == () and [turn.calls for turn in row.turns] == [1, 0]
        assert row.text == "5" and row.turns[0].observation == "5"
        sampled = [token for token, kept in zip(row.token_ids, row.sampled, strict=True) if kept]
        assert sampled == [token for _, turn in spy.said[:1] + spy.said[-1:] for token in turn.token_ids]


@pytest.mark.parametrize(
    ("most", "said"), [(12, "12 tokens.*max_episode_tokens"), (None, "18 tokens.*observation"), (99, "18.*observation")]
)
def test_an_episode_that_is_too_long_names_the_option_that_limits_it(most: int | None, said: str) -> None:
    sampling = Sampling(max_tokens=4, max_turns=2, max_observation_tokens=10, max_episode_tokens=most)
    conversations = Conversations(Chat(), byte_tokenizer(), ENDS)
    session = Session("", Sample("row", "?", ""), 0, Group(Limits(sampling, 512, 0)), conversations)
    session._group.sessions.append(session)
    session.begin(ChatRequest([{"role": "user", "content": "?"}]), False)
    with pytest.raises(RequestError, match=f"the maximum is {said}"):
        session.begin(ChatRequest([{"role": "user", "content": "why? " * 20}]), False)


def test_every_command_has_room_for_the_images_that_an_agent_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as its requests may have: those of the row, and one for each turn."""
    monkeypatch.setattr(filter_command, "start_sampler", lambda *arguments: arguments[4])
    agent = Agent("python")
    prompts = [Prompt(Sample("row", "?", "", images=(Image.new("RGB", (8, 8)),)), [1])]
    suite: Any = SimpleNamespace(name="suite", environment=agent, data=DATA)
    evaluated = evaluate._length_requirement(suite, prompts, {"greedy": (Sampling(), 1), "played": (SAMPLING, 1)})
    rollout: Any = SimpleNamespace(environment=agent, sampling=SAMPLING, eval_sampling=Sampling(), synced_engine=None)
    module: Any = SimpleNamespace(model_folder="", tokenizer=None)
    read: Any = SimpleNamespace(**vars(DATA), prepare=None)
    opened: Any = filter_command.open_sampler(module, read, rollout, torch.float32, prompts, 12)
    (filtered,) = opened
    data: Any = SimpleNamespace(validated=[SimpleNamespace(**vars(DATA), prompts={"train": prompts})])
    (trained,) = length_requirements(rollout, data)
    for requirement in (evaluated, filtered, trained):
        assert most_images([requirement]) == {"max_images": 1 + SAMPLING.max_turns, "max_videos": 0}


def test_processes_of_an_evaluation_listen_at_ports_of_their_own(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one at the port after the one that is given."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1] - 1
    monkeypatch.setenv(SHARE_VARIABLE, "1/2")
    prompt = Prompt(Sample("row", "?", ""), [1])
    sampler = Sampler(str(tiny_model_folder), SyncedEngine(HFEngine()), DATA.tokenizer, torch.float32, 64, {}, prompt)
    try:
        episodes: Any = sampler._episodes_for(Agent("python", port=port), DATA)
        assert episodes._endpoint.url == f"http://127.0.0.1:{port + 1}"
    finally:
        sampler.close()


def test_python_is_the_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no environment is activated, and no `python` is on the path."""
    monkeypatch.setenv("PATH", "")
    assert Agent("python my_agent.py --fast").program == [sys.executable, "my_agent.py", "--fast"]
    with pytest.raises(UserError, match="no program 'python3'"):
        Agent("python3 my_agent.py")


def test_settings_that_do_not_go_with_an_agent_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    agent = Agent([sys.executable, str(SCRIPT), "turns"])
    with pytest.raises(UserError, match=r"rollout\.replay_routes: an agent's completions"):
        fit(tiny_model_folder, tmp_path, environment=agent, replay_routes=True, rewards=None)
    with pytest.raises(UserError, match="no program 'no-such-program'"):
        Agent("no-such-program --fast")
    with pytest.raises(UserError, match="the run sets OPENAI_API_KEY itself"):
        Agent("python", env={"OPENAI_API_KEY": "sk"})
    with pytest.raises(UserError, match="give it alone"):
        as_environment({"one": agent, "other": SingleTurn()})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}.*choose another port"):
            AgentEpisodes(Agent("python", port=port), ENDS, "tiny", 0, True)


FAMILY = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    os.fork()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


def test_no_agent_survives_a_run_that_is_killed(tmp_path: Path) -> None:
    """The program, its child in a session of its own, and the child of that."""
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", FAMILY, str(pids)]
    run = (
        "import os, subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-IS', {str(LAUNCHER)!r}, str(os.getpid()), '60', '4096', *{command!r}]); "
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", run]) as process:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        process.kill()
    numbers = pids.read_text().split()
    wait_until(lambda: not any(Path(f"/proc/{number}").exists() for number in numbers))


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def test_a_choice_of_tools_that_is_ignored_offers_them_all() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [tool], "tool_choice": "required"}
    assert read_openai(body, SamplingRules(SAMPLING, frozenset(["tool_choice"]))).tools == (tool,)
    with pytest.raises(RequestError, match=r"tool_choice: .*ignore: \[tool_choice\]"):
        read_openai(body, SamplingRules(SAMPLING))


def test_a_message_keeps_its_path_by_content_alone() -> None:
    """Ids of calls, blanks around texts and content that is null make no difference; anything else does."""
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "I add.", "tool_calls": [call]}]
    same = [said[0], {**said[1], "content": " I add.\n", "tool_calls": [{**call, "id": "b"}]}]
    assert fingerprint(said, ()) == fingerprint(same, ())
    others = [
        ([{**said[0], "content": "??"}, said[1]], ()),
        ([{**said[0], "role": "system"}, said[1]], ()),
        ([said[0], {**said[1], "tool_calls": []}], ()),
        (said[1:], ()),
        (said, ({"type": "function"},)),
    ]
    assert len({fingerprint(*other) for other in [(said, ()), *others]}) == 6


@pytest.mark.parametrize(
    ("text", "content", "calls", "thoughts"),
    [
        ("Hello.", "Hello.", [], ""),
        (
            '<think>hm</think>Yes. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
            "Yes.",
            [("add", {"a": 1})],
            "hm",
        ),
        ("<call>add(1, 2)</call>", "", [("add", {"a": 1, "b": 2})], ""),
        ("<call>add(</call>", "<call>add(</call>", [], ""),
        ("one END two", "one ", [], ""),
    ],
)
def test_replies_have_content_calls_and_thoughts_apart(
    text: str, content: str, calls: list[Any], thoughts: str
) -> None:
    properties = {"a": {"type": "integer"}, "b": {"type": "integer"}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"properties": properties}}}
    request = ChatRequest([], (tool,), stop=("END",))
    reply = read_reply("id", text, request, False, 3, 4)
    found = [(call["function"]["name"], call["function"]["arguments"]) for call in reply.calls]
    assert (reply.content, found, reply.thoughts) == (content, calls, thoughts)
    assert openai_body([reply], request)["choices"][0]["finish_reason"] == ("tool_calls" if calls else "stop")
    reason = {True: "tool_use", False: "stop_sequence" if "END" in text else "end_turn"}[bool(calls)]
    assert anthropic_body([reply], request)["stop_reason"] == reason


@pytest.mark.parametrize(
    "strategy", [pytest.param("ddp", marks=pytest.mark.exhaustive), pytest.param("fsdp2", marks=pytest.mark.slow)]
)
def test_two_processes_play_as_one_does(strategy: str, run_folder: Path, lit_rlvr: CLI) -> None:
    """Episodes of different lengths, so that one process asks its engine when the other has nothing to ask."""
    agent = {"class_path": "Agent", "init_args": {"command": [sys.executable, str(SCRIPT), "uneven"]}}
    shared = (
        "--rollout.environment", json.dumps(agent), "--rollout.sampling.max_turns", "4", "--trainer.max_steps", "2",
        "--rollout.sampling.max_episode_tokens", "300", "--rollout.evaluation.sampling.max_episode_tokens", "300",
        "--trainer.limit_val_batches", "1", "--rollout.replay.record", "0",
    )  # fmt: skip
    lit_rlvr(*FIT, *shared, *to("one"), status=0)
    in_two_processes(run_folder, [*FIT, *STRATEGIES[strategy], *shared, *to("two")])
    sampled, wanted = completions(run_folder / "two"), completions(run_folder / "one")
    assert [row["completion"] for row in sampled] == [row["completion"] for row in wanted]
    for two, one in zip(metrics(run_folder / "two"), metrics(run_folder / "one"), strict=True):
        for name in ("train/loss", "rollout/turns", "rollout/agent/sequences", "rollout/reward"):
            assert float(two[name] or 0) == pytest.approx(float(one[name] or 0), abs=1e-5), name
