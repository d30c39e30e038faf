"""What tests of episodes share: observations as tokens, and a check of whole rows."""

from collections.abc import Sequence
from typing import Any

import torch
from tiny import ENDS, byte_tokenizer, plain_logprobs
from tiny_environments import Moody

from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout.episodes import Episodes
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Sample


def between(role: str = "user", ends: tuple[int, ...] = ENDS) -> BetweenTurns:
    """Return what turns a text of an environment into the tokens between two turns."""
    return BetweenTurns(Chat(), byte_tokenizer(), ends, role)


def spans(completion: Completion) -> list[tuple[bool, tuple[int, ...]]]:
    """The row's sampled and observed parts, in order."""
    found: list[tuple[bool, list[int]]] = []
    for token, sampled in zip(completion.token_ids, completion.sampled, strict=True):
        if not found or found[-1][0] != sampled:
            found.append((sampled, []))
        found[-1][1].append(token)
    return [(sampled, tuple(ids)) for sampled, ids in found]


class Recording(Episodes):
    """Remembers what the engine sampled."""

    def begin(self, *arguments: Any) -> None:
        super().begin(*arguments)
        self.said: dict[tuple[int, int], list[Completion]] = {}

    def stopped(self, p: int, g: int, turn: Completion) -> None:
        self.said.setdefault((p, g), []).append(turn)
        super().stopped(p, g, turn)


@torch.no_grad()
def assert_exact(
    prompts: Sequence[Prompt], groups: list[list[Completion]], turns: Recording, model: Any, sampling: Sampling
) -> None:
    """The sampled spans are the engine's tokens, the observations are what the template renders, and the
    log-probabilities are those of the whole row."""
    for p, group in enumerate(groups):
        for g, completion in enumerate(group):
            parts = spans(completion)
            said = turns.said[p, g]
            assert [ids for sampled, ids in parts if sampled] == [turn.token_ids for turn in said]
            assert [sampled for sampled, _ in parts] == [k % 2 == 0 for k in range(len(parts))]
            observed = [byte_tokenizer().decode(ids) for sampled, ids in parts if not sampled]
            for text, turn, before in zip(observed, completion.turns, said, strict=False):
                end = byte_tokenizer().decode([before.token_ids[-1]])
                close = "\n" if end == "<|im_end|>" else "<|im_end|>\n"
                assert text == f"{close}<|im_start|>user\n{turn.observation}<|im_end|>\n<|im_start|>assistant\n"
            assert len(observed) == len(completion.turns) - 1
            expected, _ = plain_logprobs(model, prompts[p].token_ids, completion.token_ids, sampling)
            kept = torch.tensor(completion.sampled)
            torch.testing.assert_close(torch.tensor(completion.logprobs)[kept], expected[kept], atol=1e-4, rtol=0)
            assert not torch.tensor(completion.logprobs)[~kept].any()
            assert completion.length == sum(len(turn.token_ids) for turn in said)
            assert completion.text == said[-1].text


def as_bytes(sample: Sample) -> Prompt:
    """A prompt of the sample's text, a token a byte."""
    return Prompt(sample, byte_tokenizer()(sample.prompt, add_special_tokens=False).input_ids)


def check_own_beginnings(
    engine: RolloutEngine, policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, seeds: list[list[int]]
) -> None:
    """An engine generates completions that begin differently within a group."""
    turns = Episodes(Moody(), between(ends=policy.eos_token_ids))
    opened = turns.open(prompts, seeds, as_bytes, 64)
    groups = engine.generate(opened, sampling, seeds, turns=turns)
    turns.close()
    assert_own_beginnings(opened, groups, policy.model, sampling)


@torch.no_grad()
def assert_own_beginnings(
    prompts: Sequence[Prompt], groups: list[list[Completion]], model: Any, sampling: Sampling
) -> None:
    """Each completion begins with what `Moody` told it, which is observed; its tokens follow from that."""
    for prompt, group in zip(prompts, groups, strict=True):
        assert len({completion.outcome.detail for completion in group if completion.outcome}) == len(group) > 1
        for completion in group:
            own = completion.sampled.index(True)
            told = byte_tokenizer().decode([*prompt.token_ids, *completion.token_ids[:own]])
            assert completion.outcome is not None and told == f"{prompt.sample.prompt}{completion.outcome.detail}"
            expected, _ = plain_logprobs(model, prompt.token_ids, completion.token_ids, sampling)
            kept = torch.tensor(completion.sampled)
            torch.testing.assert_close(torch.tensor(completion.logprobs)[kept], expected[kept], atol=1e-4, rtol=0)
