"""The policy: a causal language model and the log-probabilities of completions under it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlvr import attention
from lit_rlvr.errors import UserError
from lit_rlvr.lora import adapters_off, merged_parameters
from lit_rlvr.memory import keep_freed_memory
from lit_rlvr.models import auto_class
from lit_rlvr.rows import Group, Rows, build_rows
from lit_rlvr.scoring import score_tokens
from lit_rlvr.speedups import checkpointing, enable_checkpointing
from lit_rlvr.types import Prompt, Rollout, Sampling
from lit_rlvr.vision import Pixels, placeholder_ids, rope_places, takes_images, vision_tower

_log = logging.getLogger("lit_rlvr")
_NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)


class Policy(nn.Module):
    """A Hugging Face causal language model that scores completions in place.

    Args:
        model: a `...ForCausalLM` with a decoder and an output embedding.
        eos_token_ids: tokens that end a completion, from the generation config.
        shared_prefix: compute each prompt once for its group; False = one completion per row.
        adapters: compute with the model's adapters, if it has any; False = with the weights they were added to.
    """

    def __init__(
        self, model: nn.Module, eos_token_ids: tuple[int, ...], shared_prefix: bool = True, adapters: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.eos_token_ids = eos_token_ids
        self.adapters = adapters
        self._attention: Any = model.config.get_text_config()._attn_implementation  # type: ignore[operator, union-attr]
        self.share_prefix(shared_prefix)

    def share_prefix(self, shared: bool) -> None:
        """Compute prompts once per group from now on, or with the model's own attention and one completion per row."""
        model: Any = self.model
        self.shared_prefix = shared
        name = attention.NAME if shared else self._attention
        vision = takes_images(model.config)  # whose own attention stays as it is
        model.set_attn_implementation({"text_config": name} if vision else name)

    def without_adapters(self) -> Policy:
        """The same model as it was before adapters were added; nothing is copied."""
        return Policy(self.model, self.eos_token_ids, self.shared_prefix, adapters=False)

    def weights(self) -> AbstractContextManager[None]:
        """Whoever runs the model itself does so in here."""
        return nullcontext() if self.adapters else adapters_off(self.model)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by the names that the plain model has for them, adapters merged in."""
        return merged_parameters(self.model, self.adapters)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Tokens that stand for images: never sampled, and left out of the softmax."""
        return placeholder_ids(self.model.config)

    def places(self, prompt: Prompt) -> Tensor:
        """Positions (D, L) of a prompt's tokens: D = 1, or 3 for multimodal rotary embeddings."""
        return rope_places(self.model, prompt.token_ids, None if prompt.pixels is None else prompt.pixels.grid)

    def images(self, pixels: Sequence[Pixels]) -> dict[str, Tensor]:
        """Images as arguments of the model; none without images."""
        if not pixels:
            return {}
        return {
            "pixel_values": torch.cat([p.values for p in pixels]).to(self.device),
            "image_grid_thw": torch.cat([p.grid for p in pixels]).to(self.device),
        }

    def forward(
        self,
        rows: Rows,
        sampling: Sampling,
        entropy: bool,
        entropy_gradient: bool = False,
        pixels: Sequence[Pixels] = (),
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (N,) of the targets under the sampling distribution, and the entropy (N,) there.

        Args:
            pixels: the images whose placeholders stand in the rows, in their order.
        """
        model: Any = self.model
        inputs: dict[str, Any] = {"attention_mask": rows.attend}
        if rows.segments is not None:  # a mask of four dimensions keeps the model from making one of its own
            inputs = {"attention_mask": _NO_MASK.to(self.device), "segments": rows.segments}
        with self.weights(), checkpointing(model):
            hidden = model.base_model(
                input_ids=rows.input_ids,
                position_ids=rows.position_ids,
                use_cache=False,
                **inputs,
                **self.images(pixels),
            ).last_hidden_state  # (R, L, H)
        hidden = hidden[rows.row, rows.column]  # (N, H)
        tower = vision_tower(model)
        if tower is not None and not pixels and hidden.requires_grad:
            # Several processes wait for a gradient of every weight, also where no prompt has an image.
            hidden = hidden + 0 * sum(p.sum() for p in tower.parameters() if p.requires_grad)
        head = model.get_output_embeddings()
        return score_tokens(hidden, head.weight, head.bias, rows.target, sampling, entropy, entropy_gradient)

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
        groups: list[Group] = []
        pixels: list[Pixels] = []
        for p, members in groupby(pairs, key=lambda pair: pair[0]):
            prompt, completions = rollout.prompts[p], [c for _, c in members]
            groups.append(Group(prompt.token_ids, completions, self.places(prompt)))
            if prompt.pixels is not None:
                pixels += [prompt.pixels] * (1 if self.shared_prefix else len(completions))
        built = build_rows(groups, self.shared_prefix, self.device)
        logp, spread = self(built, rollout.sampling, entropy, entropy_gradient, pixels)
        at = (built.sequence, built.position)
        empty = torch.zeros(len(rows), width, dtype=logp.dtype, device=logp.device)
        return empty.index_put(at, logp), None if spread is None else empty.index_put(at, spread)


def load_policy(
    folder: str,
    shared_prefix: bool = True,
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
) -> Policy:
    """Load a causal language model as a policy, in evaluation mode (no dropout), and check its log-probabilities.

    Args:
        folder: a model folder or hub id, from `resolve_model`.
        shared_prefix: see `Policy`; a model it is not exact for falls back to one completion per row, with a warning.
        dtype: of the master weights.
        gradient_checkpointing: recompute each layer in the backward pass.
    """
    from transformers import AutoConfig

    keep_freed_memory()
    try:
        model = auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"model: {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise UserError(f"model: {folder} has no plain linear output embedding; not supported")
    if gradient_checkpointing:
        enable_checkpointing(model)
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

    This catches what would be silently wrong: models that scale or cap their logits after the output embedding,
    and models whose attention is not the plain causal one (windows, recurrent layers), which fall back to one
    completion per row.

    Raises:
        UserError: even one completion per row does not reproduce the model's own log-probabilities.
    """
    reason = "it does not hand our layout on to its attention"
    try:
        if _worst_difference(policy) <= _tolerance(policy):
            return
    except attention.CannotShare as error:
        reason = f"its attention has {error}"
    if policy.shared_prefix:
        policy.share_prefix(False)
        if _worst_difference(policy) <= _tolerance(policy):
            _log.warning("This model does not take shared prefixes (%s); one completion per row: slower.", reason)
            return
    name = type(policy.model).__name__
    raise UserError(f"model: {name}'s log-probabilities cannot be reproduced from its hidden states; not supported")


def _tolerance(policy: Policy) -> float:
    return 1e-3 if next(policy.model.parameters()).dtype in (torch.float32, torch.float64) else 0.2


@torch.no_grad()
def _worst_difference(policy: Policy) -> float:
    """Two groups, so that a leak between them shows, the second with an image where the model takes images."""
    model: Any = policy.model
    vocabulary = model.config.get_text_config().vocab_size
    groups, pixels, theirs = [], [], []
    for first in (11, 47):
        ids = [i % vocabulary for i in range(first, first + 20)]
        image = _patches(model.config) if first == 47 and takes_images(model.config) else None
        prompt = ids[:12] if image is None else [*ids[:6], *_placeholders(model.config), *ids[6:12]]
        completions = [ids[12:16], ids[16:20]]
        grid = None if image is None else image.grid
        groups.append(Group(prompt, completions, rope_places(model, prompt, grid)))
        images = [] if image is None else [image]
        pixels += images * (1 if policy.shared_prefix else len(completions))
        for completion in completions:
            full = torch.tensor([[*prompt, *completion]], device=policy.device)
            kinds = {"mm_token_type_ids": (full == model.config.image_token_id).int()} if images else {}
            logp = model(full, use_cache=False, **policy.images(images), **kinds).logits.float().log_softmax(-1)
            theirs.append(logp[0, len(prompt) - 1 : -1].gather(-1, full[0, len(prompt) :, None]).squeeze(-1))
    ours, _ = policy(build_rows(groups, policy.shared_prefix, policy.device), Sampling(), False, pixels=pixels)
    return float((ours.float() - torch.cat(theirs)).abs().max())


def _patches(config: Any) -> Pixels:
    """A made-up image of 2 x 3 features."""
    vision = config.vision_config
    merge, size = vision.spatial_merge_size, vision.temporal_patch_size * vision.in_channels * vision.patch_size**2
    count = 6 * merge**2
    return Pixels(
        torch.linspace(-1, 1, count * size).sin().view(count, size), torch.tensor([[1, 2 * merge, 3 * merge]]), ()
    )


def _placeholders(config: Any) -> list[int]:
    return [config.vision_start_token_id, *[config.image_token_id] * 6, config.vision_end_token_id]
