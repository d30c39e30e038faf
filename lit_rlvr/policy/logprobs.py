"""Log-probabilities, entropies and divergences from hidden states.

They are computed in chunks of positions, to bound the memory of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from lit_rlvr.distributed.collectives import index_tensor
from lit_rlvr.objectives import vocabulary_divergence
from lit_rlvr.policy.architecture import LogitTransform
from lit_rlvr.policy.precision import autocast_dtype
from lit_rlvr.sampling import Sampling

CHUNK_LOGITS = 1 << 25  # logits computed at once
BLOCK_LOGITS = 1 << 21  # logits that a CPU normalises at once, so that they stay in its cache
GPU_ROWS = 2048  # minimum positions per chunk on a GPU: matrix products are slow with fewer
GPU_COLUMNS = 16384  # rows of the output embedding whose gradient a GPU accumulates at once, in reduced precision
KEPT_BYTES = 1 << 29  # of logits that a call keeps for its backward pass; above this they are recomputed


class PolicyOutput(NamedTuple):
    """The scores of some tokens under a policy, in tensors of one shape.

    Args:
        logp: log-probabilities.
        entropy: exact entropies, in nats; None = not asked for.
        divergence: from a teacher, over the vocabulary; None = there is none.
        expert_imbalance: the loss of the use of experts; None = it is not asked for.
        flips: the share of layers in which the router would choose other experts for the input that predicts the token
            than the engine's, which are replayed; None = none are.
    """

    logp: Tensor
    entropy: Tensor | None
    divergence: Tensor | None
    expert_imbalance: Tensor | None = None
    flips: Tensor | None = None


@dataclass(frozen=True)
class TeacherHead:
    """The inputs of a teacher's output layer for N tokens, that layer, and the divergence from the teacher.

    Args:
        hidden: (N, H).
        weight: (V, H).
        bias: (V,) or None.
        transform: as for `score_tokens`, but the teacher's own.
        beta, top_k: as for `vocabulary_divergence`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    transform: LogitTransform
    beta: float
    top_k: int | None = None

    def divergence(self, z: Tensor, raw: Tensor, sampling: Sampling) -> Tensor:
        """Return the divergence (n,) from the teacher at some tokens.

        Args:
            z: (n, V) the student's shaped logits.
            raw: (n, V) the teacher's raw logits.
            sampling: shapes the teacher's logits.
        """
        return vocabulary_divergence(z, shape_logits(self.transform(_wide(raw)), sampling), self.beta, self.top_k)


def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    sampling: Sampling,
    entropy: bool = False,
    entropy_gradient: bool = False,
    transform: LogitTransform = LogitTransform(),  # noqa: B008  # frozen
    teacher: TeacherHead | None = None,
) -> PolicyOutput:
    """Return log-probabilities of tokens under the sampling distribution, in float32 or wider, (N,).

    On request, return its exact entropies and its divergence from a teacher's distribution, too, (N,) each.

    Args:
        hidden: (N, H).
        weight: (V, H), the output embedding's.
        bias: (V,) or None.
        target: (N,) long.
        sampling: its temperature divides the logits, its banned tokens have probability 0.
        entropy: also return the entropies.
        entropy_gradient: let gradients flow through them.
        transform: the model's own function of its logits, before the temperature.
        teacher: also return the divergence from its distribution, with a gradient.
    """
    keep = torch.is_grad_enabled()
    logp, entropies, divergence = _Score.apply(
        hidden, weight, bias, target, sampling, entropy, entropy_gradient, keep, transform, teacher
    )
    return PolicyOutput(logp, entropies if entropy else None, None if teacher is None else divergence)


