"""The completions that the data themselves hold: tokens of answers, conversations and episodes, to train on."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.common.columns import lookup
from lit_rlvr.datamodules.reading.assistant_turns import Part, split_turns
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.conversations import as_conversation
from lit_rlvr.datamodules.reading.rows import abbreviate, rank_zero_warn
from lit_rlvr.distributed.collectives import all_sum
from lit_rlvr.environments import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import turn_ends
from lit_rlvr.rollout.balance import balance
from lit_rlvr.rollout.episodes import Episodes, between_turns
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.rollout.source import RolloutSource
from lit_rlvr.rollout.summaries import gather_summaries, trainable_groups
from lit_rlvr.sampling import Sampling
from lit_rlvr.speech.thoughts import closes_thoughts, ends_in_thoughts, read_text
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.types import Completion, Prompt, PromptBatch, Rollout, Sample

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule

Pair = tuple[Prompt, Completion]
"""A prompt, and what the model is to write after it."""


class Demonstrations:
    """The completions of a data set's prompts.

    Args:
        data: the set.
        column: the column with them, a text or messages; with an environment a list of texts, one for each turn, which
            the environment answers. None = the turns that end the row's conversation, else the answer, else the column
            `completion`.
        option: the option of the column, for messages.
        model_folder: names the tokens that end a turn.
        environment: answers the turns.
        sampling: training's settings, with the limits of an episode.
        trains_empty_thoughts: whether empty thoughts at the beginning of a conversation's turns are in the loss.

    Attributes:
        most_sequences: the most sequences of a conversation that `check` has seen.
    """

    def __init__(
        self,
        data: PromptDataModule,
        column: str | None,
        option: str,
        model_folder: str,
        environment: Environment | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        trains_empty_thoughts: bool = True,
    ) -> None:
        self.data = data
        self.column = column
        self.option = option
        self.sampling = sampling
        self.ends = turn_ends(model_folder, data.tokenizer)
        with suppress(BadRow, UserError):  # a template that shows no such turn
            probe = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "?"}]
            turns = split_turns(probe, data.chat, data.tokenizer, data.prompt_encoder.opening, self.ends, option)
            last = turns.sequences[0][-1].token_ids
            self.ends = tuple(sorted(self.ends, key=lambda end: end not in last))
        plays = environment is not None and column is not None
        self.episodes = Episodes(environment, between_turns(data, self.ends, environment)) if plays else None  # type: ignore[arg-type]
        self.trains_empty_thoughts = trains_empty_thoughts
        self.most_sequences = 1
        self._played: dict[str, Pair] = {}
        self._with_empty_thoughts: set[str] = set()  # ids of samples

    def target(self, sample: Sample) -> str | list[Any]:
        """Return what the model is to write after a sample's prompt: a text, messages, or the texts of its turns.

        Raises:
            BadRow: there is no such thing.
        """
        if self.column is None and (sample.closing_turns or sample.answer.strip()):
            return [*sample.closing_turns] or sample.answer
        column = self.column or "completion"
        value = lookup(sample.row, column)
        if self.column is None and value is None:
            raise BadRow("no turn of the assistant ends it, and it has no answer; name a column in model.target", "")
        if self.episodes is not None:
            if isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value):
                return value
            raise BadRow(f"column {self.column!r} is not a list of texts, one for each of the model's turns", "")
        try:
            messages = as_conversation(value)
        except BadRow as error:
            raise BadRow(error.reason, column) from error
        if messages is None and not (isinstance(value, str) and value.strip()):
            raise BadRow(f"has no text in column {column!r}; name the column that holds the completions", "")
        if messages is not None and not any(message["role"] == "assistant" for message in messages):
            raise BadRow(f"column {column!r} has no message of the assistant", "")
        if messages is None:
            return value
        return messages

    def check(self, prompts: Sequence[Prompt], refuses_long: bool = True) -> str:
        """Refuse rows without a completion, or with one that is longer than completions may be; return a fingerprint.

        Args:
            prompts: the prompts of the set.
            refuses_long: False = long ones may stay.

        Raises:
            UserError: names such rows.
        """
        bad_rows = []
        split = []
        digest = hashlib.sha256()
        for prompt in prompts:
            try:
                if self.episodes is not None:
                    digest.update(repr(self.target(prompt.sample)).encode())
                    continue
                pairs = self._pairs(prompt)
                self.most_sequences = max(self.most_sequences, len(pairs))
                if len(pairs) > 1:
                    split.append(prompt.sample.source or prompt.sample.id)
                for start, completion in pairs:
                    digest.update(f"{start.token_ids} {completion.token_ids} {completion.sampled}".encode())
                    self._check_thought(prompt, completion)
                    if refuses_long:
                        self._check_length(prompt, start, completion)
            except BadRow as error:
                bad_rows.append(str(BadRow(error.reason, error.field, prompt.sample.source or prompt.sample.id)))
        if bad_rows:
            raise UserError(
                f"{self.option}: {len(bad_rows)} of {len(prompts)} rows cannot be used: {abbreviate(bad_rows)}"
            )
        self._warn_of_templates(prompts, split)
        return digest.hexdigest()[:16]

    def _check_thought(self, prompt: Prompt, completion: Completion) -> None:
        """Refuse a completion that does not close the thought which its prompt opens."""
        if not ends_in_thoughts(prompt.prefill):
            return
        if closes_thoughts(self.data.tokenizer.decode(completion.token_ids)):
            return
        remedy = "add its end (</think>)"
        if prompt.sample.id in self._with_empty_thoughts:
            remedy = "train on the end that the template writes (model.target_empty_thoughts: train)"
        raise BadRow(
            f"the prompt opens a thought (<think>) that the completion does not close; {remedy}, or "
            "change data.chat (chat_template_kwargs: {enable_thinking: false})",
            self.column or "answer",
        )

    def _check_length(self, prompt: Prompt, start: Prompt, completion: Completion) -> None:
        """Refuse a completion that is longer than completions may be.

        Args:
            prompt: the row's prompt.
            start: what stands before the completion; in a conversation, its earlier turns too.
            completion: the completion.
        """
        max_tokens = self.sampling.max_completion_tokens
        length = len(completion.token_ids) + max(len(start.token_ids) - len(prompt.token_ids), 0)
        if length > max_tokens:
            raise BadRow(
                f"a completion of {length} tokens, and rollout.sampling.max_tokens (with turns, "
                f"max_episode_tokens) allows {max_tokens}; raise it, or leave such rows out",
                self.column or "answer",
            )

    def _warn_of_templates(self, prompts: Sequence[Prompt], split: list[str]) -> None:
        """Warn of what the chat template changes in the rows: earlier turns, and empty thoughts.

        Args:
            prompts: the prompts of the set.
            split: the rows whose conversations became several sequences.
        """
        if split:
            rank_zero_warn(
                f"{self.data.name}: in {len(split)} of {len(prompts)} conversations, the chat template changes earlier "
                f"turns when later ones follow, such as dropping their thoughts ({abbreviate(split)}); later turns are "
                "then trained after the changed ones, in a further sequence"
            )
        row_ids = []
        for p in prompts:
            if p.sample.id in self._with_empty_thoughts:
                row_ids.append(p.sample.source or p.sample.id)
        if row_ids:
            if self.trains_empty_thoughts:
                does = "are in the loss"
            else:
                does = "are not in the loss"
            rank_zero_warn(
                f"{self.data.name}: {len(row_ids)} of {len(prompts)} rows have answers that begin with empty thoughts, "
                f"as the chat template writes them ({abbreviate(row_ids)}); these {does} (model.target_empty_thoughts)"
            )

    def pairs(self, prompts: Sequence[Prompt]) -> list[Pair]:
        """Return the prompts of a batch with their completions; a conversation has one for each of its sequences."""
        if self.episodes is None:
            pairs = []
            for prompt in prompts:
                pairs.extend(self._pairs(prompt))
            return pairs
        new = []
        for prompt in prompts:
            if prompt.sample.id not in self._played:
                new.append(prompt)
        played = {}
        for prompt, pair in zip(new, self._play(new), strict=True):
            played[prompt.sample.id] = pair
        self._played |= played
        return [self._played[prompt.sample.id] for prompt in prompts]

    def rollout(self, prompts: Sequence[Prompt], banned: Sequence[int]) -> Rollout:
        """Return the completions of a batch as a rollout that no reward judges.

        Args:
            prompts: P prompts with completions of their own.
            banned: tokens that the softmax leaves out.
        """
        pairs = self.pairs(prompts)
        sampling = replace(self.sampling, temperature=1.0, top_p=1.0, top_k=0).with_banned(banned)
        starts = [prompt for prompt, _ in pairs]
        completions = [[completion] for _, completion in pairs]
        unscored = Rollout.unscored(starts, completions, sampling)
        return replace(unscored, statuses=[["unjudged"] for _ in pairs], is_demonstration=True)

    def close(self) -> None:
        """End the workers of the environment."""
        if self.episodes is not None:
            self.episodes.close()

    def _pairs(self, prompt: Prompt) -> list[Pair]:
        target = self.target(prompt.sample)
        if isinstance(target, str):
            if closes_thoughts(target) or not ends_in_thoughts(prompt.prefill):
                return [(prompt, self._turn(target.removeprefix(prompt.prefill), prompt.sample))]
            target = [{"role": "assistant", "content": target}]  # the template may close the thought
        turns = self.data.encoder_of(prompt.sample).split_turns(
            prompt.sample, target, self.ends, self.trains_empty_thoughts
        )
        if turns.empty_thoughts:
            self._with_empty_thoughts.add(prompt.sample.id)
        missing = len(prompt.sample.images) - sum(part.images for part in turns.sequences[-1])
        if missing:
            raise BadRow(f"{missing} of its images are not in the conversation", "image")
        pairs = []
        for parts in turns.sequences:
            pairs.append(self._pair(prompt, parts))
        return pairs

    def _pair(self, prompt: Prompt, parts: Sequence[Part]) -> Pair:
        """Return a sequence of a conversation as a prompt and its completion."""
        opening, *turns = parts
        token_ids = tuple(token for part in turns for token in part.token_ids)
        sampled = tuple(part.is_written for part in turns for _ in part.token_ids)
        text = read_text(self.data.tokenizer, turns[-1].token_ids)
        before = prompt.pixels
        after = None
        if before is not None:
            pixels = before.split(sum(part.images for part in parts))[0]
            before, after = (None, None) if pixels is None else pixels.split(opening.images)
        completion = Completion(text, token_ids, "stop", sampled=sampled, pixels=after)
        return replace(prompt, token_ids=opening.token_ids, pixels=before), completion

    def _turn(self, text: str, sample: Sample) -> Completion:
        """Return a text of a sample as a turn, as if the model had sampled it."""
        text = self.data.encoder_of(sample).as_plain(text, sample, "a completion", is_written=True)
        token_ids = self.data.tokenizer(text, add_special_tokens=False).input_ids
        return Completion(text, (*token_ids, self.ends[0]), "stop")

    def _play(self, prompts: Sequence[Prompt]) -> list[Pair]:
        """Return the prompts with the episodes of their turns, which the environment answers."""
        assert self.episodes is not None, "there is an environment"
        data = self.data
        episodes = self.episodes
        sampling = self.sampling
        seeds = [[0]] * len(prompts)
        max_tokens = data.reading.max_prompt_tokens
        opened = episodes.open(prompts, seeds, lambda sample: data.prepare(data.encode(sample)), max_tokens)
        left = []
        for prompt in opened:
            left.append(deque(self._turn(text, prompt.sample) for text in self.target(prompt.sample)))
        for prompt, turns in zip(opened, left, strict=True):
            if max(len(turn.token_ids) for turn in turns) > sampling.max_tokens:
                raise self._error(
                    prompt, f"has a turn of more than {sampling.max_tokens} tokens; raise rollout.sampling.max_tokens"
                )
        episodes.begin(opened, sampling, seeds)
        completed: dict[int, Completion] = {}
        for p, turns in enumerate(left):
            episodes.stopped(p, 0, turns.popleft())
        while episodes.waiting:
            for p, g, answer in episodes.answers(1):
                if isinstance(answer, Completion):
                    completed[p] = answer
                    self._check_episode(opened[p], answer, len(left[p]))
                elif left[p]:
                    episodes.stopped(p, g, left[p].popleft())
                else:
                    raise self._error(
                        opened[p],
                        "ends before its episode does, because the environment answered the last turn; add a turn, or "
                        "allow fewer (rollout.sampling.max_turns)",
                    )
        played = []
        for p, prompt in enumerate(opened):
            played.append((prompt, completed[p]))
        return played

    def _check_episode(self, prompt: Prompt, episode: Completion, left: int) -> None:
        """Refuse an episode that failed, or that ended before its last turn."""
        if episode.outcome is not None and episode.outcome.status in ("timeout", "error"):
            raise self._error(prompt, episode.outcome.detail)
        if left:
            raise self._error(
                prompt,
                f"has {left} turn(s) after the end of its episode; leave them out, or allow more "
                "(rollout.sampling.max_turns, max_episode_tokens)",
            )

    def _error(self, prompt: Prompt, problem: str) -> UserError:
        return UserError(f"{self.option}: {prompt.sample.source or prompt.sample.id}: {self.column}: {problem}")


class DemonstrationSets:
    """The completions to learn from in the data of a run, those of each set.

    Attributes:
        by_name: name of a set -> its completions; {} = they are not read yet, or the run samples its own.
        fingerprint: of those to train on; a resumed run compares it.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Demonstrations] = {}
        self.fingerprint = ""

    def read(self, rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule) -> None:
        """Read them once.

        Raises:
            UserError: a row has none, or one that is too long.
        """
        if self.by_name:
            return
        for other in data.validated:
            demonstrations = Demonstrations(
                other,
                module.target,
                "model.target",
                module.model_folder,
                rollout.environment,
                rollout.sampling,
                module.target_empty_thoughts == "train",
            )
            fingerprints = []
            for prompts in other.prompts.values():
                fingerprints.append(demonstrations.check(prompts))
            self.fingerprint = self.fingerprint or fingerprints[0]
            self.by_name[other.name] = demonstrations

    def close(self) -> None:
        """End the workers that played episodes."""
        for demonstrations in self.by_name.values():
            demonstrations.close()


