"""The trained model of a run: reads it from a checkpoint, and writes it as a Hugging Face folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_rlvr.common.columns import lookup
from lit_rlvr.common.files import cache_folder, check_writable
from lit_rlvr.common.paths import expanded
from lit_rlvr.common.run_files import is_run
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.configs import read_config
from lit_rlvr.distributed.checkpoints import is_sharded, last_checkpoint, read_checkpoint
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters, is_saved, merge_adapters, mismatched_weights, save_adapter
from lit_rlvr.policy.loading import (
    auto_class,
    generation_config,
    load_model_config,
    load_policy,
    merge_into_base,
    save_model,
)
from lit_rlvr.policy.sources import (
    ADAPTER_CONFIG,
    adapter_base,
    adapter_folder,
    made_once,
    resolve_model,
)

PREFIX = "policy.model."


def export_run(run_folder: Path, target: Path, dtype: str = "float32", adapter: bool = False) -> Path:
    """Write the model of a run's newest checkpoint, with tokenizer and generation settings.

    The folder appears only when it is complete.

    Args:
        run_folder: a run folder, or a checkpoint inside its `checkpoints/`; or a folder with adapters, which are merged
            into their base model.
        target: the folder to write.
        dtype: `float32` or `bfloat16`.
        adapter: write only the adapter, as peft does.

    Raises:
        UserError: there is no such run, it trained no adapter, the checkpoint is not ours, or the target exists or
            cannot be written.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype: {dtype!r} is not float32 or bfloat16")
    if target.exists():
        raise UserError(f"--to: {target} exists; choose another folder")
    check_writable(target.parent, "--to")
    if (run_folder / ADAPTER_CONFIG).is_file():
        if adapter:
            raise UserError(f"--adapter: {run_folder} is one already; leave the option out to merge it")
        base = resolve_model(adapter_base(run_folder / ADAPTER_CONFIG))
        return merge_into_base(adapter_folder(str(run_folder)), base, target, getattr(torch, dtype))
    if run_folder.is_file() or is_sharded(run_folder):
        checkpoint = run_folder
    else:
        checkpoint = last_checkpoint(run_folder)
    root = checkpoint.parent.parent
    model, config = load_trained_model(checkpoint, run_config(root)["model"]["init_args"])
    source = model.name_or_path
    if adapter and config is None:
        raise UserError(f"--adapter: the run in {root} trained all weights; leave the option out")
    if config is None or not adapter:
        merge_adapters(model)
        return save_model(model.to(getattr(torch, dtype)), source, target)
    named = Path(config.base_model_name_or_path or source)  # of the adapter that training continued
    where = str(named.resolve() if named.is_dir() else named)
    model.to(getattr(torch, dtype))
    return save_model(model, source, target, write=lambda folder: save_adapter(model, config, where, folder))


def resolve_run_model(name: str) -> str:
    """Return the model that a name stands for: of a run folder its newest one, exported to the cache.

    Other names, folders and hub ids stay as they are.
    """
    if not is_run(name):
        return name
    run_folder = expanded(name)
    return str(made_once(cached_export(run_folder), lambda to: _export_into(run_folder, to)))


def cached_export(run_folder: Path) -> Path:
    """Return the path in the cache for a run's newest model."""
    checkpoint = last_checkpoint(run_folder)
    key = derive_seed(str(checkpoint.resolve()), checkpoint.stat().st_mtime_ns)
    return cache_folder() / "exported" / f"{run_folder.resolve().name}-{key:x}"


def _export_into(run_folder: Path, folder: Path) -> None:
    folder.rmdir()
    export_run(run_folder, folder)


def run_config(root: Path) -> dict[str, Any]:
    """Read the config of a run.

    Raises:
        UserError: there is none, or it names no model.
    """
    path = root / "config.yaml"
    if not path.is_file():
        raise UserError(f"{root} has no config.yaml; give a folder that `lit-rlvr fit` wrote")
    config = read_config(path, option="run")
    if not isinstance(lookup(config, "model.init_args.model"), str):
        raise UserError(f"run: {path} has no model.init_args.model; give a folder that `lit-rlvr fit` wrote")
    return config


def _other_model(
    checkpoint: Path, settings: dict[str, Any], weights: Iterable[str], trained_on: str, mismatches: Sequence[str]
) -> UserError:
    """Return the error about a checkpoint of another model than the config's.

    Args:
        checkpoint: the checkpoint with the weights.
        settings: the options of the model in the run's config.
        weights: the names of its weights.
        trained_on: the name of the model that it was trained on.
        mismatches: what does not fit, a text each.
    """
    matches = []
    for key in weights:
        matches.append(re.search(r"\blayers\.\d+\.", key))
    layers = set()
    for match in matches:
        if match is not None:
            layers.add(match[0])
    if any("lora_" in key for key in weights):
        has = f"adapters of {trained_on}"
    else:
        has = f"{trained_on}'s"
    says = settings["model"]
    if settings.get("lora"):
        says += f" with lora {settings['lora']}"
    if mismatches[1:]:
        more = f" and {len(mismatches) - 1} more do not fit"
    else:
        more = " does not fit"
    return UserError(
        f"{checkpoint}: its weights are {has} ({len(layers)} layers), config.yaml says {says}; {mismatches[0]}{more}"
    )


def load_trained_model(checkpoint: Path, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return the Hugging Face model of a run with a checkpoint's weights, and the peft config of its adapters, if any.

    Args:
        checkpoint: the checkpoint with the weights.
        settings: the options of the model in the run's config.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    saved = read_checkpoint(checkpoint)
    config = None
    weights = {}
    for k, v in saved["state_dict"].items():
        if k.startswith(PREFIX):
            weights[k.removeprefix(PREFIX)] = v
    trained_on = saved["rlvr"]["model_folder"]
    lora = settings.get("lora")
    if lora:
        if lora.get("adapter") == "continue":
            continued = adapter_folder(settings["model"])
        else:
            continued = None
        model: Any = load_policy(trained_on, shared_prefix=False).model
        config = add_adapters(model, Lora(**lora), folder=continued)
    else:
        model = random_model(resolve_model(settings["model"], settings.get("config_overrides")))
    if lora:
        expected = {}
        for n, p in model.named_parameters():
            if is_saved(n):
                expected[n] = p
    else:
        expected = model.state_dict()
    mismatches = mismatched_weights(weights, expected)
    if mismatches:
        raise _other_model(checkpoint, settings, weights, Path(trained_on).name, mismatches)
    model.load_state_dict(weights, strict=not lora)
    return model, config


def random_model(folder: str) -> Any:
    """Build the model of a folder with random weights."""
    config = load_model_config(folder)
    model = auto_class(config).from_config(config, dtype=torch.float32)
    model.generation_config = generation_config(folder) or model.generation_config
    return model
