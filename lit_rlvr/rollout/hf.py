"""The engine that works everywhere: the trainer's own model with a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.errors import UserError
from lit_rlvr.policy.logprobs import shape_logits
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout.engine import Done, EngineContext, RolloutEngine
from lit_rlvr.types import Completion, Prompt, Sampling


class HFEngine(RolloutEngine):
    """Decodes with the trainer's live weights and precision, so nothing is copied or can go stale.

    Each prompt is computed once and its KV cache repeated for the group; finished sequences leave the batch.

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
    ) -> list[list[Completion]]:
        assert self._context is not None and self._policy is not None, "start() comes first"
        order = sorted(range(len(prompts)), key=lambda p: len(prompts[p].token_ids))
        found: dict[int, list[Completion]] = {}
        batch: list[int] = []
        device, half = self._context.policy.device.type, self.compute_dtype != torch.float32
        with self._policy.weights(), torch.autocast(device, self.compute_dtype, enabled=half):
            for p in order:
                if batch and sum(len(seeds[q]) for q in [*batch, p]) > self.max_sequences:
                    found |= self._decode(prompts, batch, sampling, seeds, done)
                    batch = []
                batch.append(p)
            if batch:
                found |= self._decode(prompts, batch, sampling, seeds, done)
        return [found[p] for p in range(len(prompts))]

    def _decode(
        self, prompts: Sequence[Prompt], batch: list[int], sampling: Sampling, seeds: Sequence[Sequence[int]],
        report: Done | None,
    ) -> dict[int, list[Completion]]:  # fmt: skip
        """Decode the prompts in `batch` together; returns prompt index -> completions."""
        from transformers import DynamicCache

        policy, context = self._policy, self._context
        assert policy is not None and context is not None, "start() comes first"
        model: Any = policy.model
        device = policy.device
        ids = [prompts[p].token_ids for p in batch]
        width = max(len(i) for i in ids)
        input_ids = torch.tensor([[0] * (width - len(i)) + i for i in ids], device=device)  # (P, L), left-padded
        attend = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=device)
        known = [policy.places(prompts[p]) for p in batch]  # (D, L) each
        places = torch.stack([pad(x, (width - x.shape[1], 0)) for x in known], 1).to(device)  # (D, P, L)
        images = policy.images([pixels for p in batch if (pixels := prompts[p].pixels) is not None])
        cache = DynamicCache(config=model.config)
        logits = self._forward(model, input_ids, attend, cache, places, **images)  # (P, V)

        owner = torch.tensor([k for k, p in enumerate(batch) for _ in seeds[p]], device=device)  # (B,)
        counts = {len(seeds[p]) for p in batch}
        if counts != {1}:
            cache.batch_select_indices(owner)
        logits, attend = logits[owner], attend[owner]
        position = torch.tensor([int(x.max()) + 1 for x in known], device=device)[owner, None]  # (B, 1)
        limit = torch.tensor([context.limit(prompts[p], sampling) for p in batch], device=device)[owner]  # (B,)
        uniform = _uniforms([s for p in batch for s in seeds[p]], sampling, device)  # (B, T)
        tokens: list[list[int]] = [[] for _ in range(len(owner))]
        logprobs: list[list[float]] = [[] for _ in range(len(owner))]
        stopped, over = [False] * len(owner), [False] * len(owner)
        first = [0, *accumulate(len(seeds[p]) for p in batch)]  # a prompt's first row
        found: dict[int, list[Completion]] = {}

        def finish(k: int) -> None:
            span = slice(first[k], first[k + 1])
            found[batch[k]] = self._completions(tokens[span], logprobs[span], stopped[span])
            if report is not None:
                report(batch[k], found[batch[k]])

        eos = torch.tensor(policy.eos_token_ids, device=device)
        alive = torch.arange(len(owner), device=device)  # the completion of each row of the cache
        for step in range(sampling.max_tokens):
            token, logp = draw(logits, sampling, uniform[alive, step])  # (b,), (b,)
            done = torch.isin(token, eos)
            ended = done | (limit[alive] == step + 1)
            rows = zip(*(x.tolist() for x in (alive, token, logp, done, ended)), strict=True)
            for row, chosen, value, end, last in rows:
                tokens[row].append(chosen)
                logprobs[row].append(value)
                stopped[row], over[row] = end, last
            for k in sorted(set(owner[alive[ended]].tolist())):
                if all(over[first[k] : first[k + 1]]):
                    finish(k)
            keep = torch.nonzero(~ended).squeeze(1)
            if len(keep) == 0:
                break
            if len(keep) < len(alive):
                cache.batch_select_indices(keep)
                alive, token, attend, position = alive[keep], token[keep], attend[keep], position[keep]
            attend = torch.cat([attend, attend.new_ones(len(alive), 1)], 1)
            logits = self._forward(model, token[:, None], attend, cache, position.expand(len(places), -1, -1))
            position = position + 1
        for k in (k for k, p in enumerate(batch) if p not in found):
            finish(k)  # without seeds
        return found

    @staticmethod
    def _forward(model: Any, input_ids: Tensor, attend: Tensor, cache: Any, places: Tensor, **images: Tensor) -> Tensor:
        """Logits (b, V) after each row's last token, given positions (D, b, L); the cache grows in place."""
        output = model(
            input_ids=input_ids, attention_mask=attend, position_ids=places[0] if len(places) == 1 else places,
            past_key_values=cache, use_cache=True, logits_to_keep=1, **images,
        )  # fmt: skip
        return output.logits[:, -1].float()

    def _completions(
        self, tokens: list[list[int]], logprobs: list[list[float]], stopped: list[bool]
    ) -> list[Completion]:
        assert self._context is not None
        texts = [str(self._context.tokenizer.decode(ids, skip_special_tokens=True)) for ids in tokens]
        return [
            Completion(text, tuple(ids), "stop" if end else "length", tuple(values))
            for text, ids, values, end in zip(texts, tokens, logprobs, stopped, strict=True)
        ]


def _uniforms(seeds: Sequence[int], sampling: Sampling, device: torch.device) -> Tensor:
    """(B, T) numbers in [0, 1), float64; each row depends only on its seed, not on the rest of the batch."""
    rows = [
        torch.rand(sampling.max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).to(device)


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
