"""Policies of every supported kind of vision-language model: log-probabilities and gradients equal the model's own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_vlms import ALONE, make_prompt, mixed_prompts, picture, slow
from torch import Tensor

from lit_rlvr.media import Pixels
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.families import vision_modules
from lit_rlvr.policy.loading import load_image_processor, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout, pad_completions


@pytest.fixture(scope="session")
def prompts(any_vlm_folder: Path) -> list[Prompt]:
    return mixed_prompts(any_vlm_folder)


def make_rollout(prompts: list[Prompt], sampling: Sampling | None = None) -> Rollout:
    """Completions of lengths 5, 1, 3 for each prompt."""

    def made(p: int, g: int, length: int) -> Completion:
        return Completion("", tuple(40 + (7 * p + 3 * g + t) % 200 for t in range(length)), "stop")

    groups = [[made(p, g, n) for g, n in enumerate((5, 1, 3))] for p in range(len(prompts))]
    token_ids, mask, zeros = pad_completions(groups)
    shape = (len(groups), 3)
    return Rollout(
        prompts,
        groups,
        token_ids,
        mask,
        zeros,
        torch.zeros(shape),
        torch.zeros(shape),
        torch.ones(shape, dtype=torch.bool),
        {},
        [["ok"] * 3] * len(groups),
        sampling or Sampling(),
    )


def gradients(policy: Policy) -> dict[str, Tensor]:
    """Each parameter's gradient, cleared afterwards."""
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


def trainable(policy: Policy) -> dict[str, Tensor]:
    """Every parameter but those for sounds."""
    return {name: p for name, p in policy.named_parameters() if "audio" not in name}


def assert_same_gradients(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("shared", "checkpointing"), [(True, True), (False, False)])
def test_logprobs_and_gradients_are_those_of_single_sequences(
    any_vlm_folder: Path, prompts: list[Prompt], shared: bool, checkpointing: bool, device: torch.device
) -> None:
    policy = load_policy(str(any_vlm_folder), shared_prefix=shared, gradient_checkpointing=checkpointing).to(device)
    assert policy.shared_prefix is (shared and any_vlm_folder.name not in ALONE), (
        "the check at loading, which has an image in it, passes"
    )
    rollout = make_rollout(prompts)
    logp, _ = policy.logprobs(rollout, list(range(9)))
    logp.square().sum().backward()
    got = gradients(policy)
    assert got.keys() == {*trainable(policy)}, "every part of the vision tower among them"
    wanted = [slow(policy, prompts[i // 3], rollout.completions[i // 3][i % 3].token_ids) for i in range(9)]
    for row, expected in zip(logp, wanted, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-5, rtol=0)
    torch.cat(wanted).square().sum().backward()
    assert_same_gradients(got, gradients(policy))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_images_that_were_observed_stay_in_their_own_completions(
    any_vlm_folder: Path, prompts: list[Prompt], shared: bool
) -> None:
    """With images in prompts and completions of several groups, each is where its placeholders are."""
    policy, processor = load_policy(str(any_vlm_folder), shared), load_image_processor(str(any_vlm_folder))
    rollout = make_rollout(prompts)
    for p, g, size in ((0, 1, (56, 84)), (0, 2, (84, 56)), (2, 0, (112, 56))):
        seen = make_prompt(processor, "seen", picture(*size, seed=10 * p + g))
        ids = (*rollout.completions[p][g].token_ids, *seen.token_ids, 60)
        rollout.completions[p][g] = Completion("", ids, "stop", pixels=seen.pixels)
    token_ids, mask, zeros = pad_completions(rollout.completions)
    rollout = replace(rollout, token_ids=token_ids, mask=mask, rollout_logprobs=zeros)
    logp, _ = policy.logprobs(rollout, list(range(9)))
    for i, row in enumerate(logp):
        prompt, completion = prompts[i // 3], rollout.completions[i // 3][i % 3]
        both = Pixels.joined([prompt.pixels, completion.pixels])
        alone = Prompt(prompt.sample, [*prompt.token_ids, *completion.token_ids[:-1]], both)
        expected = slow(policy, alone, completion.token_ids[-1:])
        torch.testing.assert_close(row[len(completion.token_ids) - 1 :][:1], expected, atol=2e-5, rtol=1e-5)


def test_a_part_of_a_rollout_takes_its_own_images(any_vlm_folder: Path, prompts: list[Prompt]) -> None:
    policy = load_policy(str(any_vlm_folder))
    rollout = make_rollout(prompts)
    whole = policy.logprobs(rollout, list(range(9)))[0]
    for rows in ([6, 8], [3, 7], [0, 1, 2]):
        torch.testing.assert_close(policy.logprobs(rollout, rows)[0], whole[rows], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_without_images_the_vision_tower_has_a_gradient_of_zero(
    any_vlm_folder: Path, prompts: list[Prompt], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks with images wait for it; results are unchanged."""
    policy, rollout = load_policy(str(any_vlm_folder), shared), make_rollout(prompts)
    alone = policy.logprobs(rollout, [3, 5])[0]
    monkeypatch.setattr("lit_rlvr.policy.policy.world_size", lambda: 2)
    together = policy.logprobs(rollout, [3, 5])[0]
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)
    together.sum().backward()
    tower = {id(parameter) for part in vision_modules(policy.model) for parameter in part.parameters()}
    for name, parameter in trainable(policy).items():
        assert parameter.grad is not None and bool(parameter.grad.any()) is (id(parameter) not in tower), name


def test_engines_get_everything_that_a_checkpoint_holds(any_vlm_folder: Path) -> None:
    """Also what no gradient changes, such as the scales of Gemma 4's layers."""
    policy = load_policy(str(any_vlm_folder))
    given, held = dict(policy.named_weights()), policy.model.state_dict()
    assert {*held} - {*given} <= {"lm_head.weight"} and {*given} <= {*held}
    assert all(torch.equal(weight, held[name]) for name, weight in given.items())


@pytest.mark.parametrize("tower", [False, True])
def test_merged_adapters_are_the_adapted_model_on_images(
    any_vlm_folder: Path, prompts: list[Prompt], tower: bool
) -> None:
    policy, plain = load_policy(str(any_vlm_folder)), load_policy(str(any_vlm_folder))
    before = plain.logprobs(make_rollout(prompts), [0, 3, 6])[0]
    add_adapters(policy.model, Lora(rank=2, vision_tower=tower))
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in n for n in trained)
    assert tower == any(p.requires_grad for part in vision_modules(policy.model) for p in part.parameters())
    assert (policy.adapter_config is None) == tower, "engines add adapters to the language model alone"
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    adapted = policy.logprobs(make_rollout(prompts), [0, 3, 6])[0]
    assert (adapted - before).abs().max() > 0.1
    plain.model.load_state_dict(dict(policy.named_weights()), strict=False)
    torch.testing.assert_close(plain.logprobs(make_rollout(prompts), [0, 3, 6])[0], adapted, atol=1e-4, rtol=0)
