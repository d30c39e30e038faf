"""Runs with adapters: small checkpoints, exact resume, the reference without them, and a merged export."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_run, fit, metrics, to
from transformers import AutoModelForCausalLM

from lit_rlvr.distributed.checkpoints import last_checkpoint, read_checkpoint
from lit_rlvr.run.saved_model import export_run

CLI = Callable[..., Any]
LORA = ("--model.init_args.lora", "{rank: 4, alpha: 8}")


@pytest.mark.slow
def test_resume_and_export(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    fit(lit_rlvr, *LORA, *to("whole"))
    fit(lit_rlvr, *LORA, *to("cut"), "--trainer.max_steps", "3")
    fit(lit_rlvr, *LORA, *to("cut"), "--ckpt_path", "last")
    assert_same_run(run_folder / "cut", run_folder / "whole", resumed=3)
    saved = read_checkpoint(last_checkpoint(run_folder / "whole"))["state_dict"]
    assert saved and all(".lora_" in name for name in saved)

    folder = export_run(run_folder / "whole", run_folder / "exported")
    exported = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    original = AutoModelForCausalLM.from_pretrained(tiny_model_folder).state_dict()
    name = "model.layers.0.self_attn.q_proj"
    a, b = (saved[f"policy.model.{name}.lora_{x}.default.weight"] for x in "AB")
    torch.testing.assert_close(exported[f"{name}.weight"], original[f"{name}.weight"] + 8 / 4 * b @ a)
    assert torch.equal(exported["model.norm.weight"], original["model.norm.weight"])


@pytest.mark.slow
def test_in_4_bits_resume_is_exact_and_the_export_is_plain(run_folder: Path, lit_rlvr: CLI) -> None:
    quantized = (
        "--model.init_args.lora",
        "{rank: 4, alpha: 8, quantize: nf4}",
        "--rollout.safeguards.probe_every",
        "1",
    )
    fit(lit_rlvr, *quantized, *to("whole"))
    fit(lit_rlvr, *quantized, *to("cut"), "--trainer.max_steps", "3")
    fit(lit_rlvr, *quantized, *to("cut"), "--ckpt_path", "last")
    assert_same_run(run_folder / "cut", run_folder / "whole", resumed=3)
    assert all(".lora_" in name for name in read_checkpoint(last_checkpoint(run_folder / "whole"))["state_dict"])
    exported = AutoModelForCausalLM.from_pretrained(export_run(run_folder / "whole", run_folder / "exported"))
    assert all(parameter.dtype == torch.float32 for parameter in exported.parameters())
    result = lit_rlvr("fit", "--config", "tiny.yaml", *quantized, *to("sharded"), "--config", "strategy/fsdp2_cpu",
                      "--trainer.devices", "1")  # fmt: skip
    assert result.status == 2 and "weights in 4 bits cannot be sharded" in result.err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is an extra")
def test_with_adapters_in_vllm_resume_is_exact(run_folder: Path, lit_rlvr: CLI) -> None:
    """Each iteration of AAPO generates with the adapters, and without them for its reference."""
    options = ("--model", "AAPO", *LORA, "--rollout.engine", "VLLMEngine", "--rollout.engine.init_args.adapters",
               "true", "--rollout.safeguards.probe_every", "1")  # fmt: skip
    fit(lit_rlvr, *options, *to("whole"))
    fit(lit_rlvr, *options, *to("cut"), "--trainer.max_steps", "3")
    fit(lit_rlvr, *options, *to("cut"), "--ckpt_path", "last")
    assert_same_run(run_folder / "cut", run_folder / "whole", resumed=3)


@pytest.mark.slow
@pytest.mark.parametrize("model", [("GRPO", "--model.init_args.kl.coef", "0.1"), ("AAPO",)])
def test_the_reference_is_the_model_without_adapters(run_folder: Path, lit_rlvr: CLI, model: tuple[str, ...]) -> None:
    options = ("--model", *model, *LORA, *to("run"), "--trainer.max_steps", "3")
    fit(lit_rlvr, *options)
    rows = metrics(run_folder / "run")
    if model[0] == "GRPO":
        kl = [float(row["train/kl"]) for row in rows if row.get("train/kl")]
        assert abs(kl[0]) < 1e-6 < 1e-5 < kl[-1]
    else:
        assert any(value for row in rows for name, value in row.items() if "margin" in name)


def test_a_reference_that_is_renewed_is_refused(run_folder: Path, lit_rlvr: CLI) -> None:
    result = lit_rlvr("fit", "--config", "tiny.yaml", "--model", "AAPO", *LORA, *to("run"),
                      "--model.init_args.kl.reference_update_every", "2")  # fmt: skip
    assert result.status == 2 and "reference_update_every: with model.lora" in result.err
