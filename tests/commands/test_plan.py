"""`lit-rlvr plan`: sizes from a config alone, held against what a step really keeps, and what is proposed."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from tiny_built import build_here
from tiny_runs import CLI, FIT
from tiny_vlms import FAST, KINDS
from transformers import (
    AutoConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.engines.base import EngineMemory
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.sizing.gpus import GIB, GPUs
from lit_rlvr.sizing.memory import (
    Strategy,
    largest_microbatch,
    shape_of,
    training_memory,
)
from lit_rlvr.sizing.published import PUBLISHED
from lit_rlvr.sizing.strategies import (
    ENOUGH_SEQUENCES,
    FEWEST_TOKENS,
    LEAST_SEQUENCES,
    JobSizes,
    describe_run,
)

ROOT = Path(__file__).parents[2]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "docs/scripts")
    from sizing_page import job, sizing

FITTED = EngineMemory(0.4, fitted=True)


@pytest.mark.parametrize(
    "folder",
    [
        "tiny_model_folder",
        "untied_model_folder",
        *(pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in KINDS),
    ],
)
def test_shapes_are_those_of_the_loaded_model(
    folder: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = KINDS[folder](tmp_path) if folder in KINDS else request.getfixturevalue(folder)
    policy = load_policy(str(path))
    shape = shape_of(AutoConfig.from_pretrained(path))
    assert shape.parameters == sum(p.numel() for p in policy.parameters())
    assert shape.trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert {name for name, p in policy.named_parameters() if "audio" in name} == {
        name for name, p in policy.named_parameters() if not p.requires_grad
    }
    assert shape.text.count == policy.model.config.get_text_config().num_hidden_layers
    assert shape.vocabulary == policy.model.get_output_embeddings().weight.shape[0]
    add_adapters(policy.model, Lora(rank=4))
    monkeypatch.setattr("lit_rlvr.common.packages.is_installed", lambda _: False)
    few = shape_of(AutoConfig.from_pretrained(path), lora=Lora(rank=4))
    assert few.trained == few.parameters - shape.parameters > 0, "counted without peft"
    assert few.trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    packed = shape_of(AutoConfig.from_pretrained(path), lora=Lora(rank=4, quantize="nf4"))
    assert packed.trained == few.trained and 0 < packed.quantized < shape.parameters


@pytest.fixture(scope="module")
def peak_memory() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("peak_memory")


TEXT: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "vocab_size": 6000,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
ENDS = {"bos_token_id": None, "eos_token_id": 0}
SMALL = Qwen2Config(**TEXT, **ENDS, tie_word_embeddings=True)
SMALL_VLM = Qwen2_5_VLConfig(
    text_config=TEXT | ENDS | {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
    vision_config={"depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256},
    image_token_id=1,
    video_token_id=2,
    vision_start_token_id=3,
    vision_end_token_id=4,
    tie_word_embeddings=True,
)


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("config", "sizes", "strategy", "gpus"),
    [
        (SMALL, (64, 256, 4), Strategy(False, True), 1),
        (SMALL, (64, 256, 4), Strategy(True, False), 2),
        (SMALL_VLM, (258, 512, 8, 16384, 256), Strategy(False, False), 1),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (
                (SMALL, (64, 256, 4), Strategy(False, True, lora=True), 1),
                (PUBLISHED["Qwen/Qwen2.5-VL-3B-Instruct"], (2048, 2048, 5, 16384, 1936), Strategy(False, True), 1),
            )
        ),
    ],
)
def test_a_step_without_weights_takes_what_the_formula_says(
    config: Any, sizes: tuple[int, ...], strategy: Strategy, gpus: int, peak_memory: ModuleType
) -> None:
    """A whole optimizer step on tensors that have only a shape, tracked by torch."""
    lengths = peak_memory.Lengths(*sizes)
    found, rows = peak_memory.measured(config, lengths, strategy, gpus)
    formula = peak_memory.planned(config, lengths, strategy, gpus, rows)
    for name in ("weights", "gradients", "AdamW"):
        assert formula[name] == pytest.approx(found[name], rel=0.005), name
    ratio = (formula["kept"] + formula["temporary"]) / (found["kept"] + found["temporary"])
    assert 0.95 < ratio < 1.08, ratio


def test_offloading_is_for_a_gpu_that_does_not_hold_the_weights() -> None:
    shape = job("Qwen2.5-7B").whole
    load = largest_microbatch(16384, 1024, 3072, 8, 128)
    sharded, offloaded = (training_memory(shape, load, Strategy(True, True, offload=on), 2, 2) for on in (False, True))
    assert [name for name, size in offloaded.items() if size == 0 < sharded[name]] == ["weights", "gradients", "AdamW"]
    gpu = GPUs.parse("1x141GB")
    plans = {plan.name: plan for plan in job("Qwen2.5-7B").plans(gpu)}
    assert not plans["alone, checkpointing"].fits and plans["FSDP2, offload, checkpointing"].fits
    assert plans["FSDP2, offload, checkpointing"].host == 16 * shape.parameters and plans["alone"].host == 0
    assert job("Qwen2.5-7B").arguments(plans["FSDP2, offload, checkpointing"]).startswith("--config strategy/offload ")
    many = [plan for plan in job("Qwen2.5-7B").plans(GPUs.parse("16x80GB")) if plan.strategy.offload]
    assert "strategy/multinode --trainer.num_nodes 2 --trainer.strategy.init_args.offload true" in job(
        "Qwen2.5-7B"
    ).arguments(many[0])
    packed = replace(
        job("Qwen2.5-7B"), adapted=shape_of(PUBLISHED["Qwen/Qwen2.5-7B"], lora=Lora(quantize="nf4")), lora=True
    )
    assert not any(plan.strategy.sharded for plan in packed.plans(gpu)), "4-bit weights cannot be sharded"


def test_auto_is_the_fastest_that_fits_and_leaves_results_alone() -> None:
    planned = job("Qwen2.5-7B")
    eight = GPUs(8, 80)
    chosen = planned.choice(eight, None, None)
    assert (chosen.name, chosen.fits, chosen.budget) == ("FSDP2, checkpointing", True, planned.budget)
    assert "FSDP2, checkpointing: about" in planned.reason(chosen) and "DDP 229" in planned.reason(chosen)
    assert planned.choice(GPUs(8, 999), None, None).name == "DDP"
    assert planned.choice(eight, (False, False), None).name == "DDP, checkpointing", "the config says DDP"
    assert planned.choice(GPUs(1, 999), (True, False), None).name == "FSDP2", "which nobody would propose for one GPU"
    assert planned.choice(eight, None, False).name == "FSDP2, offload", "the config says no checkpointing"
    small = planned.choice(GPUs(8, 16), None, None)
    assert (not small.fits, not small.strategy.lora, "WILL NOT FIT" in planned.reason(small)) == (True, True, True)
    assert replace(planned, lora=True).choice(eight, None, None).strategy.lora
    vision, one = replace(job("Qwen2.5-VL-3B"), engine=FITTED), GPUs(1, 80)
    chosen = vision.choice(one, None, None)
    assert chosen.name == "alone, checkpointing" and chosen.fits, "with a smaller engine, not with shards on the CPU"
    assert chosen.sequences is not None and LEAST_SEQUENCES <= chosen.sequences < ENOUGH_SEQUENCES
    several = vision.choice(GPUs(8, 80), None, None)
    assert several.name == "FSDP2, checkpointing" and several.sequences == 128, "all that a GPU has"


def test_vllm_that_sleeps_gets_what_training_leaves(tiny_model_folder: Path, tmp_path: Path) -> None:
    """As at run time, where its share is 0.4 only if it stays awake."""
    given = ({"sleep": True}, True), ({"sleep": False}, False), ({"sleep": True, "gpu_memory_utilization": 0.3}, False)
    for options, fitted in given:
        engine = {"class_path": "VLLMEngine", "init_args": options}
        built = build_here("smoke/sums", tiny_model_folder, tmp_path, **{"rollout.engine": engine})
        assert describe_run(built.trainer, built.model, built.datamodule)[0].engine.fitted is fitted


def test_each_sequence_of_a_conversation_is_a_row(tiny_model_folder: Path, tmp_path: Path) -> None:
    built = build_here("smoke/sft", tiny_model_folder, tmp_path)
    rollout, data = rollout_of(built.trainer), built.datamodule
    assert describe_run(built.trainer, built.model, data)[0].prompts == data.prompts_per_rollout
    rollout.demonstrations.by_name[data.name] = SimpleNamespace(most_sequences=3)  # type: ignore[assignment]
    assert describe_run(built.trainer, built.model, data)[0].prompts == 3 * data.prompts_per_rollout


@pytest.mark.parametrize(("gib", "chosen"), [(1.0, (DDPStrategy, False)), (1e-4, (FSDP2, True))])
def test_auto_in_a_config_is_chosen_for_the_gpus(
    gib: float, chosen: tuple[type, bool], tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPUs, "of_trainer", lambda *_: GPUs(2, gib))
    built = build_here(
        "smoke/sums", tiny_model_folder, tmp_path, **{"model.init_args.compute.gradient_checkpointing": "auto"}
    )
    assert (type(built.trainer.strategy), built.model.compute.gradient_checkpointing) == chosen


def test_automatic_micro_batches_fill_the_memory_up_to_an_optimizer_step() -> None:
    small, budgets = replace(job("Qwen2.5-1.5B"), automatic=True), []
    for gib in (50, 80, 120):
        plan = small.plan(Strategy(False, True), GPUs(8, gib), small.budget)
        full = small.with_most_tokens(plan)
        twice = small.plan(full.strategy, full.gpus, 2 * full.budget)
        assert (full.fits, twice.fits, full.strategy) == (
            True,
            False,
            plan.strategy,
        ) and full.budget % FEWEST_TOKENS == 0
        budgets.append(full.budget)
    assert budgets == sorted(set(budgets)) and len(budgets) == 3
    assert small.with_most_tokens(small.plan(Strategy(False, True), GPUs(8, 8), small.budget)).budget == FEWEST_TOKENS
    huge = small.plan(Strategy(False, True), GPUs(8, 1e6), small.budget)
    step = 128 // 8 * (1024 + 8 * 3071)  # the groups of a rank, each prompt once
    assert small.with_most_tokens(huge).budget == step
    assert replace(small, minibatches=4).with_most_tokens(huge).budget == step // 4
    assert replace(small, shared_prefix=False).with_most_tokens(huge).budget == 128 // 8 * 8 * (1024 + 3071)
    proposed = small.proposal(GPUs(8, 192))
    assert proposed is not None and proposed.budget > small.budget
    assert f"tokens_per_microbatch {proposed.budget}" in small.arguments(proposed)


def test_on_a_cpu_auto_is_a_single_device_and_fsdp_is_ours(tiny_model_folder: Path, tmp_path: Path) -> None:
    built = build_here(
        "smoke/sums", tiny_model_folder, tmp_path, **{"model.init_args.compute.gradient_checkpointing": "auto"}
    )
    assert type(built.trainer.strategy) is SingleDeviceStrategy and built.model.compute.gradient_checkpointing is False
    built = build_here("smoke/sums", tiny_model_folder, tmp_path, **{"trainer.strategy": "fsdp"})
    assert isinstance(built.trainer.strategy, FSDP2) and not built.trainer.strategy.offload
    assert describe_run(built.trainer, built.model, built.datamodule)[1].strategy == Strategy(True, False)


def test_the_smallest_gpu_of_a_trainer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GPUs.of_trainer("cpu", "auto", 1) is None
    sizes = [80, 40, 80, 80]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(sizes))
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda gpu: SimpleNamespace(total_memory=sizes[int(gpu)] * GIB)
    )
    assert GPUs.of_trainer("auto", [2, 3], 2) == GPUs(4, 80)
    assert GPUs.of_trainer("gpu", "auto", 1) == GPUs(4, 40), "the smallest counts"


def test_vllm_gets_a_share_in_which_all_sequences_fit() -> None:
    """A 7B: 57,344 bytes of keys and values a token."""
    gpus, model = GPUs.parse("8x80GB"), job("Qwen2.5-7B")
    fitted = {length: replace(model, completion=length, engine=FITTED, prompts=1024) for length in (100, 200, 3072)}
    share = {length: asked.proposal(gpus).terms["vLLM"] / (80 * GIB) for length, asked in fitted.items()}  # type: ignore[union-attr]
    needs = 2 * model.whole.parameters + 2 * GIB + 1024 * (1024 / 8 + 200) * 57344
    assert needs <= share[200] * 80 * GIB <= needs + 0.05 * 80 * GIB
    assert share[100] < share[200] < share[3072] < 0.9
    for asked in fitted.values():
        found = asked.proposal(gpus)
        assert found is not None and found.fits, "what training leaves is the most that vLLM gets"
        assert f"gpu_memory_utilization {found.terms['vLLM'] / (80 * GIB):.2f}" in asked.arguments(found)


def test_vllm_in_8_bits_needs_a_byte_less_for_each_weight_of_its_layers() -> None:
    """vLLM's share is the smallest with which it starts, in steps of 0.05."""
    gpus = GPUs.parse("1x20GB")
    model = job("Qwen2.5-7B", share=0.01)
    in_8_bits = replace(model, engine=EngineMemory(0.01, quantized=True))
    wide = model.vllm_share(gpus, 1.0) * 20 * GIB
    narrow = in_8_bits.vllm_share(gpus, 1.0) * 20 * GIB
    saved = model.whole.parameters - model.whole.outside
    assert abs(wide - narrow - saved) <= 0.05 * 20 * GIB and saved > 5 * GIB


