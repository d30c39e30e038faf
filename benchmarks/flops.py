"""The useful floating-point operations of a training step: those of its result, without recomputation."""

from __future__ import annotations

from typing import Any

from lit_rlvr.types import Rollout


def step_flops(config: Any, parameters: int, rollout: Rollout) -> tuple[float, float]:
    """Return two counts of the operations of forward and backward on a rollout in which every group has a gradient.

    The first is the usual estimate, 6 x parameters x input tokens; the second counts the output embedding at the scored
    positions only. Both add attention, 12 x layers x heads x head size x the keys that the mask lets each token
    attend to, its own included.
    """
    embedding = config.vocab_size * config.hidden_size
    decoder = parameters - embedding * (1 if config.tie_word_embeddings else 2)
    lengths = [[len(c.token_ids) for c in group] for group in rollout.completions]
    inputs = keys = 0
    for prompt, group in zip(rollout.prompts, lengths, strict=True):
        first = len(prompt.token_ids)
        inputs += first + sum(n - 1 for n in group)  # a completion's last token is never an input
        keys += triangle(first) + sum((n - 1) * first + triangle(n - 1) for n in group)
    scored = sum(map(sum, lengths))
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * head_size * keys
    strict = 6.0 * (decoder * inputs + embedding * scored) + attention
    return 6.0 * parameters * inputs + attention, strict


def triangle(n: int) -> int:
    """Return 1 + 2 + ... + n, the keys of n tokens under a causal mask."""
    return n * (n + 1) // 2
