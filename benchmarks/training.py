"""Our training path on a made-up rollout: a real Trainer and a real algorithm, without an engine.

As a script (started by the benchmarks): training.py OPTIONS (as JSON) trains and prints seconds and memory as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import passive  # noqa: F401
import torch
from common import PRECISIONS, peak_memory_mb
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader
from workload import wait_for_gpu

from lit_rlvr.algorithms import GRPO
from lit_rlvr.media import Pixels
from lit_rlvr.policy import loading, logprobs as scoring
from lit_rlvr.policy.families.qwen_vl import VLM_SPECIALS, save_tiny_vlm
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.run.rank_zero import EXPECTED_WARNINGS
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, PromptBatch, Rollout, Sample, pad_completions

Shape = dict[str, int]

SMALL: Shape = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}
"""The shape of a random Llama of 30 M parameters, for sizes that take too long on SmolLM2."""


def build_policy(model: str | Shape, shared_prefix: bool = True) -> Policy:
    """Build a policy: `smollm2`, a folder or a hub id; or a random Llama of a shape."""
    if isinstance(model, str):
        return load_policy(resolve_model(model), shared_prefix)
    from transformers import LlamaConfig, LlamaForCausalLM

    loading.keep_freed_memory()
    torch.manual_seed(0)
    config = LlamaConfig(**model, max_position_embeddings=1 << 15, tie_word_embeddings=True)
    return Policy(LlamaForCausalLM(config).eval(), (0,), shared_prefix)


def build_vlm() -> Policy:
    """Build a random Qwen2.5-VL: the language model of `SMALL` with its own vocabulary, an image encoder of 6
    layers."""
    text = {name: size for name, size in SMALL.items() if name != "vocab_size"} | {"max_position_embeddings": 1 << 15}
    vision = {"depth": 6, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "fullatt_block_indexes": [2, 5]}
    with tempfile.TemporaryDirectory() as folder:
        return load_policy(str(save_tiny_vlm(Path(folder), text=text, vision=vision)))


def with_image(rollout: Rollout, config: Any, features: int) -> Rollout:
    """Return the rollout with a random image of a square number of features in front of each prompt."""
    vision = config.vision_config
    side = round(features**0.5) * vision.spatial_merge_size
    size = vision.temporal_patch_size * vision.in_channels * vision.patch_size**2
    inputs = {"pixel_values": torch.randn(side * side, size), "image_grid_thw": torch.tensor([[1, side, side]])}
    placeholders = (config.image_token_id,) * features
    pixels = Pixels((inputs,), (placeholders,), ())
    image = [config.vision_start_token_id, *placeholders, config.vision_end_token_id]
    prompts = [replace(p, token_ids=[*image, *p.token_ids], pixels=pixels) for p in rollout.prompts]
    return replace(rollout, prompts=prompts)


def make_rollout(
    groups: int, group_size: int, prompt_tokens: int, completion_tokens: int | list[int], vocabulary: int, dead: int = 0
) -> Rollout:
    """Build a rollout of random tokens; half of each group is right, except in the first `dead` groups.

    Args:
        completion_tokens: of all completions, or of each.
    """
    if isinstance(completion_tokens, int):
        completion_tokens = [completion_tokens] * (groups * group_size)
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(len(VLM_SPECIALS), vocabulary, (count,), generator=draw).tolist()

    made = [Completion("", tuple(tokens(n)), "length", (-2.0,) * n) for n in completion_tokens]
    completions = [made[p * group_size : (p + 1) * group_size] for p in range(groups)]
    token_ids, mask, logprobs = pad_completions(completions)
    rewards = (torch.arange(group_size) % 2).float().repeat(groups, 1)
    rewards[:dead] = 0.0
    return Rollout(
        prompts=[Prompt(Sample(str(p), "", ""), tokens(prompt_tokens)) for p in range(groups)],
        completions=completions,
        token_ids=token_ids,
        mask=mask,
        rollout_logprobs=logprobs,
        rewards=rewards,
        correct=rewards,
        has_correct=torch.ones_like(rewards, dtype=torch.bool),
        parts={},
        statuses=[["ok"] * group_size] * groups,
        sampling=Sampling(max_tokens=max(completion_tokens)),
    )


class EveryGroup(GRPO):
    """GRPO that also trains on groups whose advantages are all zero."""

    trains_all_rows = True


class FixedRollouts(LightningDataModule):
    """Batches that hold their rollout already, sampled by the weights that it trains."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        super().__init__()
        self._batches = [
            PromptBatch(one.prompts, rollout=replace(one, versions=torch.full_like(one.token_ids, updates)))
            for updates, one in enumerate(rollouts)
        ]

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        return DataLoader(self._batches, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]

    def commit(self, cursor: dict[str, int], successes: Mapping[str, tuple[int, int]]) -> None:
        """Do nothing: the batches have no position to save."""


