"""The groups of options of `model`: frozen dataclasses that check their values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch.optim import Optimizer

from lit_rlvr.common.arguments import check_within, checks_arguments, option_group
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import Aggregation, ImportanceCorrection, KLEstimator, lower_bound
from lit_rlvr.types import Sample

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
Schedule = Literal["constant", "linear", "cosine"]
ProxLogpMethod = Literal["recompute", "loglinear"]


@checks_arguments("model.lr")
@dataclass(frozen=True)
class AutoLR:
    """A learning rate that finds itself: see `AdaptiveLR`.

    Args:
        start: where to look first; null = 1e-2 / the model's hidden size (1.7e-5 for SmolLM2-135M, 2.8e-6 for a 7B
            model), and ten times that with `model.lora`. The first step takes a tenth of it, because AdamW's first step
            moves every weight by the whole rate.
        max_kl: bound on the mean divergence of the policy over the steps of a rollout, in nats per token: the rate is
            lowered above it, and raised below a fiftieth of it.
    """

    start: float | None = None
    max_kl: float = 0.02


@option_group("model.optim")
@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule.

    Args:
        optimizer: class_path of an optimizer to use instead of AdamW, such as torch.optim.SGD or
            bitsandbytes.optim.AdamW8bit; its options, except the learning rate, go under init_args.
        weight_decay: AdamW's decoupled weight decay.
        betas: AdamW's moment decay rates.
        lr_schedule: the schedule after warm-up; linear and cosine decay to 0 at the last step.
        warmup_steps: optimizer steps over which the learning rate rises linearly.
        max_grad_norm: gradients are scaled down to this norm; 0 = off.
        max_skipped_steps: optimizer steps in a row that may be skipped for a loss or gradient that is not finite, and
            rollouts in a row without any reward: all None, or failed checks.
    """

    optimizer: OptimizerCallable | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    lr_schedule: Schedule = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        check_within("[0, inf)", "model.optim", weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm)
        check_within("[0, 1)", "model.optim.betas", first=self.betas[0], second=self.betas[1])
        counts = {"warmup_steps": self.warmup_steps, "max_skipped_steps": self.max_skipped_steps}
        check_within("[0, inf)", "model.optim", **counts)
        for name in ("betas", "weight_decay") if self.optimizer is not None else ():
            value = getattr(self, name)
            if value != getattr(Optim, name):
                raise UserError(
                    f"model.optim.{name}: {value} is for AdamW, which model.optim.optimizer replaces; set it under "
                    "model.optim.optimizer.init_args"
                )


@option_group("model.loss")
@dataclass(frozen=True)
class Loss:
    """The aggregation of the losses of tokens, the entropy bonus, and the imitation of right completions.

    Args:
        aggregation: what token losses are divided by: their sequence's tokens (`sequence_mean`), all tokens of the step
            (`token_mean`), their group's tokens (`group_token_mean`), the longest possible completion (`constant`), or
            nothing (`token_sum`); all but `token_mean` also by the number of sequences or groups.
        normalise_by: what counts as a sequence where an agent's episode became several: the whole `episode`, or each
            `sequence` with the tokens that it has in the loss. Advantages are of episodes either way.
        count_empty_rows: count completions without a token in the loss as sequences; verl does not.
        entropy_coef: weight of an entropy bonus, computed from the policy's exact entropy; 0 = off.
        top_entropy_quantile: share of an optimizer step's tokens whose objective counts, those of the highest entropy
            under the policy at the beginning of the iteration (Wang et al. 2025, arXiv 2506.01939: 0.2); 1 = all.
        positive_nll_coef: weight of the -log p of right completions, averaged as `aggregation` says (Yue et
            al. 2025, VAPO, arXiv 2504.05118: 0.1, there averaged over the tokens of the right ones); 0 = off.
        balance_coef: weight of the loss that keeps the use of a mixture's experts even within each completion, averaged
            as `aggregation` says (DeepSeek-V3, arXiv 2412.19437: 1e-4); 0 = off.
        observation_coef: weight of the -log p of the tokens that an environment answered between turns, such as outputs
            of tools, averaged over them as `aggregation` says (ECHO); the policy learns what its actions lead to.
            0 = off.
    """

    aggregation: Aggregation = "sequence_mean"
    normalise_by: Literal["episode", "sequence"] = "episode"
    count_empty_rows: bool = True
    entropy_coef: float = 0.0
    top_entropy_quantile: float = 1.0
    positive_nll_coef: float = 0.0
    balance_coef: float = 0.0
    observation_coef: float = 0.0

    def __post_init__(self) -> None:
        check_within("(-inf, inf)", "model.loss", entropy_coef=self.entropy_coef)
        check_within("[0, inf)", "model.loss", positive_nll_coef=self.positive_nll_coef, balance_coef=self.balance_coef)
        check_within("[0, inf)", "model.loss", observation_coef=self.observation_coef)
        check_within("(0, 1]", "model.loss", top_entropy_quantile=self.top_entropy_quantile)
        if self.aggregation == "group_token_mean" and not self.count_empty_rows:
            raise UserError("model.loss.count_empty_rows: group_token_mean averages over groups; leave it at true")
        if self.normalise_by == "sequence" and self.aggregation in ("token_mean", "group_token_mean"):
            raise UserError(f"model.loss.normalise_by: {self.aggregation} counts no sequences; leave it at episode")