def test_a_plan_has_room_for_sixteen_sequences_or_does_not_fit() -> None:
    """A 32B in 16 bits leaves 18 GiB of 80, which hold the keys and values of 8 answers of 8,192 tokens."""
    eight, long = GPUs.parse("8x80GB"), replace(job("Qwen2.5-32B"), completion=8192)
    assert long.proposal(eight) is None
    plan = replace(long, engine=EngineMemory(0.99)).plan(Strategy(True, True), eight, long.budget)
    token = 2 * 64 * 8 * 128 * 2  # bytes of keys and values, in all layers
    weights = 2 * long.whole.parameters + 2 * GIB
    assert plan.sequences == int((plan.terms["vLLM"] - weights) / token / (8192 + 1024 / 8)) and not plan.fits
    assert job("Qwen2.5-7B").proposal(eight).sequences >= 16
    assert job("Qwen2.5-7B", share=0.0).plans(eight)[0].sequences is None, "servers generate"


def test_each_machine_has_a_copy_where_it_holds_one(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, large = GPUs(16, 80), job("Qwen2.5-32B", share=0.0)
    seven = job("Qwen2.5-7B")
    plan = seven.choice(two, None, None)
    assert plan.strategy.sharded and seven.fits_each_machine(plan, 2)
    assert "--config strategy/hsdp --trainer.num_nodes 2 --trainer.strategy.init_args.replicas 2" in seven.arguments(
        plan
    )
    plan = large.choice(two, (True, False), True)
    assert plan.fits and not large.fits_each_machine(plan, 2), "59 GiB on each of 16 GPUs, 89 on each of 8"
    assert "--config strategy/multinode --trainer.num_nodes 2" in large.arguments(plan)
    small = job("Qwen2.5-1.5B")
    assert small.arguments(small.choice(two, None, None)).startswith("--config strategy/ddp --trainer.num_nodes 2 ")
    monkeypatch.setattr(GPUs, "of_trainer", lambda *_: GPUs(4, 1e-4))
    monkeypatch.setattr(JobSizes, "fits_each_machine", lambda job, plan, machines: machines == 2)
    built = build_here(
        "smoke/sums",
        tiny_model_folder,
        tmp_path,
        **{"model.init_args.compute.gradient_checkpointing": "auto", "trainer.num_nodes": 2},
    )
    assert isinstance(built.trainer.strategy, FSDP2) and built.trainer.strategy.replicas == 2
    assert describe_run(built.trainer, built.model, built.datamodule)[1].gpus.count == 1, "of one copy"


def test_a_mixture_of_experts_computes_with_some_of_its_parameters() -> None:
    """Qwen3-30B-A3B: 30.5 billion parameters, 3.3 of them for a token, as its card says."""
    shape = shape_of(Qwen3MoeConfig(hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, head_dim=128))
    assert shape.parameters == pytest.approx(30.5e9, rel=0.005) and shape.active == pytest.approx(3.3e9, rel=0.02)
    assert shape.text.inner == 8 * 768


@pytest.mark.parametrize("text", ["8", "8x80", "0x80GB", "8x0GB", "x80GB", "8x80GBs", "eight"])
def test_what_are_no_gpus_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--gpus:"):
        GPUs.parse(text)


def test_the_command_reads_the_config_alone(run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("lit_rlvr.training.models.load_policy", refuse)
    result = lit_rlvr(
        "plan", *FIT[1:], "--trainer.accelerator", "gpu", "--trainer.devices", "8", "--gpus", "8x80GB", status=0
    )
    assert "Proposal: DDP" in result.out and "--config strategy/ddp" in result.out
    assert not (run_folder / "run").exists()
    seen: list[bool] = []
    monkeypatch.setattr("lit_rlvr.cli.subcommands.show_plan", lambda job, *_: seen.append(job.engine.quantized))
    fp8 = ("--rollout.engine", "VLLMEngine", "--rollout.engine.init_args.quantize", "fp8")
    for engine in ((), fp8):
        assert lit_rlvr("plan", *FIT[1:], "--gpus", "1x80GB", *engine).status == 0
    assert seen == [False, True]
    lit_rlvr("plan", *FIT[1:], "--gpus", "many", status=2, says="such as 8x80GB")


def test_the_sizing_table_is_current() -> None:
    path = Path(__file__).parents[2] / "docs" / "sizing.md"
    assert path.read_text() == sizing(), "run: python docs/scripts/sizing_page.py > docs/sizing.md"