class _Score(torch.autograd.Function):
    """Log-probabilities and entropies whose gradients do not keep the logits.

    With z the shaped logits, p = softmax(z) and H its entropy: `d logp_t / dz = [v = t] - p` and
    `dH / dz = -p (log p + H)`. The gradient of a divergence is autograd's, block by block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        sampling: Sampling,
        entropy: bool,
        entropy_gradient: bool,
        keep: bool,
        transform: LogitTransform,
        teacher: TeacherHead | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = autocast_dtype(hidden.device, hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            features = hidden.to(dtype)
            head = weight.to(dtype)
            if teacher is not None:
                teacher = replace(teacher, hidden=teacher.hidden.to(dtype), weight=teacher.weight.to(dtype))
            ctx.rows = max(GPU_ROWS if hidden.is_cuda else 1, CHUNK_LOGITS // len(weight))
            size = len(target) * len(weight) * features.element_size()
            kept: list[Tensor] | None = [] if keep and size <= KEPT_BYTES else None
            wide = torch.promote_types(dtype, torch.float32)
            results = []
            for _ in range(4):
                results.append(torch.zeros(len(target), dtype=wide, device=hidden.device))
            for k, (h, t) in enumerate(zip(features.split(ctx.rows), target.split(ctx.rows), strict=True)):
                raw = _logits(h, head, bias)
                chunk = slice(k * ctx.rows, (k + 1) * ctx.rows)
                other = _teacher_logits(teacher, chunk)
                if kept is not None:
                    kept.append(raw)
                for at in _blocks(raw, teacher is not None):
                    z = shape_logits(transform(_wide(raw[at])), sampling)
                    if other is not None:
                        results[3][chunk][at] = teacher.divergence(z, other[at], sampling)  # type: ignore[union-attr]
                    for values, part in zip(results, _normalise(z, t[at], sampling, entropy), strict=False):
                        values[chunk][at] = part  # not kept: small blocks between large ones would fragment the heap
            logp, normaliser, spread, divergence = results
        ctx.save_for_backward(features, head, bias, target, normaliser, spread)
        ctx.kept = kept
        ctx.sampling = sampling
        ctx.dtypes = (hidden.dtype, weight.dtype)
        ctx.transform = transform
        ctx.teacher = teacher
        constant = {spread: not entropy_gradient, divergence: teacher is None}
        ctx.mark_non_differentiable(*(values for values, fixed in constant.items() if fixed))
        ctx.set_materialize_grads(False)
        return logp, spread, divergence

    @staticmethod
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, grad_divergence: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        features, head, bias, target, normaliser, spread = ctx.saved_tensors
        inputs, outputs = ctx.dtypes
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = None
        if needs_hidden:
            grad_hidden = torch.empty_like(features)
        if needs_weight:
            grad_weight = torch.zeros_like(head, dtype=outputs)
        else:
            grad_weight = None
        grad_bias = None
        if needs_bias:
            grad_bias = torch.zeros_like(bias)
        for k, start in enumerate(range(0, len(target), ctx.rows)):
            at = slice(start, start + ctx.rows)
            if ctx.kept is None:
                raw = _logits(features[at], head, bias)
            else:
                raw = ctx.kept[k]
            if grad_divergence is None:
                other = None
            else:
                other = _teacher_logits(ctx.teacher, at)
            blocks = _blocks(raw, other is not None)
            dz = torch.empty_like(raw) if len(blocks) > 1 else raw  # replaced by the gradient of its only block
            for block in blocks:
                z = shape_logits(ctx.transform(_wide(raw[block])), ctx.sampling)
                known = (x[at][block] for x in (target, normaliser, spread))
                given = (None if x is None else x[at][block] for x in (grad_logp, grad_entropy))
                grad_z = _logit_gradient(z, *known, *given)
                if other is not None:
                    with torch.enable_grad():
                        leaf = z.detach().requires_grad_()
                        apart = ctx.teacher.divergence(leaf, other[block], ctx.sampling)
                    grad_z += torch.autograd.grad(apart, leaf, grad_divergence[at][block])[0]  # type: ignore[index]
                if ctx.sampling.temperature not in (0.0, 1.0):
                    grad_z /= ctx.sampling.temperature
                ctx.transform.chain_(grad_z, raw[block])
                if grad_bias is not None:
                    grad_bias += grad_z.sum(0)
                if len(blocks) == 1:
                    dz = grad_z.to(raw.dtype)
                else:
                    dz[block] = grad_z
                del z, grad_z  # before the next block is computed
            if grad_hidden is not None:
                torch.mm(dz, head, out=grad_hidden[at])
            if grad_weight is not None:
                _accumulate(grad_weight, dz, features[at])
            del raw, dz  # before the next chunk is computed
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(inputs)
        return grad_hidden, grad_weight, grad_bias, *[None] * 7


def _teacher_logits(teacher: TeacherHead | None, rows: slice) -> Tensor | None:
    if teacher is None:
        return None
    return _logits(teacher.hidden[rows], teacher.weight, teacher.bias)


def _blocks(logits: Tensor, compared: bool) -> list[slice]:
    """Return the rows of logits (n, V) that are normalised at once.

    Args:
        logits: (n, V).
        compared: also with a teacher's, which takes several times the memory.
    """
    if logits.is_cuda:
        max_logits = CHUNK_LOGITS
    else:
        max_logits = BLOCK_LOGITS
    if logits.is_cuda and not compared:
        size = len(logits)
    else:
        size = max(1, max_logits // logits.shape[1])
    blocks = []
    for start in range(0, max(1, len(logits)), max(1, size)):
        blocks.append(slice(start, start + size))
    return blocks


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    return linear(hidden, head, None if bias is None else bias.to(hidden.dtype))


def _wide(logits: Tensor) -> Tensor:
    if logits.dtype == torch.float64:
        return logits
    return logits.float()


def _normalise(z: Tensor, target: Tensor, sampling: Sampling, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probability of the target, the log of the normaliser and the entropy, (n,) each.

    Args:
        z: (n, V) shaped logits.
        target: (n,) long.
        sampling: its banned tokens are -inf in z.
        entropy: False = the entropy is 0.
    """
    top = z.amax(-1, keepdim=True)
    mass = (z - top).exp_()
    total = mass.sum(-1)
    normaliser = top.squeeze(-1) + total.log()
    logp = z.gather(-1, target[:, None]).squeeze(-1) - normaliser
    if not entropy:
        return logp, normaliser, torch.zeros_like(logp)
    mean = mass.mul_(_finite(z, sampling)).sum(-1) / total  # a matrix product adds up one by one: 1e-3 off
    return logp, normaliser, normaliser - mean


