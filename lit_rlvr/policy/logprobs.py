"""Log-probabilities and entropies from hidden states, in chunks of positions to bound the memory of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from lit_rlvr.distributed.collectives import index
from lit_rlvr.policy.architecture import LogitTransform
from lit_rlvr.types import Sampling

CHUNK_LOGITS = 1 << 25  # logits computed at once
BLOCK_LOGITS = 1 << 21  # logits that a CPU normalises at once, so that they stay in its cache
GPU_ROWS = 2048  # minimum positions per chunk on a GPU: matrix products are slow with fewer
GPU_COLUMNS = 16384  # rows of the output embedding whose gradient a GPU accumulates at once, in reduced precision
KEPT_BYTES = 1 << 29  # of logits that a call keeps for its backward pass; above this they are recomputed


def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    sampling: Sampling,
    entropy: bool = False,
    entropy_gradient: bool = False,
    transform: LogitTransform = LogitTransform(),  # noqa: B008  # frozen
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities of tokens under the sampling distribution, and its exact entropies, in float32 or wider.

    Args:
        hidden: (N, H). weight: (V, H), the output embedding's. bias: (V,) or None. target: (N,) long.
        sampling: its temperature divides the logits, its banned tokens have probability 0.
        entropy: also return the entropies.
        entropy_gradient: let gradients flow through them.
        transform: the model's own function of its logits, before the temperature.

    Returns:
        (N,) log-probabilities, and (N,) entropies in nats or None.
    """
    keep = torch.is_grad_enabled()
    logp, spread = _Score.apply(hidden, weight, bias, target, sampling, entropy, entropy_gradient, keep, transform)
    return logp, spread if entropy else None


class _Score(torch.autograd.Function):
    """With z the shaped logits, p = softmax(z) and H its entropy: `d logp_t / dz = [v = t] - p` and
    `dH / dz = -p (log p + H)`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, sampling: Sampling,
        entropy: bool, entropy_gradient: bool, keep: bool, transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            features, head = hidden.to(dtype), weight.to(dtype)
            ctx.rows = max(GPU_ROWS if hidden.is_cuda else 1, CHUNK_LOGITS // len(weight))
            size = len(target) * len(weight) * features.element_size()
            kept: list[Tensor] | None = [] if keep and size <= KEPT_BYTES else None
            parts = []
            for h, t in zip(features.split(ctx.rows), target.split(ctx.rows), strict=True):
                raw = _logits(h, head, bias)
                if kept is not None:
                    kept.append(raw)
                for at in _blocks(raw):
                    z = shape_logits(transform(_wide(raw[at])), sampling)
                    parts.append(_normalise(z, t[at], sampling, entropy))
            logp, normaliser, spread = (torch.cat(columns) for columns in zip(*parts, strict=True))
        ctx.save_for_backward(features, head, bias, target, normaliser, spread)
        ctx.kept, ctx.sampling, ctx.dtypes = kept, sampling, (hidden.dtype, weight.dtype)
        ctx.transform = transform
        if not entropy_gradient:
            ctx.mark_non_differentiable(spread)
        ctx.set_materialize_grads(False)
        return logp, spread

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        features, head, bias, target, normaliser, spread = ctx.saved_tensors
        inputs, outputs = ctx.dtypes
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(features) if needs_hidden else None
        grad_weight = torch.zeros_like(head, dtype=outputs) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for k, start in enumerate(range(0, len(target), ctx.rows)):
            at = slice(start, start + ctx.rows)
            raw = _logits(features[at], head, bias) if ctx.kept is None else ctx.kept[k]
            blocks = _blocks(raw)
            dz = torch.empty_like(raw) if len(blocks) > 1 else raw  # replaced by the gradient of its only block
            for block in blocks:
                z = shape_logits(ctx.transform(_wide(raw[block])), ctx.sampling)
                known = (x[at][block] for x in (target, normaliser, spread))
                given = (None if x is None else x[at][block] for x in (grad_logp, grad_entropy))
                of_z = _logit_gradient(z, *known, *given)
                if ctx.sampling.temperature not in (0.0, 1.0):
                    of_z /= ctx.sampling.temperature
                ctx.transform.chain_(of_z, raw[block])
                if grad_bias is not None:
                    grad_bias += of_z.sum(0)
                if len(blocks) == 1:
                    dz = of_z.to(raw.dtype)
                else:
                    dz[block] = of_z
                del z, of_z  # before the next block is computed
            if grad_hidden is not None:
                torch.mm(dz, head, out=grad_hidden[at])
            if grad_weight is not None:
                _accumulate(grad_weight, dz, features[at])
            del raw, dz  # before the next chunk is computed
        grad_hidden = None if grad_hidden is None else grad_hidden.to(inputs)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def _blocks(logits: Tensor) -> list[slice]:
    """Return the rows of logits (n, V) that are normalised at once."""
    size = len(logits) if logits.is_cuda else max(1, BLOCK_LOGITS // logits.shape[1])
    return [slice(start, start + size) for start in range(0, max(1, len(logits)), max(1, size))]


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    return linear(hidden, head, None if bias is None else bias.to(hidden.dtype))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _normalise(z: Tensor, target: Tensor, sampling: Sampling, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Turn shaped logits (n, V) into log-probability of the target, log of the normaliser, entropy (0 if not
    requested)."""
    top = z.amax(-1, keepdim=True)
    mass = (z - top).exp_()
    total = mass.sum(-1)
    normaliser = top.squeeze(-1) + total.log()
    logp = z.gather(-1, target[:, None]).squeeze(-1) - normaliser
    if not entropy:
        return logp, normaliser, torch.zeros_like(logp)
    mean = torch.bmm(mass[:, None], _finite(z, sampling)[:, :, None]).flatten() / total
    return logp, normaliser, normaliser - mean


