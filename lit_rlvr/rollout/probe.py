"""Invariant 2: the engine has the trainer's weights, checked on the log-probabilities of a real completion."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from lit_rlvr.errors import UserError
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import training_autocast
from lit_rlvr.rollout.engine import Generates
from lit_rlvr.types import Completion, Prompt, Rollout, Sampling

PROBED = 16
"""Tokens of a probe."""


def probe_sampling(sampling: Sampling) -> Sampling:
    """Settings for a probe: up to `PROBED` tokens, without top-p, top-k or greedy decoding."""
    return replace(
        sampling,
        temperature=sampling.temperature or 1.0,
        top_p=1.0,
        top_k=0,
        max_tokens=min(PROBED, sampling.max_tokens),
        stop=(),
    )


def check_engine(engine: Generates, policy: Policy, prompt: Prompt, sampling: Sampling, seed: int) -> float:
    """Sample a completion with the engine and compare its log-probabilities with the trainer's.

    Args:
        sampling: without top-p and top-k; at most `max_tokens` tokens are compared.

    Returns:
        How much a token's log-probability differs, in nats: the largest difference of all tokens where the engine
        computes in float32, the mean in 16 bits, where rounding moves single tokens much further than the mean.

    Raises:
        UserError: the difference is more than rounding: the engine holds stale or wrong weights.
    """
    completion = engine.generate([prompt], sampling, [[seed]])[0][0]
    ours = trainer_logprobs(policy, prompt, completion, sampling, engine.compute_dtype)
    differences = (ours - torch.tensor(completion.logprobs)).abs()
    if engine.compute_dtype == torch.float32:
        found, allowed, kind = float(differences.max()), engine.probe_tolerance, "up to"
    else:
        found, kind = float(differences.mean()), "a mean of"
        allowed = engine.probe_tolerance * math.sqrt(PROBED / len(differences))  # a mean of fewer varies more
    if not found <= allowed:
        raise UserError(
            f"engine {engine.name}: its log-probabilities differ from the trainer's by {kind} {found:.3g} nats "
            f"(tolerance {allowed:.3g}) after a weight sync, so it samples from stale or wrong weights; "
            "use `rollout.engine: hf`, or report the model's name"
        )
    return found


@torch.no_grad()
def trainer_logprobs(
    policy: Policy, prompt: Prompt, completion: Completion, sampling: Sampling, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """(n,) log-probabilities of one completion's tokens under the trainer's weights, computed in `dtype`."""
    rollout = Rollout.unscored([prompt], [[completion]], sampling)
    with training_autocast(policy.device, dtype):
        return policy.logprobs(rollout, [0])[0][0].float().cpu()
