"""The engine that works everywhere: the trainer's own model with transformers' own cache."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.common.arguments import check_within
from lit_rlvr.distributed.collectives import index_tensor, to_device
from lit_rlvr.engines.base import EngineContext, InPlaceEngine
from lit_rlvr.engines.turns import (
    Continuation,
    OnGroupDone,
    Row,
    Turns,
    ends_with_stop,
    finished_groups,
    next_turns,
    read_completion,
)
from lit_rlvr.errors import UserError
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy.logprobs import shape_logits
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.routes import routing
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

Routes = Sequence[Tensor | None]


class HFEngine(InPlaceEngine):
    """Decodes with the trainer's live weights and precision, so nothing is copied or can go stale.

    Each prompt is computed once and its cache (keys and values, states of recurrent layers) repeated for the group;
    finished sequences leave the batch. Tokens of an observation are fed one at a time in place of sampled ones, while
    other sequences go on. All turns that end together are answered before the next token, so that results do not depend
    on how long an environment takes.

    Args:
        max_sequences: completions decoded at once; more are decoded in several batches.
    """

    def __init__(self, max_sequences: int = 256) -> None:
        check_within("[1, inf)", "rollout.engine", max_sequences=max_sequences)
        self.max_sequences = max_sequences

    def start(self, context: EngineContext) -> None:
        model: Any = context.policy.model
        has_cache = "past_key_values" in inspect.signature(model.forward).parameters
        if not (has_cache and model._supports_default_dynamic_cache()):  # as transformers' `generate` asks
            raise UserError(
                f"rollout.engine: hf cannot decode {type(model).__name__}, which takes no cache of keys; use vllm"
            )
        super().start(context)

    def route_problems(self, plan: RunPlan) -> Iterator[str]:
        """Yield nothing: it returns the experts of tokens."""
        yield from ()

    def decode(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None,
        turns: Turns,
    ) -> list[list[Completion]]:
        groups = []
        for p, prompt in enumerate(prompts):
            limit = self.context.limit(sampling.max_tokens, len(prompt.token_ids))
            groups.append([_Row(p, g, prompt, seed, limit, sampling) for g, seed in enumerate(seeds[p])])
        for row in chain(*groups):
            row.open(turns)
        answered = partial(next_turns, groups, turns, done=done)
        starts = sorted((group for group in groups if group), key=lambda group: len(prompts[group[0].p].token_ids))
        while starts:
            sizes = accumulate(len(rows) for rows in starts)
            count = max(1, sum(size <= self.max_sequences for size in sizes))  # groups to decode together
            starts = starts[count:] + self._decode_together(starts[:count], sampling, turns, answered)
        return finished_groups(groups)

    def _decode_together(
        self,
        starts: Sequence[Sequence[_Row]],
        sampling: Sampling,
        turns: Turns,
        answered: Callable[[int], list[tuple[_Row, Continuation]]],
    ) -> list[list[_Row]]:
        """Decode groups of completions together, each group from one start.

        Args:
            starts: the rows of each group, which begin alike.
            sampling: how their tokens are drawn.
            turns: says how a completion goes on when it stops.
            answered: returns the rows that go on after at least so many answers, with how.

        Returns:
            The rows that observed images: each is decoded again from a prompt that includes them.
        """
        batch = _Batch(self.policy, starts)
        again: list[list[_Row]] = []
        while batch.rows:
            fed = self._draw(batch, sampling, turns)
            for row, how in answered(turns.waiting):
                if how.pixels is not None:
                    again.append([row])
            left = [row for (row,) in again]
            goes_on = [row.whole is None and row not in left for row in batch.rows]
            batch.feed(fed, goes_on)
        for (row,) in again:
            row.observed.clear()  # it is in the start
        return again

    def _draw(self, batch: _Batch, sampling: Sampling, turns: Turns) -> list[int]:
        """Return the next token of each row of a batch: one that it observed, or a new one, which may end its turn."""
        tokenizer = self.context.tokenizer
        eos = set(self.policy.eos_token_ids)
        numbers = torch.tensor([row.uniform[len(row.tokens)] for row in batch.rows], dtype=torch.float64)
        token, logp = draw_tokens(batch.logits, sampling, to_device(numbers, self.policy.device))  # (b,), (b,)
        tokens, logprobs = torch.stack([token.double(), logp.double()]).tolist()  # exact, and one wait for a GPU
        fed = []
        for row, sampled, value in zip(batch.rows, tokens, logprobs, strict=True):
            if row.observed:
                fed.append(row.observed.popleft())
                continue
            fed.append(int(sampled))
            row.tokens.append(fed[-1])
            row.logprobs.append(value)
            stop = fed[-1] in eos or ends_with_stop(tokenizer, row, sampling.stop)
            if stop or len(row.tokens) == row.limit:
                turn = read_completion(tokenizer, row.tokens, row.logprobs, stop)
                turns.stopped(row.p, row.g, replace(turn, routes=row.all_routes()))
        return fed


class _Batch:
    """Completions that are decoded together, a row of the cache each. Each prompt is computed once for its group.

    Args:
        policy: the weights.
        starts: the rows of each group, which begin alike.

    Attributes:
        rows: the completions that still go on.
        logits: (b, V) after the last token of each row.
    """

    def __init__(self, policy: Policy, starts: Sequence[Sequence[_Row]]) -> None:
        from transformers import DynamicCache

        self._policy = policy
        self.rows = list(chain.from_iterable(starts))
        model: Any = policy.model
        device = policy.device
        prompts = []
        for rows in starts:
            prompts.append(rows[0].prompt if rows[0].observed else rows[0].start)
        ids = [prompt.token_ids for prompt in prompts]
        width = max(len(i) for i in ids)
        input_ids = index_tensor([[0] * (width - len(i)) + list(i) for i in ids], device)  # (P, L), left-padded
        attend = index_tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device)  # (P, L)
        known = [policy.position_ids(prompt) for prompt in prompts]  # (D, L) each
        position_ids = to_device(torch.stack([pad(x, (width - x.shape[1], 0)) for x in known], 1), device)  # (D, P, L)
        images = policy.images([prompt.pixels for prompt in prompts if prompt.pixels is not None], input_ids)
        self._cache = cast(Any, DynamicCache(config=model.config))
        logits, routes = self._forward(input_ids, attend, position_ids, **images)  # (P, V)
        for rows, prompt, route in zip(starts, prompts, routes, strict=True):
            for row in rows:
                row.routes = [] if route is None else [route[-len(prompt.token_ids) :]]
        owner = [k for k, rows in enumerate(starts) for _ in rows]  # of each completion
        if any(len(rows) != 1 for rows in starts):
            self._cache.reorder_cache(index_tensor(owner, device))
        position = index_tensor([int(known[k].max()) + 1 for k in owner], device)
        owners = index_tensor(owner, device)
        self.logits = logits[owners]
        self._attend = attend[owners]
        self._position = position[None, :, None].expand(len(position_ids), -1, -1)  # (D, b, 1) of the next token

    def feed(self, tokens: Sequence[int], goes_on: Sequence[bool]) -> None:
        """Compute the next token of the rows that go on, and drop the others.

        Args:
            tokens: (b,) the next token of each row.
            goes_on: (b,) whether it is computed.
        """
        keep = [b for b, on in enumerate(goes_on) if on]
        self.rows = [self.rows[b] for b in keep]
        if not keep:
            return
        token = index_tensor(tokens, self._policy.device)
        if len(keep) < len(tokens):
            kept = index_tensor(keep, self._policy.device)
            self._cache.reorder_cache(kept)
            token = token[kept]
            self._attend = self._attend[kept]
            self._position = self._position[:, kept]
        self._attend = torch.cat([self._attend, self._attend.new_ones(len(keep), 1)], 1)
        self.logits, routes = self._forward(token[:, None], self._attend, self._position)
        self._position = self._position + 1
        for row, route in zip(self.rows, routes, strict=True):
            if route is not None:
                row.routes.append(route)

    def _forward(
        self, input_ids: Tensor, attend: Tensor, position_ids: Tensor, **images: Tensor
    ) -> tuple[Tensor, Routes]:
        """Return the logits (b, V) after each row's last token; the cache grows in place.

        Args:
            input_ids: (b, L) the tokens that follow those in the cache.
            attend: (b, S) bool, the tokens of the cache and of the input that are attended to.
            position_ids: (D, b, L).
            images: the model's inputs of images.

        Returns:
            The logits, and each row's experts (L, K, k) if they are replayed.
        """
        model: Any = self._policy.model
        if len(position_ids) == 1:
            positions = position_ids[0]
        else:
            positions = position_ids
        with routing() if self._policy.replays_routes else nullcontext() as seen:
            output = model(
                input_ids=input_ids,
                attention_mask=attend,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                **images,
            )
        routes = None if seen is None else seen.packed()  # (b * L, K, k)
        if routes is None:
            rows: Routes = [None] * len(input_ids)
        else:
            rows = routes.unflatten(0, input_ids.shape).unbind()
        return output.logits[:, -1].float(), rows


class _Row(Row):
    """A completion while it is decoded.

    The other arguments are those of `Row`.

    Args:
        sampling: how its tokens are drawn.

    Attributes:
        observed: tokens still to be fed before the current turn is sampled.
        uniform: (T,) numbers in [0, 1), one for each token of the turn; they depend only on the seed.
        routes: the experts (l, K, k) of its inputs so far, in pieces; none if they are not replayed.
    """

    def __init__(self, p: int, g: int, prompt: Prompt, seed: int, limit: int, sampling: Sampling) -> None:
        super().__init__(p, g, prompt, seed, limit)
        self._most = sampling.max_tokens
        self.observed: deque[int] = deque()
        self.routes: list[Tensor] = []
        self.uniform = self._numbers()

    def all_routes(self) -> Tensor | None:
        """Return the experts of all inputs so far; None if they are not replayed."""
        if not self.routes:
            return None
        return torch.cat(self.routes)

    def continue_with(self, how: Continuation) -> None:
        super().continue_with(how)
        self.observed = deque(how.token_ids)
        self.uniform = self._numbers()

    def _numbers(self) -> Any:
        return torch.rand(self._most, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64).numpy()


def draw_tokens(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution.

    Args:
        logits: (b, V) raw logits.
        sampling: the distribution that is drawn from.
        uniform: (b,) in [0, 1), float64.

    Returns:
        Tokens (b,), and their log-probabilities (b,) under the distribution they are drawn from (for greedy decoding,
        under the model's own).
    """
    logits = shape_logits(logits, sampling)
    if sampling.temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(-1, token[:, None]).squeeze(-1)
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if sampling.top_p < 1:
        ranked, index = logits.sort(-1, descending=True)
        before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)  # total probability of more likely tokens
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= sampling.top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    logp = logits.log_softmax(-1)
    cumulative = logp.double().exp().cumsum(-1)  # (b, V)
    point = (uniform * cumulative[:, -1])[:, None]
    token = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[-1] - 1)  # (b, 1)
    return token.squeeze(-1), logp.gather(-1, token).squeeze(-1)
