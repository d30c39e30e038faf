"""Adapters: what is trained, what engines and exports get, and that the reference has none."""

import shutil
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import build
from tiny import make_prompt, make_rollout, random_ids, save_model, start_engine
from transformers import AutoModelForCausalLM

from lit_rlvr.algorithms import GRPO
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.synced import SyncedEngine
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy.adapters import (
    adapted_modules,
    adapter_dropout,
    add_adapters,
    changing_weights,
    merge_adapters,
    round_frozen,
    save_adapter,
)
from lit_rlvr.policy.families import freeze_vision_tower
from lit_rlvr.policy.loading import frozen_dtype, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import training_autocast
from lit_rlvr.policy.speed import enable_checkpointing
from lit_rlvr.sampling import Sampling
from lit_rlvr.sizing.memory import Strategy, shape_of, state_memory
from lit_rlvr.training import models

ROLLOUT = make_rollout([random_ids(9, 1), random_ids(4, 2)], [[random_ids(5, 3), random_ids(2, 4)]] * 2)


def adapted(folder: Path, **options: Any) -> Policy:
    """A policy whose adapters change its output."""
    policy = load_policy(str(folder))
    add_adapters(policy.model, Lora(rank=3, alpha=6, **options))
    train(policy)
    return policy


def train(policy: Policy, seed: int = 0) -> None:
    """Change every trained weight but the matrices A, which are random already."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and ".lora_A" not in name:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * 0.1


def test_adapters_that_add_less_than_half_a_digit_reach_an_engine_in_bfloat16(tiny_model_folder: Path) -> None:
    """On frozen weights published in bfloat16, as most are; without dither none of it would."""
    policy = load_policy(str(tiny_model_folder))
    add_adapters(policy.model, Lora(rank=3, alpha=6))
    for parameter in policy.parameters():
        parameter.data = parameter.data.bfloat16().float()
    round_frozen(policy.model, torch.bfloat16)
    published = {name: weight.detach().clone() for name, weight in policy.named_weights(dtype=torch.bfloat16)}
    plain = load_policy(str(tiny_model_folder)).named_weights(dtype=torch.bfloat16)
    assert all(torch.equal(weight, published[name]) for name, weight in plain), "adapters of zero change nothing"
    for name, parameter in policy.named_parameters():
        if ".lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    exact, merged = dict(policy.named_weights()), dict(policy.named_weights(dtype=torch.bfloat16))
    arrived = added = 0.0
    for name in adapted_modules(policy.model):
        delta = exact[name].detach() - published[name]
        arrived += float(((merged[name].detach().float() - published[name].float()) * delta).sum())
        added += float(delta.square().sum())
    assert arrived / added == pytest.approx(1, abs=0.1)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "rslora pissa": {"init": "pissa", "rslora": True},
    "dora rslora": {"dora": True, "rslora": True, "layers": ["q_proj"]},
    "experts": {"experts": True},
}


@pytest.fixture
def model_folder(options: dict[str, Any], tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A model that has what the options of `KINDS` need."""
    return save_model(build("Qwen3-MoE"), tmp_path / "experts") if "experts" in options else tiny_model_folder


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_starts_as_the_model_and_merges_to_what_it_computes(
    model_folder: Path, options: dict[str, Any]
) -> None:
    policy, plain = load_policy(str(model_folder)), load_policy(str(model_folder))
    add_adapters(policy.model, Lora(rank=3, alpha=6, **options))
    before = logprobs(plain)
    torch.testing.assert_close(logprobs(policy), before, atol=1e-5, rtol=0)
    assert policy.has_zero_adapters()
    with policy.nonzero_adapters():
        assert (logprobs(policy) - before).abs().max() > 1e-3
    torch.testing.assert_close(logprobs(policy), before, atol=1e-5, rtol=0)
    train(policy)
    assert not policy.has_zero_adapters() and (logprobs(policy) - before).abs().max() > 1e-2
    for view in (policy.without_adapters(), policy.before_training()):
        assert torch.equal(logprobs(view), before), "the frozen weights are the model's own"
    plain.model.load_state_dict(dict(policy.named_weights()), strict=False)
    torch.testing.assert_close(logprobs(plain), logprobs(policy), atol=2e-5, rtol=0)
    merged = deepcopy(policy)
    merge_adapters(merged.model)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name or "base_layer" in name]
    torch.testing.assert_close(logprobs(merged), logprobs(policy), atol=2e-5, rtol=0)


