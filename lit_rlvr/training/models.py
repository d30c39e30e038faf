"""The models of a run: policy, adapters, reference and teachers, placed and sharded as its plan says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import broadcast_first, gather_objects, rank, world_size
from lit_rlvr.distributed.sharding import shard
from lit_rlvr.errors import UserError
from lit_rlvr.options import Compute, Lora, is_url
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy.adapters import add_adapters, round_frozen
from lit_rlvr.policy.architecture import has_experts, layer_configs
from lit_rlvr.policy.families import family_of, freeze_vision_tower, vision_modules
from lit_rlvr.policy.loading import differing_tokens, frozen_dtype, load_model_config, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import dither
from lit_rlvr.policy.sources import ModelSource, weights_version
from lit_rlvr.policy.speed import compile_layers, compiling_pays, uncompile_layers, use_liger
from lit_rlvr.policy.verify import check_spans, compile_and_verify, try_flash_attention_3, verify_or_fall_back
from lit_rlvr.training.reference import Reference
from lit_rlvr.training.teachers import Teachers, teacher_folder


class Models:
    """Loads the policy that a run trains, and the models that it compares with.

    Args:
        source: where the policy comes from.
        compute: how training computes.
        lora: the adapters that are trained; None = the weights are.
        freeze_vision: the vision tower is not trained.
        reference: the reference, whose policy is loaded if something needs it.
        teachers: the teachers; there may be none.
        needs_reference: the loss, a term or the advantage needs a reference policy.
        balances_experts: a term needs what routers choose.
        scores_observations: a term needs the log-probabilities of what an environment answers.
    """

    def __init__(
        self,
        source: ModelSource,
        compute: Compute,
        lora: Lora | None,
        freeze_vision: bool,
        reference: Reference,
        teachers: Teachers,
        needs_reference: bool,
        balances_experts: bool,
        scores_observations: bool,
    ) -> None:
        self.source = source
        self.compute = compute
        self.lora = lora
        self.freeze_vision = freeze_vision
        self.reference = reference
        self.teachers = teachers
        self.needs_reference = needs_reference
        self.balances_experts = balances_experts
        self.scores_observations = scores_observations

    def load(self, plan: RunPlan) -> Policy:
        """Load the reference and the teachers; return the policy.

        Collective: call it on every rank.

        Raises:
            UserError: a model cannot be loaded, or a teacher does not fit.
        """
        policy = self.load_policy(plan)
        self._load_reference(policy, plan)
        if plan.trains:
            self._load_teachers(policy, plan)
        return policy

    def load_policy(self, plan: RunPlan) -> Policy:
        """Load the model that is trained, with its adapters if there are any, and shard it if the plan says so."""
        checkpointing = self.compute.gradient_checkpointing is True
        if plan.sharded:
            dtype = torch.float32
        else:
            dtype = frozen_dtype(self.source.model_folder, self.lora, plan.dtype)
        policy = self._load(self.source.model_folder, plan, checkpointing, dtype)
        if self.freeze_vision:
            freeze_vision_tower(policy.model)
        if self.lora is not None:
            add_adapters(policy.model, self.lora, plan.dtype, self.source.adapter_folder)
            trains_vision = any(p.requires_grad for part in vision_modules(policy.model) for p in part.parameters())
            if self.freeze_vision and trains_vision:
                raise UserError("model.freeze_vision: model.lora trains adapters there; leave one of them out")
            if not plan.sharded:  # shards are gathered in this type
                round_frozen(policy.model, plan.dtype)
        elif plan.dtype == torch.bfloat16 and not _starts_empty(plan):
            for name, parameter in policy.named_parameters():
                if parameter.requires_grad:
                    dither(name, parameter)
        if plan.trains and plan.replays_routes:
            policy.replay_routes()
        if self.balances_experts:
            policy.balance_experts()
        policy.scores_observations = self.scores_observations
        distribute(policy, plan)
        return policy

    def problems(self, plan: RunPlan) -> Iterator[str]:
        """Yield which options contradict each other or the plan, a line each, before weights are loaded."""
        if self.lora is not None:
            if self.needs_reference and self.reference.update_every:
                yield (
                    "model.kl.reference_update_every: with model.lora the reference is the model before training, "
                    "which is no copy; leave it out"
                )
            if self.teachers.options is not None and self.teachers.options.ema is not None:
                yield "model.teacher.ema: there is no average of adapters; leave it or model.lora out"
            for option, what in (("quantize", "weights in 4 bits"), ("experts", "experts with adapters")):
                if plan.sharded and getattr(self.lora, option) not in ("none", False):
                    yield f"model.lora.{option}: {what} cannot be sharded; use --config strategy/ddp"
        if plan.replays_routes:
            yield from self.route_problems()

    def route_problems(self) -> Iterator[str]:
        """Yield why tokens cannot be trained with the experts that they used in the engine. Reads only the model's
        config."""
        layers = layer_configs(load_model_config(self.source.model_folder))
        teacher = self.teachers.options
        reasons = []
        if not any(map(has_experts, layers)):
            reasons.append("the model has no experts among which tokens choose")
        if self.compute.torch_compile is True:
            reasons.append("layers that model.compute.torch_compile compiles cannot replay")
        if teacher is not None and teacher.model is None and teacher.ema is None:
            reasons.append(
                "a policy that is its own teacher without an average (model.teacher.ema) reads another prompt, whose "
                "experts are unknown"
            )
        for reason in reasons:
            yield f"rollout.replay_routes: {reason}; leave the option off"

    def use_checkpointing(self, is_used: bool) -> None:
        """Decide `model.compute.gradient_checkpointing`, which was `auto`, before the weights load."""
        self.compute = replace(self.compute, gradient_checkpointing=is_used)

    def _load(
        self, folder: str, plan: RunPlan, checkpointing: bool = False, dtype: torch.dtype = torch.float32
    ) -> Policy:
        """Load a model, to the CPU if the device may not hold all of it in this type."""
        is_large = self.lora is not None and (self.lora.quantize != "none" or dtype == torch.float32)
        if plan.sharded or is_large:
            device = torch.device("cpu")
        else:
            device = plan.device
        return load_policy(
            folder,
            self.compute.shared_prefix,
            gradient_checkpointing=checkpointing,
            empty=_starts_empty(plan),
            device=device,
            dtype=dtype,
        )

    def _load_frozen(self, folder: str, plan: RunPlan, renewed: bool = False) -> Policy:
        """Load a model that is not trained, placed and sharded as the policy is.

        Collective: call it on every rank.

        Args:
            folder: a model folder or hub id.
            plan: says where.
            renewed: its weights will be those of the policy, which 16 bits cannot hold.
        """
        policy = self._load(folder, plan)
        distribute(policy.requires_grad_(False), plan)
        if not (plan.sharded or renewed):  # shards are gathered in this type
            round_frozen(policy.model, plan.dtype)
        return policy

    def _load_reference(self, policy: Policy, plan: RunPlan) -> None:
        """Make the initial policy the reference, if one is needed: a second copy, or the policy with the adapters that
        training started with, if any."""
        if not self.needs_reference:
            return
        renewed = bool(self.reference.update_every)
        if self.lora is None:
            self.reference.policy = self._load_frozen(self.source.model_folder, plan, renewed)
        else:
            self.reference.policy = policy.before_training()

    def _load_teachers(self, policy: Policy, plan: RunPlan) -> None:
        """Load the teachers, if there are any, with their weights frozen.

        Raises:
            UserError: one has other tokens than the policy, or its images are others.
        """
        options = self.teachers.options
        if options is None:
            return
        for label, model in options.models.items():
            if is_url(model):
                continue
            folder = teacher_folder(model)
            self.teachers.check_tokens(differing_tokens(self.source.model_folder, folder, "model.teacher.model"))
            if type(family_of(load_model_config(folder))) is not type(policy.family):
                raise UserError(
                    f"model.teacher.model: {model} takes other images than {self.source.model}; use a teacher of the "
                    "same family"
                )
            self.teachers.held[label] = teacher = Reference()
            teacher.policy = self._load_frozen(folder, plan)
        if self.teachers.held:
            models: list[Any] = []
            for each in (policy, *self.teachers.policies):
                models.append(each.model)
            policy.teachable = min(model.get_input_embeddings().num_embeddings for model in models)
        if options.model is None:
            self.teachers.held[""] = teacher = Reference(None if options.ema is None else 1, options.ema or 1.0)
            if options.ema is None:
                teacher.policy = policy
            else:
                teacher.policy = self._load_frozen(self.source.model_folder, plan, renewed=True)

    def frozen_versions(self) -> dict[str, str]:
        """Return the version of all weights that the run needs and does not train: name -> `weights_version`, of a
        server its URL."""
        versions = {}
        if self.lora is not None or self.needs_reference:
            versions["model"] = weights_version(self.source.model_folder)
        if self.source.adapter_folder is not None:
            versions["adapter"] = weights_version(self.source.adapter_folder)
        return versions | self.teachers.versions()

    def begin_training(self, policy: Policy, plan: RunPlan) -> None:
        """Place what is not sharded on the device, give all ranks the same adapters, and compile the layers.

        Collective: call it on every rank.
        """
        if not plan.sharded:  # `distribute` has placed sharded weights
            self.reference.move(plan.device)
            self.teachers.move(plan.device)
            if world_size() > 1:
                broadcast_first(p for n, p in policy.named_parameters() if p.requires_grad or ".lora_" in n)
        if plan.device.type != "cpu":
            check_spans(policy, plan.dtype)
            try_flash_attention_3(policy, plan.dtype)
        if self.compute.liger:  # the weights are on the GPU now
            use_liger(policy.model)
            verify_or_fall_back(policy, plan.dtype)
        self._compile(policy, plan)

    def _compile(self, policy: Policy, plan: RunPlan) -> None:
        """Compile the layers if the option is on, or `auto` and it pays; what `auto` cannot compile stays plain."""
        if not self.compute.torch_compile or plan.replays_routes or self.balances_experts:
            return
        automatic = self.compute.torch_compile == "auto"
        if automatic and not self._compiling_pays(policy, plan):
            return
        progress.begin("compiling the model's layers")
        problem = None
        try:
            compile_and_verify(policy, plan.dtype)
        except UserError as error:
            if not automatic:
                raise
            problem = str(error)
        if automatic:  # all ranks compute in the same way
            problem = next(filter(None, gather_objects(problem)), None)
        if problem is not None:
            log.warning("%s: auto leaves it off", problem)
            uncompile_layers(policy.model)
            return
        if self.reference.policy is not None:
            compile_layers(self.reference.policy.model)

    def _compiling_pays(self, policy: Policy, plan: RunPlan) -> bool:
        """Return whether `auto` compiles: it pays by what each rank trains on, and every rank has a compiler.

        Collective: call it on every rank.
        """
        if not plan.most_tokens or not self.compute.shared_prefix or self.compute.liger:
            return False
        size = sum(parameter.numel() for parameter in policy.parameters())
        tokens = plan.most_tokens // world_size()
        return all(gather_objects(compiling_pays(size, tokens, plan.device, plan.dtype)))


def _starts_empty(plan: RunPlan) -> bool:
    """Return whether the first process loads the weights and this one gets its shards from `distribute`."""
    return plan.sharded and rank() > 0


def distribute(policy: Policy, plan: RunPlan) -> None:
    """Shard and check a policy's weights if the plan says so.

    Collective: call it on every rank.
    """
    strategy = plan.strategy
    if strategy is None:
        return
    assert strategy.sharding_mesh is not None
    policy.share_prefix(strategy.broadcast(policy.shared_prefix))
    shard(policy, strategy.sharding_mesh, ["plain_logits", "last_layer"], plan.dtype, strategy.offload)
    verify_or_fall_back(policy, plan.dtype)
