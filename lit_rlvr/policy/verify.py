"""Checks a policy against its own model: what would be silently wrong is refused or computed a slower way."""

from __future__ import annotations

from itertools import pairwise
from math import isnan
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

from lit_rlvr.common.log import log
from lit_rlvr.distributed.collectives import all_max
from lit_rlvr.distributed.sharding import full_tensor
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.media import Pixels
from lit_rlvr.policy import attention
from lit_rlvr.policy.architecture import has_recurrent_layers
from lit_rlvr.policy.layout import Group, Rows, build_rows
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import is_half, training_autocast
from lit_rlvr.policy.spans import available, has_flash_attention_3, lay_out_spans
from lit_rlvr.policy.speed import compile_layers, decoder_layers
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Prompt, Sample


def verify_or_fall_back(policy: Policy, dtype: torch.dtype | None = None) -> None:
    """Compare our log-probabilities with the model's own forward pass on a few tokens.

    This catches models that change their logits in a way unknown to `architecture.py`, which are refused, and models
    without plain causal attention (sliding windows, recurrent layers), which fall back to one completion per row.

    Args:
        policy: the policy.
        dtype: what the model computes in when it is trained, and here; by default its weights' type.

    Raises:
        UserError: even one completion per row does not reproduce the model's own log-probabilities.
    """
    if dtype is None:
        dtype = next(policy.model.parameters()).dtype
    reason = "it does not pass our layout to its attention"
    try:
        if policy.shared_prefix and has_recurrent_layers(policy.model.config):  # numbers of a short row may agree
            raise attention.CannotShare("recurrent layers")
        if _wrong(policy, dtype) <= 1:
            return
    except attention.CannotShare as error:
        reason = f"it has {error}"
    if policy.shared_prefix:
        policy.share_prefix(False)
        if _wrong(policy, dtype) <= 1:
            log.warning("prompts cannot be shared with this model (%s); one completion per row: slower", reason)
            return
    name = type(policy.model).__name__
    if isnan(_wrong(policy, dtype)):
        raise UserError(f"model: {name}'s log-probabilities are not numbers, its weights are broken; use another copy")
    raise UserError(f"model: {name}'s log-probabilities cannot be reproduced from its hidden states; not supported")


def compile_and_verify(policy: Policy, dtype: torch.dtype) -> None:
    """Compile a verified policy's layers, in place; their log-probabilities and gradients must stay the same.

    Collective if the weights are sharded; call it on every rank.

    Args:
        policy: the policy.
        dtype: what the model computes in when it is trained.

    Raises:
        UserError: the layers cannot be compiled, or not correctly.
    """
    name = type(policy.model).__name__
    if not policy.shared_prefix:
        log.warning("model.compute.torch_compile: only layers that share prompts are compiled; %s's are not", name)
        return
    plain = _trained_once(policy, dtype)
    compile_layers(policy.model)
    try:
        compiled = _trained_once(policy, dtype)
    except TorchDynamoException as error:
        reason = shorten(str(error).partition("\n\n")[0], 200, placeholder="...")  # advice follows
        raise UserError(
            f"model.compute.torch_compile: torch cannot compile {name}'s layers ({reason}); leave it off, or install "
            "the compiler: a C++ compiler for a CPU, Triton for a GPU"
        ) from error
    if _differs(compiled, plain, dtype):
        raise UserError(f"model.compute.torch_compile: {name}'s compiled layers compute something else; leave it off")


def check_spans(policy: Policy, dtype: torch.dtype) -> None:
    """Compare the two methods of attention on the policy's device: log-probabilities and gradients must be the same.

    A GPU's kernels for spans take 16 bits only, so the check of a policy in float32 does not run them.

    Collective if the weights are sharded; call it on every rank.

    Args:
        policy: the policy.
        dtype: what the model computes in when it is trained.

    Raises:
        UserError: they differ by more than rounding.
    """
    if not policy.shared_prefix or policy.attention_method is not None or not available(policy.device, dtype):
        return
    padded = _trained_once(policy, dtype, attention.lay_out_padded)
    if _differs(_trained_once(policy, dtype, lay_out_spans), padded, dtype):
        raise UserError(
            f"model: {type(policy.model).__name__}'s attention by spans (policy/spans.py) computes something else on "
            f"{policy.device} than padded attention; use model.compute.shared_prefix: false, and report the "
            "versions of torch and of the driver"
        )


