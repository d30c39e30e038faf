"""The engine that works everywhere: the trainer's own model with a KV cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.distributed.device import index, to_device
from lit_rlvr.errors import UserError
from lit_rlvr.policy.logprobs import shape_logits
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout.engine import Done, EngineContext, RolloutEngine
from lit_rlvr.rollout.stop_texts import ends_with_stop
from lit_rlvr.rollout.turns import Continuation, Turns, turn_seed
from lit_rlvr.types import Completion, Prompt, Sampling


class HFEngine(RolloutEngine):
    """Decodes with the trainer's live weights and precision, so nothing is copied or can go stale.

    Each prompt is computed once and its KV cache repeated for the group; finished sequences leave the batch. Tokens of
    an observation are fed one at a time in place of sampled ones, while other sequences go on. All turns that end
    together are answered before the next token, so that results do not depend on how long an environment takes.

    Args:
        max_sequences: completions decoded at once; more are decoded in several batches.
    """

    exact = True
    shares_weights = True

    def __init__(self, max_sequences: int = 256) -> None:
        self.max_sequences = max_sequences
        self._context: EngineContext | None = None
        self._policy: Policy | None = None  # decodes

    def start(self, context: EngineContext) -> None:
        from transformers import DynamicCache

        model: Any = context.policy.model
        if not all(hasattr(layer, "batch_select_indices") for layer in DynamicCache(config=model.config).layers):
            raise UserError(f"rollout.engine: hf cannot decode {type(model).__name__}'s recurrent layers; use vllm")
        self._context, self._policy = context, context.policy

    def sync(self, policy: Policy) -> None:
        """Use this policy's weights from now on; nothing is copied."""
        self._policy = policy

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float32 if self._context is None else self._context.dtype

    def close(self) -> None:
        self._context = self._policy = None

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: Done | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        assert self._context is not None and self._policy is not None, "start() comes first"
        turns = turns or Turns()
        turns.begin(prompts, sampling, seeds)
        order = sorted(range(len(prompts)), key=lambda p: len(prompts[p].token_ids))
        found: dict[int, list[Completion]] = {}
        batch: list[int] = []
        device, half = self._context.policy.device.type, self.compute_dtype != torch.float32
        with self._policy.weights(), torch.autocast(device, self.compute_dtype, enabled=half):
            for p in order:
                if batch and sum(len(seeds[q]) for q in [*batch, p]) > self.max_sequences:
                    found |= self._decode(prompts, batch, sampling, seeds, done, turns)
                    batch = []
                batch.append(p)
            if batch:
                found |= self._decode(prompts, batch, sampling, seeds, done, turns)
        return [found[p] for p in range(len(prompts))]

    def _decode(
        self, prompts: Sequence[Prompt], batch: list[int], sampling: Sampling, seeds: Sequence[Sequence[int]],
        report: Done | None, turns: Turns,
    ) -> dict[int, list[Completion]]:  # fmt: skip
        """Decode the prompts in `batch` together; returns prompt index -> completions."""
        from transformers import DynamicCache

        policy, context = self._policy, self._context
        assert policy is not None and context is not None, "start() comes first"
        model: Any = policy.model
        device = policy.device
        ids = [prompts[p].token_ids for p in batch]
        width = max(len(i) for i in ids)
        input_ids = index([[0] * (width - len(i)) + i for i in ids], device)  # (P, L), left-padded
        attend = index([[0] * (width - len(i)) + [1] * len(i) for i in ids], device)
        known = [policy.places(prompts[p]) for p in batch]  # (D, L) each
        places = to_device(torch.stack([pad(x, (width - x.shape[1], 0)) for x in known], 1), device)  # (D, P, L)
        images = policy.images([pixels for p in batch if (pixels := prompts[p].pixels) is not None])
        cache = DynamicCache(config=model.config)
        logits = self._forward(model, input_ids, attend, cache, places, **images)  # (P, V)

        owner = [k for k, p in enumerate(batch) for _ in seeds[p]]  # of each of the B completions
        if any(len(seeds[p]) != 1 for p in batch):
            cache.batch_select_indices(index(owner, device))
        logits, attend = (x[index(owner, device)] for x in (logits, attend))
        position = index([int(known[k].max()) + 1 for k in owner], device)[:, None]  # (B, 1)
        first = [0, *accumulate(len(seeds[p]) for p in batch)]  # a prompt's first row
        place = {p: k for k, p in enumerate(batch)}
        names = [(p, g) for p in batch for g in range(len(seeds[p]))]  # of each row
        rows = [_Row(seeds[p][g], context.limit(sampling.max_tokens, len(prompts[p].token_ids))) for p, g in names]
        uniform = _uniforms([row.seed for row in rows], sampling)  # (B, T), on the CPU
        found: dict[int, list[Completion]] = {}

        def finish(k: int) -> None:
            found[batch[k]] = [_whole(row) for row in rows[first[k] : first[k + 1]]]
            if report is not None:
                report(batch[k], found[batch[k]])

        eos = set(policy.eos_token_ids)
        alive = list(range(len(owner)))  # the completion of each row of the cache
        while alive:
            step = [min(len(rows[i].tokens), sampling.max_tokens - 1) for i in alive]
            token, logp = draw(logits, sampling, to_device(uniform[alive, step], device))  # (b,), (b,)
            tokens, logprobs = torch.stack([token.double(), logp.double()]).tolist()  # exact, and one wait for a GPU
            chosen = [int(token) for token in tokens]
            for b, (i, value) in enumerate(zip(alive, logprobs, strict=True)):
                row = rows[i]
                if row.observed:
                    chosen[b] = row.observed.popleft()
                    continue
                row.tokens.append(chosen[b])
                row.logprobs.append(value)
                stop = chosen[b] in eos or ends_with_stop(context.tokenizer, row.tokens, sampling.stop)
                if stop or len(row.tokens) == row.limit:
                    p, g = names[i]
                    turns.stopped(p, g, self._turn(row, stop))
            for p, g, answer in turns.answers(turns.waiting):
                k = place[p]
                row = rows[first[k] + g]
                if isinstance(answer, Completion):
                    row.whole = answer
                    if all(row.whole for row in rows[first[k] : first[k + 1]]):
                        finish(k)
                else:
                    row.go_on(answer)
                    uniform[first[k] + g] = _uniforms([turn_seed(row.seed, row.turn)], sampling)[0]
            keep = [b for b, i in enumerate(alive) if rows[i].whole is None]
            if not keep:
                break
            token = index(chosen, device)
            if len(keep) < len(alive):
                alive, kept = [alive[b] for b in keep], index(keep, device)
                cache.batch_select_indices(kept)
                token, attend, position = token[kept], attend[kept], position[kept]
            attend = torch.cat([attend, attend.new_ones(len(alive), 1)], 1)
            logits = self._forward(model, token[:, None], attend, cache, position.expand(len(places), -1, -1))
            position = position + 1
        for k in (k for k, p in enumerate(batch) if p not in found):
            finish(k)  # without seeds
        return found

    def _turn(self, row: _Row, stopped: bool) -> Completion:
        assert self._context is not None
        text = str(self._context.tokenizer.decode(row.tokens, skip_special_tokens=True))
        return Completion(text, tuple(row.tokens), "stop" if stopped else "length", tuple(row.logprobs))

    @staticmethod
    def _forward(model: Any, input_ids: Tensor, attend: Tensor, cache: Any, places: Tensor, **images: Tensor) -> Tensor:
        """Logits (b, V) after each row's last token, given positions (D, b, L); the cache grows in place."""
        output = model(
            input_ids=input_ids, attention_mask=attend, position_ids=places[0] if len(places) == 1 else places,
            past_key_values=cache, use_cache=True, logits_to_keep=1, **images,
        )  # fmt: skip
        return output.logits[:, -1].float()


class _Row:
    """A completion while it is decoded.

    seed: of its first turn. limit: the longest current turn.
    tokens, logprobs: of the current turn. turn: its number. observed: tokens still to be fed before it is sampled.
    whole: the completion, once it is over.
    """

    def __init__(self, seed: int, limit: int) -> None:
        self.seed, self.limit, self.turn = seed, limit, 0
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.observed: deque[int] = deque()
        self.whole: Completion | None = None

    def go_on(self, how: Continuation) -> None:
        """Begin the next turn."""
        self.tokens, self.logprobs, self.observed = [], [], deque(how.token_ids)
        self.turn, self.limit = self.turn + 1, how.max_tokens


def _whole(row: _Row) -> Completion:
    assert row.whole is not None, "a group is complete when its last completion is"
    return row.whole


def _uniforms(seeds: Sequence[int], sampling: Sampling) -> Tensor:
    """(B, T) numbers in [0, 1), float64; each row depends only on its seed, not on the rest of the batch."""
    rows = [
        torch.rand(sampling.max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows)


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution.

    Args:
        logits: (b, V) raw logits. uniform: (b,) in [0, 1), float64.

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
