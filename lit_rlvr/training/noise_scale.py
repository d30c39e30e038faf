"""The gradient's noise scale: the number of prompts of a step from which more prompts hardly make it better.

Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162), the "simple" noise
scale tr(Sigma) / |g|^2, where g is the expected gradient and Sigma the covariance of one prompt's. With as many prompts
in a step, its gradient is half signal and half noise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import chain
from math import sqrt

import torch
from torch import Tensor, nn

from lit_rlvr.distributed.collectives import all_sum, world_size
from lit_rlvr.distributed.sharding import whole_parameters
from lit_rlvr.training.step.plan import StepPlan


class MicrobatchNorms:
    """The squared norms of the gradients of a step's micro-batches, each by itself.

    Hooks read each parameter's gradient of a micro-batch before it is added to the earlier ones, so they need no memory
    and change no number. Under FSDP2 they read it before it is summed over ranks.

    Args:
        model: the trained model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.is_measuring = False
        self._norms: list[Tensor] = []  # of the parameters in the micro-batch under way
        self._squares: list[Tensor] = []  # of the step's micro-batches
        for parameter in whole_parameters(model):
            if parameter.requires_grad:
                parameter.register_hook(self._read)

    def _read(self, gradient: Tensor) -> None:
        if self.is_measuring:
            self._norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))

    def begin(self, plan: StepPlan) -> None:
        """Forget an earlier step, and measure this one if there is more than one micro-batch."""
        self._norms = []
        self._squares = []
        self.is_measuring = plan.num_counted > 1 or world_size() > 1

    def add_microbatch(self, is_counted: bool) -> None:
        """Keep the squared norm of the micro-batch that was run, unless it only keeps ranks in lockstep."""
        if self._norms and is_counted:
            # Each rank's loss was multiplied by the number of ranks, because strategies average over them.
            self._squares.append(torch.stack(self._norms).double().square().sum() / world_size() ** 2)
        self._norms = []

    def end(self) -> Tensor:
        """Return the sum of the squared norms, and stop measuring: other backward passes are no part of a step."""
        self.is_measuring = False
        if self._squares:
            return torch.stack(self._squares).sum().cpu()
        return torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class StepNoise:
    """An estimate from one optimizer step.

    Args:
        signal: |g|^2, the squared norm of the expected gradient; it can be negative.
        noise: tr(Sigma), the variance of one prompt's gradient, summed over the parameters.
        prompts: of the step, on all ranks.
    """

    signal: float
    noise: float
    prompts: float


def step_noise(plan: StepPlan, num_prompts: int, squares: Tensor, norm: float) -> StepNoise | None:
    """Estimate signal and noise of an optimizer step; None if the step had a single micro-batch on all ranks.

    The gradient is a sum over micro-batches, G = sum of d_k, whose products d_k * d_l (k != l) are of different prompts
    and so have no noise in common. Their sum is |G|^2 - sum of |d_k|^2; per pair of prompts it estimates the signal.
    A prompt that no micro-batch has, because its completions give no signal, counts with the gradient 0. The estimate
    is exact in expectation over the order of the prompts: it has the mean of the unbiased estimator from each prompt's
    own gradient.

    Assumptions:

    - Prompts are drawn independently. Normalisers over the whole step (tokens, advantages standardised over a batch)
      count as constants.
    - A micro-batch has whole prompts. One whose completions do not fit into a micro-batch is in several, and the
      products of its parts count as if they were of different prompts: the noise scale is then too small.
    - Micro-batches have prompts of similar lengths. If length and gradient go together, products within a micro-batch
      would be larger than those that are measured, and the noise scale is too large. It matters little where there
      are many micro-batches.

    Collective: call it on every rank.

    Args:
        plan: the step.
        num_prompts: this rank's prompts in the step, with and without a signal.
        squares: sum of the squared norms of this rank's micro-batches.
        norm: the norm of the gradient of all ranks.
    """
    group_size = plan.prepared.rollout.group_size
    microbatches = plan.microbatches[: plan.num_counted]
    rows_of = Counter(row // group_size for row in chain(*microbatches))  # by prompt
    shares = []  # the prompts in each micro-batch
    for rows in microbatches:
        counts = Counter(row // group_size for row in rows)
        shares.append(sum(count / rows_of[p] for p, count in counts.items()))
    sums = torch.tensor([num_prompts, sum(shares), sum(share**2 for share in shares), squares], dtype=torch.float64)
    prompts, live, within, squares_of_all = all_sum(sums).tolist()
    pairs = live**2 - within
    if prompts < 2 or pairs < 1e-6:
        return None
    product = (norm**2 - squares_of_all) / pairs  # mean over pairs of prompts with a signal
    signal = product * live * (live - 1) * prompts / (prompts - 1)
    return StepNoise(signal, prompts * (norm**2 - signal), prompts)


@dataclass
class NoiseScale:
    """Running averages of the signal and the noise of steps; the ratio of a single step's would be far off.

    Args:
        signal: weighted sum over the measured steps.
        signal_squares: of its square.
        noise: of the noise.
        weight: sum of the weights.
        weight_squares: sum of their squares.
    """

    signal: float = 0.0
    signal_squares: float = 0.0
    noise: float = 0.0
    weight: float = 0.0
    weight_squares: float = 0.0

    DECAY = 0.95
    """Weight of the earlier steps: about 40 steps count."""

    def add(self, step: StepNoise | None) -> dict[str, float]:
        """Add a step; return the metrics after it: {} if the step was not measured, or if there is no value yet."""
        if step is None:
            return {}
        self.signal = self.DECAY * self.signal + step.signal
        self.signal_squares = self.DECAY * self.signal_squares + step.signal**2
        self.noise = self.DECAY * self.noise + step.noise
        self.weight = self.DECAY * self.weight + 1
        self.weight_squares = self.DECAY**2 * self.weight_squares + 1
        prompts = self.prompts
        if prompts is None:
            return {}
        return {"train/noise_scale": prompts, "train/step_prompts": step.prompts}

    @property
    def prompts(self) -> float | None:
        """The noise scale in prompts; None before the second measured step, or without a gradient so far.

        A signal below its own standard error could be 0. That takes its place, so that the noise scale is at least as
        large as this.
        """
        if self.weight <= 1:
            return None
        steps = self.weight**2 / self.weight_squares  # as many with equal weights
        mean = self.signal / self.weight
        error = sqrt(max(self.signal_squares / self.weight - mean**2, 0) / (steps - 1))
        least = max(mean, error)
        if self.noise > 0 and least > 0:
            return self.noise / self.weight / least
        return None

    def state_dict(self) -> dict[str, float]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
