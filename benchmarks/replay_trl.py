"""Replays the rollouts of a run of TRL's GRPOTrainer through our `fit`, and compares gradients and weights.

GRPOTrainer trains a model on sums: it samples, scores and updates, `--epochs` optimizer steps per rollout. We start
from the same weights, and our engine returns TRL's completions instead of sampling. All else of `fit` is real, also the
reward, a function that both call. Both compute in fp32 on a CPU, so results differ by rounding, which every step
carries on to the next.

first_gradient: |ours - TRL's| / |TRL's| of the first step's clipped gradient, at the same weights; gradient: the worst
of all steps. weights: the largest difference of a final weight. of_change: |ours - TRL's| / |TRL's - initial|.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import make_parser, print_result, print_table, say
from lightning.pytorch import Callback, seed_everything
from torch import Tensor
from transformers import AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from trl_grpo import training_set
from workload import Workload

from lit_rlvr import algorithms, datamodules
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.synced import probe_seeds
from lit_rlvr.errors import UserError
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.rewards import FunctionReward
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.rollout.settings import Safeguards
from lit_rlvr.run.trainer import Trainer
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

DATA = {"high": 99, "held_out": 0, "question": "{a}+{b}=", "chat": Chat(system_prompt=None)}
TRL_ADVANTAGE = {"eps": 1e-4, "unbiased_std": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "GRPO": ("GRPO", {"advantage": ("GRPOAdvantage", TRL_ADVANTAGE)}, {"loss_type": "grpo"}),
    "DAPO, two-sided, KL": (
        "DAPO",
        {
            "advantage": ("GRPOAdvantage", TRL_ADVANTAGE),
            "dual_clip": 4.0,
            "dynamic_sampling": False,
            "kl": {"coef": 0.05, "bias_correction": True},
        },
        {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 4.0, "beta": 0.05},
    ),
    "Dr. GRPO": ("DrGRPO", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "CISPO, batch scaling": (
        "CISPO",
        {"advantage": ("GRPOAdvantage", TRL_ADVANTAGE | {"scale": "batch"})},
        {"loss_type": "cispo", "epsilon_high": 5.0, "scale_rewards": "batch"},
    ),
}
"""Name -> our algorithm with its options, and TRL's."""


def digits(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    """Return the share of digits in each completion, as a reward function for TRL."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in texts]


@dataclass
class Recorder(TrainerCallback):
    """TRL's rollouts, its clipped gradient of each step, and its weights before and after."""

    rollouts: list[tuple[list[str], list[list[int]]]] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    initial: Tensor | None = None
    final: Tensor | None = None

    __name__ = "recorder"

    def __call__(self, completion_ids: list[list[int]], answer: list[str], **kwargs: Any) -> list[None]:
        """Record a rollout; as a reward function that judges nothing."""
        self.rollouts.append((answer, [list(ids) for ids in completion_ids]))
        return [None] * len(completion_ids)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.initial = flat(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients.append(flat_gradient(model))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.final = flat(model)


def flat(model: Any) -> Tensor:
    """Return all weights of a model as one vector in float64, in the order of their names."""
    return torch.cat([p.detach().double().flatten() for _, p in sorted(model.named_parameters())])


def flat_gradient(model: Any) -> Tensor:
    """Return all gradients of a model as one vector in float32, in the order of the weights' names."""
    return torch.cat([p.grad.detach().clone().flatten() for _, p in sorted(model.named_parameters())])


class Replaying(HFEngine):
    """Returns recorded completions instead of sampling, except for a probe."""

    def __init__(self, rollouts: Sequence[tuple[list[str], list[list[int]]]]) -> None:
        super().__init__()
        self._rollouts = iter(rollouts)

    def start(self, context: EngineContext) -> None:
        super().start(context)
        self._tokenizer = context.tokenizer

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], *args: Any, **kwargs: Any
    ) -> list[list[Completion]]:
        if seeds == probe_seeds(len(prompts)):
            return super().generate(prompts, sampling, seeds, *args, **kwargs)
        answers, completions = next(self._rollouts)
        if answers[:: len(seeds[0])] != [prompt.sample.answer for prompt in prompts]:
            raise UserError("replay: the prompts differ from TRL's")
        rows = iter(completions)
        return [[self._completion(next(rows)) for _ in group] for group in seeds]

    def _completion(self, token_ids: list[int]) -> Completion:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return Completion(text, tuple(token_ids), "stop", (0.0,) * len(token_ids))