@option_group("model.kl")
@dataclass(frozen=True)
class KL:
    """The divergence from a reference policy, in the loss or in the rewards.

    Args:
        coef: weight of the KL term against the initial policy; 0 = off, without loading a reference model. If it is not
            given, also by `KL()` in Python, the algorithm's own holds.
        estimator: estimate of each token's divergence: `k3` (GRPO), `k2`, whose gradient is the divergence's, or
            `k1`, whose gradient in the loss is 0 on average: for the reward.
        in_reward: subtract the divergence, summed over each completion, from its reward, instead of adding it to the
            loss (verl's use_kl_in_reward).
        bias_correction: multiply each token's KL estimate by its ratio to the policy at the beginning of the
            iteration, which makes its gradient the unbiased one of the reverse KL for completions of that policy
            (DeepSeek-V3.2; TRL's default).
        reference_update_every: iterations after which the current policy becomes the reference, for a KL term or an
            advantage; null = never.
    """

    coef: float = 0.0
    estimator: KLEstimator = "k3"
    in_reward: bool = False
    bias_correction: bool = False
    reference_update_every: int | None = None

    def __post_init__(self) -> None:
        check_within("[0, inf)", "model.kl", coef=self.coef)
        check_within("[1, inf)", "model.kl", reference_update_every=self.reference_update_every)


@option_group("model.importance")
@dataclass(frozen=True)
class Importance:
    """The correction for completions that were not sampled from the policy in the loss.

    Sources: Yao et al. 2025 (truncated importance sampling), Ling Team 2025 (IcePop, masked importance sampling),
    DeepSeek-V3.2, eq. 9 (`off_policy_threshold`), verl's rollout correction.

    `rollout_logp` is the log-probability that a token was sampled with, so the tokens of one completion may come from
    several versions of the weights. With an objective that clips `exp(logp - old_logp)`, this is decoupled PPO (Fu et
    al. 2025, AReaL): `rollout_logp` is of its behaviour policy, `old_logp` of its proximal one and `logp` of the
    current one. `token_truncate` and `token_mis` are AReaL's actions `clamp` and `mask` at the level of tokens.

    Args:
        correction: correction for engines whose log-probabilities differ from the trainer's; by default
            `token_truncate`, or `none` for the Hugging Face engine at precision 32-true, which is exact. A ratio
            `w = exp(old_logp - rollout_logp)` of the trainer's to the engine's probability becomes a weight: that of
            each token (`token_...`), the product over a sequence (`sequence_...`) or their geometric mean
            (`geometric_...`). `..._truncate` clips w to the bounds; `..._mis` keeps w within the bounds and gives 0
            outside (TRL's `..._mask`); `..._reject` gives 1 within and 0 outside.
        cap: upper bound of the ratios; null = none. With `..._reject` and no floor it must be above 1.
        floor: lower bound of the ratios; null = none, and for `..._reject` 1 / cap.
        veto: drop a sequence with a token whose ratio is below this, which is below 1; null = off.
        off_policy_threshold: drop a sequence with a negative advantage whose log-probability per token has fallen by
            more than this since it was sampled (DeepSeek-V3.2); null = off.
        prox_logp_method: log-probabilities under the policy at the beginning of the iteration, for its updates after
            the first: `recompute` them with a forward pass before the updates, or take AReaL's approximation
            `loglinear`, which interpolates between those that each token was sampled with and the current ones: for
            tokens of the current weights, the engine's. Where a term or the choice of tokens has computed them
            already, those are used.
    """

    correction: ImportanceCorrection | None = None
    cap: float | None = 2.0
    floor: float | None = None
    veto: float | None = None
    off_policy_threshold: float | None = None
    prox_logp_method: ProxLogpMethod = "recompute"

    def __post_init__(self) -> None:
        check_within("(0, inf)", "model.importance", cap=self.cap, off_policy_threshold=self.off_policy_threshold)
        check_within("(0, 1)", "model.importance", veto=self.veto)  # 1 is the ratio of equal policies
        check_within("[0, inf)", "model.importance", floor=self.floor)
        lower = lower_bound(self.mode, self.cap, self.floor)
        if self.cap is not None and lower is not None and lower >= self.cap:
            if self.floor is not None:
                raise UserError(f"model.importance.floor: {self.floor} must lie below cap={self.cap}")
            raise UserError(
                f"model.importance.cap: {self.cap} leaves nothing, because {self.mode} takes 1 / cap = "
                f"{lower:g} for its lower bound; set it above 1, or set model.importance.floor below it"
            )
        # Whatever these keep has a token with a ratio of at most the cap, which a larger veto drops.
        keeps_below_cap = self.mode in ("token_mis", "token_reject", "geometric_reject")
        if keeps_below_cap and self.cap is not None and self.veto is not None and self.veto > self.cap:
            raise UserError(f"model.importance.veto: {self.veto} must not lie above cap={self.cap}")

    @property
    def mode(self) -> ImportanceCorrection:
        """The correction; `none` while it is left to the engine."""
        return self.correction or "none"

    @property
    def is_bounded(self) -> bool:
        """Whether the weights follow the ratios and no ratio can make one arbitrarily large."""
        return self.mode != "none" and (self.cap is not None or (self.mode.endswith("_reject") and bool(self.floor)))

    @property
    def drops(self) -> bool:
        """Whether tokens can get weight 0."""
        return self.mode.endswith(("_mis", "_reject")) or self.veto is not None or self.off_policy_threshold is not None


