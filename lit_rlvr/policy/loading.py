"""Reads and writes a model's config, weights and tokenizer.

Third-party files can be wrong; every problem is a one-line error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lit_rlvr.common.files import reading, scratch_folder, writing
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import require
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import MISFIT
from lit_rlvr.policy.families import family_of
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.speed import enable_checkpointing, keep_freed_memory
from lit_rlvr.policy.verify import verify_or_fall_back

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken.json")
SHOWN = 3
"""How many weights an error names."""


def load_model_config(folder: str) -> Any:
    """Return the config of a model folder or hub id.

    Raises:
        UserError: it cannot be read, or needs code that comes with it.
    """
    from transformers import AutoConfig

    with reading("config.json", folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def auto_class(config: Any) -> Any:
    """Return the transformers class that loads the language or vision-language model of a config.

    Raises:
        UserError: it is another kind of model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    cls = AutoModelForCausalLM if family_of(config) is None else AutoModelForImageTextToText
    if type(config) not in cls._model_mapping:
        raise UserError(f"model: {config.model_type} is not a causal language model; use one")
    return cls


def outline(config: Any, dtype: torch.dtype) -> Any:
    """Return a model built from its config alone, on the meta device."""
    with reading("the sizes", config.name_or_path or config.model_type), torch.device("meta"):
        return auto_class(config).from_config(deepcopy(config), dtype=dtype)  # which writes `dtype` to it


