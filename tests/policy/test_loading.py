"""Broken model folders: every command that reads one gives a one-line error that names the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import END, save_model, tiny_llama, tiny_qwen2
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import (
    empty_model,
    generation_config,
    load_model,
    load_model_config,
    load_policy,
    load_tokenizer,
    outline,
    save_model as save_trained,
)

CLI = Callable[..., Any]
Spoil = Callable[[Path], Any]
WEIGHTS = "model.safetensors"


def change(name: str, **values: Any) -> Spoil:
    """Change values in a JSON file."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def write(name: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def weights(spoil: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    """Change tensors."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        spoil(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:9999])


def lose_a_shard(folder: Path) -> None:
    names = sorted(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    position_ids = {name: f"model-0000{1 + (k > 5)}-of-00002.safetensors" for k, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": position_ids}))


def lose_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


WRONG_WEIGHTS: dict[str, tuple[Spoil, str]] = {
    "a layer too few": (
        change("config.json", num_hidden_layers=3),
        "9 missing: model.layers.2.input_layernorm.weight,",
    ),
    "a layer too many": (
        change("config.json", num_hidden_layers=1),
        "9 unknown: model.layers.1.input_layernorm.weight,",
    ),
    "no layers": (change("config.json", num_hidden_layers=0), "18 unknown: model.layers.0.input_layernorm.weight,"),
    "one missing": (weights(lambda w: w.pop("model.norm.weight")), "(1 missing: model.norm.weight)"),
    "one more": (weights(lambda w: w.update(extra=torch.zeros(2))), "(1 unknown: extra)"),
    "another shape": (
        weights(lambda w: w.update({"model.norm.weight": torch.zeros(65)})),
        "(1 of the wrong shape: model.norm.weight [65] instead of [64])",
    ),
    "whole numbers": (
        weights(lambda w: w.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)})),
        f"{WEIGHTS}: model.norm.weight is I8",
    ),
    "far too few": (change("config.json", hidden_size=10**9), "its files hold 90688; take both from the same model"),
    "empty": (write(WEIGHTS, ""), f"{WEIGHTS} of"),
    "cut off": (cut_off, f"{WEIGHTS} of"),
    "a text": (write(WEIGHTS, "git-lfs " * 99), f"{WEIGHTS} of"),
    "a pickle": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "the weights of"),
    "a lost shard": (lose_a_shard, "model-00002-of-00002.safetensors"),
    "an index that is a list": (lambda f: (lose_a_shard(f), write(f"{WEIGHTS}.index.json", "[]")(f)), "the weights of"),
}
WRONG_CONFIGS: dict[str, tuple[Spoil, str]] = {
    "empty": (write("config.json", ""), "config.json of"),
    "no JSON": (write("config.json", "{"), "config.json of"),
    "a list": (write("config.json", "[1]"), "config.json of"),
    "bytes": (write("config.json", b"\xff\xfe\x00"), "config.json of"),
    "an unknown type": (change("config.json", model_type="llamma"), "`llamma`"),
    "no type": (change("config.json", model_type=None, architectures=None), "config.json of"),
    "text as a size": (change("config.json", hidden_size="64"), "expected int, got str"),
    "no heads": (change("config.json", num_attention_heads=0), "config.json of"),
}
WRONG_SIZES: dict[str, tuple[Spoil, str]] = {
    "an activation": (change("config.json", hidden_act="nosuch"), "nosuch"),
    "a negative size": (change("config.json", hidden_size=-64), "the sizes of"),
    "sizes beyond any number": (change("config.json", hidden_size=2**62), "the sizes of"),
    "another kind of model": (change("config.json", model_type="t5"), "t5 is not a causal language model"),
}
WRONG_TOKENIZERS: dict[str, tuple[Spoil, str]] = {
    "none": (lose_the_tokenizer, "has no tokenizer files; copy tokenizer.json"),
    "empty": (write("tokenizer.json", ""), "the tokenizer of"),
    "no JSON": (write("tokenizer.json", "{"), "the tokenizer of"),
    "no tokenizer": (write("tokenizer.json", "{}"), "the tokenizer of"),
    "a list": (write("tokenizer_config.json", "[]"), "the tokenizer of"),
}


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def refused(act: Callable[[], Any], folder: Path, said: str) -> None:
    with pytest.raises(UserError) as error:
        act()
    message = str(error.value)
    assert (message.startswith("model: "), said in message, len(message) < 600) == (True, True, True), message
    assert str(folder) in message or "t5" in said, message


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_that_are_not_the_models(folder: Path, name: str) -> None:
    spoil, said = WRONG_WEIGHTS[name]
    spoil(folder)
    for device in ("cpu", "meta"):
        refused(lambda: load_model(str(folder), torch.float32, device), folder, said)  # noqa: B023


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_configs_that_are_none(folder: Path, name: str) -> None:
    spoil, said = WRONG_CONFIGS[name]
    spoil(folder)
    for read in (load_model_config, lambda f: load_model(f, torch.float32), lambda f: empty_model(f, torch.float32)):
        refused(lambda: read(str(folder)), folder, said)  # noqa: B023


