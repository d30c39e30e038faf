"""An algorithm of your own: a loss in one method, checked against a slow loop, then trained and compared with GRPO."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from torch import Tensor

from lit_rlvr import LossInputs, RLVRModule, Stats, masked_sum, ratio
from lit_rlvr.cli.main import run


class SPO(RLVRModule):
    """`-(1/B) sum_i (1/n_i) sum_t [w A - |A| (w - 1)^2 / (2 clip)]`: a penalty in place of GRPO's clip.

    Source: Xie et al. 2024 (Simple Policy Optimization, arXiv 2401.16025).

    Args:
        clip: the ratio w at which the gradient of a token ends is 1 + clip where A > 0, 1 - clip where A < 0.
    """

    def __init__(self, clip: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clip = clip

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        w = ratio(x.logp, x.old_logp, x.mask).clamp(max=1e4)  # (B, T); the square of a larger one could be infinite
        value = w * x.advantages - x.advantages.abs() * (w - 1).square() / (2 * self.clip)
        return -masked_sum(value, x.token_weight, x.mask), {}


def frozen_batch(prompts: int = 4, group: int = 8, tokens: int = 16) -> dict[str, np.ndarray]:
    """Random numbers in the shapes of a rollout, with completions of different lengths."""
    draw = np.random.default_rng(0)
    rows = prompts * group
    old = draw.normal(-1.5, 0.5, (rows, tokens))
    correct = draw.integers(0, 2, (prompts, group))
    return {
        "logp": old + draw.normal(0, 0.25, (rows, tokens)),
        "old_logp": old,
        "mask": np.arange(tokens) < draw.integers(1, tokens + 1, (rows, 1)),
        "rewards": correct.astype(float),
        "correct": correct,
    }


def slow_loss(batch: dict[str, np.ndarray], clip: float = 0.2) -> tuple[float, np.ndarray]:
    """The loss and its gradient by the formula, one token at a time, with nothing of lit-rlvr."""
    rows, tokens = batch["logp"].shape
    group = batch["rewards"].shape[1]
    loss, gradient = 0.0, np.zeros((rows, tokens))
    for i in range(rows):
        rewards = batch["rewards"][i // group]
        advantage = (rewards[i % group] - rewards.mean()) / (rewards.std() + 1e-6)
        length = int(batch["mask"][i].sum())
        for t in range(length):
            w = math.exp(batch["logp"][i, t] - batch["old_logp"][i, t])
            value = w * advantage - abs(advantage) * (w - 1) ** 2 / (2 * clip)
            slope = w * advantage - abs(advantage) * (w - 1) * w / clip  # d value / d logp
            loss -= value / (rows * length)
            gradient[i, t] = -slope / (rows * length)
    return loss, gradient


def prove(batch: dict[str, np.ndarray], replayed: dict[str, np.ndarray]) -> None:
    """The replay of SPO equals the slow loop, and without a penalty to speak of it is GRPO without a clip."""
    loss, gradient = slow_loss(batch)
    assert abs(float(replayed["spo/loss"]) - loss) < 1e-12
    assert np.abs(replayed["spo/dlogp"] - gradient).max() < 1e-12
    assert np.abs(replayed["free/dlogp"] - replayed["unclipped/dlogp"]).max() < 1e-9
    print(f"SPO equals the slow loop: loss {loss:.12f}, {int(batch['mask'].sum())} gradients")


def accuracies(folder: str) -> tuple[list[int], list[float]]:
    """Steps and held-out accuracies of a run."""
    with Path(folder, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/accuracy"]]
    return [int(row["step"]) for row in rows], [float(row["val/accuracy"]) for row in rows]


def picture(batch: dict[str, np.ndarray], replayed: dict[str, np.ndarray], runs: dict[str, str]) -> None:
    """Left: each token's push by its ratio. Right: the accuracy of the runs."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    share = batch["mask"] / (len(batch["mask"]) * batch["mask"].sum(1, keepdims=True))
    for name, colour in (("grpo", "tab:blue"), ("spo", "tab:orange")):
        size = np.abs(replayed[f"{name}/advantages"]).reshape(-1, 1)
        used = batch["mask"] & (size > 0)
        w = np.exp(batch["logp"] - batch["old_logp"])[used]
        push = -replayed[f"{name}/dlogp"][used] / (share * size)[used]
        left.scatter(w, push, 6, colour, label=name.upper())
    left.set(xlabel="ratio w of a token", ylabel="push / |A|", xlim=(0.5, 1.7), ylim=(-3, 3))
    left.set_title("Frozen batch: A > 0 above, A < 0 below at w = 1")
    for name, folder in runs.items():
        right.plot(*accuracies(folder), marker="o", label=name.upper())
    right.set(xlabel="optimizer step", ylabel="held-out accuracy", ylim=(0, None), title="Training on sums")
    for axis in (left, right):
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig("own_algorithm.png", dpi=100)


if __name__ == "__main__":
    batch = frozen_batch()
    np.savez("batch.npz", **batch)
    Path("replayed.npz").unlink(missing_ok=True)
    config = str(Path(__file__).with_suffix(".yaml"))
    assert run(["parity", "batch.npz", "--config", config, "--out", "replayed.npz"]) == 0
    replayed = dict(np.load("replayed.npz"))
    prove(batch, replayed)
    runs = {"grpo": "GRPO", "spo": "own_algorithm.SPO"}
    for name, algorithm in runs.items():
        model = ["--model", algorithm, "--model.init_args.updates_per_rollout", "4"]
        trainer = ["--trainer.max_steps", "240", "--rollout.validate_every_rollouts", "15"]
        folder = ["--trainer.default_root_dir", f"runs/{name}", "--overwrite", "true"]
        assert run(["fit", "--config", "smoke/sums", *model, *trainer, *folder]) == 0
    picture(batch, replayed, {name: f"runs/{name}" for name in runs})
