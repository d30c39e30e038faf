"""A short supervised warm start, for models that cannot answer at all yet and so have nothing to reinforce."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.environments.base import Environment, environment_fingerprint
from lit_rlvr.errors import UserError, check_all, check_within
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.sources import cache_folder, made_once
from lit_rlvr.rewards.references import LongAnswers, completion_lengths
from lit_rlvr.rollout.episodes import Episodes, between_turns
from lit_rlvr.run.saved_model import save_model
from lit_rlvr.training.step import cut_rows
from lit_rlvr.types import Completion, Prompt, Rollout, Sampling

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule

_log = logging.getLogger("lit_rlvr")
LARGE = 10_000_000
"""Parameters from which a model is taken for a pretrained one; the tiny models have a twentieth of them."""


class WarmStart:
    """Supervised training on reference solutions before the run.

    It caches the result as a model folder; a later run with the same model, data and settings starts from it at once.

    Args:
        steps: maximum number of optimizer steps; 0 = no warm start.
        until: stop once greedy decoding reproduces the solutions of at least this share of the `checked` prompts,
            within the run's `max_tokens` and `stop`.
        solution: column of the data with the target completion; with an environment, a list with the text of each of
            the model's turns, which the environment answers.
        batch_size: prompts in a step.
        lr: learning rate of AdamW. The default suits the tiny models; a pretrained model needs 1e-5 to 5e-5.
        checked: training prompts to hold out for the check of `until`; at most a quarter of all are held out.
        check_every: steps between two checks.
        categories: categories of the prompts to train on, such as the easier ones; all by default.
    """

    def __init__(
        self,
        steps: int = 0,
        until: float = 1.0,
        solution: str = "solution",
        batch_size: int = 32,
        lr: float = 1e-3,
        checked: int = 128,
        check_every: int = 20,
        categories: list[str] | None = None,
    ) -> None:
        check_within("[0, inf)", "warm_start", steps=steps)
        check_within("[1, inf)", "warm_start", batch_size=batch_size, checked=checked, check_every=check_every)
        check_within("(0, 1]", "warm_start", until=until)
        check_within("[0, inf)", "warm_start", lr=lr)
        self.steps, self.until, self.solution = steps, until, solution
        self.batch_size, self.lr, self.checked, self.check_every = batch_size, lr, checked, check_every
        self.categories = categories

    def apply(
        self, module: RLVRModule, data: PromptDataModule, environment: Environment | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    ) -> None:  # fmt: skip
        """Let `module` start from the warm-started folder; create it if it is not cached.

        Args:
            environment: the environment that answers the turns of the solutions.
            sampling: training's settings, with the limits of an episode.
        """
        if not self.steps:
            return
        source = module.model_folder
        data.use_model(module)
        data.setup("fit")
        policy = load_policy(source)
        episodes: Episodes | None = None
        if environment is not None:
            episodes = Episodes(environment, between_turns(data, policy, environment))
        target = cache_folder() / "warm-start" / self._key(policy, data, environment, sampling)
        if not target.exists():
            _log.info("Warm start: at most %d supervised steps, cached in %s", self.steps, target)
            size = sum(parameter.numel() for parameter in policy.model.parameters())
            if size >= LARGE and self.lr > 1e-4:
                _log.warning(
                    "warm_start.lr: %g suits the tiny models, and this model has %.0f million parameters; a pretrained "
                    "model needs about 2e-5", self.lr, size / 1e6,
                )  # fmt: skip
        budget = module.tokens_per_microbatch
        try:
            made_once(target, lambda folder: self._make(policy, source, data, folder, budget, episodes, sampling))
        finally:
            if episodes is not None:
                episodes.close()
        module.model_folder = str(target)

    def check(self, data: PromptDataModule, turns: bool, sampling: Sampling = Sampling()) -> None:  # noqa: B008
        """Refuse data without solutions, with too few prompts or with solutions that are too long; load no weights.

        Args:
            turns: True if an environment answers, so that a solution is a list of turns.
            sampling: training's settings.

        Raises:
            UserError: solutions or prompts are missing, or solutions are too long; the message names them.
        """
        if not self.steps:
            return
        prompts = self._prompts(data)
        check_all(
            lambda: self._held_out(len(prompts)),
            lambda: [self._texts(prompt) if turns else self._text(prompt) for prompt in prompts],
        )
        if not turns and (found := self._too_long(prompts, data.tokenizer, sampling)) is not None:
            if found.is_hopeless:
                raise UserError(str(found))
            _log.warning("%s", found)

    def _too_long(self, prompts: list[Prompt], tokenizer: Any, sampling: Sampling) -> LongAnswers | None:
        """Return the solutions that do not fit into a completion of training."""
        texts = [prompt.sample for prompt in prompts if isinstance(prompt.sample.row.get(self.solution), str)]
        lengths = completion_lengths(lambda sample: sample.row[self.solution], texts, tokenizer, sampling)
        return LongAnswers.among(
            lengths, sampling.max_tokens, "rollout.sampling.max_tokens", f"solutions (column {self.solution!r})"
        )

    def _prompts(self, data: PromptDataModule) -> list[Prompt]:
        """Return the training prompts of `categories`."""
        prompts = list(data.stream.prompts)
        if self.categories is None:
            return prompts
        there = {prompt.sample.category for prompt in prompts}
        if missing := [category for category in self.categories if category not in there]:
            raise UserError(
                f"warm_start.categories: no training prompt has the category {missing[0]!r}; the data has "
                + (", ".join(map(repr, sorted(there - {""}))) or "none")
            )
        return [prompt for prompt in prompts if prompt.sample.category in self.categories]

    def _held_out(self, prompts: int) -> int:
        """Return how many of the prompts to hold out."""
        if prompts < 4:
            raise UserError(
                f"warm_start: {prompts} training prompts are too few to hold one in four of them out; give 4"
            )
        return min(self.checked, prompts // 4)

    def _key(self, policy: Policy, data: PromptDataModule, environment: Environment | None, sampling: Sampling) -> str:
        """Hash everything that the result depends on: the weights, the prompts, the environment and the settings."""
        used = vars(self) | {"checked": self._held_out(len(self._prompts(data)))}
        digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode())
        if environment is not None:
            digest.update(f"{environment_fingerprint(environment)} {sampling}".encode())
        elif sampling.stop or self._too_long(self._prompts(data), data.tokenizer, sampling):
            digest.update(f"{sampling.stop} {sampling.max_tokens}".encode())  # they change what is exact
        for name, parameter in sorted(policy.model.named_parameters()):
            digest.update(name.encode() + parameter.detach().view(torch.uint8).numpy().tobytes())
        for prompt in self._prompts(data):
            images = " ".join(getattr(prompt.sample.images, "keys", ()))
            digest.update(f"{prompt.token_ids} {images} {prompt.sample.row.get(self.solution)}\n".encode())
        return digest.hexdigest()[:16]

    def _make(
        self, policy: Policy, source: str, data: PromptDataModule, folder: Path, budget: int,
        episodes: Episodes | None, sampling: Sampling,
    ) -> None:  # fmt: skip
        prompts = self._prompts(data)
        random.Random(derive_seed("warm start", data.seed)).shuffle(prompts)
        held_out_prompts = self._held_out(len(prompts))
        if episodes is not None:
            prompts = episodes.open(prompts, [[0]] * len(prompts), data.encode, data.reading.max_prompt_tokens)
            pairs = self._run_episodes(prompts, data.tokenizer, policy, episodes, sampling)
        else:
            pairs = [(prompt, self._completion(prompt, data.tokenizer, policy)) for prompt in prompts]
        held_out, train = pairs[:held_out_prompts], pairs[held_out_prompts:]
        optimizer = torch.optim.AdamW(policy.parameters(), self.lr, weight_decay=0.0, fused=True)
        started = time.perf_counter()
        for step, batch in enumerate(self._batches(train), start=1):
            ready = [(data.prepare(prompt), completion) for prompt, completion in batch]
            loss = self._train_step(policy, ready, optimizer, budget)
            if step == 1:
                seconds = time.perf_counter() - started
                _log.info("Warm start: step 1 took %.1f s, so %d take about %.0f s, and checks come on top",
                          seconds, self.steps, seconds * self.steps)  # fmt: skip
            if step % self.check_every == 0 or step == self.steps:
                checked = [(data.prepare(p), c) for p, c in held_out]
                share = exact_match(policy, checked, data.tokenizer, episodes, sampling)
                seconds = time.perf_counter() - started
                left = seconds / step * (self.steps - step)
                _log.info("Warm start: step %d of at most %d, loss %.3f, %.3f exact, %.0f s, at most about %.0f s left",
                          step, self.steps, loss, share, seconds, left)  # fmt: skip
                if share >= self.until or step == self.steps:
                    break
        folder.rmdir()  # save_model creates it again, atomically
        save_model(policy.model, source, folder)

    def _run_episodes(
        self, prompts: list[Prompt], tokenizer: Any, policy: Policy, episodes: Episodes, sampling: Sampling
    ) -> list[tuple[Prompt, Completion]]:
        """Return the prompts with the episodes of their solutions, which the environment answers."""
        scripts = [self._turns(prompt, tokenizer, policy) for prompt in prompts]
        for prompt, turns in zip(prompts, scripts, strict=True):
            if max(len(turn.token_ids) for turn in turns) > sampling.max_tokens:
                raise UserError(
                    f"{self._place(prompt)} has a turn of more than {sampling.max_tokens} tokens; raise "
                    "rollout.sampling.max_tokens"
                )
        episodes.begin(prompts, sampling, [[0]] * len(prompts))
        completed: dict[int, Completion] = {}
        left = [deque(turns) for turns in scripts]
        for p, remaining in enumerate(left):
            episodes.stopped(p, 0, remaining.popleft())
        while episodes.waiting:
            for p, g, answer in episodes.answers(1):
                if isinstance(answer, Completion):
                    completed[p] = answer
                    self._check_episode(prompts[p], answer, len(left[p]))
                elif left[p]:
                    episodes.stopped(p, g, left[p].popleft())
                else:
                    raise UserError(
                        f"{self._place(prompts[p])} ends before its episode does, because the environment answered the "
                        "last turn; add a turn, or allow fewer (rollout.sampling.max_turns)"
                    )
        return [(prompt, completed[p]) for p, prompt in enumerate(prompts)]

    def _check_episode(self, prompt: Prompt, episode: Completion, left: int) -> None:
        """Refuse an episode that failed, or that ended before its solution."""
        if episode.outcome is not None and episode.outcome.status in ("timeout", "error"):
            raise UserError(f"{self._place(prompt)}: {episode.outcome.detail}")
        if left:
            raise UserError(
                f"{self._place(prompt)} has {left} turn(s) after the end of its episode; leave them out, or allow more "
                "(rollout.sampling.max_turns, max_episode_tokens)"
            )

    def _turns(self, prompt: Prompt, tokenizer: Any, policy: Policy) -> list[Completion]:
        """Return the turns of a prompt's solution."""
        return [self._sampled(text, tokenizer, policy) for text in self._texts(prompt)]

    def _texts(self, prompt: Prompt) -> list[str]:
        texts = prompt.sample.row.get(self.solution)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"{self._place(prompt)} is not a list of texts, one for each of the model's turns")
        return texts

    def _place(self, prompt: Prompt) -> str:
        return f"warm_start.solution: column {self.solution!r} of {prompt.sample.source or prompt.sample.id}"

    @staticmethod
    def _sampled(text: str, tokenizer: Any, policy: Policy) -> Completion:
        """Return a text as a completion, as if the model had sampled it."""
        ids = (*tokenizer(text, add_special_tokens=False).input_ids, policy.eos_token_ids[0])
        return Completion(text, ids, "stop")

    def _completion(self, prompt: Prompt, tokenizer: Any, policy: Policy) -> Completion:
        return self._sampled(self._text(prompt), tokenizer, policy)

    def _text(self, prompt: Prompt) -> str:
        text = prompt.sample.row.get(self.solution)
        if not isinstance(text, str) or not text:
            raise UserError(
                f"warm_start.solution: {prompt.sample.source or prompt.sample.id} has no text in column "
                f"{self.solution!r}; name the column that holds the solutions"
            )
        return text

    def _batches(self, pairs: list[tuple[Prompt, Completion]]) -> Iterator[list[tuple[Prompt, Completion]]]:
        """Yield batches without end; every epoch has a new order."""
        size, epoch = min(self.batch_size, len(pairs)), 0
        while True:
            order = random.Random(derive_seed("warm start", epoch)).sample(pairs, len(pairs))
            for first in range(0, len(order) - size + 1, size):
                yield order[first : first + size]
            epoch += 1

    @staticmethod
    def _train_step(policy: Policy, batch: list[tuple[Prompt, Completion]], optimizer: Any, budget: int) -> float:
        """Take one step on the mean token's cross-entropy; return its value, in nats."""
        sampling = Sampling(banned_token_ids=policy.placeholder_ids)
        rollout = Rollout.unscored([prompt for prompt, _ in batch], [[solution] for _, solution in batch], sampling)
        total = float(rollout.mask.sum())
        loss = 0.0
        for rows in cut_rows(rollout, list(range(len(batch))), budget, policy.shared_prefix):
            part = -(policy.logprobs(rollout, rows)[0] * rollout.mask[rows].to(policy.device)).sum() / total
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss


def exact_match(
    policy: Policy, pairs: list[tuple[Prompt, Completion]], tokenizer: Any, episodes: Episodes | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008  # frozen
) -> float:  # fmt: skip
    """Return the share of prompts that greedy decoding answers exactly like their solutions, in every turn, within the
    limits of `sampling`."""
    engine = HFEngine()
    engine.start(EngineContext.in_place(policy, tokenizer, len(pairs)))
    if episodes is None:
        longest = max(len(completion.token_ids) for _, completion in pairs)
        sampling = replace(sampling, max_tokens=min(longest, sampling.max_tokens))
    greedy = replace(sampling, temperature=0.0, top_p=1.0, top_k=0, banned_token_ids=policy.placeholder_ids)
    generated = engine.generate([prompt for prompt, _ in pairs], greedy, [[0]] * len(pairs), turns=episodes)
    solved = [_is_same(found, solution) for (found,), (_, solution) in zip(generated, pairs, strict=True)]
    return sum(solved) / len(solved)


def _is_same(found: Completion, solution: Completion) -> bool:
    """Return whether a completion is a solution, whose EOS it lacks where a `stop` text ended it."""
    ids = solution.token_ids
    return found.token_ids == ids or (found.token_ids == ids[:-1] and not found.truncated)