@pytest.mark.parametrize("name", WRONG_SIZES)
def test_configs_that_no_model_can_be_built_from(folder: Path, name: str) -> None:
    spoil, said = WRONG_SIZES[name]
    spoil(folder)
    refused(lambda: outline(load_model_config(str(folder)), torch.float32), folder, said)
    refused(lambda: load_model(str(folder), torch.float32), folder, said)


@pytest.mark.parametrize("name", WRONG_TOKENIZERS)
def test_tokenizers_that_are_none(folder: Path, name: str) -> None:
    spoil, said = WRONG_TOKENIZERS[name]
    spoil(folder)
    refused(lambda: load_tokenizer(str(folder)), folder, said)


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "x"}'])
def test_generation_settings_that_are_none(folder: Path, content: str) -> None:
    write("generation_config.json", content)(folder)
    for empty in (False, True):
        with pytest.raises(UserError, match=r"^model: (generation_config.json|eos_token_id)"):
            load_policy(str(folder), empty=empty)


def test_the_templates_end_of_a_turn_ends_completions_too(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in base models, whose EOS is <|endoftext|>, while their template ends turns with <|im_end|>."""
    for name in ("config.json", "generation_config.json"):
        change(name, eos_token_id=0)(folder)
    change("tokenizer_config.json", eos_token="<|endoftext|>")(folder)
    assert load_policy(str(folder)).eos_token_ids == (0, END)
    exported = save_trained(load_model(str(folder), torch.float32), str(folder), tmp_path / "exported")
    assert generation_config(str(exported)).eos_token_id == [0, END]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "<|im_end|> (" in record.message and "(<|endoftext|>)" in record.message
    assert "add 2 to eos_token_id in its generation_config.json" in record.message and str(folder) in record.message


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("<|end|>", "with <|end|>, which is no token of its tokenizer"),
        ("", None),
        ("\n\n", None),
        ("</s>", "only <|im_end|> ends"),
    ],
)
def test_a_templates_end_that_is_no_token_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture, ends: str, said: str | None
) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>", ends))
    change("generation_config.json", eos_token_id=END)(folder)
    assert load_policy(str(folder)).eos_token_ids == (END,)
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (said is not None)
    assert all(str(said) in line and f"rollout.sampling.stop: ['{ends}']" in line for line in warned)


def test_tokens_that_the_model_does_not_have_are_refused(folder: Path) -> None:
    change("generation_config.json", eos_token_id=[END, 99999])(folder)
    with pytest.raises(UserError, match=r"eos_token_id of .* has 99999, and the model knows only 260 tokens"):
        load_policy(str(folder))
    change("generation_config.json", eos_token_id=END)(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|unused|>"]})
    tokenizer.save_pretrained(folder)
    load_policy(str(folder))  # no text has them
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"has <\|turn\|>, which the tokenizer counts beyond the model's 260 tokens"):
        load_policy(str(folder))


def test_pointers_of_git_lfs_are_refused(folder: Path) -> None:
    write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")(folder)
    with pytest.raises(UserError, match=r"model.safetensors is a pointer of Git LFS, .*run `git lfs pull` in"):
        load_model(str(folder), torch.float32)


def test_whole_folders_load(folder: Path, untied_model_folder: Path, tmp_path: Path) -> None:
    """Tied weights may be omitted or stored twice; buffers in old checkpoints are not weights."""
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    model = load_model(str(folder), torch.float32)
    assert model.generation_config.eos_token_id[0] == tiny_llama().generation_config.eos_token_id[0]
    weights(lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}))(folder)
    weights(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))(folder)
    again = load_model(str(folder), torch.float32)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    (folder / "generation_config.json").unlink()
    assert load_model(str(folder), torch.float32).generation_config.eos_token_id == model.config.eos_token_id
    meta = load_model(str(untied_model_folder), torch.float32, "meta")
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
    lost = save_model(tiny_qwen2(), tmp_path / "lost")  # its output embedding is one of its own
    weights(lambda w: w.pop("lm_head.weight"))(lost)
    refused(lambda: load_model(str(lost), torch.float32), lost, "(1 missing: lm_head.weight)")


def test_weights_that_are_not_numbers(folder: Path) -> None:
    weights(lambda w: w["model.norm.weight"].fill_(float("nan")))(folder)
    with pytest.raises(UserError, match=r"log-probabilities are not numbers, its weights are broken"):
        load_policy(str(folder))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=260, eos_token_id=2, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"^model: "):
        load_policy(str(tmp_path / "bert"))
