"""Both engines on tiny vision-language models of every supported kind: log-probabilities equal the trainer's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_vlms import PAD, differences, mixed_prompts

from lit_rlvr.export import save_model
from lit_rlvr.policy.load_policy import load_policy
from lit_rlvr.policy.lora import Lora, add_adapters
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout.engine import EngineContext, RolloutEngine
from lit_rlvr.rollout.hf import HFEngine
from lit_rlvr.rollout.vllm import VLLMEngine
from lit_rlvr.types import Completion, Prompt, Sampling

SEEDS = [[100 * p + g for g in range(3)] for p in range(3)]


@pytest.fixture(scope="session")
def prompts(any_vlm_folder: Path) -> list[Prompt]:
    return mixed_prompts(any_vlm_folder)


@pytest.fixture
def policy(any_vlm_folder: Path) -> Policy:
    """A policy whose output embedding strongly favours image placeholders."""
    policy = load_policy(str(any_vlm_folder))
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[PAD] *= 20
    return policy


def generate(engine: RolloutEngine, policy: Policy, prompts: list[Prompt]) -> list[list[Completion]]:
    """Sync and sample."""
    engine.sync(policy)
    return engine.generate(prompts, sampling(policy), SEEDS)


def sampling(policy: Policy) -> Sampling:
    return Sampling(max_tokens=6).with_banned(policy.placeholder_ids)


@torch.no_grad()
def change(policy: Policy, relative: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        scale = relative * parameter.std(correction=0).clamp(min=0.1)
        parameter += scale * torch.randn(parameter.shape, generator=generator)


def assert_agrees(policy: Policy, prompts: list[Prompt], groups: list[list[Completion]], tolerance: float) -> None:
    found = differences(policy, prompts, groups, sampling(policy))
    assert max(found.values()) <= tolerance, found
    assert PAD not in {t for group in groups for c in group for t in c.token_ids}


def test_generation_agrees_with_the_trainer(vlm_context: EngineContext, policy: Policy, prompts: list[Prompt]) -> None:
    engine = HFEngine()
    engine.start(vlm_context)
    assert_agrees(policy, prompts, generate(engine, policy, prompts), 2e-5)


def test_vllm_agrees_with_the_trainer_after_every_sync(
    vlm_engine: VLLMEngine, policy: Policy, prompts: list[Prompt]
) -> None:
    """The first sync replaces noise, the second older weights, the third sends merged adapters."""
    groups = generate(vlm_engine, policy, prompts)
    assert_agrees(policy, prompts, groups, 5e-5)
    change(policy, 0.3)
    with pytest.raises(AssertionError):
        assert_agrees(policy, prompts, vlm_engine.generate(prompts, sampling(policy), SEEDS), 0.1)
    assert_agrees(policy, prompts, generate(vlm_engine, policy, prompts), 5e-5)
    add_adapters(policy.model, Lora(rank=2))
    change(policy, 0.3)
    assert_agrees(policy, prompts, generate(vlm_engine, policy, prompts), 5e-5)


@pytest.mark.slow
def test_vllm_loads_an_exported_folder(
    vlm_context: EngineContext, policy: Policy, prompts: list[Prompt], tmp_path: Path
) -> None:
    """With vLLM's own loader, without a sync."""
    folder = save_model(policy.model, vlm_context.folder, tmp_path / "out")
    engine = VLLMEngine(options={"load_format": "auto"})
    try:
        engine.start(replace(vlm_context, folder=str(folder)))
        assert_agrees(policy, prompts, engine.generate(prompts, sampling(policy), SEEDS), 5e-5)
    finally:
        engine.close()
