"""The policy: a causal language model and the log-probabilities of completions under it."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_rlvr.errors import UserError
from lit_rlvr.rows import Rows, Segments, build_rows
from lit_rlvr.types import Rollout, Sampling

_log = logging.getLogger("lit_rlvr")
_CHUNK_ELEMENTS = 1 << 26  # logits held at once: positions x vocabulary


class Policy(nn.Module):
    """A Hugging Face causal language model that scores completions in place.

    Args:
        model: a `...ForCausalLM` with a decoder and an output embedding.
        eos_token_ids: tokens that end a completion, from the generation config.
        shared_prefix: lay a group out as one row `[prompt][c1]...[cG]`; False = one completion per row.
    """

    def __init__(self, model: nn.Module, eos_token_ids: tuple[int, ...], shared_prefix: bool = True) -> None:
        super().__init__()
        self.model = model
        self.eos_token_ids = eos_token_ids
        self.shared_prefix = shared_prefix

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(
        self, rows: Rows, sampling: Sampling, entropy: bool, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (N,) of the targets under the sampling distribution, and the entropy (N,) there.

        The vocabulary is only ever held for a chunk of positions: long batches recompute it in the backward pass.
        """
        model: Any = self.model
        hidden = model.get_decoder()(
            input_ids=rows.input_ids,
            attention_mask=_mask_for(model, rows.attention_mask),
            position_ids=rows.position_ids,
            use_cache=False,
        ).last_hidden_state  # (R, L, H)
        hidden = hidden[rows.row, rows.column]  # (N, H)
        head = model.get_output_embeddings()
        chunk = max(1, _CHUNK_ELEMENTS // head.weight.shape[0])
        if len(rows.target) <= chunk:
            return _score(head, hidden, rows.target, sampling, entropy, entropy_gradient)
        pieces = [
            checkpoint(_score, head, h, t, sampling, entropy, entropy_gradient, use_reentrant=False)
            for h, t in zip(hidden.split(chunk), rows.target.split(chunk), strict=True)
        ]
        return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces]) if entropy else None

    def logprobs(
        self, rollout: Rollout, rows: list[int], entropy: bool = False, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of some completions of a rollout.

        Args:
            rollout: the whole rollout of this rank.
            rows: which completions, as indices p * G + g; those of one prompt stand together.
            entropy: also give the exact entropy of the policy at each position.
            entropy_gradient: let a gradient flow through the entropy.

        Returns:
            (len(rows), T) log-probabilities, 0 where padded; and entropies of the same shape, or None.
        """
        group_size, width = rollout.group_size, rollout.token_ids.shape[1]
        tokens = [rollout.completions[i // group_size][i % group_size].token_ids for i in rows]
        pairs = [(i // group_size, c) for i, c in zip(rows, tokens, strict=True)]
        groups: list[Segments] = []
        for prompt, members in groupby(pairs, key=lambda pair: pair[0]):
            ids = rollout.prompts[prompt].token_ids
            completions = [c for _, c in members]
            groups += [(ids, completions)] if self.shared_prefix else [(ids, [c]) for c in completions]
        built = build_rows(groups, self.device)
        logp, spread = self(built, rollout.sampling, entropy, entropy_gradient)
        at = (built.sequence, built.position)
        empty = torch.zeros(len(rows), width, dtype=logp.dtype, device=logp.device)
        return empty.index_put(at, logp), None if spread is None else empty.index_put(at, spread)


def _score(
    head: nn.Module, hidden: Tensor, target: Tensor, sampling: Sampling, entropy: bool, entropy_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """(N, H) hidden states -> (N,) log-probabilities of `target` and entropies, in at least fp32."""
    logits = head(hidden)  # (N, V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = shape_logits(logits, sampling)
    normaliser = logits.logsumexp(-1)  # (N,)
    logp = logits.gather(-1, target[:, None]).squeeze(-1) - normaliser
    if not entropy:
        return logp, None
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities = (logits - normaliser[:, None]).exp()
        finite = logits.masked_fill(logits == float("-inf"), 0.0)  # banned tokens: 0 times -inf
        spread = normaliser - (probabilities * finite).sum(-1)
    return logp, spread


def shape_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Divide by the temperature and ban tokens (..., V): the distribution that sampling and scoring share."""
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if sampling.banned_token_ids:
        banned = torch.tensor(sampling.banned_token_ids, device=logits.device)
        logits = logits.index_fill(-1, banned, float("-inf"))
    return logits


def _mask_for(model: Any, attend: Tensor) -> Tensor:
    """The attention mask as the model's kernel wants it: bool for sdpa, additive for eager attention."""
    if model.config._attn_implementation != "eager":
        return attend
    return torch.where(attend, 0.0, torch.finfo(model.dtype).min).to(model.dtype)


def load_policy(folder: str, shared_prefix: bool = True, dtype: torch.dtype = torch.float32) -> Policy:
    """Load a causal language model as a policy, in evaluation mode (no dropout), and check its log-probabilities.

    Args:
        folder: a model folder or hub id, from `resolve_model`.
        shared_prefix: see `Policy`; a model it is not exact for falls back to one completion per row, with a warning.
        dtype: of the master weights.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise UserError(f"model: {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    policy = Policy(model.eval(), eos_token_ids(model), shared_prefix)
    check_policy(policy)
    return policy


def eos_token_ids(model: Any) -> tuple[int, ...]:
    """The tokens that end a completion, from the generation config.

    Raises:
        UserError: the model names none, so every completion would be cut off.
    """
    found = model.generation_config.eos_token_id
    found = model.config.eos_token_id if found is None else found
    if found is None:
        raise UserError("model: neither generation_config.json nor config.json names an eos_token_id; add one")
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def check_policy(policy: Policy) -> None:
    """Compare our log-probabilities with the model's own forward pass on a few tokens, once.

    This catches what would be silently wrong: models that scale or cap their logits after the output
    embedding, and attention that does not take a block mask (sliding windows, recurrent layers).

    Raises:
        UserError: even one completion per row does not reproduce the model's own log-probabilities.
    """
    if _worst_difference(policy) <= _tolerance(policy):
        return
    if policy.shared_prefix:
        policy.shared_prefix = False
        if _worst_difference(policy) <= _tolerance(policy):
            _log.warning("This model does not take shared-prefix rows; using one completion per row (slower).")
            return
    name = type(policy.model).__name__
    raise UserError(f"model: {name}'s log-probabilities cannot be reproduced from its hidden states; not supported")


def _tolerance(policy: Policy) -> float:
    return 1e-3 if next(policy.model.parameters()).dtype in (torch.float32, torch.float64) else 0.2


@torch.no_grad()
def _worst_difference(policy: Policy) -> float:
    model: Any = policy.model
    ids = [i % model.config.get_text_config().vocab_size for i in range(11, 31)]
    prompt, completions = ids[:12], [ids[12:16], ids[16:20]]
    groups: list[Segments] = [(prompt, completions)] if policy.shared_prefix else [(prompt, [c]) for c in completions]
    ours, _ = policy(build_rows(groups, policy.device), Sampling(), False)
    theirs = []
    for completion in completions:
        full = torch.tensor([prompt + completion], device=policy.device)
        logp = model(full, use_cache=False).logits.float().log_softmax(-1)
        theirs.append(logp[0, len(prompt) - 1 : -1].gather(-1, full[0, len(prompt) :, None]).squeeze(-1))
    return float((ours.float() - torch.cat(theirs)).abs().max())