def _finite(z: Tensor, sampling: Sampling) -> Tensor:
    """Set banned tokens to 0 instead of -inf, in place: their probability is 0, and 0 times anything finite is 0."""
    if not sampling.banned_token_ids:
        return z
    return z.index_fill_(-1, _banned(sampling, z), 0.0)


def _logit_gradient(
    z: Tensor,
    target: Tensor,
    normaliser: Tensor,
    entropy: Tensor,
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Return the gradient (n, V) of the loss with respect to the shaped logits.

    Args:
        z: (n, V) shaped logits.
        target: (n,) long.
        normaliser: (n,) its log.
        entropy: (n,).
        grad_logp: (n,) gradient with respect to the log-probability; None = 0.
        grad_entropy: (n,) gradient with respect to the entropy; None = 0.
    """
    if grad_logp is None:
        grad_logp = torch.zeros_like(normaliser)
    logp = z - normaliser[:, None]
    if grad_entropy is None:
        dz = logp.exp_().mul_(-grad_logp[:, None])
    else:
        p = logp.exp()
        logp.masked_fill_(p == 0, 0.0)  # banned tokens would be 0 times -inf
        dz = logp.add_(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logp[:, None]).mul_(p).neg_()
    return dz.scatter_add_(1, target[:, None], grad_logp[:, None])


def _accumulate(total: Tensor, dz: Tensor, hidden: Tensor) -> None:
    """Compute total (V, H) += dz (n, V)^T hidden (n, H)."""
    if total.dtype == dz.dtype:
        total.addmm_(dz.t(), hidden)
    else:
        columns = GPU_COLUMNS if dz.is_cuda else len(total)
        for part, block in zip(total.split(columns), dz.split(columns, 1), strict=True):
            part += block.t() @ hidden


def shape_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Apply temperature and banned tokens to logits (..., V): the distribution shared by sampling and scoring."""
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if sampling.banned_token_ids:
        logits = logits.index_fill(-1, _banned(sampling, logits), float("-inf"))
    return logits


def _banned(sampling: Sampling, logits: Tensor) -> Tensor:
    """Return the banned tokens among those of logits (..., V); a teacher may have fewer than the policy."""
    return index_tensor([token for token in sampling.banned_token_ids if token < logits.shape[-1]], logits.device)
