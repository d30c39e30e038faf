"""The text models that train, by tiny random ones of their real config classes; `docs/models.md` shows this table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from tiny import ENDS, VOCAB, make_prompt, make_rollout, plain_logprobs, random_ids, save_model, start_engine
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
)

from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import adapted_layers, adapted_modules, add_adapters
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.verify import verify_or_fall_back
from lit_rlvr.sampling import Sampling
from lit_rlvr.sizing.memory import Strategy, kv_bytes_per_token, shape_of, state_memory
from lit_rlvr.types import Rollout

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@dataclass(frozen=True)
class Text:
    """A row of the table.

    Args:
        config: its config class. options: of it, besides `SIZES`.
        why: why completions do not share a prompt; None = they do.
        keys: width of a token's cached keys over all layers. unused: parameters of experts that a token does not use.
    """

    config: Callable[..., Any]
    keys: int
    options: dict[str, Any] = field(default_factory=dict)
    why: str | None = None
    unused: int = 0


SIZES: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.15,
)
DELTA = dict(
    head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    layer_types=["linear_attention", "full_attention"],
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
HALF = 2 * 2 * 3 * 64 * 32  # two of four experts in each of two layers
WINDOWS = dict(head_dim=16, sliding_window=6, layer_types=["sliding_attention", "full_attention"])
LATENT = dict(
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    first_k_dense_replace=1,
)
RECURRENT = "recurrent layers"
FAST: dict[str, Text] = {
    "Llama 3": Text(LlamaConfig, 64, {"tie_word_embeddings": True}),
    "Qwen2.5": Text(Qwen2Config, 64),
    "Qwen3": Text(Qwen3Config, 64, {"head_dim": 16}),
    "Qwen3.5": Text(Qwen3_5TextConfig, 32, DELTA, RECURRENT),
    "Qwen3-MoE": Text(Qwen3MoeConfig, 64, {"head_dim": 16, **EXPERTS}, unused=HALF),
    "Gemma 3": Text(Gemma3TextConfig, 64, WINDOWS, "sliding_window"),
    "Gemma 4": Text(
        Gemma4TextConfig,
        96,
        {
            **WINDOWS,
            "global_head_dim": 32,
            "final_logit_softcapping": 3.0,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCAB,
        },
        "sliding_window",
    ),
    "SmolLM3": Text(SmolLM3Config, 64, {"no_rope_layers": [1, 0]}),
}
SLOW: dict[str, Text] = {
    "Qwen3-Next": Text(
        Qwen3NextConfig, 32, {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32}, RECURRENT, HALF
    ),
    "Qwen3.5-MoE": Text(
        Qwen3_5MoeTextConfig, 32, {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32}, RECURRENT, HALF
    ),
    "Gemma 2": Text(Gemma2Config, 64, {**WINDOWS, "final_logit_softcapping": 3.0}, "sliding_window, softcap"),
    "Mistral": Text(MistralConfig, 64, {"sliding_window": None}),
    "Ministral 3": Text(Ministral3Config, 64, {"head_dim": 16}),
    "Phi-3, Phi-4": Text(Phi3Config, 64),
    "GLM-4": Text(Glm4Config, 64, {"head_dim": 16}),
    "LFM2": Text(Lfm2Config, 32, {"layer_types": ["conv", "full_attention"]}, RECURRENT),
    "Granite": Text(GraniteConfig, 64, {"logits_scaling": 4.0}),
    "Command R": Text(CohereConfig, 64, {"logit_scale": 0.5}),
    "DeepSeek-V3": Text(DeepseekV3Config, 128, LATENT, unused=HALF // 2),
}
MODELS = FAST | SLOW
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS]
)
PROMPTS = [random_ids(count, count) for count in (1, 9, 21)]
LENGTHS = ((3, 12), (8, 1), (5, 9))
COMPLETIONS = [[random_ids(count, 7 * p + count) for count in counts] for p, counts in enumerate(LENGTHS)]


@cache
def build(name: str) -> Any:
    torch.manual_seed(0)
    config = MODELS[name].config(**{**SIZES, **MODELS[name].options})
    return tiny._with_generation(AutoModelForCausalLM.from_config(config))


def scored(policy: Policy, rollout: Rollout) -> list[Tensor]:
    logp, _ = policy.logprobs(rollout, list(range(6)))
    return [row[: len(c)] for row, c in zip(logp, [c for group in COMPLETIONS for c in group], strict=True)]


@EACH
def test_logprobs_and_gradients_are_the_models_own(
    name: str, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """Three prompts in one micro-batch, whose lengths and completions differ: no row sees another one's."""
    model, row = build(name).to(device), MODELS[name]
    policy = Policy(model, ENDS)
    verify_or_fall_back(policy)
    assert policy.shared_prefix == (row.why is None) and (row.why or "") in caplog.text
    ours = scored(policy, make_rollout(PROMPTS, COMPLETIONS))
    pairs = [(prompt, c) for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True) for c in group]
    theirs = [plain_logprobs(model, prompt, completion)[0] for prompt, completion in pairs]
    found, wanted = (
        [*torch.autograd.grad(torch.cat(each).sum(), [*model.parameters()], allow_unused=True)]
        for each in (ours, theirs)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-5)
    largest = max(float(grad.abs().max()) for grad in wanted if grad is not None)
    for mine, other in zip(found, wanted, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or float((mine - other).abs().max()) < 1e-4 * largest


@EACH
@torch.no_grad()
def test_the_hugging_face_engine_samples_with_the_models_logprobs(name: str, device: torch.device) -> None:
    """Left-padded prompts, several completions each, rows that leave early."""
    model = build(name).to(device)
    engine = HFEngine()
    start_engine(engine, Policy(model, ENDS, MODELS[name].why is None))
    sampling = Sampling(max_tokens=10)
    groups = engine.generate([make_prompt(ids) for ids in PROMPTS], sampling, [[p, p + 9] for p in range(3)])
    assert len({len(c.token_ids) for group in groups for c in group}) > 2
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            wanted = plain_logprobs(model, prompt, completion.token_ids, sampling)[0].cpu()
            torch.testing.assert_close(torch.tensor(completion.logprobs), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.first_case_fast
@EACH
@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_a_step_of_training(name: str, adapters: bool, tmp_path: Path) -> None:
    """The engine's probe passes, and the step changes weights."""
    from tiny_fit import fit  # it imports data sets, whose packages a GPU machine may lack

    folder = save_model(build(name), tmp_path / "model")
    lora = Lora(rank=2, experts=MODELS[name].unused > 0) if adapters else None
    _, seen = fit(folder, tmp_path, lora=lora, sampling=Sampling(max_tokens=5))
    assert seen.metrics[0]["train/engine_difference"] < 1e-4
    assert any(bool(grad.any()) for grad in seen.gradients[0].values())
    changed = {n.partition(".lora_")[0].rpartition(".")[2] for n, grad in seen.gradients[0].items() if grad.any()}
    assert not (adapters and MODELS[name].unused) or changed & {"experts", "base_layer"}


@pytest.mark.exhaustive
def test_two_processes_train_a_mixture_of_experts_alike_and_go_on_exactly(run_folder: Path) -> None:
    """Sharded by FSDP2; the engine's experts are replayed."""
    from tiny_runs import assert_same_run, assert_same_training, fit_in_shards  # as above

    more = ("--rollout.replay_routes", "true", "--model.init_args.loss.balance_coef", "0.01")
    fit_in_shards(run_folder, save_model(build("Qwen3-MoE"), run_folder / "model"), *more)
    assert_same_training(run_folder / "whole", run_folder / "one", 5e-6)
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3)


@EACH
def test_a_plan_counts_exactly(name: str) -> None:
    model, row = build(name), MODELS[name]
    shape, plain = shape_of(model.config), Strategy(sharded=False, checkpointing=False)
    size = sum(p.numel() for p in model.parameters())
    assert state_memory(shape, plain, 4, reference=True) == {
        "weights": 4 * size,
        "gradients": 4 * size,
        "AdamW": 8 * size,
        "reference": 4 * size,
    }
    assert shape.parameters - shape.active == row.unused
    assert kv_bytes_per_token(shape, 4) == 2 * 4 * row.keys
    few_layers = {"layers": ["down_proj"]} if any("shared_expert_gate" in n for n, _ in model.named_modules()) else {}
    for more in ({"experts": True} if row.unused else {"dora": True}, {"init": "pissa", **few_layers}):
        lora, model = Lora(rank=2, **more), AutoModelForCausalLM.from_config(model.config)
        few, chosen = shape_of(model.config, lora=lora), {*adapted_layers(model, lora)}
        add_adapters(model, lora)
        assert {n.removesuffix(".weight") for n in adapted_modules(model)} == chosen
        assert few.trained == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
        assert few.parameters == sum(p.numel() for p in model.parameters())


def test_the_page_shows_this_table() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    shown = {row[0]: [*row[1:3], row[4]] for row in rows if row[1].endswith("ForCausalLM`")}
    wanted = {
        name: [build_name(row.config), "shared" if row.why is None else "one completion per row", "yes"]
        for name, row in MODELS.items()
    }
    assert shown == wanted
    assert f"transformers {transformers.__version__}" in DOCS.read_text()


def build_name(config: Any) -> str:
    """The model class of a config class, as the page names it."""
    return f"`{AutoModelForCausalLM._model_mapping[config].__name__}`"