DEFAULT_TOKENS = 4096
"""The most input tokens in a micro-batch by default, where no GPU's memory says more."""


@option_group("model.compute")
@dataclass(frozen=True)
class Compute:
    """The settings of how training computes; they change results by rounding alone.

    Args:
        tokens_per_microbatch: maximum input tokens per micro-batch, including padding, though it has at least one
            prompt and completion, however long; bounds memory without changing results. Halved when memory runs out.
            `auto`: on GPUs as many as should fit, on a CPU 4,096. The `config.yaml` of `lit-rlvr fit` has the number,
            which a resume keeps.
        shared_prefix: compute each prompt once for its whole group; False = one completion per row.
        gradient_checkpointing: recompute each layer in the backward pass: less memory, a third more time. `auto`: on
            GPUs that would not hold a step without it.
        liger: use liger-kernel's fused kernels (GPU only). torch cannot compile them, so not with `torch_compile`.
        torch_compile: compile the language model's layers with torch.compile for training, which takes a while at the
            start; a resumed run then ends the same only up to rounding. Generation is not compiled. `auto` does so in
            bfloat16, if the run is long enough for it to pay in each process.
    """

    tokens_per_microbatch: int | Literal["auto"] = "auto"
    shared_prefix: bool = True
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    liger: bool = False
    torch_compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.tokens_per_microbatch != "auto":
            check_within("[1, inf)", "model.compute", tokens_per_microbatch=self.tokens_per_microbatch)
        for other, conflicts in (("shared_prefix: false", not self.shared_prefix), ("liger: true", self.liger)):
            if self.torch_compile is True and conflicts:
                raise UserError(
                    f"model.compute.torch_compile: it cannot be combined with {other}; leave one of them off"
                )


EXCLUSIVE = (("init", "quantize"), ("init", "dora"), ("init", "experts"), ("experts", "dora"), ("experts", "dropout"))
"""Pairs of options of `Lora` of which one alone may differ from its default: peft has no such layers."""


@checks_arguments("lora")
@dataclass(frozen=True)
class Lora:
    """Options of LoRA: adapters of rank r are trained instead of the weights: W + (alpha / r) B A, B starting at 0.

    Args:
        rank: r.
        alpha: the adapters' scale before it is divided by r.
        layers: names of the linear layers that get an adapter, such as [q_proj, v_proj]; None = all of the language
            model except the output embedding.
        quantize: `nf4` stores the language model's linear layers in 4 bits (QLoRA), a seventh of their memory. Engines,
            exports and the reference use the dequantised values, as the trainer does.
        adapter: what to do with the adapter if `model` is a folder with only an adapter: `continue` trains it, with its
            own rank, scale and layers; `merge` merges it into its base model, and trains a new one on the result.
        rslora: divide alpha by the square root of r, so that high ranks learn as fast as low ones.
        dora: also train the length of each row of W + (alpha / r) B A (DoRA).
        dropout: the share of an adapter's inputs that SFT sets to 0 in training.
        init: the start of A and B: `kaiming` and `gaussian` draw A, and `pissa` takes the largest singular values and
            vectors of W for both; what they add to W at the start is subtracted.
        vision_tower: also adapt the vision tower's linear layers.
        experts: also adapt the experts of a mixture of experts.
    """

    rank: int = 16
    alpha: int = 32
    layers: list[str] | None = None
    quantize: Literal["none", "nf4"] = "none"
    adapter: Literal["continue", "merge"] | None = None
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    init: Literal["kaiming", "gaussian", "pissa"] = "kaiming"
    vision_tower: bool = False
    experts: bool = False

    def __post_init__(self) -> None:
        check_within("[1, inf)", "model.lora", rank=self.rank, alpha=self.alpha)
        check_within("[0, 1)", "model.lora", dropout=self.dropout)
        changed = []
        for field in fields(self):
            if getattr(self, field.name) != field.default:
                changed.append(field.name)
        names = {*changed} - {"adapter", "quantize", "dropout"}
        if self.adapter == "continue" and names:
            raise UserError(
                f"model.lora: with `adapter: continue`, {', '.join(sorted(names))} is the adapter's own; leave it out"
            )
        for option, other in EXCLUSIVE:
            if {option, other} <= {*changed}:
                value = f"{option}: {getattr(self, option)}"
                raise UserError(f"model.lora.{other}: it does not work with `{value}`; leave one of them out")


