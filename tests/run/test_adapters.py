"""Runs with adapters: small checkpoints, exact resume, the reference without them, and a merged export."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import save_adapter, save_model, tiny_llama
from tiny_runs import CLI, assert_same_run, fit, metrics, to
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlvr.commands.serve import server_line
from lit_rlvr.distributed.checkpoints import last_checkpoint, read_checkpoint
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import load_model_config, load_policy
from lit_rlvr.policy.sources import ModelSource, resolve_model
from lit_rlvr.run.saved_model import export_run
from lit_rlvr.sizing.memory import shape_of

LORA = ("--model.init_args.lora", "{rank: 4, alpha: 8}")


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
    lit_rlvr(
        "fit",
        "--config",
        "tiny.yaml",
        *quantized,
        *to("sharded"),
        "--config",
        "strategy/fsdp2_cpu",
        "--trainer.devices",
        "1",
        status=2,
        says="weights in 4 bits cannot be sharded",
    )


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is an extra")
def test_with_adapters_in_vllm_resume_is_exact(run_folder: Path, lit_rlvr: CLI) -> None:
    """Each iteration of AAPO generates with the adapters, and without them for its reference."""
    options = ("--model", "AAPO", *LORA, "--rollout.engine", "VLLMEngine", "--rollout.engine.init_args.adapters",
               "true", "--rollout.safeguards.probe_every", "1")  # fmt: skip
    fit(lit_rlvr, *options, *to("whole"))
    fit(lit_rlvr, *options, *to("cut"), "--trainer.max_steps", "3")
    fit(lit_rlvr, *options, *to("cut"), "--ckpt_path", "last")
    assert_same_run(run_folder / "cut", run_folder / "whole", resumed=3)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """An adapter that changes the tiny Llama, as peft writes it."""
    folder = tmp_path_factory.mktemp("adapter") / "sft"
    save_adapter(tiny_model_folder, folder, r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "up_proj"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["continue", "merge"])
def test_training_goes_on_from_an_adapter(run_folder: Path, lit_rlvr: CLI, adapter: Path, kept: str) -> None:
    """The reference is the base with the first adapter, a resumed run is exact, and both exports are its model."""
    given = (
        "--model.init_args.kl.coef",
        "0.1",
        "--model.init_args.model",
        str(adapter),
        "--model.init_args.lora",
        f"{{adapter: {kept}}}",
        "--rollout.safeguards.probe_every",
        "1",
    )
    fit(lit_rlvr, *given, *to("whole"))
    fit(lit_rlvr, *given, *to("cut"), "--trainer.max_steps", "3")
    fit(lit_rlvr, *given, *to("cut"), "--ckpt_path", "last")
    assert_same_run(run_folder / "cut", run_folder / "whole", resumed=3)
    kl = [float(row["train/kl"]) for row in metrics(run_folder / "whole") if row.get("train/kl")]
    assert abs(kl[0]) < 1e-6 < 1e-5 < kl[-1]
    saved = read_checkpoint(last_checkpoint(run_folder / "whole"))["state_dict"]
    assert saved and all(".default." in name for name in saved)
    exported = AutoModelForCausalLM.from_pretrained(export_run(run_folder / "whole", run_folder / "exported"))
    base = AutoModelForCausalLM.from_pretrained(
        json.loads(
            (export_run(run_folder / "whole", run_folder / "alone", adapter=True) / "adapter_config.json").read_text()
        )["base_model_name_or_path"]
    )
    alone, ids = PeftModel.from_pretrained(base, run_folder / "alone"), torch.arange(50, 90)[None]
    first = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(
            json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        ),
        adapter,
    )
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, exported(ids).logits, atol=2e-5, rtol=0)
        assert 1e-4 < (exported(ids).logits - first(ids).logits).abs().max() < 1
    assert (alone.peft_config["default"].r == 3) == (kept == "continue")
    assert AutoTokenizer.from_pretrained(run_folder / "alone").chat_template


def test_commands_that_sample_use_the_merged_model(run_folder: Path, lit_rlvr: CLI, adapter: Path) -> None:
    """As for the folder that `export` writes: the same completions, and vLLM's server gets such a folder."""
    assert lit_rlvr("export", adapter, "--to", "merged").status == 0
    for name, model in (("one", ["merged"]), ("two", [adapter, "--model.init_args.lora", "{adapter: continue}"])):
        lit_rlvr(
            "filter",
            "--config",
            "tiny.yaml",
            "--samples",
            2,
            "--lowest",
            0,
            "--highest",
            1,
            "--model.init_args.model",
            *model,
            "--out",
            f"{name}.jsonl",
            status=0,
        )
    one, two = (sorted(Path(f"{name}.samples/completions.jsonl").read_text().splitlines()) for name in ("one", "two"))
    assert one == two
    module = ModelSource(str(adapter))
    assert (
        module.model_folder
        == resolve_model(str(adapter), adapter="merge")
        in server_line(str(adapter), "float32", False, [])
    )
    weights = [load_file(Path(folder) / "model.safetensors") for folder in ("merged", module.model_folder)]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(w, weights[1][n]) for n, w in weights[0].items())

    lora, config = Lora(adapter="continue"), load_model_config("merged")
    policy = load_policy("merged")
    add_adapters(policy.model, lora, folder=adapter)
    shape = shape_of(config, lora=lora, adapter=adapter)
    assert shape.trained == sum(p.numel() for p in policy.parameters() if p.requires_grad) > 0
    assert shape.parameters == sum(p.numel() for p in policy.parameters())
    planned = lit_rlvr(
        "plan",
        "--config",
        "tiny.yaml",
        "--model.init_args.model",
        adapter,
        "--model.init_args.lora",
        "{adapter: continue}",
        "--gpus",
        "1x80GB",
    )
    assert planned.status == 0 and "LoRA" in planned.out, planned.err


