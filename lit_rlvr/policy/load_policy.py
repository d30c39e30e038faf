"""Loads a model folder as a policy that is ready to train."""

from __future__ import annotations

import torch
from torch import nn

from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import empty_model, eos_token_ids, load_model
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.speed import enable_checkpointing, keep_freed_memory
from lit_rlvr.policy.verify import verify_or_fall_back


def load_policy(
    folder: str,
    shared_prefix: bool = True,
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    empty: bool = False,
    device: str | torch.device = "cpu",
) -> Policy:
    """Load a causal language model as a policy, in evaluation mode (no dropout), and check its log-probabilities.

    Args:
        folder: a model folder or hub id, from `resolve_model`.
        shared_prefix: see `Policy`; if it is not exact for the model, one completion per row, with a warning.
        dtype: of the master weights.
        gradient_checkpointing: recompute each layer in the backward pass.
        device: where to load the weights, and to check the log-probabilities.
        empty: do not load the weights (they stay on the meta device) and skip the check.

    Raises:
        UserError: the model cannot be loaded, or its log-probabilities cannot be reproduced.
    """
    keep_freed_memory()
    model = empty_model(folder, dtype) if empty else load_model(folder, dtype, device)
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise UserError(f"model: {folder} has no plain linear output embedding; not supported")
    if gradient_checkpointing:
        enable_checkpointing(model)
    policy = Policy(model.eval(), eos_token_ids(model), shared_prefix)
    if not empty:
        verify_or_fall_back(policy)
    return policy
