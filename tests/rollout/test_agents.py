"""Agents: programs that call the run's endpoint. Their rows hold the tokens that were sampled."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import ENDS, byte_tokenizer, plain_logprobs
from tiny_engines import hf_engine

from lit_rlvr.agents.play import AgentEpisodes
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.environments import Agent
from lit_rlvr.types import Completion, Prompt, Sample, Sampling

SCRIPT = Path(__file__).parents[1] / "helpers" / "tiny_agent.py"
DATA: Any = SimpleNamespace(
    name="tiny", chat=Chat(), tokenizer=byte_tokenizer(), reading=SimpleNamespace(max_prompt_tokens=256)
)
SAMPLING = Sampling(max_tokens=12, max_turns=4, max_observation_tokens=64)
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
    made = []

    def run(*arguments: str, script: Path = SCRIPT, sampling: Sampling = SAMPLING, **options: Any) -> Any:
        agent = Agent([sys.executable, str(script), *arguments], **options)
        made.append(AgentEpisodes(agent, ENDS, "tiny", 0, True))
        spy = Spy()
        prompts, groups = made[-1].play(PROMPTS, sampling, SEEDS, None, DATA, spy.generate, True)
        return SimpleNamespace(prompts=prompts, groups=groups, spy=spy, counts=made[-1].counts)

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


def test_an_episode_whose_requests_extend_a_path_is_one_row_of_the_sampled_tokens(play: Any) -> None:
    played = play()
    assert_exact(played)
    rows = [row for group in played.groups for row in group]
    assert all(len(row.turns) == 3 for row in rows)
    print(played.counts, [row.sequences for row in rows], [row.outcome for row in rows])