def load_model(folder: str, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
    """Return the model of a folder or hub id with all of its weights and generation settings.

    Args:
        folder: a model folder or hub id.
        dtype: of the weights.
        device: where to load the weights, without a copy on the CPU if the package accelerate is installed; `meta` only
            checks the files.

    Raises:
        UserError: a file cannot be read, or weights are missing, unknown or of the wrong shape.
    """
    config = load_model_config(folder)
    made_by = auto_class(config)
    settings = generation_config(folder)
    if getattr(config, "quantization_config", None) is None:
        check_files(folder, sum(weight.numel() for weight in outline(config, dtype).parameters()))
    direct = torch.device(device).type != "cpu" and find_spec("accelerate") is not None
    with reading("the weights", folder):
        model, report = made_by.from_pretrained(
            folder,
            dtype=dtype,
            device_map=device if direct else None,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    check_complete(folder, report)
    model.generation_config = settings or model.generation_config
    if direct or torch.device(device).type == "cpu":
        return model
    return model.to(device)


def empty_model(folder: str, dtype: torch.dtype) -> Any:
    """Return a model whose weights are left on the meta device."""
    model = outline(load_model_config(folder), dtype)
    model.generation_config = generation_config(folder) or model.generation_config
    return model


def check_files(folder: str, wanted: int) -> None:
    """Refuse weight files of a local folder that are damaged, quantised, or much smaller than the config says.

    Args:
        folder: the model's.
        wanted: the model's parameter count. More than ten times what the files hold is refused here, before the model
            is allocated.

    Raises:
        UserError: names the file, or both counts.
    """
    from safetensors import safe_open

    count = 0
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with path.open("rb") as start:
            is_pointer = start.read(7) == b"version"
        if is_pointer:
            raise UserError(f"model: {path} is a pointer of Git LFS, not the weights; run `git lfs pull` in {folder}")
        with reading(path.name, folder), safe_open(path, framework="pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            types = {}
            for name, tensor in tensors.items():
                types[name] = tensor.get_dtype()
            count += sum(prod(tensor.get_shape()) for tensor in tensors.values())
        for name, kind in types.items():
            if not kind.startswith(("F", "BF")):
                raise UserError(
                    f"model: {path}: {name} is {kind}, and config.json has no quantization_config; give a folder with "
                    "the weights as floating-point numbers"
                )

    if 0 < count < wanted / 10:
        raise UserError(
            f"model: config.json of {folder} has {wanted} parameters, its files hold {count}; take both from the same "
            "model"
        )


def check_complete(folder: str, report: dict[str, Any]) -> None:
    """Refuse weights that are not exactly the model's, because transformers would fill gaps with random ones.

    Args:
        folder: the model's, for the error.
        report: transformers' loading info, which omits tied weights and buffers that it creates itself.

    Raises:
        UserError: names the missing, unknown and misshapen weights.
    """
    wrong_shapes = []
    for name, shape, wanted in sorted(report["mismatched_keys"]):
        wrong_shapes.append(f"{name} {list(shape)} instead of {list(wanted)}")
    misfits = {
        "missing": sorted(report["missing_keys"]),
        "unknown": sorted(report["unexpected_keys"]),
        "of the wrong shape": wrong_shapes,
    }
    parts = []
    for kind, names in misfits.items():
        if names:
            parts.append(f"{len(names)} {kind}: {_few(names)}")
    misfit = "; ".join(parts)
    if misfit:
        raise UserError(
            f"model: the weights in {folder} are not those of its config.json ({misfit}); take both from the same model"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def generation_config(folder: str) -> Any:
    """Return the generation settings of a folder or hub id; None if it has none besides the model's config.

    Raises:
        UserError: they exist but cannot be read.
    """
    from transformers import GenerationConfig

    try:
        with reading("generation_config.json", folder):
            return GenerationConfig.from_pretrained(folder)
    except UserError as error:
        if isinstance(error.__cause__, OSError) and not (Path(folder) / "generation_config.json").exists():
            return None
        raise


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder or hub id.

    Raises:
        UserError: it cannot be loaded, or needs code that comes with it.
    """
    load_model_config(folder)  # it names the kind of tokenizer
    if Path(folder).is_dir() and not has_tokenizer(Path(folder)):
        raise UserError(
            f"model: {folder} has no tokenizer files; copy tokenizer.json and tokenizer_config.json into it"
        )
    return read_tokenizer(folder)


def differing_tokens(folder: str, other: str, key: str) -> dict[int, str]:
    """Compare the tokens of two models; refuse those whose ids stand for other texts than those of `folder`.

    Args:
        folder: the trained model's.
        other: the other model's.
        key: of the config, for the error: the option that names `other`.

    Returns:
        The added tokens, such as those of chat templates, that have another name in `other` or are missing in one, as
        messages; but not the EOS token of both.

    Raises:
        UserError: an ordinary token differs; names the first.
    """
    tokenizers = []
    for model in (folder, other):
        tokenizers.append(load_tokenizer(model))
    tokens = {}
    for token, i in tokenizers[0].get_vocab().items():
        tokens[i] = token
    other_tokens = {}
    for token, i in tokenizers[1].get_vocab().items():
        other_tokens[i] = token
    added = {i for tokenizer in tokenizers for i in tokenizer.added_tokens_decoder} - {tokenizers[0].eos_token_id}
    if tokenizers[0].eos_token_id == tokenizers[1].eos_token_id:
        other_tokens[tokenizers[0].eos_token_id] = tokens[tokenizers[0].eos_token_id]
    differing = {}
    for i in sorted(tokens.keys() | other_tokens.keys()):
        if tokens.get(i) != other_tokens.get(i):
            differing[i] = f"token {i} is {other_tokens.get(i)!r} in {other} and {tokens.get(i)!r} in {folder}"
            if i not in added:
                raise UserError(f"{key}: {differing[i]}; use a model with the same tokenizer")
    return differing


def has_tokenizer(folder: Path) -> bool:
    for name in TOKENIZER_FILES:
        for path in folder.glob(name):
            if path:
                return True
    return False


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id, which may hold no model.

    Raises:
        UserError: it cannot be loaded, or needs code that comes with it.
    """
    from transformers import AutoTokenizer

    with reading("the tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_image_processor(folder: str) -> ImageProcessor:
    """Return what prepares images for the model of a folder or hub id.

    Raises:
        UserError: the model takes no images, or its image processor does not fit it.
    """
    from transformers import AutoImageProcessor

    family = family_of(load_model_config(folder))
    if family is None:
        raise UserError(
            f"model: {folder} takes no images or videos, and the data or the environment has some; use a "
            "vision-language model"
        )
    with reading("the image processor", folder):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    return family.image_processor(family, folder, processor, load_tokenizer(folder))


def eos_token_ids(model: Any) -> tuple[int, ...]:
    """Return the tokens that end a completion, from the generation config.

    Raises:
        UserError: the model names none, so every completion would be cut off; or they are not integers.
    """
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = model.config.eos_token_id
    if configured is None:
        raise UserError("model: neither generation_config.json nor config.json names an eos_token_id; add one")
    if isinstance(configured, list | tuple):
        ids = tuple(configured)
    else:
        ids = (configured,)
    if not ids or not all(isinstance(token, int) for token in ids):
        raise UserError(f"model: eos_token_id is {configured!r}; give a token's number or a list of such numbers")
    return ids


MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""A control token as chat templates write it, such as `<|im_end|>` or `[EOS]`."""
MEDIA_TOKEN = re.compile(r"<\|?(?:begin_of_|end_of_)?(?:image|video|audio|vision|tts)(?:_\w+)?\|?>|</?img>")
"""Tokens such as `<|audio_pad|>` and `<|begin_of_audio|>`, by their text."""
_TURN = "\ue000"


def after_a_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the chat template writes after a turn of the model; "" if there is no template, or it shows no turn.

    A template that refuses the conversation is reported when it is needed.
    """
    for content in (_TURN, [{"type": "text", "text": _TURN}]):  # the templates of some vision models take parts only
        talk: list[Any] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
        with suppress(Exception):
            text = str(tokenizer.apply_chat_template(talk, tokenize=False) if tokenizer.chat_template else "")
            if _TURN in text:
                return text.rpartition(_TURN)[2].strip()
    return ""


@lru_cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a completion: `eos_token_ids`, and the one by which the chat template ends a turn.

    The latter becomes part of the model's generation config, which an export writes.
    """
    ids = eos_token_ids(model)
    text = after_a_turn(tokenizer)
    after = tokenizer(text, add_special_tokens=False).input_ids
    if {*after} & {*ids}:
        return ids
    known = []
    for token in after:
        if token in tokenizer.added_tokens_decoder:
            known.append(token)
    names = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in ids)
    template = f"model: the chat template of {tokenizer.name_or_path} ends a turn with"
    if known:
        _warn_once(
            f"{template} {tokenizer.convert_ids_to_tokens(known[-1])} ({known[-1]}), which is not among its EOS tokens "
            f"({names}): all of them end a completion here; for other programs, add {known[-1]} to eos_token_id in its "
            "generation_config.json"
        )
        ids = (*ids, known[-1])
        model.generation_config.eos_token_id = [*ids]
    elif marker := MARKER.match(text):
        _warn_once(
            f"{template} {marker[0]}, which is no token of its tokenizer, and only {names} ends a completion: set "
            f"rollout.sampling.stop: ['{marker[0]}'], or take a template that fits the model"
        )
    return ids


def turn_ends(folder: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a completion, without loading weights.

    The first is the one by which the chat template ends a turn.
    """
    after = tokenizer(after_a_turn(tokenizer), add_special_tokens=False).input_ids
    return tuple(sorted(end_tokens(empty_model(folder, torch.float32), tokenizer), key=lambda end: end not in after))


def check_token_ids(folder: str, rows: int, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
    """Refuse EOS tokens, and tokens of the chat template, that the model has no embedding for.

    Args:
        folder: the model's, for the error.
        rows: of the embedding.
        tokenizer: the model's.
        ends: the EOS tokens.

    Raises:
        UserError: names the tokens.
    """
    beyond = [token for token in ends if token >= rows]
    if beyond:
        raise UserError(
            f"model: eos_token_id of {folder} has {beyond[0]}, and the model knows only {rows} tokens; take "
            "generation_config.json and tokenizer of this model"
        )
    template = str(tokenizer.chat_template or "")
    unknown = []
    for text, token in tokenizer.get_added_vocab().items():
        if token >= rows and text in template:
            unknown.append(text)
    if unknown:
        raise UserError(
            f"model: the chat template of {folder} has {_few(sorted(unknown))}, which the tokenizer counts beyond the "
            f"model's {rows} tokens; give the model these tokens (resize_token_embeddings), or take its own tokenizer"
        )


def media_token_ids(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[int, ...]:
    """Return the tokens for images, videos and sounds that a tokenizer has, which configs name only in part.

    Args:
        tokenizer: the model's.
        rows: of the embedding.
    """
    added = tokenizer.get_added_vocab().items()
    return tuple(sorted(token for text, token in added if MEDIA_TOKEN.fullmatch(text) and token < rows))


def frozen_dtype(folder: str, lora: Lora | None, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the type in which to load the weights under adapters, which are frozen.

    It is that of matrix products if all weights were published in it: `round_frozen` would leave them in it in any
    case. It is float32 for DoRA, whose first magnitudes are computed in it, and for a model with buffers that would be
    rounded, such as the scale of Gemma's embedding.

    Args:
        folder: the model's.
        lora: the options of the adapters; None = all weights are trained, in float32.
        compute_dtype: the type of matrix products.
    """
    if lora is None or lora.dora or compute_dtype == torch.float32 or not published_in(folder, compute_dtype):
        return torch.float32
    if any(buffer.dtype == compute_dtype for buffer in outline(load_model_config(folder), compute_dtype).buffers()):
        return torch.float32
    return compute_dtype


def published_in(folder: str, dtype: torch.dtype) -> bool:
    """Return whether all weights of a folder or hub id have a type; False if its files do not say so.

    Files of a hub id are downloaded.
    """
    from safetensors import safe_open

    name = SAFETENSORS_TYPES.get(dtype)
    paths = weight_files(folder)
    for path in paths:
        with reading(Path(path).name, folder), safe_open(path, framework="pt") as file:
            types = set()
            for weight in file.keys():  # noqa: SIM118  # not a mapping
                types.add(file.get_slice(weight).get_dtype())
        if types != {name}:
            return False
    return bool(paths)


SAFETENSORS_TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""The names of types in safetensors files."""


def weight_files(folder: str) -> list[str]:
    """Return the safetensors files that transformers loads for a folder or hub id, which are downloaded if need be.

    Raises:
        UserError: a file cannot be read.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    with reading("the weights", folder):
        whole = cached_file(folder, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
        if whole is not None:
            return [whole]
        index = cached_file(folder, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
        if index is None:
            return []
        names = sorted({*json.loads(Path(index).read_text())["weight_map"].values()})
        files = []
        for name in names:
            files.append(str(cached_file(folder, name)))
        return files


def load_policy(
    folder: str,
    shared_prefix: bool = True,
    gradient_checkpointing: bool = False,
    empty: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Load a causal language model as a policy, and check its log-probabilities.

    It is in evaluation mode (no dropout).

    Args:
        folder: a model folder or hub id, from `resolve_model`.
        shared_prefix: see `Policy`; if it is not exact for the model, one completion per row, with a warning.
        gradient_checkpointing: recompute each layer in the backward pass.
        device: where to load the weights, and to check the log-probabilities.
        empty: do not load the weights (they stay on the meta device) and skip the check.
        dtype: of the weights.

    Raises:
        UserError: the model cannot be loaded, or its log-probabilities cannot be reproduced.
    """
    keep_freed_memory()
    if empty:
        model = empty_model(folder, dtype)
    else:
        model = load_model(folder, dtype, device)
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise UserError(f"model: {folder} has no plain linear output embedding; not supported")
    if gradient_checkpointing:
        enable_checkpointing(model)
    tokenizer = load_tokenizer(folder)
    ends = end_tokens(model, tokenizer)
    rows = model.get_input_embeddings().num_embeddings
    check_token_ids(folder, rows, tokenizer, ends)
    policy = Policy(model.eval(), ends, shared_prefix, media_token_ids(tokenizer, rows))
    if not empty:
        with reading("the layers", folder):
            verify_or_fall_back(policy)
    return policy


def save_model(
    model: Any, source: str, target: Path, tokenizer: Path | None = None, write: Callable[[Path], Any] | None = None
) -> Path:
    """Write a model with the tokenizer and the image and video processors of the folder or hub id that it came from.

    The folder appears only when it is complete.

    Args:
        model: the model.
        source: the folder or hub id that it came from.
        target: where to write.
        tokenizer: a folder with another tokenizer.
        write: writes the weights into a folder; None = all of them, as transformers does.
    """
    scratch = scratch_folder(target, str(target))
    try:
        with writing(str(target)):
            if tokenizer is None:
                reads = load_tokenizer(source)
            else:
                reads = read_tokenizer(str(tokenizer))
            reads.save_pretrained(scratch)
            end_tokens(model, reads)
            (write or model.save_pretrained)(scratch)
            family = family_of(model.config)
            if family is not None:
                family.save_processors(source, scratch)
            scratch.chmod(0o755)
            os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def merge_into_base(folder: Path, base: str, target: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Merge an adapter of peft into its base model, and write it with the tokenizer of the adapter, if it has one.

    Args:
        folder: the adapter's.
        base: the base model's folder or hub id.
        target: where to write.
        dtype: of the weights.

    Raises:
        UserError: peft is not installed, or the adapter does not fit the model.
    """
    require("peft", "model: an adapter")
    from peft import PeftModel
    from peft.utils.save_and_load import load_peft_weights

    with reading("the adapter", str(folder)):
        plain = load_model(base, dtype)
        name = next(name for name, module in plain.named_modules() if module is plain.get_input_embeddings())
        trained = load_peft_weights(str(folder), device="cpu").get(f"base_model.model.{name}.weight")
        if trained is not None:  # perhaps with added tokens
            plain.resize_token_embeddings(len(trained), mean_resizing=False)
        head = plain.get_output_embeddings()
        tied = head.weight is plain.get_input_embeddings().weight
        head.weight = nn.Parameter(head.weight.detach().clone())  # an adapter of one of them leaves the other
        model = PeftModel.from_pretrained(plain, folder)
        report = model.load_adapter(folder, "default")  # which returns what is missing; the line above only warns
        unknown = [name for name in report.unexpected_keys if ".modules_to_save." not in name]  # peft wrote them twice
        mismatches = sorted(report.missing_keys + unknown)
        if mismatches:
            raise UserError(f"model: the adapter in {folder} is not one of {base}: {_few(mismatches)}; {MISFIT}")
        try:
            merged: Any = model.merge_and_unload()
        except RuntimeError as error:
            raise UserError(f"model: the adapter in {folder} cannot be merged: {first_line(error)}") from error
    if tied:
        are_tied = torch.equal(merged.get_output_embeddings().weight, merged.get_input_embeddings().weight)
        for config in (merged.config, merged.config.get_text_config()):
            config.tie_word_embeddings = are_tied
        merged.tie_weights()
    return save_model(merged, base, target, folder if has_tokenizer(folder) else None)
