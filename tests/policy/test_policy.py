"""Log-probabilities, their gradients and entropies against a plain forward pass of one sequence at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import END, ENDS, make_rollout, plain_logprobs, random_ids, tiny_llama, tiny_qwen2
from torch import Tensor
from transformers import PreTrainedModel

from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import eos_token_ids, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.policy.verify import verify_or_fall_back
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Rollout

MODELS = pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2], ids=["llama", "qwen2"])
SHARED = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
SAMPLING = Sampling(temperature=0.7, banned_token_ids=(3, 40))


def ragged(sampling: Sampling | None = None) -> Rollout:
    """Three groups of four: prompts of different lengths, completions of length 0, 1 and more."""
    prompts = [random_ids(n, n) for n in (9, 3, 1)]
    completions = [
        [random_ids(n, 100 * p + g) for g, n in enumerate(lengths)]
        for p, lengths in enumerate([(5, 0, 1, 7), (1, 1, 2, 0), (3, 6, 2, 4)])
    ]
    return make_rollout(prompts, completions, sampling=sampling)


def slow(model: PreTrainedModel, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """(B, T) log-probabilities and entropies, one sequence at a time, 0 at padding."""
    rows, entropies = [], []
    width = rollout.token_ids.shape[1]
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        for completion in group:
            n = len(completion.token_ids)
            logp, everything = plain_logprobs(model, prompt.token_ids, completion.token_ids, rollout.sampling)
            terms = torch.where(everything.isinf(), 0.0, everything.exp() * everything)
            rows.append(torch.nn.functional.pad(logp, (0, width - n)))
            entropies.append(torch.nn.functional.pad(-terms.sum(-1), (0, width - n)))
    return torch.stack(rows), torch.stack(entropies)


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor], relative: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    scale = max(float(g.abs().max()) for g in other.values())
    for name in one:
        assert float((one[name] - other[name]).abs().max()) <= relative * scale, name


@MODELS
@SHARED
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLING], ids=["plain", "tempered"])
def test_logprobs_entropy_and_gradients_equal_a_plain_forward(
    build: Callable[[], PreTrainedModel], shared: bool, sampling: Sampling, device: torch.device
) -> None:
    model, rollout = build().to(device), ragged(sampling)
    policy = Policy(model, (END,), shared)
    weights = torch.linspace(-1, 1, rollout.mask.numel(), device=device).view(rollout.mask.shape)
    expected, spread = slow(model, rollout)
    wanted = gradients(model, (expected * weights).sum())

    logp, entropy = policy.logprobs(rollout, list(range(12)), entropy=True)

    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, spread, atol=1e-5, rtol=1e-5)
    assert entropy is not None and not entropy.requires_grad
    mask = rollout.mask.to(device)
    assert bool((logp[~mask] == 0).all()) and bool((logp[mask] < 0).all())
    assert_same_gradients(gradients(model, (logp * weights).sum()), wanted)


def test_rows_without_any_token_still_have_a_gradient_graph() -> None:
    """A rank whose rows are all empty must take part in the backward pass."""
    model = tiny_llama()
    logp, _ = Policy(model, (END,)).logprobs(make_rollout([[5, 6]], [[[], []]]), [0, 1])
    assert logp.shape == (2, 1) and bool((logp == 0).all())
    assert all(float(g.abs().max()) == 0 for g in gradients(model, logp.sum()).values())


def scaled(forward: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """What Cohere and Granite do: logits scaled after the output embedding."""

    def call(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * factor
        return output

    return call


@SHARED
def test_a_model_that_scales_its_logits_is_refused(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    verify_or_fall_back(Policy(model, (END,), shared))
    monkeypatch.setattr(model, "forward", scaled(model.forward, 0.9))
    with pytest.raises(UserError, match="LlamaForCausalLM's log-probabilities cannot be reproduced"):
        verify_or_fall_back(Policy(model, (END,), shared))


@pytest.mark.exhaustive
def test_rounding_of_a_real_model_passes_in_bfloat16_and_scaled_logits_do_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = load_policy(resolve_model("smollm2"))
    verify_or_fall_back(policy, torch.bfloat16)
    assert policy.shared_prefix and not caplog.text
    monkeypatch.setattr(policy.model, "forward", scaled(policy.model.forward, 1.15))
    with pytest.raises(UserError, match="LlamaForCausalLM's log-probabilities cannot be reproduced"):
        verify_or_fall_back(policy, torch.bfloat16)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_policy_is_checked_in_the_type_that_it_is_trained_in(dtype: torch.dtype | None) -> None:
    """On a GPU the type decides how attention is computed."""
    model, seen = tiny_llama(), []
    model.get_decoder().layers[0].mlp.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    verify_or_fall_back(Policy(model, (END,)), dtype)
    assert len(seen) == 1 + 5 and {*seen} == {dtype or torch.float32}, "ours at once, and the model's one by one"


def test_a_model_that_drops_the_layout_gets_one_completion_per_row(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama()
    decoder = model.get_decoder()
    forward = decoder.forward

    def causal(*args: Any, segments: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs if segments is None else kwargs | {"attention_mask": None})

    monkeypatch.setattr(decoder, "forward", causal)
    policy = Policy(model, (END,), shared_prefix=True)
    verify_or_fall_back(policy)
    assert policy.shared_prefix is False
    assert "one completion per row" in caplog.text
    rollout = make_rollout([[5, 6, 7]], [[[8, 9, 10], [11, 12]]])
    torch.testing.assert_close(
        policy.logprobs(rollout, [0, 1])[0], slow(tiny_llama(), rollout)[0], atol=1e-5, rtol=1e-5
    )


def test_windows_of_attention_get_one_completion_per_row(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A check on twenty tokens cannot notice a window of 4096, but the attention reports it."""
    options = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
    policy = Policy(tiny_qwen2(**options), (END,), shared_prefix=True)
    verify_or_fall_back(policy)
    assert not policy.shared_prefix and "sliding_window" in caplog.text
    rollout = ragged()
    logp = policy.logprobs(rollout, list(range(12)))[0]
    torch.testing.assert_close(logp, slow(tiny_qwen2(**options), rollout)[0], atol=1e-5, rtol=1e-5)
    assert float((logp - slow(tiny_qwen2(), rollout)[0]).detach().abs().max()) > 1e-4, "the window matters here"