@pytest.mark.first_case_fast
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_saved_adapter_is_read_by_peft_and_transformers_and_goes_on(
    model_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    from peft import PeftModel

    policy, folder = load_policy(str(model_folder)), str(tmp_path / "adapter")
    config = add_adapters(policy.model, Lora(rank=3, alpha=6, **options))
    train(policy)
    save_adapter(policy.model, config, str(model_folder), tmp_path / "adapter")
    ids = torch.arange(50, 90)[None]
    wanted = policy.plain_logits(ids, []).detach()
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        torch.testing.assert_close(PeftModel.from_pretrained(base, folder)(ids).logits, wanted, atol=2e-5, rtol=0)
        loaded = AutoModelForCausalLM.from_pretrained(folder)  # which loads the base, then the adapter
        torch.testing.assert_close(loaded(ids).logits, wanted, atol=2e-5, rtol=0)

    more = load_policy(str(model_folder))
    add_adapters(more.model, Lora(adapter="continue"), folder=folder)
    trained = [name for name, p in more.named_parameters() if p.requires_grad]
    assert trained and all(".default." in name for name in trained)
    torch.testing.assert_close(logprobs(more), logprobs(policy), atol=2e-5, rtol=0)
    first = logprobs(more)
    train(more, seed=1)
    assert torch.equal(logprobs(more.before_training()), first) and (logprobs(more) - first).abs().max() > 1e-2
    assert torch.equal(logprobs(more.without_adapters()), logprobs(load_policy(str(model_folder))))
    for view in (more, more.before_training()):
        plain = load_policy(str(model_folder))
        plain.model.load_state_dict(dict(view.named_weights()), strict=False)
        torch.testing.assert_close(logprobs(plain), logprobs(view), atol=2e-5, rtol=0)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_on_within_its_context_alone_and_has_its_own_seed(tiny_model_folder: Path, dora: bool) -> None:
    policy, found = adapted(tiny_model_folder, dropout=0.5, dora=dora), []
    plain, state = logprobs(policy), torch.get_rng_state()
    for seed, checkpointing in ((1, False), (1, True), (2, False)):
        if checkpointing:
            enable_checkpointing(policy.model)
        with adapter_dropout(policy.model, seed):
            logp = policy.logprobs(ROLLOUT, [0, 1, 2, 3])[0]
            logp.sum().backward()
        gradients = [p.grad for p in policy.parameters() if p.requires_grad]
        policy.model.gradient_checkpointing_disable()
        policy.zero_grad()
        found.append([logp.detach(), *gradients])
    for one, again, other in zip(*found, strict=True):
        torch.testing.assert_close(one, again, atol=1e-6, rtol=0)
        assert (one - other).abs().max() > 1e-3
    assert (found[0][0] - plain).abs().max() > 1e-2
    assert torch.equal(logprobs(policy), plain) and torch.equal(torch.get_rng_state(), state)
    with adapter_dropout(load_policy(str(tiny_model_folder)).model, 1):
        assert torch.equal(torch.get_rng_state(), state), "without dropout, nothing is seeded"


def test_dropout_leaves_the_gpus_of_other_processes_alone(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch would ask each GPU of the machine for its random numbers."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with adapter_dropout(adapted(tiny_model_folder, dropout=0.5).model, 1):
        assert torch.initial_seed() == 1


def logprobs(policy: Policy) -> torch.Tensor:
    return policy.logprobs(ROLLOUT, [0, 1, 2, 3])[0].detach()


def test_an_engine_needs_only_layers_next_to_a_trained_one_again(tiny_model_folder: Path, vlm_folder: Path) -> None:
    every = {name for name, _ in load_policy(str(tiny_model_folder)).named_weights()}
    linear = {name for name in every if ".self_attn." in name or ".mlp." in name}
    assert changing_weights(adapted(tiny_model_folder).model) == linear < every
    few = changing_weights(adapted(tiny_model_folder, layers=["q_proj"]).model)
    assert few == {name for name in every if ".self_attn." in name}, "k and v are fused with q"
    assert changing_weights(load_policy(str(tiny_model_folder)).model) is None, "all"
    pictured = load_policy(str(vlm_folder))
    freeze_vision_tower(pictured.model)
    text = {name for name, _ in pictured.named_weights() if "visual" not in name}
    assert changing_weights(pictured.model) == text | {"lm_head.weight"}, "the output embedding too, if it is tied"


def test_adapters_that_engines_cannot_add_are_merged(tiny_model_folder: Path) -> None:
    """They can add `s B A` to a linear layer, with one rank and scale s for all layers, and nothing else."""
    from peft import LoraConfig, inject_adapter_in_model

    def settings(**options: Any) -> Any:
        model = load_policy(str(tiny_model_folder)).model
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, **{"target_modules": ["q_proj"]} | options), model)
        return Policy(model, (2,)).adapter_config

    assert load_policy(str(tiny_model_folder)).adapter_config is None
    assert adapted(tiny_model_folder).without_adapters().adapter_config is None
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    assert settings() == plain
    assert settings(use_rslora=True) == plain | {"lora_alpha": 16}, "8 / sqrt(4) is 16 / 4"
    assert settings(use_dora=True) is None
    assert settings(lora_bias=True) is None
    assert settings(modules_to_save=["lm_head"]) is None
    assert settings(target_modules=["q_proj", "embed_tokens"]) is None
    assert settings(target_modules=["q_proj", "k_proj"], rank_pattern={"k_proj": 2}) is None


