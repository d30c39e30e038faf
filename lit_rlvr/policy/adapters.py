"""LoRA with peft: low-rank adapters in place, over frozen weights that may have 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_rlvr.common.packages import require
from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.distributed.sharding import device_of, own_shard
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.options import Lora
from lit_rlvr.policy.families import language_modules, vision_modules
from lit_rlvr.policy.precision import dither


def quantize_layers(model: nn.Module, names: Sequence[str], compute_dtype: torch.dtype) -> None:
    """Replace linear layers with 4-bit ones, in place.

    Args:
        model: the model.
        names: the layers' names in the model.
        compute_dtype: type of their matrix products.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    require("bitsandbytes", "model.lora.quantize")
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in names:
        linear: Any = model.get_submodule(name)
        device = linear.weight.device
        quantized: Any = Linear4bit(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            compute_dtype,
            quant_type="nf4",
            device="meta",
        )
        # From float32, whose type dequantised weights then have, whatever type the model was loaded in.
        quantized.weight = Params4bit(linear.weight.data.float(), requires_grad=False, quant_type="nf4")
        quantized.bias = linear.bias
        quantized.support_avx512bf16_for_cpu = False  # it would change the weights' layout when no gradient is needed
        model.set_submodule(name, quantized.to(device))  # moving it quantises it


def is_quantized(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state")


def dense(weight: Tensor) -> Tensor:
    """Return a weight, dequantised if it is quantised."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


ADAPTER = "default"
"""The trained adapter."""
FIRST = "first"
"""A frozen copy of the adapter that training continues: the reference has it in place of the trained one."""
SUBTRACTED = "subtracted"
"""A frozen copy of PiSSA's first adapter with the opposite sign, which keeps the frozen weights what they were."""


def add_adapters(
    model: Any, lora: Lora, compute_dtype: torch.dtype = torch.float32, folder: str | Path | None = None
) -> Any:
    """Add adapters to a model, in place, freeze everything else, and return the adapters' peft config.

    Args:
        model: the model.
        lora: the adapters' options.
        compute_dtype: compute type of 4-bit layers.
        folder: with `adapter: continue`, the folder of the adapter. Its weights are left out of a model on the meta
            device.

    Raises:
        UserError: no layer has one of the names, the adapter does not fit the model, or peft or bitsandbytes is needed
            but not installed.
    """
    require("peft", "model.lora")
    from peft import inject_adapter_in_model

    if folder is None:
        config = new_config(model, lora)
    else:
        config = saved_config(folder, lora)
    bare = nn.Module()  # the same modules without a config, for which peft gives an MLP's adapters to experts
    bare._modules = model._modules
    empty = next(model.parameters()).is_meta
    if lora.quantize == "nf4" and not empty:
        quantize_layers(model, language_layers(model), compute_dtype)
    try:
        with torch.random.fork_rng(devices=[]), float32_stand_ins(model):
            torch.manual_seed(derive_seed("adapters", run_seed()))
            inject_adapter_in_model(config, bare, adapter_name=ADAPTER)
    except (TypeError, ValueError) as error:
        raise UserError(f"model: the adapter in {folder} does not fit {_name(model)}: {first_line(error)}") from error
    if folder is not None:
        load_adapter(model, folder, empty)
    for name, layer in adapted_modules(model).items():
        if folder is not None:
            _copy_adapter(layer, FIRST)
        elif lora.init == "pissa":
            _start_pissa(name, layer, empty)
        # Autocast casts both factors; peft would cast inputs to float32 before. DoRA computes its norms in their type.
        layer.cast_input_dtype_enabled = lora.quantize != "none" or any(layer.use_dora.values())
    model.eval()  # without dropout, as it was
    return config


@contextmanager
def float32_stand_ins(model: nn.Module) -> Iterator[None]:
    """Replace the weights in 16 bits, within this context, by float32 ones of their shapes that take no memory.

    peft gives the adapters of a layer the type of its weight, and they are trained in float32.
    """
    halves = {}
    for p in model.parameters():
        if p.dtype in (torch.bfloat16, torch.float16) and not p.is_meta:
            halves[p] = p.data
    for parameter, data in halves.items():
        parameter.data = torch.zeros((), device=data.device).expand(data.shape)
    try:
        yield
    finally:
        for parameter, data in halves.items():
            parameter.data = data


def new_config(model: Any, lora: Lora) -> Any:
    """Return the peft config of new adapters.

    Raises:
        UserError: no layer has one of the names, or the model has no vision tower or no experts.
    """
    from peft import LoraConfig

    chosen = adapted_layers(model, lora)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=[n for n, weight in chosen.items() if weight.ndim == 2],
        target_parameters=[n for n, weight in chosen.items() if weight.ndim == 3] or None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        lora_dropout=lora.dropout,
        init_lora_weights=INITS[lora.init],
        bias="none",
    )


