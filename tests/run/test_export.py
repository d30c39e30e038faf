"""Export: the folder holds the trained weights, and transformers loads it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_rewards import judged_as_is
from tiny_runs import in_two_processes
from tiny_vlms import KINDS, QWEN, mixed_prompts, slow
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, AutoVideoProcessor

from lit_rlvr.cli.main import run
from lit_rlvr.distributed.sharding import weights_sha256
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_policy, save_model
from lit_rlvr.run.saved_model import export_run, resolve_run_model

EITHER = pytest.mark.parametrize("trained", ["file", pytest.param("shards", marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint is a file; or one of two processes whose checkpoint is sharded."""
    root = tmp_path_factory.mktemp("export") / "run"
    arguments = [
        "fit", "--config", "quickstart", "--model.init_args.model", str(tiny_model_folder), "--rollout.engine", "hf",
        "--trainer.precision", "32-true", "--trainer.max_steps", "1", "--model.init_args.lr", "0.01",
        "--trainer.limit_val_batches", "0", "--trainer.default_root_dir", str(root),
        "--rollout.rewards", json.dumps([judged_as_is("first_token")]),
    ]  # fmt: skip
    if getattr(request, "param", "file") == "file":
        assert run(arguments) == 0
    else:
        in_two_processes(root.parent, [*arguments, "--config", "strategy/fsdp2_cpu"])
    return root


@EITHER
def test_exported_weights_are_the_trained_ones(trained: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    assert run(["export", str(trained), "--to", str(tmp_path / "out")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    summary = (trained / "summary.json").read_text()
    assert weights_sha256(exported) in summary
    original = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    assert weights_sha256(original) not in summary  # training did move them
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>assistant\n")
    assert exported.generation_config.eos_token_id == original.generation_config.eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("any_vlm_folder", "one_file"), [(kind, kind not in QWEN) for kind in KINDS], indirect=["any_vlm_folder"]
)
def test_a_vision_language_model_keeps_its_processors(any_vlm_folder: Path, tmp_path: Path, one_file: bool) -> None:
    """In files of their own, or all in `processor_config.json`, without a video processor of Qwen's."""
    source = shutil.copytree(any_vlm_folder, tmp_path / "in")
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "size": {"shortest_edge": 4096, "longest_edge": 99999}}
    if one_file:
        AutoProcessor.from_pretrained(source).save_pretrained(source)
        (source / "preprocessor_config.json").unlink(missing_ok=True)
    else:
        (source / "video_preprocessor_config.json").write_text(json.dumps(video))
    policy = load_policy(str(source))
    folder = save_model(policy.model, str(source), tmp_path / "out")
    for auto in (
        (AutoProcessor, AutoImageProcessor) if one_file else (AutoProcessor, AutoImageProcessor, AutoVideoProcessor)
    ):
        assert auto.from_pretrained(folder).to_dict() == auto.from_pretrained(source).to_dict()
    prompts = mixed_prompts(folder)
    with torch.no_grad():
        for prompt in prompts:
            assert torch.equal(slow(load_policy(str(folder)), prompt, [40, 50]), slow(policy, prompt, [40, 50]))


@EITHER
def test_bad_input_is_refused(trained: Path, tmp_path: Path) -> None:
    for given, said in (
        ((trained, tmp_path), "exists; choose another"),
        ((tmp_path, tmp_path / "out"), "has no checkpoint"),
        ((trained, Path("/proc/no_such/out")), "--to: /proc/no_such cannot be written"),
    ):
        with pytest.raises(UserError, match=said):
            export_run(*given)
    torn = tmp_path / "run" / "checkpoints" / "step-000001.ckpt"
    torn.parent.mkdir(parents=True)
    whole = next((trained / "checkpoints").glob("*.ckpt"))
    shutil.copytree(whole, torn) if whole.is_dir() else shutil.copyfile(whole, torn)
    torn_file = torn / "__1_0.distcp" if torn.is_dir() else torn
    torn_file.write_bytes(torn_file.read_bytes()[:1000])
    (tmp_path / "run" / "config.yaml").write_text((trained / "config.yaml").read_text())
    with pytest.raises(UserError, match="not a readable checkpoint"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out-*"))


@EITHER
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "num_hidden_layers",
            40,
            "tiny-llama's (2 layers), config.yaml says {}; model.layers.2.input_layernorm.weight and"
            " 341 more do not fit",
        ),
        ("hidden_size", 32, "config.yaml says {}; lm_head.weight and 20 more do not fit"),
    ],
)
def test_weights_of_another_model_are_one_short_line(
    trained: Path, tiny_model_folder: Path, tmp_path: Path, key: str, value: int, said: str
) -> None:
    """Also for `evaluate`, which exports the run first."""
    run_copy, other = shutil.copytree(trained, tmp_path / "run"), shutil.copytree(tiny_model_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {key: value}))
    text = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(text.replace(str(tiny_model_folder), str(other)))
    for command in (lambda: export_run(run_copy, tmp_path / "out"), lambda: resolve_run_model(str(run_copy))):
        with pytest.raises(UserError, match=re.escape(said.format(other))) as caught:
            command()
        assert str(caught.value).startswith(f"{run_copy / 'checkpoints' / 'step-000002.ckpt'}: its weights are ")
