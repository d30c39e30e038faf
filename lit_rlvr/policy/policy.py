"""The policy: a causal language model and the log-probabilities of completions under it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import accumulate, chain, groupby
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lit_rlvr.distributed.collectives import index_tensor, world_size
from lit_rlvr.distributed.sharding import device_of, full_tensor, gathered
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy import attention
from lit_rlvr.policy.adapters import (
    ADAPTER,
    FIRST,
    adapter_config,
    adapter_weights,
    merged_parameters,
    untrained_matrices,
    using_adapters,
)
from lit_rlvr.policy.architecture import LogitTransform, head_sizes, layer_configs, logit_transform
from lit_rlvr.policy.families import VisionFamily, family_of
from lit_rlvr.policy.layout import Group, Rows, build_rows
from lit_rlvr.policy.logprobs import PolicyOutput, TeacherHead, score_tokens
from lit_rlvr.policy.precision import forbid_tf32, round_residual_stream
from lit_rlvr.policy.routes import routing, watch_routers
from lit_rlvr.policy.spans import takes_heads
from lit_rlvr.policy.speed import checkpointing
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout, cut_sequences

PROBE_VALUE = 0.01
"""What the matrices B of untrained adapters are set to so that a probe can see them."""


class Policy(nn.Module):
    """A Hugging Face causal language model, and the scoring of completions with it.

    Args:
        model: a `...ForCausalLM` with a decoder and an output embedding.
        eos_token_ids: tokens that end a completion, from the generation config.
        shared_prefix: compute each prompt once for its group; False = one completion per row.
        media_token_ids: tokens of its tokenizer for images, videos and sounds; a model of text may sample them.
        owner: for a view with other adapters, the policy that has them; None = this policy itself.
        view: the adapters that it uses, as in `used_adapters`.

    Attributes:
        replays_routes: tokens use the experts that they used in the engine, `Completion.routes`.
        balances_experts: `forward_rows` returns the loss of the use of experts.
        scores_observations: with gradients, `forward_rows` also scores the tokens between turns.
        teachable: how many tokens, from the first on, every teacher has an embedding for; None = all.
    """

    def __init__(
        self,
        model: nn.Module,
        eos_token_ids: tuple[int, ...],
        shared_prefix: bool = True,
        media_token_ids: tuple[int, ...] = (),
        owner: Policy | None = None,
        view: str | None = ADAPTER,
    ) -> None:
        super().__init__()
        self.model = model
        self.eos_token_ids = eos_token_ids
        self.media_token_ids = media_token_ids
        self.family = family_of(model.config)
        if owner is None:
            forbid_tf32()
            round_residual_stream(model)
            if self.family is not None:
                self.family.prepare(model)
        self._view = view
        self.replays_routes = self.balances_experts = self.scores_observations = False
        self.teachable: int | None = None
        self._owner = (owner or self,)  # in a tuple, so that it is not registered as a submodule
        self._attention: Any = model.config.get_text_config()._attn_implementation  # type: ignore[operator, union-attr]
        self.share_prefix(shared_prefix)

    def share_prefix(self, shared: bool) -> None:
        """Switch to one shared prompt per group, or to one completion per row with the model's own attention."""
        model: Any = self.model
        self.shared_prefix = shared
        name = attention.SHARED_PREFIX if shared else self._attention
        tower = None if self.family is None else self.family.tower_attention
        model.set_attn_implementation(name if tower is None else {"text_config": name, "vision_config": tower})

    def replay_routes(self) -> None:
        """Use the engine's experts from now on; an engine that decodes with this model records them.

        Raises:
            UserError: the model has no routers of a known form.
        """
        watch_routers(self.model, "rollout.replay_routes")
        self.replays_routes = True

    def balance_experts(self) -> None:
        """Let `forward_rows` return the loss of the use of experts from now on, where there are gradients.

        Raises:
            UserError: the model has no routers of a known form.
        """
        watch_routers(self.model, "model.loss.balance_coef")
        self.balances_experts = True

    def without_adapters(self) -> Policy:
        """Return the same model as it was before adapters were added; nothing is copied."""
        return self._viewed(None)

    def before_training(self) -> Policy:
        """Return the same model with the adapters that training started with, if any; nothing is copied."""
        return self._viewed(FIRST)

    def _viewed(self, view: str | None) -> Policy:
        return Policy(self.model, self.eos_token_ids, self.shared_prefix, self.media_token_ids, self, view)

    @property
    def owner(self) -> Policy:
        """The policy whose `forward` must be called: only that gathers sharded weights."""
        return self._owner[0]

    @contextmanager
    def weights(self) -> Iterator[None]:
        """The context in which to run `model` directly.

        Collective; enter it on every rank.
        """
        with gathered(self.owner), self._adapters():
            yield

    def named_weights(
        self, only: Container[str] | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Return the full weights with adapters merged, by the names they have in the plain model.

        The buffers that checkpoints hold are among them.

        Collective if the weights are sharded; iterate on every rank.

        Args:
            only: names of the weights to yield; None = all.
            dtype: what to round them to, before they are gathered; None = leave them as they are.
        """
        weights = chain(merged_parameters(self.model, self._view, dtype), _saved_buffers(self.model))
        return ((name, full_tensor(weight, dtype)) for name, weight in weights if only is None or name in only)

    @property
    def adapter_config(self) -> dict[str, Any] | None:
        """The settings of the adapters, as peft saves them, for an engine that adds them to its layers itself.

        None = there are none, or they have to be merged.
        """
        return adapter_config(self.model, self._view)

    def adapter_weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Return the full matrices of the adapters in `dtype`, by the names under which peft saves them.

        Collective if the weights are sharded; iterate on every rank.
        """
        return adapter_weights(self.model, self._view, lambda weight: full_tensor(weight, dtype).detach())

    def has_zero_adapters(self) -> bool:
        """Return whether there are adapters that change nothing yet.

        Collective if they are sharded; call it on every rank.
        """
        untrained = untrained_matrices(self.model) if self.owner is self else []
        return bool(untrained) and not any(full_tensor(matrix.detach() - start).any() for matrix, start in untrained)

    @contextmanager
    def nonzero_adapters(self) -> Iterator[None]:
        """Within this context, adapters that change nothing yet change outputs."""
        untrained = untrained_matrices(self.model)
        try:
            for matrix, _ in untrained:
                matrix.data.fill_(PROBE_VALUE)
            yield
        finally:
            for matrix, start in untrained:
                matrix.data.copy_(start)

    def _adapters(self) -> AbstractContextManager[None]:
        if self.owner is self:
            return nullcontext()
        return using_adapters(self.model, self._view)

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def attention_method(self) -> attention.Method | None:
        """The method of attention over shared prompts; None = it is chosen by the device and the lengths."""
        if self.device.type == "cpu" or all(takes_heads(*head_sizes(c)) for c in layer_configs(self.model.config)):
            return None
        return attention.lay_out_padded

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """The tokens that are never sampled, and left out of the softmax.

        These are placeholders of images, videos and sounds, their delimiters, and what a teacher has no embedding for.
        """
        known = () if self.family is None else (*self.family.placeholder_ids, *self.media_token_ids)
        rows = self.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        return tuple(dict.fromkeys((*known, *range(rows if self.teachable is None else self.teachable, rows))))

    def position_ids(self, prompt: Prompt) -> Tensor:
        """Return the positions (D, L) of a prompt's tokens, with D = 1, or 3 for multimodal rotary embeddings."""
        if self.family is None:
            return torch.arange(len(prompt.token_ids))[None]
        return self.family.position_ids(self.model, prompt.token_ids, prompt.pixels)

    def images(self, pixels: Sequence[Pixels], token_ids: Tensor) -> dict[str, Tensor]:
        """Return the images among tokens (R, L) as keyword arguments of the model; {} without images."""
        if self.family is None or not pixels:
            return {}
        return self.family.model_inputs(pixels, self.device) | self.family.token_inputs(token_ids)

    def forward(
        self,
        rows: Rows,
        sampling: Sampling,
        entropy: bool,
        entropy_gradient: bool = False,
        pixels: Sequence[Pixels] = (),
        teacher: TeacherHead | None = None,
    ) -> PolicyOutput:
        """Return the log-probabilities (N,) of the targets under the sampling distribution.

        On request, return the entropies (N,) and the divergences (N,) from a teacher, too. The other arguments are
        those of `score_tokens`.

        Args:
            rows: of groups that are laid out.
            pixels: the images of the placeholders in the rows, in the same order.
        """
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        hidden, of_routers = self._hidden(rows, pixels)
        scores = score_tokens(
            hidden,
            head.weight,
            head.bias,
            rows.target,
            sampling,
            entropy,
            entropy_gradient,
            logit_transform(self.model.config),
            teacher,
        )
        return scores._replace(**of_routers)

    def last_layer(self, rows: Rows, pixels: Sequence[Pixels]) -> tuple[Tensor, Tensor, Tensor | None, LogitTransform]:
        """Return the hidden states (N, H) of the targets, and the weight, bias and transform of the output layer.

        Those of the output layer stay whole after sharded weights are released.
        """
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        hidden, _ = self._hidden(rows, pixels)  # first: it gathers sharded weights
        weight = head.weight.detach()
        bias = None
        if head.bias is not None:
            bias = head.bias.detach()
        if isinstance(self, FSDPModule):
            weight = weight.clone()
            if bias is not None:
                bias = bias.clone()
        return hidden, weight, bias, logit_transform(self.model.config)

    def _hidden(self, rows: Rows, pixels: Sequence[Pixels]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the hidden states (N, H) of the targets before the output layer, and what the routers did.

        The latter are the fields `flips` and `expert_imbalance` of a `PolicyOutput`, (N,) each, as far as asked for.
        """
        model: Any = self.model
        inputs: dict[str, Any] = {"attention_mask": rows.attend}
        if rows.segments is not None:  # a four-dimensional mask keeps the model from building its own
            none = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
            inputs = {"attention_mask": none, "segments": rows.segments}
        balances = self.balances_experts and torch.is_grad_enabled()
        watched = routing(rows.routes, balances) if balances or rows.routes is not None else nullcontext()
        with checkpointing(model), watched as seen:
            hidden = model.base_model(
                input_ids=rows.input_ids,
                position_ids=rows.position_ids,
                use_cache=False,
                **inputs,
                **self.images(pixels, rows.input_ids),
            ).last_hidden_state  # (R, L, H)
        at = rows.row * hidden.shape[1] + rows.column  # (N,)
        of_routers = {}
        if seen is not None and rows.routes is not None:
            of_routers["flips"] = seen.flips()[at]
        if seen is not None and balances:
            of_routers["expert_imbalance"] = seen.imbalance(at, rows.sequence)
        # Not `hidden[row, column]`: its backward pass adds floats in a nondeterministic order.
        return hidden.flatten(0, 1).index_select(0, at), of_routers

    def plain_logits(self, token_ids: Tensor, pixels: Sequence[Pixels]) -> Tensor:
        """Return the logits (1, L, V) of the model's own forward pass on one sequence (1, L) with its images.

        Sharded weights are gathered layer by layer, as in `forward` (see `sharding.shard`).
        """
        model: Any = self.model
        return model(token_ids, use_cache=False, **self.images(pixels, token_ids)).logits

    def logprobs(
        self, rollout: Rollout, rows: list[int], entropy: bool = False, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities and entropies of some completions of a rollout; arguments as for `forward_rows`."""
        return self.forward_rows(rollout, rows, entropy, entropy_gradient)[:2]

    def forward_rows(
        self,
        rollout: Rollout,
        rows: list[int],
        entropy: bool = False,
        entropy_gradient: bool = False,
        teacher: TeacherHead | None = None,
    ) -> PolicyOutput:
        """Return log-probabilities of some completions of a rollout, and more.

        Args:
            rollout: the whole rollout of this rank.
            rows: which completions, as indices p * G + g; those of one prompt are adjacent.
            entropy: also return the exact entropy of the policy at each position.
            entropy_gradient: let gradients flow through the entropy.
            teacher: also return the divergence from this teacher, the result of its `teach` for these rows.

        Returns:
            (len(rows), T) each, 0 at padding and, unless `scores_observations`, at observations.
        """
        built, pixels = self._lay_out(rollout, rows)
        with self._adapters():
            scores = self.owner(built, rollout.sampling, entropy, entropy_gradient, pixels, teacher)
        at = (built.sequence, built.position)
        empty = torch.zeros(len(rows), rollout.token_ids.shape[1], dtype=scores.logp.dtype, device=scores.logp.device)
        laid_out: list[Tensor | None] = []
        for values in scores:
            if values is None:
                laid_out.append(None)
            else:
                laid_out.append(empty.index_put(at, values.to(empty.dtype)))
        return PolicyOutput._make(laid_out)

    @torch.no_grad()
    def teach(self, rollout: Rollout, rows: list[int], beta: float, top_k: int | None) -> TeacherHead:
        """Return what another policy's `forward_rows` needs for its divergence from this one on some completions.

        Args:
            rollout: with the completions.
            rows: indices p * G + g.
            beta, top_k: as for `vocabulary_divergence`.
        """
        with self._adapters():
            return TeacherHead(*self.owner.last_layer(*self._lay_out(rollout, rows)), beta, top_k)

    def _lay_out(self, rollout: Rollout, rows: list[int]) -> tuple[Rows, list[Pixels]]:
        """Return the model's inputs for some completions, and their images. The order of tokens is always the same."""
        group_size = rollout.group_size
        pairs = [(i // group_size, rollout.completions[i // group_size][i % group_size]) for i in rows]
        groups: list[Group] = []
        leading: list[Pixels] = []  # in the order of their placeholders: with shared prompts, all prompts come first
        trailing: list[Pixels] = []
        for p, members in groupby(pairs, key=lambda pair: pair[0]):
            prompt = rollout.prompts[p]
            completions = [c for _, c in members]
            ids: list[Any] = []
            scored: list[Any] = []
            images: list[Pixels | None] = []  # of each sequence
            for completion in completions:
                is_scored = completion.from_model
                if self.scores_observations and torch.is_grad_enabled():
                    is_scored = tuple(map(or_, is_scored, rollout.observed_in(completion)))
                parts = cut_sequences(completion.token_ids, completion.sequence_lengths)
                ids += parts
                images += images_of_sequences(completion.pixels, parts)
                scored += cut_sequences(is_scored, completion.sequence_lengths)
            position_ids = self.position_ids(prompt)
            tails = [self._tail(prompt, part, own) for part, own in zip(ids, images, strict=True)]
            if self.replays_routes:
                routes = [_routes(prompt, c) for c in completions]
            else:
                routes = None
            groups.append(Group(prompt.token_ids, ids, position_ids, scored, tails, routes))
            for number, own in enumerate(images):
                if prompt.pixels is not None and not (number and self.shared_prefix):
                    leading.append(prompt.pixels)
                if own is not None:
                    (trailing if self.shared_prefix else leading).append(own)
        pixels = leading + trailing
        if world_size() > 1 and not pixels and self.family is not None:
            blank, image = self._blank(self.family)
            groups.append(blank)
            pixels.append(image)
        built = build_rows(groups, self.shared_prefix, self.device, self.attention_method)
        return _join_sequences(built, [c.sequence_lengths for _, c in pairs]), pixels

    def _tail(self, prompt: Prompt, token_ids: Sequence[int], pixels: Pixels | None) -> Tensor | None:
        """Return the positions (D, n) of a sequence behind its prompt that holds images; None for one of text."""
        if pixels is None:
            return None
        whole = [*prompt.token_ids, *token_ids]
        position_ids = self.position_ids(Prompt(prompt.sample, whole, Pixels.joined([prompt.pixels, pixels])))
        return position_ids[:, len(prompt.token_ids) :]

    def _blank(self, family: VisionFamily) -> tuple[Group, Pixels]:
        """Return a prompt with an image and an empty completion, so that it adds nothing to the loss, and the image.

        Ranks synchronise in every part of the model, and a rank whose prompts have no image would skip the vision
        tower.
        """
        image = family.blank()
        (ids,) = image.placeholders
        return Group(ids, [[]], family.position_ids(self.model, ids, image)), image


def images_of_sequences(pixels: Pixels | None, sequences: Sequence[Sequence[int]]) -> list[Pixels | None]:
    """Return the images of each of several sequences of tokens, given those of all, in their order."""
    if len(sequences) == 1:
        return [pixels]
    images = []
    for token_ids in sequences:
        own = None
        if pixels is not None:
            own, pixels = pixels.split_at(token_ids)
        images.append(own)
    assert pixels is None, "each image stands in a sequence"
    return images


def _join_sequences(rows: Rows, lengths: Sequence[Sequence[int]]) -> Rows:
    """Number the scored tokens of model inputs by completion, where each sequence was laid out as one of its own.

    Args:
        rows: the model inputs, in which `sequence` and `position` are those of sequences.
        lengths: of each completion, the lengths of its sequences.
    """
    if all(len(of_completion) == 1 for of_completion in lengths):
        return rows
    completion = []
    for k, of_completion in enumerate(lengths):
        for _ in of_completion:
            completion.append(k)
    start = []
    for part in lengths:
        for end, length in zip(accumulate(part), part, strict=True):
            start.append(end - length)
    device = rows.sequence.device
    return replace(
        rows,
        sequence=index_tensor(completion, device)[rows.sequence],
        position=rows.position + index_tensor(start, device)[rows.sequence],
    )


def _routes(prompt: Prompt, completion: Completion) -> Tensor:
    """Return the experts (L, K, k) long of a completion's inputs.

    Raises:
        UserError: they are not known for each input.
    """
    inputs = len(prompt.token_ids) + len(completion.token_ids) - 1
    routes = completion.routes
    if routes is None or len(routes) != inputs:
        known = 0 if routes is None else len(routes)
        raise UserError(
            f"rollout.replay_routes: experts are known for {known} of {inputs} inputs of a completion of "
            f"{prompt.sample.id}: the engine did not return them, or the model's routers have an unknown form; leave "
            "the option off"
        )
    return routes.long()


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return what checkpoints of a model hold besides its parameters, such as the scales of Gemma 4's layers."""
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer
