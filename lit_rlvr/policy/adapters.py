"""LoRA with peft: low-rank adapters in place, over frozen weights that may have 4 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_rlvr.common.packages import require
from lit_rlvr.errors import UserError, check_within, checks_arguments
from lit_rlvr.policy.families import language_modules


def quantize_layers(model: nn.Module, names: Sequence[str], compute_dtype: torch.dtype) -> None:
    """Replace linear layers with 4-bit ones, in place.

    Args:
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
        made: Any = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        made.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        made.bias = linear.bias
        made.support_avx512bf16_for_cpu = False  # it would change the weights' layout when no gradient is needed
        model.set_submodule(name, made.to(device))  # moving it quantises it


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


@checks_arguments("lora")
@dataclass(frozen=True)
class Lora:
    """Options of LoRA: adapters of rank r are trained instead of the weights: W + (alpha / r) B A, B starting at 0.

    Args:
        rank: r.
        alpha: the adapters' scale before it is divided by r.
        layers: names of the linear layers that get an adapter, such as [q_proj, v_proj]; None = all of the language
            model except the output embedding. The vision tower never gets one.
        quantize: `nf4` stores the language model's linear layers in 4 bits (QLoRA), a seventh of their memory. Engines,
            exports and the reference use the dequantised values, as the trainer does.
    """

    rank: int = 16
    alpha: int = 32
    layers: list[str] | None = None
    quantize: Literal["none", "nf4"] = "none"

    def __post_init__(self) -> None:
        check_within("[1, inf)", "model.lora", rank=self.rank, alpha=self.alpha)


def add_adapters(model: Any, lora: Lora, compute_dtype: torch.dtype = torch.float32) -> None:
    """Add adapters to a model, in place, and freeze everything else.

    Args:
        compute_dtype: compute type of 4-bit layers.

    Raises:
        UserError: no linear layer has one of the names, or peft or bitsandbytes is needed but not installed.
    """
    require("peft", "model.lora")
    from peft import LoraConfig, inject_adapter_in_model

    chosen = adapted_layers(model, lora)
    if lora.quantize == "nf4":
        quantize_layers(model, language_layers(model), compute_dtype)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=chosen, bias="none")
    # Within another module, whose lack of a config keeps peft from giving the adapters of an MLP to a layer's experts.
    inject_adapter_in_model(config, nn.Sequential(model), adapter_name=ADAPTER)


def round_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights that hold the same numbers in `dtype` in that type, in place.

    With the type of matrix products, these are all weights of a model that was published in it: half the memory, and no
    copy for each product.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            rounded = parameter.data.to(dtype)
            if torch.equal(rounded.float(), parameter.data):
                parameter.data = rounded


def adapted_layers(model: Any, lora: Lora) -> list[str]:
    """Return the names of the layers that get an adapter.

    Raises:
        UserError: no linear layer has one of the names.
    """
    linear = language_layers(model)
    chosen = [name for name in linear if lora.layers is None or name.rpartition(".")[2] in lora.layers]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise UserError(f"model.lora.layers: {lora.layers} names no layer of the language model; it has {known}")
    return chosen


def language_layers(model: Any) -> list[str]:
    """Return the names of the language model's linear layers, except the output embedding."""
    head = model.get_output_embeddings()
    return [name for name, module in language_modules(model) if isinstance(module, nn.Linear) and module is not head]


def merged_parameters(model: nn.Module, adapters: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Return a model's parameters by the names that they have without adapters, each with its adapter merged in.

    Args:
        adapters: False = leave the adapters out.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        weight = dense(parameter)
        if name.endswith(".base_layer.weight") and adapters:
            weight = weight.detach() + modules[_layer(name)].get_delta_weight(ADAPTER).detach()
        yield _plain_name(name), weight


def adapter_config(model: nn.Module) -> dict[str, Any] | None:
    """Return the settings of a model's adapters as peft saves them.

    Returns:
        None without adapters, and for those that have to be merged because engines cannot add them to their layers:
        they must be matrices A and B of linear layers, all of one rank and scale, and nothing else may be trained.
    """
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    kinds = {(layer.r.get(ADAPTER), layer.scaling.get(ADAPTER)) for layer in layers.values() if hasattr(layer, "r")}
    plain = tuple(f".lora_{matrix}.{ADAPTER}.weight" for matrix in "AB")
    others = [n for n, p in model.named_parameters() if (p.requires_grad or ".lora_" in n) and not n.endswith(plain)]
    if len(kinds) != 1 or others:
        return None
    ((rank, scale),) = kinds
    names = sorted({name.rpartition(".")[2] for name in layers})
    return {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "target_modules": names, "bias": "none"}


def adapter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return the matrices of a model's adapters by the names under which peft saves them."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}", parameter


def matrices_b(model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices B of the model's adapters, which are 0 before training."""
    return [parameter for name, parameter in model.named_parameters() if ".lora_B." in name]


def changing_weights(model: Any) -> frozenset[str] | None:
    """Return the names, without adapters, of the weights that an engine needs again after training; None = all.

    Besides those that training changes, these are the ones in layers next to a trained layer, such as k of q, k and v:
    engines fuse them and load them only together.
    """
    parameters = dict(model.named_parameters())
    within = {_layer(name).rpartition(".")[0] for name, parameter in parameters.items() if parameter.requires_grad}
    plain = [name for name in parameters if ".lora_" not in name]
    names = {_plain_name(name) for name in plain if _layer(name).rpartition(".")[0] in within}
    if len(names) == len(plain):
        return None
    tied = model.get_output_embeddings().weight.requires_grad
    return frozenset(names | {"lm_head.weight"} if tied else names)


def _layer(name: str) -> str:
    """Return the layer of a parameter or of its adapter."""
    return name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0].removesuffix(".base_layer")


def _plain_name(name: str) -> str:
    """Return a parameter's name in a model without adapters."""
    return f"{_layer(name)}.{name.rpartition('.')[2]}".removeprefix(".")


def merge_adapters(model: nn.Module) -> None:
    """Merge a model's adapters into plain linear layers, in place; the outputs stay the same."""
    merged = dict(merged_parameters(model))
    for name, module in [*model.named_modules()]:
        if name.endswith(".base_layer") or not (hasattr(module, "base_layer") or is_quantized(module)):
            continue
        weight, bias = merged[f"{name}.weight"], merged.get(f"{name}.bias")
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        plain.weight = nn.Parameter(weight)
        if bias is not None:
            plain.bias = nn.Parameter(bias)
        model.set_submodule(name, plain)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Disable the model's adapters within this context.

    peft's `enable_adapters` would also change which parameters are trained.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "base_layer")]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