def try_flash_attention_3(policy: Policy, dtype: torch.dtype) -> None:
    """Have torch compute attention by FlashAttention 3 if every rank has it and it computes the same.

    Both methods of attention are compared, because torch uses it for both.

    Collective: call it on every rank, after `check_spans`.

    Args:
        policy: the policy.
        dtype: what the model computes in when it is trained.
    """
    device = policy.device
    usable = policy.shared_prefix and policy.attention_method is None and available(device, dtype)
    chosen = current_flash_attention_impl() is not None  # by the user
    if all_max(int(chosen or not usable or not has_flash_attention_3(device)), device):
        return
    reference = _trained_once(policy, dtype, attention.lay_out_padded)
    problem = ""
    try:
        activate_flash_attention_impl("FA3")
        for method in (attention.lay_out_padded, lay_out_spans):
            if _differs(_trained_once(policy, dtype, method), reference, dtype):
                problem = "it computes something else"
    except (ImportError, RuntimeError) as error:
        problem = first_line(error)
    if not all_max(int(bool(problem)), device):
        log.info("attention is computed by FlashAttention 3")
        return
    restore_flash_attention_impl(_raise_warn=False)
    policy.zero_grad()
    log.warning("FlashAttention 3 is installed and not used: %s", problem or "it fails on another process")


def _differs(computed: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], dtype: torch.dtype) -> bool:
    """Return whether log-probabilities or gradients of `_trained_once` differ by more than rounding."""
    logp, gradient = computed
    wanted_logp, wanted_gradient = wanted
    return not (_excess((logp - wanted_logp).abs(), dtype) <= 1 and _apart(gradient, wanted_gradient, dtype) <= 1)


def _apart(gradient: Tensor, wanted: Tensor, dtype: torch.dtype) -> float:
    """Return the distance of two gradients as a multiple of what rounding may be."""
    return float((gradient - wanted).norm() / wanted.norm().clamp(min=1e-12)) / (0.2 if is_half(dtype) else 1e-3)


def _excess(differences: Tensor, dtype: torch.dtype) -> float:
    """Return the differences (N,) of log-probabilities in nats as a multiple of what rounding may be.

    In 16 bits the mean counts: SmolLM2 in bfloat16 differs by 0.16 nats in one token and by 0.06 in the mean, with
    logits scaled by 1.1 by 0.26 in the mean.
    """
    return float(differences.mean() / 0.2 if is_half(dtype) else differences.max() / 1e-3)


def _sample(
    policy: Policy, method: attention.Method | None = None
) -> tuple[list[tuple[Group, list[Pixels]]], Rows, list[Pixels]]:
    """Lay out two groups of a few tokens each, all lengths different, so that a leak between them shows.

    Returns:
        The groups, each with its images (the second has one if the model takes images), and the rows with theirs.
    """
    model: Any = policy.model
    vocabulary = model.config.get_text_config().vocab_size
    groups: list[tuple[Group, list[Pixels]]] = []
    pixels: list[Pixels] = []
    for start, cuts in ((11, (12, 16, 21)), (47, (15, 16, 22, 25))):
        ids = []
        for i in range(start, start + cuts[-1]):
            ids.append(i % vocabulary)
        image: list[Pixels] = []
        placeholders: list[int] = []
        if start == 47 and policy.family is not None:
            image = [policy.family.blank()]
            placeholders = [*image[0].placeholders[0]]
        prompt = [*ids[:6], *placeholders, *ids[6 : cuts[0]]]
        position_ids = policy.position_ids(Prompt(Sample("check", "", ""), prompt, image[0] if image else None))
        completions = []
        for begin, end in pairwise(cuts):
            completions.append(ids[begin:end])
        groups.append((Group(prompt, completions, position_ids), image))
        pixels += image * (1 if policy.shared_prefix else len(completions))
    laid_out = [group for group, _ in groups]
    return groups, build_rows(laid_out, policy.shared_prefix, policy.device, method or policy.attention_method), pixels


def _wrong(policy: Policy, dtype: torch.dtype) -> float:
    """Return the excess of a policy's differences from its model's own forward pass."""
    with training_autocast(policy.device, dtype), torch.no_grad():
        groups, rows, pixels = _sample(policy)
        computed = policy(rows, Sampling(), False, pixels=pixels).logp  # first, for sharded weights
        expected = []
        for group, image in groups:
            for completion in group.completions:
                full = torch.tensor([[*group.prompt, *completion]], device=policy.device)
                logp = policy.plain_logits(full, image).float().log_softmax(-1)
                target = full[0, len(group.prompt) :, None]
                expected.append(logp[0, len(group.prompt) - 1 : -1].gather(-1, target).squeeze(-1))
        return _excess((computed.float() - torch.cat(expected)).abs(), dtype)


def _trained_once(policy: Policy, dtype: torch.dtype, method: attention.Method | None = None) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (N,) as in training, and the flattened gradient of their sum in the first trained layer.

    Args:
        policy: the policy.
        dtype: compute type.
        method: of attention; None = the best.
    """
    with training_autocast(policy.device, dtype):
        _, rows, pixels = _sample(policy, method)
        logp = policy(rows, Sampling(), False, pixels=pixels).logp
    logp.sum().backward()
    for layer in decoder_layers(policy.model):
        gradients = []
        for weight in layer.parameters():
            if weight.grad is not None:
                gradients.append(weight.grad)
        if gradients:
            break
    flat = torch.cat([full_tensor(gradient).flatten().float() for gradient in gradients])
    policy.zero_grad()
    return logp.detach().float(), flat