INITS: dict[str, Any] = {"kaiming": True, "gaussian": "gaussian", "pissa": True}
"""Option `init` -> peft's `init_lora_weights`. PiSSA's start follows in `_start_pissa`."""


def saved_config(folder: str | Path, lora: Lora) -> Any:
    """Return the peft config of an adapter that training continues, with the run's dropout.

    Raises:
        UserError: it cannot be read, or is not LoRA on unchanged frozen weights.
    """
    from peft import PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"model: the settings of the adapter in {folder} cannot be read: {first_line(error)}"
        ) from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA" or config.init_lora_weights not in (True, False, "gaussian", "eva", "orthogonal"):
        if kind == "LORA":
            kind = f"LoRA with init_lora_weights {config.init_lora_weights}"
        raise UserError(f"model: the adapter in {folder} is {kind}, which cannot be continued; {MERGE}")
    config.inference_mode = False
    config.init_lora_weights = True
    config.lora_dropout = lora.dropout
    return config


MERGE = "merge it: model.lora: {adapter: merge}"
MISFIT = "set base_model_name_or_path in its adapter_config.json to the model that it was trained on"


def load_adapter(model: Any, folder: str | Path, empty: bool = False) -> None:
    """Load the matrices of an adapter of peft into a model that has such adapters, in place.

    Raises:
        UserError: they are not those of this model.
    """
    from peft.utils.save_and_load import load_peft_weights

    layers = []
    for layer in adapted_modules(model).values():
        if hasattr(layer, "lora_variant"):
            layers.append(layer)
    extra = [n for n, p in model.named_parameters() if p.requires_grad and not is_matrix(n)]
    kinds = {type(kind).__name__ for layer in layers for kind in layer.lora_variant.values()}
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"model: the adapter in {folder} cannot be read: {first_line(error)}") from error
    extra += [name for name in weights if ".lora_" not in name]  # embeddings, with tokens that were added
    if extra or not kinds <= {"DoraLinearVariant"}:
        raise UserError(
            f"model: the adapter in {folder} trains {(extra or sorted(kinds))[0]}, and only matrices A and B and "
            f"DoRA's magnitudes can be continued; {MERGE}"
            + (", if its layers have biases of their own; else train one without" if "lora_B" in str(extra) else "")
        )
    # peft leaves `.weight` out of the names of magnitudes, and transformers needs it; each reads them with it.
    saved = {name if name.endswith(".weight") else f"{name}.weight": weight for name, weight in weights.items()}
    matrices = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": parameter
        for name, parameter in model.named_parameters()
        if is_matrix(name)
    }
    mismatches = mismatched_weights(saved, matrices)
    if mismatches:
        if mismatches[1:]:
            more = f" and {len(mismatches) - 1} more do not fit"
        else:
            more = " does not fit"
        raise UserError(f"model: the adapter in {folder} is not one of {_name(model)}: {mismatches[0]}{more}; {MISFIT}")
    for name, weight in saved.items() if not empty else ():
        matrices[name].data.copy_(weight)


def mismatched_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names that only one of two sets of weights has, or whose shapes differ."""
    shapes = set()
    for name, tensor in weights.items():
        shapes.add((name, tensor.shape))
    expected_shapes = set()
    for name, tensor in expected.items():
        expected_shapes.add((name, tensor.shape))
    return sorted({name for name, _ in shapes ^ expected_shapes}, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def is_matrix(name: str) -> bool:
    """Return whether a parameter is a matrix A or B, or DoRA's magnitudes, of the trained adapter."""
    return name.endswith(tuple(f".lora_{part}.{ADAPTER}.weight" for part in ("A", "B", "magnitude_vector")))