def test_a_probe_sees_an_engine_that_leaves_untrained_adapters_out(tiny_model_folder: Path) -> None:
    class WithoutAdapters(HFEngine):
        def sync(self, policy: Policy) -> None:
            super().sync(policy.without_adapters())

    policy, prompts = load_policy(str(tiny_model_folder)), [make_prompt([7, 8, 9])]
    add_adapters(policy.model, Lora(rank=3))
    for engine in (HFEngine(), WithoutAdapters()):
        synced = SyncedEngine(engine)
        start_engine(synced, policy)
        with pytest.raises(UserError, match="wrong weights") if type(engine) is WithoutAdapters else nullcontext():
            synced.sync_weights(policy, 1, prompts, Sampling(max_tokens=8))
        assert policy.has_zero_adapters(), "only the probe's were not"


def test_frozen_weights_are_in_the_type_of_products_if_that_changes_nothing(tiny_model_folder: Path) -> None:
    """Every value, gradient and merged weight is the one of float32; a weight that 16 bits cannot hold stays."""
    wide = adapted(tiny_model_folder)
    odd = "model.layers.0.mlp.up_proj.base_layer.weight"
    for name, parameter in wide.model.named_parameters():
        if not parameter.requires_grad and name != odd:
            parameter.data = parameter.data.bfloat16().float()
    narrow = deepcopy(wide)
    round_frozen(narrow.model, torch.bfloat16)
    types = {name: p.dtype for name, p in narrow.model.named_parameters()}
    kept = {name for name, dtype in types.items() if dtype == torch.float32}
    assert kept == {odd} | {name for name in types if ".lora_" in name} and set(types.values()) > {torch.float32}
    found = []
    for policy in (wide, narrow):
        with training_autocast(torch.device("cpu"), torch.bfloat16):
            logp = policy.logprobs(ROLLOUT, [0, 1, 2, 3])[0]
        logp.sum().backward()
        gradients = [p.grad for p in policy.parameters() if p.requires_grad]
        merged = [weight.detach().float() for _, weight in policy.named_weights()]
        found.append([logp.detach(), *gradients, *merged])
    for ours, wanted in zip(*reversed(found), strict=True):
        assert torch.equal(ours, wanted)
    shape = shape_of(narrow.model.config, lora=Lora(rank=3))
    planned = state_memory(replace(shape, published=2), Strategy(False, False, lora=True), 2, False)["weights"]
    size = wide.model.get_parameter(odd).numel()
    assert planned == sum(p.nbytes for p in narrow.parameters()) - 2 * size