def test_a_model_loaded_with_eager_attention_is_scored_alike(tiny_model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attn_implementation="eager", dtype=torch.float32)
    rollout = ragged()
    logp = Policy(model.eval(), (END,)).logprobs(rollout, list(range(12)))[0]
    torch.testing.assert_close(logp, slow(tiny_llama(), rollout)[0], atol=1e-5, rtol=1e-5)


def test_end_tokens_come_from_the_generation_config_first() -> None:
    model: Any = tiny_llama()
    assert eos_token_ids(model) == ENDS
    model.generation_config.eos_token_id = [END, 0]
    assert eos_token_ids(model) == (END, 0)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = 7
    assert eos_token_ids(model) == (7,)
    model.config.eos_token_id = None
    with pytest.raises(UserError, match="eos_token_id"):
        eos_token_ids(model)


@pytest.mark.parametrize("folder", ["tiny_model_folder", "untied_model_folder"])
def test_a_loaded_policy_is_fp32_without_dropout_and_checked(folder: str, request: pytest.FixtureRequest) -> None:
    policy = load_policy(str(request.getfixturevalue(folder)))
    assert (policy.shared_prefix, policy.eos_token_ids, not policy.model.training) == (True, ENDS, True)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_a_policy_is_verified_through_calls_that_gather_shards_layer_by_layer(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model would not fit on every GPU in full."""
    policy = load_policy(str(tiny_model_folder))
    monkeypatch.setattr("lit_rlvr.policy.policy.gathered", lambda _: pytest.fail("gathered whole"))
    monkeypatch.setattr(policy.model, "forward", policy.model.forward)
    verify_or_fall_back(policy)
    with pytest.raises(pytest.fail.Exception), policy.weights():
        pass
