"""Loading: the policy, its adapters, the reference and the teachers, placed and sharded as the strategy says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_rlvr.advantages.base import ReferenceCompletions
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import broadcast_first, leave_out_of_buckets, rank, world_size
from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.distributed.sharding import shard
from lit_rlvr.errors import UserError, log
from lit_rlvr.options import KL, Compute, Lora, Loss, is_url
from lit_rlvr.policy.adapters import add_adapters, round_frozen
from lit_rlvr.policy.families import family_of, freeze_vision_tower, vision_modules
from lit_rlvr.policy.loading import differing_tokens, frozen_dtype, load_model_config, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import compute_dtype, dither
from lit_rlvr.policy.sources import adapter_folder, weights_version
from lit_rlvr.policy.speed import compile_layers, compiling_pays, uncompile_layers, use_liger
from lit_rlvr.policy.verify import check_spans, compile_and_verify, verify_or_fall_back
from lit_rlvr.training.failures import TokenBudget
from lit_rlvr.training.reference import Reference
from lit_rlvr.training.teachers import Teachers, teacher_folder
from lit_rlvr.training.terms import Term
from lit_rlvr.training.validation import EvaluatingModule


class LoadedModule(EvaluatingModule):
    """Loads the weights that a run trains, and those that it compares with; `RLVRModule` has the options."""

    lora: Lora | None
    freeze_vision: bool
    compute: Compute
    loss_options: Loss
    kl: KL
    budget: TokenBudget
    reference: Reference
    reference_completions: ReferenceCompletions | None
    teachers: Teachers
    terms: list[Term]
    needs: Callable[..., bool]
    replays_routes: bool
    most_tokens: int

    @property
    def needs_reference(self) -> bool:
        """True if the loss, a term or the advantage needs a reference policy."""
        by_terms = self.needs("ref_logp") or self.needs("ref_logp", in_loss=False)
        return by_terms or self.reference_completions is not None

    def configure_model(self) -> None:
        """Load the policy, the reference and the teachers, unless they are loaded.

        Collective: call it on every rank.
        """
        if self.policy is not None:
            return
        self.policy = self._load_policy()
        if self.replays_routes:
            self.policy.replay_routes()
        if self.needs("expert_imbalance"):
            self.policy.balance_experts()
        self._distribute(self.policy)
        self._load_reference()
        self._load_teachers()
        if world_size() > 1 and not self.sharded:
            leave_out_of_buckets(self)

    def _load_policy(self) -> Policy:
        """Load the model that is trained, with its adapters if there are any.

        Raises:
            UserError: an option asks for what sharded weights cannot have, contradicts another one, or is left to the
                command line.
        """
        if self.sharded and self.lora is not None:
            for option, what in (("quantize", "weights in 4 bits"), ("experts", "experts with adapters")):
                if getattr(self.lora, option) not in ("none", False):
                    raise UserError(f"model.lora.{option}: {what} cannot be sharded; use --config strategy/ddp")
        checkpointing = self.compute.gradient_checkpointing
        if checkpointing == "auto":
            raise UserError("model.compute.gradient_checkpointing: the command line decides `auto`; give True or False")
        if self.budget.given == "auto" and self.trainer.state.fn == "fit":
            raise UserError("model.compute.tokens_per_microbatch: the command line decides `auto`; give a number")
        policy = load_policy(
            self.model_folder,
            self.compute.shared_prefix,
            gradient_checkpointing=checkpointing,
            empty=self._starts_empty,
            device=self._loads_to,
            dtype=self._loaded_dtype,
        )
        if self.freeze_vision:
            freeze_vision_tower(policy.model)
        if self.lora is not None:
            add_adapters(policy.model, self.lora, self._compute_dtype, self.adapter_folder)
            if self.freeze_vision and any(
                p.requires_grad for part in vision_modules(policy.model) for p in part.parameters()
            ):
                raise UserError("model.freeze_vision: model.lora trains adapters there; leave one of them out")
            if not self.sharded:  # shards are gathered in this type
                round_frozen(policy.model, self._compute_dtype)
        elif self._compute_dtype == torch.bfloat16 and not self._starts_empty:
            for name, parameter in policy.named_parameters():
                if parameter.requires_grad:
                    dither(name, parameter)
        return policy

    @property
    def adapter_folder(self) -> Path | None:
        """The folder of the adapter that is trained on; None = there is none, or it is merged."""
        if self.adapter == "continue":
            return adapter_folder(self.model)
        return None

    def frozen_versions(self) -> dict[str, str]:
        """Return the version of all weights that the run needs and does not train: name -> `weights_version`, of a
        server its URL."""
        versions = {}
        if self.lora is not None or self.needs_reference:
            versions["model"] = weights_version(self.model_folder)
        if self.adapter_folder is not None:
            versions["adapter"] = weights_version(self.adapter_folder)
        return versions | self.teachers.versions()

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded over the processes."""
        return self.device_mesh is not None

    @property
    def _loads_to(self) -> torch.device:
        """The device that weights are loaded to: the CPU if the device may not hold all of them as they are loaded, or
        if there is no trainer."""
        quantized = self.lora is not None and self.lora.quantize != "none"
        large = self.lora is not None and self._loaded_dtype == torch.float32
        on_cpu = self.sharded or quantized or large or self._trainer is None
        if on_cpu:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    @property
    def _loaded_dtype(self) -> torch.dtype:
        """The type in which the policy is loaded."""
        return torch.float32 if self.sharded else frozen_dtype(self.model_folder, self.lora, self._compute_dtype)

    @property
    def _compute_dtype(self) -> torch.dtype:
        if self._trainer is None:
            return torch.float32
        return compute_dtype(str(self.trainer.precision))

    @property
    def _starts_empty(self) -> bool:
        """Whether the first process loads the weights and this one gets its shards from `_distribute`."""
        return self.sharded and rank() > 0

    def _distribute(self, policy: Policy) -> None:
        """Shard and check a policy's weights if the strategy shards.

        Collective: call it on every rank.
        """
        if not self.sharded:
            return
        strategy = self.trainer.strategy
        if not isinstance(strategy, FSDP2):
            raise UserError("trainer.strategy: to shard weights use lit_rlvr.strategy.FSDP2: --config strategy/fsdp2")
        assert strategy.sharding_mesh is not None
        policy.share_prefix(strategy.broadcast(policy.shared_prefix))
        shard(policy, strategy.sharding_mesh, ["plain_logits", "last_layer"], self._compute_dtype, strategy.offload)
        verify_or_fall_back(policy, self._compute_dtype)

    def _load_reference(self) -> None:
        """Make the initial policy the reference, if one is needed: a second copy, or the policy with the adapters that
        training started with, if any.

        Raises:
            UserError: the reference should be updated, which is not possible with adapters.
        """
        if not self.needs_reference:
            return
        if self.lora is None:
            self.reference.policy = self._load_frozen(self.model_folder, bool(self.reference.update_every))
        elif self.reference.update_every:
            raise UserError(
                "model.kl.reference_update_every: with model.lora the reference is the model before training, which is "
                "no copy; leave it out"
            )
        else:
            self.reference.policy = self.policy.before_training()

    def _load_teachers(self) -> None:
        """Load the teachers, if there are any, with their weights frozen.

        Raises:
            UserError: one has other tokens than the policy, or its images are others; or an average of adapters is
                asked for.
        """
        options = self.teachers.options
        if options is None or (self._trainer is not None and self.trainer.state.fn != "fit"):
            return
        if options.ema is not None and self.lora is not None:
            raise UserError("model.teacher.ema: there is no average of adapters; leave it or model.lora out")
        for label, model in options.models.items():
            if is_url(model):
                continue
            folder = teacher_folder(model)
            self.teachers.check_tokens(differing_tokens(self.model_folder, folder, "model.teacher.model"))
            if type(family_of(load_model_config(folder))) is not type(self.policy.family):
                raise UserError(
                    f"model.teacher.model: {model} takes other images than {self.model}; use a teacher of the same "
                    "family"
                )
            self.teachers.held[label] = teacher = Reference()
            teacher.policy = self._load_frozen(folder)
        if self.teachers.held:
            models: list[Any] = [policy.model for policy in (self.policy, *self.teachers.policies)]
            self.policy.teachable = min(model.get_input_embeddings().num_embeddings for model in models)
        if options.model is None:
            self.teachers.held[""] = teacher = Reference(None if options.ema is None else 1, options.ema or 1.0)
            if options.ema is None:
                teacher.policy = self.policy
            else:
                teacher.policy = self._load_frozen(self.model_folder, True)

    def _load_frozen(self, folder: str, renewed: bool = False) -> Policy:
        """Load a model that is not trained, placed and sharded as the policy is.

        Collective: call it on every rank.

        Args:
            folder: a model folder or hub id.
            renewed: its weights will be those of the policy, which 16 bits cannot hold.
        """
        policy = load_policy(folder, self.compute.shared_prefix, empty=self._starts_empty, device=self._loads_to)
        self._distribute(policy.requires_grad_(False))
        if not (self.sharded or renewed):  # shards are gathered in this type
            round_frozen(policy.model, self._compute_dtype)
        return policy

    def on_fit_start(self) -> None:
        if not self.sharded:  # `_distribute` has placed sharded weights
            self.reference.move(self.device)
            self.teachers.move(self.device)
            if world_size() > 1:
                broadcast_first(p for n, p in self.policy.named_parameters() if p.requires_grad or ".lora_" in n)
        if self.device.type != "cpu":
            check_spans(self.policy, self._compute_dtype)
        if self.compute.liger:  # the weights are on the GPU now
            use_liger(self.policy.model)
            verify_or_fall_back(self.policy, self._compute_dtype)
        self._compile()

    def _compile(self) -> None:
        """Compile the layers if the option is on, or `auto` and it pays; what `auto` cannot compile stays plain."""
        if not self.compute.torch_compile or self.replays_routes or self.needs("expert_imbalance"):
            return
        automatic = self.compute.torch_compile == "auto"
        if automatic:
            if not self.most_tokens or not self.compute.shared_prefix or self.compute.liger or world_size() > 1:
                return
            size = sum(parameter.numel() for parameter in self.policy.parameters())
            if not compiling_pays(size, self.most_tokens, self.device, self._compute_dtype):
                return
        progress.begin("compiling the model's layers")
        try:
            compile_and_verify(self.policy, self._compute_dtype)
        except UserError as error:
            if not automatic:
                raise
            log.warning("%s: auto leaves it off", error)
            uncompile_layers(self.policy.model)
            return
        if self.reference.policy is not None:
            compile_layers(self.reference.policy.model)
