"""Runs with an advantage or a loss of the user's own that changes what it is given."""

import sys
from pathlib import Path

import pytest
from tiny_runs import CLI, completions, fit, metrics, summary, to

SHORT = ("--trainer.max_steps", 2, "--trainer.limit_val_batches", 0, "--trainer.num_sanity_val_steps", 0)
SOURCE = """
import torch
from lit_rlvr.algorithms import GRPO, M2PO

def grpo(g):
    centered = g.rewards - g.rewards.mean(1, keepdim=True)
    return torch.where(centered == 0, 0.0, centered / (g.rewards.std(1, correction=0, keepdim=True) + 1e-6))

def zeroes(g):
    advantages = grpo(g)
    g.rewards.mul_(0)
    g.correct.fill_(1)
    return advantages

def in_numpy(g):
    advantages, rewards = grpo(g), g.rewards.numpy()
    rewards -= rewards.mean(1, keepdims=True) + 5
    g.has_reward[:] = False
    g.has_correct.zero_()
    g.lengths.unsqueeze_(0)
    return advantages

class Observes(GRPO):
    def observe(self, group):
        group.rewards.zero_()
        group.correct.fill_(1)
        return {}

class ScalesWeights(GRPO):
    def objective(self, x):
        x.plain_weight *= 2
        x.mask[:] = False
        return super().objective(x)

class Rebinds(GRPO):
    def objective(self, x):
        x.ref_logp, x.entropy = None, x.entropy * 0
        return super().objective(x)

class SelectsInPlace(M2PO):
    def select_tokens(self, step):
        step.entropy.zero_()
        return super().select_tokens(step)
"""


@pytest.fixture(autouse=True)
def task(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "own_algorithms", raising=False)
    (run_folder / "own_algorithms.py").write_text(SOURCE)


def own(kind: str, name: str) -> tuple[str, ...]:
    option = ("--model.init_args.advantage",) if kind == "advantage" else ("--model",)
    return (*option, f"own_algorithms.{name}")


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("kind", "name", "changed"),
    [
        ("advantage", "in_numpy", "rewards, lengths, has_reward, has_correct"),
        ("algorithm", "Observes", "rewards, correct"),
    ],
)
def test_an_advantage_that_changes_its_input_changes_no_record(
    run_folder: Path, lit_rlvr: CLI, kind: str, name: str, changed: str
) -> None:
    fit(lit_rlvr, *SHORT, *to("plain"), *own("advantage", "grpo"))
    said = fit(lit_rlvr, *SHORT, *own("advantage", "grpo"), *own(kind, name)).err
    run, plain = run_folder / "run", run_folder / "plain"
    assert said.count(f"changes its input ({changed}); it has a copy") == 1
    assert f"{name}" in said and "own_algorithms.py:" in said
    assert metrics(run) == metrics(plain) and completions(run) == completions(plain)
    assert {row["reward"] for row in completions(run)} == {0.0, 1.0}
    assert summary(run)["weights_sha256"] == summary(plain)["weights_sha256"]


def test_what_a_base_estimator_changes_is_not_what_the_composed_one_sees(run_folder: Path, lit_rlvr: CLI) -> None:
    for folder, base in (("plain", "grpo"), ("run", "zeroes")):
        fit(
            lit_rlvr,
            *SHORT,
            *to(folder),
            "--model.init_args.advantage",
            "AGRAE",
            "--model.init_args.advantage.base",
            f"own_algorithms.{base}",
        )
    assert metrics(run_folder / "run") == metrics(run_folder / "plain")
    assert summary(run_folder / "run")["weights_sha256"] == summary(run_folder / "plain")["weights_sha256"]


@pytest.mark.parametrize(
    ("name", "changed"),
    [("ScalesWeights", "x.mask, x.plain_weight"), ("SelectsInPlace", "step.entropy")],
)
def test_a_loss_that_changes_its_input_in_place_is_refused(
    run_folder: Path, lit_rlvr: CLI, name: str, changed: str
) -> None:
    line = lit_rlvr("fit", "--config", "tiny.yaml", *SHORT, *own("algorithm", name)).refusal
    assert [text for text in (f"model: {name}.", "own_algorithms.py:", f"{changed} in place") if text not in line] == []
    assert ".clone()" in line and len(line) < 400


def test_a_loss_that_rebinds_its_input_loses_no_term(run_folder: Path, lit_rlvr: CLI) -> None:
    terms = ("--model.init_args.kl.coef", 0.1, "--model.init_args.loss.entropy_coef", 0.01)
    fit(lit_rlvr, *SHORT, *terms, *to("plain"))
    fit(lit_rlvr, *SHORT, *terms, *own("algorithm", "Rebinds"))
    assert summary(run_folder / "run")["weights_sha256"] == summary(run_folder / "plain")["weights_sha256"]
    assert float(metrics(run_folder / "run")[-1]["train/kl"]) > 0
