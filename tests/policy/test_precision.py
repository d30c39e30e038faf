"""What `bf16-mixed` computes in, and what `trainer.precision: auto` chooses; deterministic kernels."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import make_rollout, tiny_moe
from tiny_runs import fit
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import training_autocast, use_deterministic_kernels


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


def test_a_short_step_changes_few_weights_as_bfloat16_sees_them(
    run_folder: Path, tiny_model_folder: Path, lit_rlvr: Callable[..., Any]
) -> None:
    """An eighth of the weights published in float16 lie halfway between two of bfloat16."""
    model = load_policy(str(tiny_model_folder)).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    before = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    shutil.copytree(tiny_model_folder, run_folder / "half")
    model.save_pretrained(run_folder / "half")
    options = ("--model.init_args.model", "half", "--model.init_args.lr", 1e-7, "--trainer.precision", "bf16-mixed")
    fit(lit_rlvr, *options, "--trainer.max_steps", 1)
    assert lit_rlvr("export", "run", "--to", "after").status == 0
    after = load_policy("after").model.state_dict()
    changed = sum(int((after[name].bfloat16() != weight).sum()) for name, weight in before.items())
    moved = sum(int((after[name] != weight).sum()) for name, weight in model.state_dict().items())
    total = sum(weight.numel() for weight in before.values())
    assert moved > 0.3 * total and changed < 0.01 * total, (moved, changed, total)


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