def halved(model: Any, source: Path, target: Path) -> Path:
    """Write a model as it is published in bfloat16, with the tokenizer of a folder."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    deepcopy(model).bfloat16().save_pretrained(target)
    return target


@pytest.mark.parametrize("name", ["Llama 3", "Gemma 4", "Qwen3-MoE"])
@pytest.mark.parametrize("options", [{}, {"init": "pissa"}, {"quantize": "nf4"}, {"dora": True}])
def test_frozen_weights_load_in_the_type_of_their_files_with_the_same_bits(
    name: str, options: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Float32 would take twice the memory, on each rank. DoRA's norms and Gemma's scale are computed in float32."""
    if name == "Qwen3-MoE" and not options:
        options = {"experts": True}
    folder, lora = halved(build(name), tiny_model_folder, tmp_path / "half"), Lora(rank=3, **options)
    assert frozen_dtype(str(folder), lora, torch.float32) == torch.float32
    assert frozen_dtype(str(tiny_model_folder), lora, torch.bfloat16) == torch.float32
    dtype = frozen_dtype(str(folder), lora, torch.bfloat16)
    assert dtype == (torch.float32 if lora.dora or name == "Gemma 4" else torch.bfloat16)
    found = []
    for loaded in (torch.float32, dtype):
        policy = load_policy(str(folder), dtype=loaded)
        add_adapters(policy.model, lora, torch.bfloat16)
        round_frozen(policy.model, torch.bfloat16)
        tensors = dict(policy.model.named_parameters()) | dict(policy.model.named_buffers())
        tensors |= {f"merged {name}": weight for name, weight in policy.named_weights()}
        with training_autocast(torch.device("cpu"), torch.bfloat16):
            tensors["logp"] = policy.logprobs(ROLLOUT, [0, 1, 2, 3])[0]
        found.append({name: (tensor.dtype, tensor.detach()) for name, tensor in tensors.items()})
    wide, narrow = found
    assert wide.keys() == narrow.keys()
    for key, (kind, tensor) in wide.items():
        assert (kind, tensor.shape) == (narrow[key][0], narrow[key][1].shape), key
        assert torch.equal(tensor, narrow[key][1]), key
    assert any(kind == torch.bfloat16 for kind, _ in narrow.values())


