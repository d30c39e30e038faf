"""Micro-batches that run out of memory: the step is retried with smaller ones, with the same result."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny import make_rollout
from tiny_fit import Recorder, fit
from torch import Tensor

from lit_rlvr.algorithms import GRPO
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats
from lit_rlvr.policy.policy import Policy
from lit_rlvr.training.step.memory import TokenBudget, retry_smaller
from lit_rlvr.types import Rollout

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
)


def run_out(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, step: int, most: int, late: bool = False
) -> list[int]:
    """From optimizer step `step` (counted from 1), fail on more than `most` completions at once: in the forward pass
    or, if `late`, in the backward pass. Returns the sizes that were tried."""
    objective, tried = GRPO.objective, []

    def limited(self: GRPO, x: LossInputs) -> tuple[Tensor, Stats]:
        tried.append(len(x.logp))

        def fail(*_: Any) -> None:
            raise error

        if self.updates + 1 >= step and len(x.logp) > most:
            if not late:
                fail()
            x.logp.register_hook(fail)
        return objective(self, x)

    monkeypatch.setattr(GRPO, "objective", limited)
    return tried


def assert_close(seen: Recorder, wanted: Recorder, tolerance: float) -> None:
    for ours, theirs in zip(seen.gradients, wanted.gradients, strict=True):
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)
    for mine, other in zip(seen.weights, wanted.weights, strict=True):
        for name in other:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=tolerance)


OPTIONS: dict[str, Any] = {"steps": 3, "skip_nothing": True, "lr": 1e-3, "compute": {"tokens_per_microbatch": 640}}


@pytest.fixture(scope="module")
def whole(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Every step in one micro-batch of 24 completions."""
    return fit(tiny_model_folder, tmp_path_factory.mktemp("whole"), **OPTIONS)[1]


@pytest.fixture(scope="module")
def half(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Half the tokens per micro-batch from the second step on."""

    class Halved(Recorder):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.budget.tokens = 640 if pl_module.updates == 0 else 320

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_fit.Recorder", Halved)
        return fit(tiny_model_folder, tmp_path_factory.mktemp("half"), **OPTIONS)[1]


@pytest.mark.first_case_fast
@pytest.mark.parametrize(("error", "late"), [(CUDA, False), (CUDA, True), (CPU, False)])
def test_the_step_is_tried_again_and_comes_out_the_same(
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    whole: Recorder,
    half: Recorder,
    error: BaseException,
    late: bool,
) -> None:
    """Identical to a run with half the tokens from that step on, and up to rounding to an undisturbed run."""
    tried = run_out(monkeypatch, error, step=2, most=16, late=late)
    module, seen = fit(tiny_model_folder, tmp_path, **OPTIONS)
    assert (tried[:2], max(tried[2:]) <= 16, module.budget.tokens) == ([24, 24], True, 320)
    assert_close(seen, half, 0.0)
    assert_close(seen, whole, 1e-6)
    said = [r.getMessage() for r in caplog.records if r.name == "lit_rlvr" and "memory" in r.getMessage()]
    assert len(said) == 1 and "at most 320 tokens" in said[0]


def test_log_probabilities_without_gradients_are_tried_again_too(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"kl": {"coef": 0.1}, "updates_per_rollout": 2, "lr": 1e-3, "skip_nothing": True}
    _, wanted = fit(tiny_model_folder, tmp_path, compute={"tokens_per_microbatch": 320}, **options)
    logprobs = Policy.logprobs

    def limited(self: Policy, rollout: Rollout, rows: list[int], **options: bool) -> Any:
        if len(rows) > 16 and not torch.is_grad_enabled():
            raise CUDA
        return logprobs(self, rollout, rows, **options)

    monkeypatch.setattr(Policy, "logprobs", limited)
    module, seen = fit(tiny_model_folder, tmp_path, compute={"tokens_per_microbatch": 640}, **options)
    assert module.budget.tokens == 320
    assert_close(seen, wanted, 0.0)


def test_halved_until_it_fits_and_no_further(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, CUDA, step=1, most=1)
    module, seen = fit(tiny_model_folder, tmp_path, skip_nothing=True)
    assert len(seen.rollouts) == 1 and 30 < module.budget.tokens < 128


def test_a_single_completion_that_is_too_much_is_one_line(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, CUDA, step=1, most=0)
    with pytest.raises(
        UserError, match=r"Tried to allocate 2\.00 GiB.*one completion at a time; use model\.compute\.gradient"
    ):
        fit(tiny_model_folder, tmp_path)


def test_with_shards_the_next_start_has_a_smaller_budget(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise CUDA

    def fail_sharded(tokens: int) -> None:
        budget = TokenBudget(640)
        budget.begin(tmp_path, torch.device("cpu"), sharded=True)
        budget.tokens = tokens
        retry_smaller(budget, make_rollout([[5, 6]], [[[7, 8]]]), fail)

    with pytest.raises(
        UserError, match=r"2\.00 GiB.*at most 320 tokens at once instead of 640.*: resume with ckpt_path"
    ):
        fail_sharded(640)
    module, _ = fit(tiny_model_folder, tmp_path, **OPTIONS)
    assert module.budget.tokens == 320 and module.budget.given == 640
    assert caplog.text.count("at most 320 tokens at once from now on") == 1
    assert fit(tiny_model_folder, tmp_path, compute={"tokens_per_microbatch": 600})[0].budget.tokens == 600
    with pytest.raises(UserError, match="one completion at a time"):
        fail_sharded(1)
    assert TokenBudget(640).saved(tmp_path) == 320


@pytest.mark.slow
def test_the_machine_s_own_error_is_known() -> None:
    source = """if True:
        import resource, torch
        from lit_rlvr.training.step.memory import is_out_of_memory
        resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
        try:
            torch.empty(1 << 40, dtype=torch.uint8)
        except RuntimeError as error:
            print(is_out_of_memory(error), is_out_of_memory(RuntimeError("gloo")))
    """
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=600)
    assert done.stdout == "True False\n", done.stderr
