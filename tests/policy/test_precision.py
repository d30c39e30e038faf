"""What `bf16-mixed` computes in, and what `trainer.precision: auto` chooses; deterministic kernels."""

import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from tiny import make_rollout, tiny_llama, tiny_moe
from tiny_fit import fit as fit_here
from tiny_models import save_model
from tiny_runs import fit
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import (
    PRECISIONS,
    compute_dtype,
    dither,
    training_autocast,
    use_deterministic_kernels,
)
from lit_rlvr.types import Prompt

SEEDS = 8


@pytest.mark.parametrize(("fast", "wanted"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_what_the_device_computes_fast(
    run_folder: Path, lit_rlvr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fast: bool, wanted: str
) -> None:
    monkeypatch.setattr("lit_rlvr.policy.precision.fast_bf16", lambda device: fast and device == "cpu")
    fit(lit_rlvr, "--trainer.precision", "auto", "--trainer.max_steps", 1)
    assert yaml.safe_load((run_folder / "run" / "config.yaml").read_text())["trainer"]["precision"] == wanted


def test_mixed_precision_computes_what_the_model_does_in_16_bits(tiny_model_folder: Path) -> None:
    """Vectors between layers as vLLM has them; autocast alone keeps them in float32."""
    model = load_policy(str(tiny_model_folder)).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # weights that 16 bits can hold
        ids = torch.arange(1, 25)[None]  # (1, 24)
        with training_autocast(torch.device("cpu"), torch.bfloat16):
            mixed = model(ids, output_hidden_states=True)
        assert model(ids).logits.dtype == torch.float32, "without autocast it computes in float32"
        for parameter in model.parameters():  # `model.bfloat16()` would round its rotary frequencies, too
            parameter.data = parameter.bfloat16()
        half = model(ids, output_hidden_states=True)
    for ours, wanted in zip([*mixed.hidden_states, mixed.logits], [*half.hidden_states, half.logits], strict=True):
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, wanted)


def test_dithered_weights_are_the_same_numbers_in_bfloat16() -> None:
    """Also at powers of two, where the digits of bfloat16 double, at its largest number, and halfway between two."""
    edges = [1.0, -1.0, 0.5, 2.0**-126, 3.3895e38, -3.3895e38, 1.0 + 2.0**-8, -1.0 - 2.0**-8, 3e-39, 0.0, -0.0]
    drawn = torch.randn(2999, 48, generator=torch.Generator().manual_seed(0)) * 0.03
    weight = torch.cat([drawn.flatten(), torch.tensor(edges).repeat(32)])[None]
    before = weight.clone()
    dither("name", weight)
    assert torch.equal(weight.bfloat16(), before.bfloat16())
    assert torch.equal(weight == 0, before == 0) and weight.isfinite().all()
    assert (weight != before)[before != 0].float().mean() > 0.99
    again, other = before.clone(), before.clone()
    dither("name", again)
    dither("another", other)
    assert torch.equal(weight, again) and not torch.equal(weight, other)
    vector = torch.full((8,), 1.0)
    dither("norm", vector)
    assert torch.equal(vector, torch.full((8,), 1.0)), "training computes norms with weights in float32"


@pytest.mark.parametrize("published", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("step", [1e-6, 1e-5, -1e-5, 1e-4])
def test_rounded_weights_follow_steps_however_short(published: torch.dtype, step: float) -> None:
    """Half a digit of a weight of 0.03 is 6e-5. On the grid of bfloat16, a step of 1e-5 moves 3 % of its way."""
    weight = torch.randn(2000, 2000, generator=torch.Generator().manual_seed(0)) * 0.03
    weight = weight.to(published).float()
    dither("name", weight)
    moved = (weight + step).bfloat16().float() - weight.bfloat16().float()
    assert float(moved.mean()) == pytest.approx(step, rel=0.04)


@pytest.mark.parametrize("published", [torch.bfloat16, torch.float16])
def test_a_runs_steps_arrive_in_rounded_weights(
    run_folder: Path, tiny_model_folder: Path, lit_rlvr: Callable[..., Any], published: torch.dtype
) -> None:
    """Without dither next to nothing arrives on the grid of bfloat16, and half of what lies halfway turns at once."""
    model = load_policy(str(tiny_model_folder)).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(published))
    shutil.copytree(tiny_model_folder, run_folder / "published")
    model.save_pretrained(run_folder / "published")
    options = ("--model.init_args.model", "published", "--trainer.precision", "bf16-mixed", "--trainer.max_steps", 1)
    fit(lit_rlvr, *options, "--model.init_args.lr", 1e-5)
    assert lit_rlvr("export", "run", "--to", "after").status == 0
    after = load_policy("after").model.state_dict()
    arrived = size = 0.0
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        start = weight.detach().clone()
        dither(f"model.{name}", start)
        step = after[name] - start
        arrived += float(((after[name].bfloat16().float() - weight.bfloat16().float()) * step).sum())
        size += float(step.square().sum())
    assert size > 0 and arrived / size == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_a_run_in_bfloat16_learns_as_one_in_float32(tmp_path: Path) -> None:
    """The chance that the first token is right, in the run's precision; six steps of a tenth of half a digit of most
    weights, from weights published in bfloat16."""
    model = tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    folder = save_model(model, tmp_path / "published")
    gains = {precision: 0.0 for precision in PRECISIONS}
    for precision, seed in product(PRECISIONS, range(SEEDS)):
        seed_everything(seed, verbose=False)
        module, recorder = fit_here(
            folder,
            tmp_path / f"{precision}-{seed}",
            steps=6,
            lr=5e-5,
            prompts_per_rollout=16,
            group_size=8,
            trainer_options={"precision": precision},
        )
        prompts = [prompt for rollout in recorder.rollouts for prompt in rollout.prompts]
        before, after = (
            chance_of_right(policy, prompts, precision) for policy in (load_policy(str(folder)), module.policy)
        )
        gains[precision] += (after - before) / SEEDS
    assert gains["32-true"] > 0.005, "nothing was learnt, which would prove nothing"
    assert gains["bf16-mixed"] > 0.75 * gains["32-true"], gains


@torch.no_grad()
def chance_of_right(policy: Policy, prompts: list[Prompt], precision: str) -> float:
    """Return the mean chance that the first token is right by `tiny_rewards.first_token`."""
    chances = []
    for prompt in prompts:
        with training_autocast(torch.device("cpu"), compute_dtype(precision)):
            logits = policy.model(torch.tensor([prompt.token_ids])).logits[0, -1]  # (V,)
        chances.append(float(logits.float().softmax(-1)[::3].sum()))
    return fmean(chances)


def test_float32_is_float32_in_a_gpus_convolutions_too(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, `test_logprobs_and_gradients_are_those_of_single_sequences` sees it in a vision tower's patches."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_policy(str(tiny_model_folder))
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_experts_multiply_in_the_type_of_autocast(half: bool) -> None:
    """Weights in float32 get their gradients in it, as those of other layers do."""
    seen, dtype = set(), torch.bfloat16 if half else torch.float32

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._grouped_mm.default:
                seen.update(x.dtype for x in args[:2])
            return func(*args, **(kwargs or {}))

    policy = Policy(tiny_moe(), ())
    with Noted(), training_autocast(torch.device("cpu"), dtype):
        policy.logprobs(make_rollout([[5, 6]], [[[7, 8], [9]]]), [0, 1])[0].sum().backward()
    assert seen == {dtype} and {p.grad.dtype for p in policy.parameters() if p.grad is not None} == {torch.float32}


def test_deterministic_kernels_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    try:
        use_deterministic_kernels()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled(), "flash attention would be nondeterministic"
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert (os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["CUBLASLT_WORKSPACE_SIZE"]) == (":16:8", "1")
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