@pytest.mark.parametrize(
    ("options", "continued"),
    [
        (dict(target_modules=r"model\.layers\.\d+\.self_attn\.(q|v)_proj"), None),
        (dict(target_modules=["q_proj", "v_proj"], exclude_modules=r"model\.layers\.0\..*"), None),
        (dict(rank_pattern={"^model.layers.1.self_attn.q_proj": 3}, alpha_pattern={"q_proj": 7}), None),
        (dict(target_modules=["q_proj", "embed_tokens"]), "embed_tokens"),
        (dict(target_modules=["q_proj", "lm_head"]), "lm_head"),
        (dict(trainable_token_indices=[3, 50]), "trainable_tokens_delta"),
        (dict(added=4), "lm_head.weight"),
        (dict(added=4, modules_to_save=["embed_tokens", "lm_head"]), "modules_to_save"),
    ],
)
def test_an_adapter_of_peft_keeps_its_logits(
    options: dict[str, Any], continued: str | None, tmp_path: Path, tiny_model_folder: Path
) -> None:
    """Merged into a model with tied embeddings, and continued, which is refused for what is no plain adapter."""
    ids, folder = torch.tensor([[10, 50, 120, 11]]), tmp_path / "adapter"
    wanted = save_adapter(tiny_model_folder, folder, **options)(ids).logits
    merged = load_policy(resolve_model(str(folder), adapter="merge")).model
    torch.testing.assert_close(merged(ids).logits, wanted, atol=2e-5, rtol=0)
    model = load_policy(str(tiny_model_folder)).model
    if continued is None:
        add_adapters(model, Lora(adapter="continue"), folder=folder)
        torch.testing.assert_close(model(ids).logits, wanted)
    else:
        with pytest.raises(UserError, match=f"trains .*{continued}.*, and only matrices .* merge it"):
            add_adapters(model, Lora(adapter="continue"), folder=folder)


def test_adapters_that_cannot_be_read_are_one_line(tmp_path: Path, tiny_model_folder: Path) -> None:
    save_adapter(tiny_model_folder, tmp_path / "biased", lora_bias=True)
    with pytest.raises(UserError, match=r"the adapter in .*biased cannot be merged: RuntimeError: Impossible to merge"):
        resolve_model(str(tmp_path / "biased"), adapter="merge")
    save_adapter(tiny_model_folder, tmp_path / "empty")
    (tmp_path / "empty" / "adapter_model.safetensors").unlink()
    for read in (
        lambda: resolve_model(str(tmp_path / "empty"), adapter="merge"),
        lambda: resolve_model(str(tmp_path / "empty"), adapter="continue"),
        lambda: export_run(tmp_path / "empty", tmp_path / "exported"),
    ):
        with pytest.raises(UserError, match=r"model: .*empty has an adapter_config.json and no adapter_model"):
            read()