def _finite(z: Tensor, sampling: Sampling) -> Tensor:
    """Set banned tokens to 0 instead of -inf, in place: their probability is 0, and 0 times anything finite is 0."""
    if not sampling.banned_token_ids:
        return z
    return z.index_fill_(-1, index(sampling.banned_token_ids, z.device), 0.0)


def _logit_gradient(
    z: Tensor, target: Tensor, normaliser: Tensor, entropy: Tensor, of_logp: Tensor | None, of_entropy: Tensor | None
) -> Tensor:
    """Return the gradient (n, V) of the loss with respect to the shaped logits, from those (n,) of log-probability and
    entropy."""
    of_logp = torch.zeros_like(normaliser) if of_logp is None else of_logp
    logp = z - normaliser[:, None]
    if of_entropy is None:
        dz = logp.exp_().mul_(-of_logp[:, None])
    else:
        p = logp.exp()
        logp.masked_fill_(p == 0, 0.0)  # banned tokens would be 0 times -inf
        dz = logp.add_(entropy[:, None]).mul_(of_entropy[:, None]).add_(of_logp[:, None]).mul_(p).neg_()
    return dz.scatter_add_(1, target[:, None], of_logp[:, None])


def _accumulate(total: Tensor, dz: Tensor, hidden: Tensor) -> None:
    """Compute total (V, H) += dz (n, V)^T hidden (n, H)."""
    if total.dtype == dz.dtype:
        total.addmm_(dz.t(), hidden)
    else:
        columns = GPU_COLUMNS if dz.is_cuda else len(total)
        for part, its in zip(total.split(columns), dz.split(columns, 1), strict=True):
            part += its.t() @ hidden


def shape_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Apply temperature and banned tokens to logits (..., V): the distribution shared by sampling and scoring."""
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if sampling.banned_token_ids:
        banned = index(sampling.banned_token_ids, logits.device)
        logits = logits.index_fill(-1, banned, float("-inf"))
    return logits