class DemonstrationSource(RolloutSource):
    """Returns the completions of the data instead of sampling.

    Args:
        demonstrations: of the training data.
        module: the algorithm.
        fingerprint: of all completions; a resumed run compares it.
        pinned_groups: as for `CollectingSource`.
    """

    generates = False
    is_scored = False

    def __init__(
        self, demonstrations: Demonstrations, module: RLVRModule, fingerprint: str = "", pinned_groups: int = 0
    ) -> None:
        self.demonstrations = demonstrations
        self.module = module
        self.fingerprint = fingerprint
        self.pinned_groups = pinned_groups
        self.sampling = demonstrations.sampling
        self.metrics = {}
        self.extra_completions = []

    def next(self, batch: PromptBatch) -> Rollout:
        module = self.module
        rollout = self.demonstrations.rollout(batch.prompts, module.policy.placeholder_ids)
        if module.policy.family is not None:
            cut = module.image_processor.cut
        else:
            cut = None
        groups = gather_summaries(rollout, trainable_groups(module, rollout))
        rollout = balance(rollout, groups, 1, self.pinned_groups, cut)
        rollout.versions = torch.full(rollout.token_ids.shape, module.updates)
        counts = all_sum(torch.tensor([float(rollout.lengths.sum()), float(len(batch))], dtype=torch.float64)).tolist()
        self.metrics = {"time/sync": 0.0, "time/generate": 0.0, "time/score": 0.0}  # the run folder needs them
        self.metrics |= {
            "rollout/tokens": counts[0],
            "rollout/samples": counts[1],
            "rollout/length": counts[0] / counts[1],
        }
        return rollout

    def state_dict(self) -> dict[str, Any]:
        return {"demonstrations": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("demonstrations", self.fingerprint) != self.fingerprint:
            raise UserError(
                f"ckpt_path: the completions in the training data ({self.demonstrations.option}) are not those of the "
                "checkpoint; restore them, or start a new run"
            )