class Compare(Callback):
    """Our clipped gradient of each step against TRL's: |ours - TRL's| / |TRL's|."""

    def __init__(self, theirs: Sequence[Tensor]) -> None:
        self._theirs = iter(theirs)
        self.errors: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        theirs = next(self._theirs)
        ours = flat_gradient(pl_module.policy.model)
        self.errors.append(float((ours - theirs).norm() / theirs.norm()) if theirs.any() else float(ours.norm()))


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to compare")
    parser.add_argument("--model", default="tiny-llama", help="tiny-llama, smollm2, a model folder, or a hub id")
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=2, help="optimizer steps per rollout")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per rollout")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--max-tokens", type=int, default=12, help="tokens per completion")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train_theirs(options: Any, folder: str, workload: Workload, settings: dict[str, Any]) -> Recorder:
    """Train with GRPOTrainer; return what it did."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as out:
        args = GRPOConfig(
            output_dir=out,
            seed=options.seed,
            max_steps=workload.steps * options.epochs,
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            num_generations=options.group_size,
            num_iterations=options.epochs,
            max_completion_length=options.max_tokens,
            shuffle_dataset=False,
            bf16=False,
            use_cpu=True,
            per_device_train_batch_size=options.prompts * options.group_size,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10**6,
            reward_weights=[1.0, 1.0],
            **settings,
        )
        GRPOTrainer(
            model=folder,
            reward_funcs=[digits, recorder],
            args=args,
            train_dataset=training_set(workload, tokenizer),
            processing_class=tokenizer,
            callbacks=[recorder],
        ).train()
    return recorder


def train_ours(options: Any, folder: str, recorder: Recorder, name: str, settings: dict[str, Any]) -> dict[str, float]:
    """Replay TRL's rollouts through `fit`; return the differences."""
    from lit_rlvr import advantages

    settings = dict(settings)
    if "advantage" in settings:
        estimator, chosen = settings.pop("advantage")
        settings["advantage"] = getattr(advantages, estimator)(**chosen)
    module = getattr(algorithms, name)(
        model=folder, lr=options.lr, epochs_per_rollout=options.epochs, importance={"correction": "none"}, **settings
    )
    rollout = RolloutCallback(
        group_size=options.group_size,
        engine=Replaying(recorder.rollouts),
        safeguards=Safeguards(probe_every=0),
        sampling=Sampling(max_tokens=options.max_tokens),
        rewards=[FunctionReward("replay_trl.digits_of_text")],
    )
    data = datamodules.Arithmetic(**DATA, prompts_per_rollout=options.prompts)
    with tempfile.TemporaryDirectory() as out:
        compare = Compare(recorder.gradients)
        trainer = Trainer(
            default_root_dir=Path(out, "run"),
            callbacks=[rollout, compare],
            max_steps=len(recorder.gradients),
            precision="32-true",
            accelerator="cpu",
            devices=1,
            limit_val_batches=0,
            enable_progress_bar=False,
        )
        trainer.fit(module, datamodule=data)
    assert recorder.initial is not None and recorder.final is not None
    assert len(compare.errors) == len(recorder.gradients) == options.rollouts * options.epochs
    difference = flat(module.policy.model) - recorder.final
    change = recorder.final - recorder.initial
    return {
        "first_gradient": compare.errors[0],
        "gradient": max(compare.errors),
        "weights": float(difference.abs().max()),
        "of_change": float(difference.norm() / change.norm()),
        "change": float(change.abs().max()),
    }


def digits_of_text(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    """Do as `digits`; its annotation asks for messages, as the prompts of TRL's data are, where ours are texts."""
    return digits(completions)


def main() -> None:
    options = parse()
    logging.set_verbosity_error()
    folder = resolve_model(options.model)
    results: dict[str, dict[str, float]] = {}
    for case in options.cases:
        name, ours, theirs = CASES[case]
        seed_everything(options.seed, verbose=False)
        workload = Workload(
            model=folder,
            data="Arithmetic",
            data_options=DATA,
            prompts=options.prompts,
            group_size=options.group_size,
            max_tokens=options.max_tokens,
            steps=options.rollouts,
            seed=options.seed,
        )
        say(f"{case}: GRPOTrainer")
        recorder = train_theirs(options, folder, workload, theirs)
        say(f"{case}: fit")
        seed_everything(options.seed, verbose=False)
        results[case] = train_ours(options, folder, recorder, name, ours)
        assert all(math.isfinite(value) for value in results[case].values())
        say(f"{case}: {results[case]}")
    columns = ("first_gradient", "gradient", "weights", "of_change", "change")
    print_table(("", *columns), [(case, *(row[c] for c in columns)) for case, row in results.items()])
    print_result(rollouts=options.rollouts, epochs=options.epochs, model=options.model, results=results)


if __name__ == "__main__":
    main()