def test_an_adapter_is_merged_again_if_its_base_changes(tmp_path: Path) -> None:
    base = save_model(tiny_llama(), tmp_path / "base")
    save_adapter(base, tmp_path / "adapter")
    first = resolve_model(str(tmp_path / "adapter"), adapter="merge")
    save_model(tiny_llama(1), base)
    second = resolve_model(str(tmp_path / "adapter"), adapter="merge")
    norms = [load_file(Path(folder) / "model.safetensors")["model.embed_tokens.weight"] for folder in (first, second)]
    assert resolve_model(str(tmp_path / "adapter"), adapter="merge") == second and not torch.equal(*norms)


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is an extra")
def test_vllm_reads_an_adapter_alone(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    fit(lit_rlvr, "--model.init_args.lora", "{rank: 4, rslora: true, init: pissa}", *to("run"))
    for target, more in (("merged", ()), ("alone", ("--adapter",))):
        lit_rlvr("export", "run", "--to", target, *more, status=0)
    merged, ids = AutoModelForCausalLM.from_pretrained("merged"), torch.tensor([[10, 11, 12]])
    for _ in range(8):
        ids = torch.cat([ids, merged(ids).logits[:, -1:].argmax(-1)], 1)
    command = [sys.executable, "-c", VLLM_SCRIPT, str(tiny_model_folder), "alone"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert f"TOKENS {ids[0, 3:].tolist()}" in done.stdout, done.stderr[-2000:]


VLLM_SCRIPT = """
import sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=64, kv_cache_memory_bytes=1 << 26,
          enable_lora=True, max_lora_rank=8)
greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
output = llm.generate([{"prompt_token_ids": [10, 11, 12]}], greedy, lora_request=LoRARequest("a", 1, sys.argv[2]))
print("TOKENS", list(output[0].outputs[0].token_ids))
"""


@pytest.mark.slow
def test_options_that_contradict_an_adapter_are_refused(run_folder: Path, lit_rlvr: CLI, adapter: Path) -> None:
    def refused(said: str, *given: str, model: Path | str = adapter) -> None:
        lit_rlvr(
            "fit",
            "--config",
            "tiny.yaml",
            "--model.init_args.model",
            str(model),
            *to("run"),
            *given,
            status=2,
            says=said,
        )

    refused("set model.lora: {adapter: continue} to train it on, or {adapter: merge}")
    refused("set model.lora: {adapter: continue}", *LORA)
    lora = "--model.init_args.lora"
    refused(
        "with `adapter: continue`, alpha, rank is the adapter's own", lora, "{adapter: continue, rank: 4, alpha: 8}"
    )
    refused("holds a whole model", lora, "{adapter: merge}", model="tiny-llama")
    refused(
        "model.lora.quantize: it does not work with `init: pissa`",
        lora,
        "{init: pissa, quantize: nf4}",
        model="tiny-llama",
    )
    refused("singular values", lora, "{init: pissa, rank: 5000}", model="tiny-llama")
    refused(
        "model.lora.dropout: GRPO trains on completions that are sampled without",
        lora,
        "{dropout: 0.1}",
        model="tiny-llama",
    )
    refused("model.lora.experts: LlamaForCausalLM has none", lora, "{experts: true}", model="tiny-llama")
    refused("model.lora.vision_tower: LlamaForCausalLM has none", lora, "{vision_tower: true}", model="tiny-llama")
    refused(
        "model.freeze_vision: model.lora trains",
        lora,
        "{vision_tower: true}",
        "--model.init_args.freeze_vision",
        "true",
        model="tiny-qwen2.5-vl",
    )
    refused(
        "reference_update_every: with model.lora",
        *LORA,
        "--model",
        "AAPO",
        "--model.init_args.kl.reference_update_every",
        "2",
        model="tiny-llama",
    )
    refused("warm_start: it would train the base model", lora, "{adapter: continue}", "--warm_start.steps", "2")
