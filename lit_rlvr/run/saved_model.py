"""The trained model of a run: reads it from a checkpoint, and writes it as a Hugging Face folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.files import check_writable, scratch_folder, writing
from lit_rlvr.common.packages import require
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.configs import check_current, read_config
from lit_rlvr.datamodules.reading.cells import lookup
from lit_rlvr.distributed.checkpoints import is_sharded, last_checkpoint, read_checkpoint
from lit_rlvr.errors import UserError
from lit_rlvr.policy.adapters import Lora, add_adapters, merge_adapters
from lit_rlvr.policy.families import family_of
from lit_rlvr.policy.loading import (
    auto_class,
    end_tokens,
    generation_config,
    has_tokenizer,
    load_model,
    load_model_config,
    load_policy,
    load_tokenizer,
    read_tokenizer,
    reading,
)
from lit_rlvr.policy.sources import ADAPTER_CONFIG, adapter_base, cache_folder, made_once, resolve_model

PREFIX = "policy.model."


def export_run(run: Path, target: Path, dtype: str = "float32") -> Path:
    """Write the model of a run's newest checkpoint, with tokenizer and generation settings.

    The folder appears only when it is complete.

    Args:
        run: a run folder, or a checkpoint inside its `checkpoints/`; or a folder with adapters, which are merged into
            their base model.
        target: the folder to write.
        dtype: `float32` or `bfloat16`.

    Raises:
        UserError: there is no such run, the checkpoint is not ours, or the target exists or cannot be written.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype: {dtype!r} is not float32 or bfloat16")
    if target.exists():
        raise UserError(f"--to: {target} exists; choose another folder")
    check_writable(target.parent, "--to")
    if (run / ADAPTER_CONFIG).is_file():
        return export_adapters(run, target, getattr(torch, dtype))
    checkpoint = run if run.is_file() or is_sharded(run) else last_checkpoint(run)
    root = checkpoint.parent.parent
    settings = run_config(root)["model"]["init_args"]
    model = load_trained_model(checkpoint, settings, getattr(torch, dtype))
    return save_model(model, resolve_model(settings["model"], settings.get("config_overrides")), target)


def export_adapters(folder: Path, target: Path, dtype: torch.dtype) -> Path:
    """Merge adapters of peft into their base model, and write it with the tokenizer of the adapters, if they have one.

    Raises:
        UserError: peft is not installed, or the base model cannot be found or does not fit.
    """
    require("peft", "export of adapters")
    from peft import PeftModel

    base = resolve_model(adapter_base(folder / ADAPTER_CONFIG))
    with reading("the adapters", str(folder)):
        model = PeftModel.from_pretrained(load_model(base, dtype), folder).merge_and_unload()
    return save_model(model, base, target, folder if has_tokenizer(folder) else None)


def is_run(name: str) -> bool:
    """Return whether a model is given as a run folder."""
    return (Path(name).expanduser() / "config.yaml").is_file()


def resolve_run_model(name: str) -> str:
    """Return a model name, folder or hub id unchanged; export a run folder's newest model to the cache and return
    that."""
    if not is_run(name):
        return name
    run = Path(name).expanduser()
    return str(made_once(cached_export(run), lambda to: _export_into(run, to)))


def cached_export(run: Path) -> Path:
    """Return the path in the cache for a run's newest model."""
    checkpoint = last_checkpoint(run)
    key = derive_seed(str(checkpoint.resolve()), checkpoint.stat().st_mtime_ns)
    return cache_folder() / "exported" / f"{run.resolve().name}-{key:x}"


def _export_into(run: Path, folder: Path) -> None:
    folder.rmdir()
    export_run(run, folder)


def save_model(model: Any, source: str, target: Path, tokenizer: Path | None = None) -> Path:
    """Write a model with the tokenizer and the image and video processors of the folder or hub id that it came from.

    The folder appears only when it is complete.

    Args:
        tokenizer: a folder with another tokenizer.
    """
    scratch = scratch_folder(target, str(target))
    try:
        with writing(str(target)):
            reads = load_tokenizer(source) if tokenizer is None else read_tokenizer(str(tokenizer))
            reads.save_pretrained(scratch)
            end_tokens(model, reads)
            model.save_pretrained(scratch)
            if (family := family_of(model.config)) is not None:
                family.save_processors(source, scratch)
            scratch.chmod(0o755)
            os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def run_config(root: Path) -> dict[str, Any]:
    """Read the config of a run.

    Raises:
        UserError: there is none, or it names no model.
    """
    path = root / "config.yaml"
    if not path.is_file():
        raise UserError(f"{root} has no config.yaml; give a folder that `lit-rlvr fit` wrote")
    config = read_config(path, option="run")
    check_current(path)
    if not isinstance(lookup(config, "model.init_args.model"), str):
        raise UserError(f"run: {path} has no model.init_args.model; give a folder that `lit-rlvr fit` wrote")
    return config


def load_trained_model(checkpoint: Path, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    """Load the Hugging Face model of a run with a checkpoint's weights, and merge its adapters.

    Args:
        settings: the options of the model in the run's config.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    saved = read_checkpoint(checkpoint)
    weights = {k.removeprefix(PREFIX): v for k, v in saved["state_dict"].items() if k.startswith(PREFIX)}
    trained_on, lora = saved["rlvr"]["model_folder"], settings.get("lora")
    folder = trained_on if lora else resolve_model(settings["model"], settings.get("config_overrides"))
    model = model_with_adapters(folder, Lora(**lora)) if lora else random_model(folder, dtype)
    expected = {n: p for n, p in model.named_parameters() if p.requires_grad} if lora else model.state_dict()
    if wrong := mismatched_weights(weights, expected):
        layers = len({found[0] for key in weights if (found := re.search(r"\blayers\.\d+\.", key))})
        name = Path(trained_on).name
        has = f"adapters of {name}" if any("lora_" in key for key in weights) else f"{name}'s"
        says = settings["model"] + (f" with lora {lora}" if lora else "")
        more = f" and {len(wrong) - 1} more do not fit" if wrong[1:] else " does not fit"
        raise UserError(
            f"{checkpoint}: its weights are {has} ({layers} layers), config.yaml says {says}; {wrong[0]}{more}"
        )
    model.load_state_dict(weights, strict=not lora)
    if lora:
        merge_adapters(model)
    return model.to(dtype)


def mismatched_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names that only one of two sets of weights has, or whose shapes differ."""
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (weights, expected)]
    return sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def random_model(folder: str, dtype: torch.dtype) -> Any:
    """Build the model of a folder with random weights."""
    config = load_model_config(folder)
    model = auto_class(config).from_config(config, dtype=dtype)
    model.generation_config = generation_config(folder) or model.generation_config
    return model


def model_with_adapters(folder: str, lora: Lora) -> Any:
    """Load the model of a folder with new adapters."""
    model: Any = load_policy(folder, shared_prefix=False).model
    add_adapters(model, lora)
    return model