def test_frozen_weights_load_onto_the_device_of_their_rank(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they fit as they are loaded: in float32 they may not, and 4 bits are made from all of them."""
    half = halved(build("Llama 3"), tiny_model_folder, tmp_path / "half")
    loaded: list[tuple[str, str]] = []

    def load(folder: str, *_: Any, device: torch.device, dtype: torch.dtype, **__: Any) -> None:
        loaded.append((str(device), str(dtype).removeprefix("torch.")))
        raise UserError("enough")

    monkeypatch.setattr(models, "load_policy", load)
    plan = RunPlan(device=torch.device("cuda", 3), precision="bf16-mixed")
    for folder in (half, tiny_model_folder):
        for lora in (Lora(rank=2), Lora(rank=2, quantize="nf4"), None):
            with pytest.raises(UserError, match="enough"):
                GRPO(model=str(folder), lora=lora).models.load_policy(plan)
    assert loaded == [
        ("cuda:3", "bfloat16"),
        ("cpu", "bfloat16"),
        ("cuda:3", "float32"),
        ("cpu", "float32"),
        ("cpu", "float32"),
        ("cuda:3", "float32"),
    ]


@pytest.mark.parametrize("options", [{}, {"init": "pissa"}, {"dora": True}], ids=["plain", "pissa", "dora"])
def test_adapters_take_their_inputs_as_they_are_with_the_same_bits(
    options: dict[str, Any], tiny_model_folder: Path
) -> None:
    """DoRA gets them in float32, in which it computes its norms."""
    policy = load_policy(str(tiny_model_folder))
    add_adapters(policy.model, Lora(rank=3, **options))
    layers, types, found = [*adapted_modules(policy.model).values()], set(), []
    for layer in layers:
        layer.lora_A["default"].register_forward_pre_hook(lambda _, inputs: types.add(inputs[0].dtype))
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    for cast in (False, True):
        for layer in layers:
            layer.cast_input_dtype_enabled |= cast
        with training_autocast(torch.device("cpu"), torch.bfloat16):
            found.append(policy.logprobs(ROLLOUT, [0, 1, 2, 3])[0])
        if not cast and not options:
            assert types == {torch.bfloat16}
    assert torch.equal(*found)


def test_ranks_layers_and_towers_that_do_not_exist_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(UserError, match=r"model.lora.rank: 0 must lie in"):
        Lora(rank=0)
    with pytest.raises(UserError, match=r"\['qkv'\] names no layer .* it has down_proj, gate_proj"):
        add_adapters(load_policy(str(tiny_model_folder)).model, Lora(layers=["q_proj", "qkv"]))
    with pytest.raises(UserError, match="freeze_vision:"):
        freeze_vision_tower(load_policy(str(tiny_model_folder)).model)


def test_nf4_is_4_bits_and_engines_get_the_numbers_that_are_computed_with(tiny_model_folder: Path) -> None:
    policy, plain = adapted(tiny_model_folder, quantize="nf4"), load_policy(str(tiny_model_folder))
    layers = [m for m in policy.model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(layers) == 2 * 7 and all(layer.weight.dtype == torch.uint8 for layer in layers)
    assert all(2 * layer.weight.numel() == layer.out_features * layer.in_features for layer in layers)
    given, original = dict(policy.named_weights()), dict(plain.model.named_parameters())
    assert given.keys() == original.keys() and all(given[n].shape == w.shape for n, w in original.items())
    reference = dict(policy.without_adapters().named_weights())
    name = "model.layers.0.mlp.up_proj.weight"
    error = (reference[name] - original[name]).abs().max() / original[name].abs().max()
    assert 0.01 < error < 0.2, "quantised, and not something else"
    plain.model.load_state_dict(given, strict=False)
    torch.testing.assert_close(logprobs(policy), logprobs(plain), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(logprobs(policy), logprobs(plain), atol=1e-5, rtol=0)
    assert all(torch.equal(w, given[n]) for n, w in policy.named_weights()), "running it has changed no layout"


def test_nf4_trains_its_adapters_alone_and_merges(tiny_model_folder: Path) -> None:
    policy = adapted(tiny_model_folder, quantize="nf4", layers=["q_proj", "v_proj"])
    policy.logprobs(ROLLOUT, [0, 1, 2, 3])[0].sum().backward()
    assert all((p.grad is not None) == (".lora_" in name) for name, p in policy.named_parameters())
    before = logprobs(policy)
    merge_adapters(policy.model)
    assert not [n for n, m in policy.model.named_modules() if "4bit" in type(m).__name__ or hasattr(m, "base_layer")]
    torch.testing.assert_close(logprobs(policy), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("missing", "option"), [("bitsandbytes", "model.lora.quantize"), ("peft", "model.lora")])
def test_without_a_package_there_is_one_line(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str, option: str
) -> None:
    monkeypatch.setattr("lit_rlvr.common.packages.is_installed", lambda module: module != missing)
    with pytest.raises(UserError, match=f"^{option}: {missing} is not installed; pip install '{missing}[<>]"):
        adapted(tiny_model_folder, quantize="nf4")