class TeacherPrompt(ABC):
    """Makes the prompt behind which a teacher scores the policy's tokens."""

    @abstractmethod
    def ask(self, sample: Sample) -> Sample:
        """Return a sample with the prompt that the teacher gets in place of the policy's.

        Raises:
            BadRow: its row lacks what the prompt shows.
        """


@option_group("model.teacher")
@dataclass(frozen=True)
class Teacher:
    """A model that the policy imitates on its own completions: on-policy distillation.

    Args:
        model: a model folder or hub id, or the URL of a vLLM server, whose tokens are those of the trained model; or a
            dict of these for the values of `column`; null = the policy itself, behind another prompt.
        coef: weight of `log teacher - log policy`, which is added to each token's advantage: a sample of the reverse KL
            divergence, with the policy at the beginning of the iteration. With `beta`, the weight of the divergence in
            the loss.
        beta: instead, the loss gets the divergence at each token, summed over the vocabulary: 0 = forward KL,
            KL(teacher || policy), 1 = reverse KL, KL(policy || teacher), in between GKD's generalised Jensen-Shannon
            divergence; null = the sampled one in the advantages.
        top_k: with `beta`, compare the policy's k likeliest tokens, and all others as one; null = every token.
        column: the column of the data that names the teacher of each row, with a dict of models.
        prompt: makes the prompt behind which the teacher scores the policy's tokens; null = it is the policy's.
        ema: with the policy as its own teacher, after each rollout the teacher's weights move this fraction of the way
            from where they are, at first the initial ones, to the policy's; null = they are always the policy's.
    """

    model: str | dict[str, str] | None = None
    coef: float = 1.0
    beta: float | None = None
    top_k: int | None = None
    column: str | None = None
    prompt: TeacherPrompt | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        check_within("(0, inf)", "model.teacher", coef=self.coef)
        check_within("(0, 1]", "model.teacher", ema=self.ema)
        check_within("[0, 1]", "model.teacher", beta=self.beta)
        check_within("[1, inf)", "model.teacher", top_k=self.top_k)
        if self.top_k is not None and self.beta is None:
            raise UserError(
                "model.teacher.top_k: the divergence of the sampled token needs no others; set model.teacher.beta, "
                "for one over the vocabulary, or leave top_k out"
            )
        if self.beta is not None and (self.column is not None or len(self.folders) < len(self.models)):
            raise UserError(
                "model.teacher.beta: the divergence over the vocabulary needs all of one teacher's logits, which "
                "servers and several teachers do not give; name one folder as model.teacher.model, or leave beta out"
            )
        if isinstance(self.model, dict) != (self.column is not None):
            raise UserError("model.teacher.column: it names the row's model in a dict of models; give both or neither")
        if self.model is None and self.prompt is None:
            raise UserError("model.teacher.model: null is the policy itself, which needs another prompt; give `prompt`")
        if self.model is not None and self.ema is not None:
            raise UserError("model.teacher.ema: it averages the policy's weights; leave `model` out")

    @property
    def models(self) -> dict[str, str]:
        """Folders, hub ids and URLs by the value of `column`, "" without one; {} = the policy itself."""
        if isinstance(self.model, dict):
            models = {}
            for label, model in self.model.items():
                models[str(label)] = model
            return models
        if self.model is None:
            return {}
        return {"": self.model}

    @property
    def folders(self) -> list[str]:
        """The models that are loaded, without those on servers."""
        folders = []
        for model in self.models.values():
            if not is_url(model):
                folders.append(model)
        return folders


def is_url(model: str) -> bool:
    """Return whether a teacher is on a server."""
    return model.startswith(("http://", "https://"))
