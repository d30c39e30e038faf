"""Estimates the memory of a training step on one GPU, term by term, from the model's sizes.

The terms are the tensors that `policy/policy.py`, `policy/attention.py` and `policy/logprobs.py` keep for the backward
pass; master weights, gradients and AdamW's two moments are in float32. `benchmarks/peak_memory.py` compares the
estimate with the step itself on tensors without memory, and `docs/sizing.md` shows the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import adapted_layers, add_adapters, language_layers
from lit_rlvr.policy.architecture import (
    CHOSEN,
    EXPERTS,
    cached_widths,
    first_of,
    head_sizes,
    key_width,
    layer_configs,
    mlp_width,
)
from lit_rlvr.policy.families import family_of, freeze_vision_tower, vision_modules
from lit_rlvr.policy.families.base import Layers
from lit_rlvr.policy.loading import outline
from lit_rlvr.policy.logprobs import CHUNK_LOGITS, GPU_ROWS, KEPT_BYTES

FLOAT = 4
NF4 = 0.516  # bytes of a number in 4 bits, with its share of the quantised scales
GATHERED_LAYERS = 5  # the current layer and the next: gathered, in transfer, and their gradients
DIVERGENCE_TENSORS = 12  # of a block's logits, in float32
Terms = dict[str, float]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Args:
        parameters: number of all parameters, with tied ones counted once.
        trained: number of parameters in the optimizer.
        largest: parameters of the largest layer.
        outside: parameters outside layers, such as the embeddings.
        text, tower: the language model's layers, and the vision tower's if it is trained.
        patches: image patches per prompt token.
        vocabulary: V.
        quantized: number of parameters in 4 bits.
        cached: width of a token's keys in a cache, summed over the layers; 0 = of all layers.
        unused: number of parameters that a token does not use: experts that it is not sent to.
        published: bytes of a number in the model's files.
    """

    parameters: int
    trained: int
    largest: int
    outside: int
    text: Layers
    tower: Layers | None
    patches: int
    vocabulary: int
    quantized: int = 0
    cached: int = 0
    unused: int = 0
    published: int = FLOAT

    @property
    def active(self) -> int:
        """Number of parameters that a token uses."""
        return self.parameters - self.unused


def shape_of(config: Any, freeze_vision: bool = False, lora: Lora | None = None, adapter: Path | None = None) -> Shape:
    """Count a model by its config.

    Args:
        config: a transformers config.
        freeze_vision, lora: see the options of the same names.
        adapter: the folder of the adapter that `lora` continues.
    """
    text = config.get_text_config()
    model = outline(config, torch.float32)
    family = family_of(config)
    if family is not None:
        family.prepare(model)
    if freeze_vision:
        freeze_vision_tower(model)
    quantized = 0
    if lora is not None:
        if lora.quantize != "none":
            quantized = sum(model.get_submodule(name).weight.numel() for name in language_layers(model))
        if adapter is not None:
            add_adapters(model, lora, folder=adapter)
        else:
            _count_adapters(model.requires_grad_(False), lora)
    layers = []
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            layers.append(_size(module))
    seen = any(p.requires_grad for part in vision_modules(model) for p in part.parameters())
    return Shape(
        parameters=_size(model),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        largest=max(layers, default=0),
        outside=_size(model) - sum(layers),
        text=_text_layers(text),
        tower=family.tower_layers if family is not None and seen else None,
        patches=0 if family is None else family.patches_per_feature,
        vocabulary=text.vocab_size,
        quantized=quantized,
        cached=sum(cached_widths(config)),
        unused=_unused(model, text),
        published=2 if torch.bfloat16 in (config.dtype, text.dtype) else FLOAT,
    )


def _count_adapters(model: Any, lora: Lora) -> None:
    """Add the parameters of adapters to a model on the meta device as peft would, which need not be installed."""
    for name, weight in adapted_layers(model, lora).items():
        *experts, rows, columns = weight.shape
        matrices = lora.rank * math.prod(experts) * (rows + columns)
        trained = nn.Parameter(torch.empty(matrices + rows * lora.dora, device="meta"))
        layer = model.get_submodule(name.rpartition(".")[0] if experts else name)
        layer.register_parameter(f"lora_{name.rpartition('.')[2]}", trained)
        if lora.init == "pissa":
            layer.register_parameter("lora_start", nn.Parameter(torch.empty(matrices, device="meta"), False))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _unused(model: nn.Module, text: Any) -> int:
    """Return the number of experts' parameters that a token does not use, on average."""
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    if experts:
        return round(experts * (1 - first_of(text, CHOSEN) / first_of(text, EXPERTS)))
    return 0


def _text_layers(text: Any) -> Layers:
    """Return the language model's layers; those that differ count as the widest."""
    configs = layer_configs(text)
    heads = max(layer.num_attention_heads * head_sizes(layer)[0] for layer in configs)
    inner = max(map(mlp_width, configs))
    keys = max(map(key_width, configs))
    return Layers(text.num_hidden_layers, text.hidden_size, inner, heads, keys)


@dataclass(frozen=True)
class Microbatch:
    """The sizes of one micro-batch.

    Args:
        tokens: input tokens.
        keys: keys (and as many values) in attention; a shared prompt's keys are repeated for each of its completions.
        scores: attention scores of the completions in one head.
        scored: completion tokens, for which logits are computed.
        prompts: prompt tokens.
    """

    tokens: float
    keys: float
    scores: float
    scored: float
    prompts: float


@dataclass(frozen=True)
class Strategy:
    """A training strategy: where the weights lie, and which of them are trained.

    Args:
        sharded: FSDP2; otherwise every GPU holds the whole model.
        checkpointing: recompute layers in the backward pass.
        lora: train only adapters.
        offload: keep shards of weights, gradients and optimizer state on the CPU.
    """

    sharded: bool
    checkpointing: bool
    lora: bool = False
    offload: bool = False


def largest_microbatch(
    budget: int, prompt: int, completion: int, group: int, prompts: int, shared_prefix: bool = True
) -> Microbatch:
    """Return the largest micro-batch, with all prompts and completions at their maximum length.

    Args:
        budget: `tokens_per_microbatch`.
        prompt, completion: tokens of each.
        group: completions per prompt.
        prompts: prompts of a rollout on one process.
        shared_prefix: whether completions of a group share the tokens of their prompt.
    """
    inputs = completion - 1  # nothing is predicted from the last token
    # of one prompt
    if shared_prefix:
        together = max(1, min(group, (budget - prompt) // max(inputs, 1)))
    else:
        together = 1
    row = prompt + together * inputs
    if shared_prefix:
        keys = prompt + together * (prompt + inputs)
    else:
        keys = row
    if shared_prefix:
        scores = together * inputs * (prompt + inputs)
    else:
        scores = row * row
    rows = max(1.0, min(prompts * group / together, budget / row))
    return Microbatch(rows * row, rows * keys, rows * scores, rows * together * completion, rows * prompt)


def activations(layers: Layers, load: Microbatch, size: int, attention: int | None = None) -> float:
    """Return the bytes that one layer keeps for its backward pass.

    Args:
        layers: the sizes of the layers.
        load: the micro-batch.
        size: bytes of a number in matrix products and in the residual stream.
        attention: bytes of a number in padded attention (on a CPU); None = span attention (on a GPU).
    """
    norms = 2 * layers.width * (FLOAT + size)  # the inputs of both norms in float32, and normalised
    products = (2 * layers.width + 4 * layers.inner) * size
    if attention is None:  # queries, keys, values and the output
        return load.tokens * (norms + products + 2 * (layers.heads + layers.keys) * size)
    queries = 2 * layers.heads * attention + layers.heads * size  # and attention's output, also as a product's input
    return load.tokens * (norms + products + queries) + (2 * load.keys * layers.heads + load.scores) * attention


def frozen(shape: Shape, strategy: Strategy, size: int) -> int:
    """Return the bytes of a frozen number: those of a product if that changes no value."""
    if shape.published == size and not strategy.sharded:
        return size
    return FLOAT


def autocast_copy_bytes(shape: Shape, strategy: Strategy, size: int) -> int:
    """Return the bytes of the copy of a weight that autocast makes; 0 if it has the type of products already."""
    if size == (frozen(shape, strategy, size) if strategy.lora else FLOAT):
        return 0
    return size


def logit_bytes(shape: Shape, load: Microbatch, size: int, rows: int = GPU_ROWS) -> float:
    """Return the bytes of logits in their backward pass: those that are kept, and the current chunk.

    Args:
        shape: the sizes of the model.
        load: the micro-batch.
        size: bytes of a number in matrix products: 2 under bf16-mixed, 4 under 32-true.
        rows: the fewest positions in a chunk.
    """
    count = load.scored * shape.vocabulary
    chunk = min(count, max(CHUNK_LOGITS, rows * shape.vocabulary))
    if count * size <= KEPT_BYTES:
        kept = count * size
    else:
        kept = chunk * size
    bytes_per_logit = FLOAT if size == FLOAT else 2 * FLOAT + size  # tensors per logit of the current chunk
    return kept + chunk * bytes_per_logit


def teaching_memory(shape: Shape, load: Microbatch, strategy: Strategy, size: int) -> float:
    """Return the bytes that the divergence from a teacher over the vocabulary adds to a step.

    They are the inputs of the teacher's output layer, a copy of that layer if it is sharded or of another type, a chunk
    of its logits, and the numbers that autograd keeps of a block of both models' logits.

    Args:
        shape: the sizes of the teacher.
        load: the micro-batch.
        strategy: the training strategy.
        size: bytes of a number in matrix products: 2 under bf16-mixed, 4 under 32-true.
    """
    logits = min(load.scored * shape.vocabulary, max(CHUNK_LOGITS, GPU_ROWS * shape.vocabulary))
    block = min(load.scored * shape.vocabulary, CHUNK_LOGITS)
    copied = strategy.sharded or frozen(shape, strategy, size) != size
    head = shape.vocabulary * shape.text.width * size * copied
    return load.scored * shape.text.width * size + head + logits * size + DIVERGENCE_TENSORS * block * FLOAT


def training_memory(
    shape: Shape,
    load: Microbatch,
    strategy: Strategy,
    gpus: int,
    size: int,
    reference: bool = False,
    attention: int | None = None,
) -> Terms:
    """Return the bytes on one GPU at the peak of a training step, by term.

    Args:
        shape: the sizes of the model.
        load: the micro-batch.
        strategy: the training strategy.
        gpus: the number of GPUs.
        size: bytes of a number in matrix products: 2 under bf16-mixed, 4 under 32-true.
        reference: whether there is a reference model.
        attention: as in `activations`.
    """
    share = gpus if strategy.sharded else 1
    pictures = Microbatch(load.prompts * shape.patches, load.prompts * shape.patches, 0, 0, 0)
    stacks = [(shape.text, load)]
    if shape.tower:
        stacks.append((shape.tower, pictures))
    per_layer = []
    for layers, part in stacks:
        per_layer.append(activations(layers, part, size, attention))
    if strategy.sharded:  # shards are gathered in the type of the products
        copied = 0.0
    else:
        copied = autocast_copy_bytes(shape, strategy, size)
    kept = load.tokens * shape.text.width * (FLOAT + size)  # the input of the last norm, and normalised
    if strategy.checkpointing:
        kept += sum(layers.count * part.tokens * layers.width * size for layers, part in stacks)
        recomputed = max(per_layer) + shape.largest * copied
    else:
        kept += sum(layers.count * layer_bytes for (layers, _), layer_bytes in zip(stacks, per_layer, strict=True))
        kept += (shape.parameters - shape.outside - shape.quantized) * copied
        recomputed = 0
    gradients = load.tokens * (4 * shape.text.inner * size + 2 * shape.text.width * size)  # within a layer
    embedding = shape.vocabulary * shape.text.width
    head = 0.0
    if not strategy.sharded:
        head = embedding * copied
        if not strategy.lora:
            head += embedding * FLOAT  # its gradient
    temporary = [logit_bytes(shape, load, size, GPU_ROWS if attention is None else 1) + head, gradients + recomputed]
    on_gpu = 0.0 if strategy.offload else 1 / share
    state = {}
    for name, value in state_memory(shape, strategy, size, reference).items():
        state[name] = value * on_gpu
    gathered = 0.0
    if strategy.sharded:
        gathered = (shape.outside + GATHERED_LAYERS * shape.largest) * size
        if not strategy.lora:  # the output embedding's gradient waits until the end, when little else is left
            gathered += embedding * size
            temporary.append(shape.outside * (size + FLOAT) - gathered - kept)
    if strategy.offload:  # shards on their way to the GPU, or gradients on their way back, of a layer and the next
        gathered += (shape.outside + 2 * shape.largest) * FLOAT / share
    return {**state, "gathered": gathered, "activations": kept, "temporary": max(temporary)}


def state_memory(shape: Shape, strategy: Strategy, size: int, reference: bool) -> Terms:
    """Return the bytes of the state between steps, summed over the GPUs that share it.

    `offload` keeps it on the CPU.

    Args:
        shape: the sizes of the model.
        strategy: the training strategy.
        size: bytes of a number in matrix products: 2 under bf16-mixed, 4 under 32-true.
        reference: whether there is a reference model.
    """
    plain = shape.parameters - shape.quantized
    fixed = plain - shape.trained if strategy.lora else 0
    return {
        "weights": (plain - fixed) * FLOAT + fixed * frozen(shape, strategy, size) + shape.quantized * NF4,
        "gradients": shape.trained * FLOAT,
        "AdamW": shape.trained * 2 * FLOAT,
        "reference": shape.parameters * frozen(shape, strategy, size) if reference and not strategy.lora else 0.0,
    }


def generation_memory(shape: Shape, strategy: Strategy, sequences: int, tokens: float, size: int) -> float:
    """Return the bytes that the Hugging Face engine needs for generation: keys and values, logits, gathered weights.

    Args:
        shape: the sizes of the model.
        strategy: the training strategy.
        sequences: sequences that the engine generates at once.
        tokens: number of tokens whose keys and values the engine holds at once.
        size: bytes of a number in matrix products: 2 under bf16-mixed, 4 under 32-true.
    """
    weights = shape.parameters * (size if strategy.sharded else autocast_copy_bytes(shape, strategy, size))
    return weights + tokens * kv_bytes_per_token(shape, size) + sequences * 3 * shape.vocabulary * FLOAT


def kv_bytes_per_token(shape: Shape, size: int) -> int:
    """Return the bytes of a token's keys and values in a cache."""
    return 2 * (shape.cached or shape.text.count * shape.text.keys) * size
