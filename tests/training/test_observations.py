"""The cross-entropy of what an environment answers (ECHO): against single episodes, and apart from everything else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import plain_logprobs, tiny_llama
from tiny_environments import Echo
from tiny_fit import assert_same, fit

from lit_rlvr.algorithms import GRPO, GSPO, SFT, RLVRModule
from lit_rlvr.errors import UserError
from lit_rlvr.options import Loss, Teacher
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Rollout

SAMPLING = Sampling(max_tokens=9, max_turns=3, max_observation_tokens=40)


def naive(rollout: Rollout, model: Any, aggregation: str) -> tuple[float, float, dict[str, torch.Tensor]]:
    """The mean cross-entropy of the observed tokens, weighed as `aggregation` says; the plain mean; the gradient."""
    rows, size = [], rollout.group_size
    for p, group in enumerate(rollout.completions):
        for completion in group:
            logp, _ = plain_logprobs(model, rollout.prompts[p].token_ids, completion.token_ids, rollout.sampling)
            is_sampled = torch.tensor(completion.from_model)
            first = int(is_sampled.int().argmax())
            seen = ~is_sampled
            seen[:first] = False
            rows.append(-logp[seen])
    total = sum(len(row) for row in rows)
    used = [row for row in rows if len(row)]
    assert len(used) < len(rows), "some episodes have one turn"
    if aggregation == "token_mean":
        loss = torch.stack([row.sum() for row in used]).sum() / total
    elif aggregation == "sequence_mean":
        loss = torch.stack([row.mean() for row in used]).sum() / len(rows)
    elif aggregation == "group_token_mean":
        groups = [rows[p * size : (p + 1) * size] for p in range(len(rollout.prompts))]
        means = [torch.cat(group).sum() / sum(map(len, group)) for group in groups if sum(map(len, group))]
        loss = torch.stack(means).sum() / len(groups)
    else:
        assert aggregation == "constant"
        loss = torch.stack([row.sum() for row in used]).sum() / (len(rows) * rollout.sampling.max_completion_tokens)
    names = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
    mean = float(torch.cat(rows).mean())
    return float(loss), mean, {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


@pytest.mark.parametrize(
    "aggregation",
    [
        "token_mean",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sequence_mean", "group_token_mean", "constant")),
    ],
)
def test_the_term_is_the_mean_over_observed_tokens_of_single_episodes(
    tiny_model_folder: Path, tmp_path: Path, aggregation: Any
) -> None:
    """However the batch is cut; the rest of the loss does not change, nor do the other metrics."""

    def step(coef: float, budget: int, shared: bool) -> Any:
        _, seen = fit(
            tiny_model_folder,
            tmp_path,
            environment=Echo(),
            sampling=SAMPLING,
            rewards=None,
            skip_nothing=True,
            loss={"aggregation": aggregation, "observation_coef": coef},
            compute={"tokens_per_microbatch": budget, "shared_prefix": shared},
        )
        return seen

    plain = step(0.0, 10**6, True)
    for budget, shared in ((10**6, True), (150, True), (1, False)):
        seen = step(0.5, budget, shared)
        rollout = seen.rollouts[0]
        assert rollout.token_ids.equal(plain.rollouts[0].token_ids)
        model = tiny_llama()
        loss, mean, gradients = naive(rollout, model, aggregation)
        expected = {name: plain.gradients[0][name] + 0.5 * gradient for name, gradient in gradients.items()}
        assert_same(seen.gradients[0], expected)
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
        assert seen.metrics[0]["train/loss"] == pytest.approx(
            plain.metrics[0]["train/loss"] + 0.5 * loss, rel=1e-5, abs=1e-6
        )
        assert seen.metrics[0]["train/observation_nll"] == pytest.approx(mean, rel=1e-5)
        for name in ("train/entropy", "train/clip_low", "train/engine_difference"):
            assert seen.metrics[0][name] == pytest.approx(plain.metrics[0][name], rel=1e-5, abs=1e-6), name
    assert "train/observation_nll" not in plain.metrics[0]


def test_several_updates_train_on_what_was_observed(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The cross-entropy falls, also where no reward tells the completions apart."""
    _, seen = fit(
        tiny_model_folder,
        tmp_path,
        6,
        environment=Echo(),
        sampling=SAMPLING,
        rewards=None,
        updates_per_rollout=2,
        advantage="none",
        loss={"observation_coef": 1.0},
        kl={"coef": 0.01},
    )
    losses = [row["train/observation_nll"] for row in seen.metrics]
    assert losses[-1] < losses[0] - 0.05, losses


@pytest.mark.parametrize("algorithm", [GSPO])
def test_a_loss_on_sequences_takes_the_term_too(
    algorithm: type[RLVRModule], tiny_model_folder: Path, tmp_path: Path
) -> None:
    _, seen = fit(
        tiny_model_folder,
        tmp_path,
        environment=Echo(),
        sampling=SAMPLING,
        rewards=None,
        algorithm=algorithm,
        loss={"observation_coef": 1.0},
    )
    assert seen.metrics[0]["train/observation_nll"] > 1


def test_what_the_term_cannot_be_combined_with_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model.loss.observation_coef: SFT plays no episodes, so nothing is observed"):
        SFT(loss=Loss(observation_coef=0.1))
    with pytest.raises(
        UserError, match=r"^model.loss.observation_coef: model.teacher.beta counts sampled tokens alone"
    ):
        GRPO(loss=Loss(observation_coef=0.1), teacher=Teacher(str(tmp_path), beta=1.0))
    with pytest.raises(UserError, match=r"^model.loss.observation_coef: model.loss.balance_coef counts sampled tokens"):
        GRPO(loss=Loss(observation_coef=0.1, balance_coef=0.1))
    with pytest.raises(UserError, match=r"model.loss.observation_coef: -0.1 must lie in"):
        Loss(observation_coef=-0.1)


def test_a_run_of_one_turn_refuses_it(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.loss.observation_coef: in episodes of one turn nothing is observed"):
        fit(tiny_model_folder, tmp_path, loss={"observation_coef": 0.1})