def _as_it_is(batch: PromptBatch) -> PromptBatch:
    return batch


class Clock(Callback):
    """Records the seconds of every iteration: advantages, forward, backward, clipping, AdamW, metrics."""

    def __init__(self, between: Callable[[], Any]) -> None:
        self.seconds: list[float] = []
        self._between, self._began = between, 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._between()
        self._began = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        wait_for_gpu()
        self.seconds.append(time.perf_counter() - self._began)


def train(
    trained: Policy | None,
    rollouts: Sequence[Rollout],
    precision: str = "fp32",
    between: Callable[[], Any] = lambda: None,
    algorithm: type[GRPO] = GRPO,
    device: str = "cpu",
    trainer_options: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> list[float]:
    """Train a policy on the rollouts, one optimizer step each, with the product's defaults; return the seconds of each
    step.

    Args:
        trained: None = the algorithm loads its `model`.
        between: called before each step, not counted.
        device: cpu or cuda.
        trainer_options: such as a strategy and its number of processes.
        callbacks: called before the clock is read.
        options: the algorithm's.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (*EXPECTED_WARNINGS, ".*no `val_dataloader`.*"):
        warnings.filterwarnings("ignore", message=message)
    seed_everything(0, verbose=False)
    module = algorithm(importance={"correction": "token_truncate"}, **options)
    if trained is not None:
        module.policy = trained
    clock = Clock(between)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=len(rollouts),
            max_epochs=-1,
            accelerator=device,
            precision=PRECISIONS[precision],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[*callbacks, clock],
            **trainer_options or {},
        )
        trainer.fit(module, datamodule=FixedRollouts(rollouts))
    return clock.seconds


def switch_off(technique: str) -> dict[str, Any]:
    """Disable a technique in this process; return the options of `train` that do the rest."""
    if technique == "shared prefix":
        return {"compute": {"shared_prefix": False}}
    if technique == "skipping dead groups":
        return {"algorithm": EveryGroup}
    if technique == "kept logits":
        scoring.KEPT_BYTES = -1
    elif technique == "vocabulary in chunks":
        scoring.CHUNK_LOGITS = 1 << 62
    elif technique == "kept freed memory":
        loading.keep_freed_memory = lambda: None
    elif technique:
        raise SystemExit(f"there is no technique {technique!r}")
    return {}


def main() -> None:
    asked = json.loads(sys.argv[1])
    options = switch_off(asked.get("without", ""))
    trained = build_policy(asked["model"], options.pop("compute", {}).get("shared_prefix", True))
    rollout = make_rollout(**asked["rollout"], vocabulary=trained.model.config.vocab_size)
    before = peak_memory_mb()
    seconds = train(trained, [rollout] * (1 + asked["steps"]), asked["precision"], **options)
    print(json.dumps({"seconds": seconds[1:], "memory_before_mb": before, "peak_memory_mb": peak_memory_mb()}))


if __name__ == "__main__":
    main()