def _copy_adapter(layer: Any, name: str) -> None:
    """Keep a frozen copy of a layer's adapter."""
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names, "lora_variant"):
        adapters = getattr(layer, attribute)
        if ADAPTER in adapters:
            adapters[name] = deepcopy(adapters[ADAPTER])
            if isinstance(adapters[name], nn.Module):
                adapters[name].requires_grad_(False)


class PissaVariant:
    """PiSSA for peft's layers: one product adds the trained adapter and subtracts the first one.

    They cancel in it, also in 16 bits; two sums would each round the output.
    """

    @staticmethod
    def forward(layer: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        first = torch.cat([layer.lora_A[name].weight for name in (ADAPTER, SUBTRACTED)])  # (2 r, in)
        second = torch.cat([layer.lora_B[ADAPTER].weight, -layer.lora_B[SUBTRACTED].weight], 1)  # (out, 2 r)
        return result + nn.functional.linear(nn.functional.linear(x, first), second) * layer.scaling[ADAPTER]


def _start_pissa(name: str, layer: Any, empty: bool) -> None:
    """Start an adapter with the largest singular values and vectors of the weight, and subtract what it adds then."""
    base = layer.base_layer
    max_rank = min(base.weight.shape)
    if layer.r[ADAPTER] > max_rank:
        raise UserError(
            f"model.lora.rank: {name} has {max_rank} singular values, and `init: pissa` takes {layer.r[ADAPTER]}; use "
            "a smaller rank, or name the layers without it (model.lora.layers)"
        )
    if not empty:
        weight = base.weight.data
        layer.pissa_init(ADAPTER, "pissa")
        base.weight.data = weight
    _copy_adapter(layer, SUBTRACTED)
    layer.scaling[SUBTRACTED] = -layer.scaling[ADAPTER]
    layer.lora_variant[ADAPTER] = PissaVariant


def _name(model: Any) -> str:
    return str(model.config.name_or_path or model.config.model_type)


def round_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights that hold the same numbers in `dtype` in that type, in place.

    With the type of matrix products, these are all weights of a model that was published in it: half the memory, and no
    copy for each product.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32 and ".lora_" not in name:
            rounded = parameter.data.to(dtype)
            if torch.equal(rounded.float(), parameter.data):
                parameter.data = rounded


def adapted_layers(model: Any, lora: Lora) -> dict[str, Tensor]:
    """Return what gets a new adapter: the names of linear layers and of experts' parameters, each with its weight.

    Raises:
        UserError: no linear layer has one of the names, or the model has no vision tower or no experts.
    """
    linear = language_layers(model)
    experts: dict[str, Tensor] = {}
    if lora.vision_tower:
        seen = set()
        for part in vision_modules(model):
            for module in part.modules():
                seen.add(id(module))
        tower = []
        for n, module in model.named_modules():
            if id(module) in seen and isinstance(module, nn.Linear):
                tower.append(n)
        linear += _found(tower, "vision_tower", model)
    if lora.experts:
        for name, weight in model.named_parameters():
            if ".experts." in name and weight.ndim == 3:
                experts[name] = weight
        _found([*experts], "experts", model)
    chosen = []
    for name in linear:
        if lora.layers is None or name.rpartition(".")[2] in lora.layers:
            chosen.append(name)
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = []
    for name in lora.layers or ():
        if name not in known:
            unknown.append(name)
    if unknown or not chosen:
        raise UserError(f"model.lora.layers: {unknown} names no layer of the language model; it has {', '.join(known)}")
    return {name: model.get_submodule(name).weight for name in chosen} | experts


def _found(names: list[str], option: str, model: Any) -> list[str]:
    """Return the names; refuse an option for parts that a model does not have."""
    if not names:
        raise UserError(f"model.lora.{option}: {type(model).__name__} has none; leave the option out")
    return names


def language_layers(model: Any) -> list[str]:
    """Return the names of the language model's linear layers, except the output embedding."""
    head = model.get_output_embeddings()
    names = []
    for name, module in language_modules(model):
        if isinstance(module, nn.Linear) and module is not head:
            names.append(name)
    return names


def is_saved(name: str) -> bool:
    """Return whether a checkpoint of a model with adapters holds a parameter."""
    return is_matrix(name) or f".{SUBTRACTED}." in name


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers around others, by the names of the weights in the plain model that they adapt."""
    layers_by_name = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "base_layer"):
            layers_by_name[f"{_plain_name(name)}.{getattr(layer, 'parameter_name', 'weight')}"] = layer
    return layers_by_name


def used_adapters(layer: Any, view: str | None) -> list[str]:
    """Return the names of the adapters that a layer adds.

    Args:
        layer: a layer with adapters.
        view: `ADAPTER` = those that are trained; `FIRST` = those that training started with; None = none.
    """
    adapters = []
    for name in layer.r:
        if name == view or (view == ADAPTER and name == SUBTRACTED):
            adapters.append(name)
    return adapters


def merged_parameters(
    model: nn.Module, view: str | None = ADAPTER, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Return a model's parameters by the names that they have without adapters, each with its adapter merged in.

    Args:
        model: the model.
        view: see `used_adapters`.
        dtype: what the caller rounds them to. For bfloat16, the weights under adapters are dithered first: else an
            adapter that adds less than half a digit to a weight would not change it, and the engine would sample from
            older weights.
    """
    layers = adapted_modules(model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        plain = _plain_name(name)
        weight = dense(parameter)
        layer: Any = layers.get(plain)
        adapters = [] if layer is None else used_adapters(layer, view)
        if adapters and dtype == torch.bfloat16:
            weight = weight.detach().to(torch.float32, copy=True)
            dither(plain, own_shard(weight))
        for adapter in adapters:
            weight = weight.detach() + layer.get_delta_weight(adapter).detach()
            if adapter in layer.lora_magnitude_vector:
                lengths = layer.lora_magnitude_vector[adapter].weight.detach() / torch.linalg.norm(weight, dim=1)
                weight = lengths[:, None] * weight
        yield plain, weight


def adapter_config(model: Any, view: str | None = ADAPTER) -> dict[str, Any] | None:
    """Return the settings of a model's adapters as peft saves them.

    Args:
        model: the model.
        view: see `used_adapters`.

    Returns:
        None without adapters, and for those that have to be merged because engines cannot add them to their layers:
        they must be matrices A and B of the language model's linear layers, all of one rank and scale, and nothing else
        may be trained.
    """
    layers = adapted_modules(model)
    kinds = set()
    language = set()
    for _, layer in language_modules(model):
        language.add(id(layer))
    for layer in layers.values():
        if hasattr(layer, "r") and id(layer) in language:
            names = used_adapters(layer, view)
        else:
            names = []
        if names:
            kinds.add((sum(layer.r[name] for name in names), layer.scaling[names[0]]))
        elif view is not None:
            return None
    plain = tuple(f".lora_{matrix}.{name}.weight" for matrix in "AB" for name in (ADAPTER, FIRST, SUBTRACTED))
    others = []
    for n, p in model.named_parameters():
        if (p.requires_grad or ".lora_" in n) and not n.endswith(plain):
            others.append(n)
    if len(kinds) != 1 or others or any(not name.endswith(".weight") for name in layers):
        return None
    ((rank, scale),) = kinds
    names = sorted({name.split(".")[-2] for name in layers})
    return {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "target_modules": names, "bias": "none"}


def adapter_weights(
    model: nn.Module, view: str | None = ADAPTER, full_tensor: Callable[[Tensor], Tensor] = Tensor.detach
) -> Iterator[tuple[str, Tensor]]:
    """Return the matrices of a model's adapters by names under which peft and transformers read them.

    Args:
        model: the model.
        view: see `used_adapters`.
        full_tensor: returns all of a weight, which may be sharded.
    """
    layers: Any = []
    for name, layer in model.named_modules():
        if hasattr(layer, "base_layer"):
            layers.append((name, layer))
    for path, layer in layers:
        names = used_adapters(layer, view)
        if names:
            saved = f"base_model.model.{path}.lora_"
            scale = layer.scaling[names[0]]
            yield f"{saved}A.weight", torch.cat([full_tensor(layer.lora_A[n].weight) for n in names])
            scaled = []
            for n in names:
                scaled.append(full_tensor(layer.lora_B[n].weight) * (layer.scaling[n] / scale))
            yield f"{saved}B.weight", torch.cat(scaled, dim=1)
            for name in {*names} & {*layer.lora_magnitude_vector}:
                yield f"{saved}magnitude_vector.weight", full_tensor(layer.lora_magnitude_vector[name].weight)


def save_adapter(model: nn.Module, config: Any, base: str, folder: Path) -> None:
    """Write a model's adapters as peft does.

    Args:
        model: the model.
        config: what `add_adapters` returned.
        base: the folder or hub id of the model without them.
        folder: where to write.
    """
    layer = next(iter(adapted_modules(model).values()))
    names = used_adapters(layer, ADAPTER)
    if len(names) > 1:  # PiSSA's first adapter is subtracted
        rank = sum(layer.r[name] for name in names)
        config.use_rslora = False
        config.r = rank
        config.lora_alpha = layer.scaling[ADAPTER] * rank
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(folder)
    weights = {}
    for name, weight in adapter_weights(model):
        weights[name] = weight.contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def untrained_matrices(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the matrices B of the trained adapter, each with the values with which it changes nothing."""
    matrices = []
    for layer in adapted_modules(model).values():
        trained = layer.lora_B[ADAPTER].weight
        if SUBTRACTED in layer.lora_B:
            matrices.append((trained, layer.lora_B[SUBTRACTED].weight.data))
        else:
            matrices.append((trained, torch.zeros_like(trained.data)))
    return matrices


@contextmanager
def adapter_dropout(model: nn.Module, seed: int) -> Iterator[None]:
    """Enable the adapters' dropout within this context, if they have any, with random numbers from a seed."""
    layers = []
    for layer in adapted_modules(model).values():
        if isinstance(layer.lora_dropout[ADAPTER], nn.Dropout):
            layers.append(layer)
    if not layers:
        yield
        return
    device = device_of(model)
    if device.type == "cpu":
        devices = []
    else:
        devices = [device]  # by default those of the other ranks, too
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.manual_seed(seed)
        try:
            for layer in layers:  # its own flag too, which peft asks for DoRA
                layer.training = layer.lora_dropout[ADAPTER].training = True
            yield
        finally:
            for layer in layers:
                layer.training = layer.lora_dropout[ADAPTER].training = False


def changing_weights(model: Any) -> frozenset[str] | None:
    """Return the names, without adapters, of the weights that an engine needs again after training; None = all.

    Besides those that training changes, these are the ones in layers next to a trained layer, such as k of q, k and v:
    engines fuse them and load them only together.
    """
    parameters = dict(model.named_parameters())
    within = set()
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            within.add(_layer(name).rpartition(".")[0])
    plain = [name for name in parameters if ".lora_" not in name]
    names = set()
    for name in plain:
        if _layer(name).rpartition(".")[0] in within:
            names.add(_plain_name(name))
    if len(names) == len(plain):
        return None
    tied = model.get_output_embeddings().weight.requires_grad
    return frozenset(names | {"lm_head.weight"} if tied else names)


def _layer(name: str) -> str:
    """Return the layer of a parameter or of its adapter."""
    return _plain_name(name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0])


def _plain_name(name: str) -> str:
    """Return the name of a parameter or layer in a model without adapters."""
    return name.replace(".base_layer", "")


def merge_adapters(model: nn.Module) -> None:
    """Merge a model's adapters into plain layers, in place; the outputs stay the same."""
    merged = dict(merged_parameters(model))
    for name, module in [*model.named_modules()]:
        if name.endswith(".base_layer") or not (hasattr(module, "base_layer") or is_quantized(module)):
            continue
        if hasattr(module, "base_layer"):
            base: Any = module.get_base_layer()
        else:
            base = module
        plain = base
        if isinstance(base, nn.Linear):
            plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
        for part, _ in base.named_parameters(recurse=False):
            setattr(plain, part, nn.Parameter(merged[f"{name}.{part}"]))
        model.set_submodule(name, plain)


@contextmanager
def using_adapters(model: nn.Module, view: str | None) -> Iterator[None]:
    """Use other adapters of a model within this context.

    peft's `set_adapter` and `enable_adapters` would also change which parameters are trained.

    Args:
        model: the model.
        view: see `used_adapters`.
    """
    layers = []
    for layer in adapted_modules(model).values():
        layers.append((layer, layer.active_adapters))
    for layer, trained in layers:
        names = used_adapters(layer, view)
        layer._disable_adapters = not names
        layer._active_adapter = names or trained
    try:
        yield
    finally:
        for layer, trained in layers:
            layer._disable_adapters = False
            layer._active_adapter = trained
