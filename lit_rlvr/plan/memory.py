"""Bytes of memory that a training step takes on one GPU, term by term.

The terms are what `policy.py`, `attention.py` and `scoring.py` keep for the backward pass, counted tensor by tensor;
master weights, gradients and AdamW's two moments are in float32. How far that is from what was measured stands in
`docs/sizing.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlvr.plan.shape import Layers, Shape
from lit_rlvr.scoring import CHUNK, KEPT_BYTES

FLOAT = 4
NF4 = 0.516  # bytes of a number in 4 bits, with its share of the quantised scales
GATHERED_LAYERS = 5  # the layer that runs and the next: gathered, on their way, and the gradients going back
Terms = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What one micro-batch holds.

    Args:
        tokens: input tokens.
        keys: keys (and as many values) that attention lays out: a shared prompt's again for each of its completions.
        scores: attention scores of the completions in one head.
        scored: completion tokens, whose logits are computed.
        prompts: tokens of prompts.
    """

    tokens: float
    keys: float
    scores: float
    scored: float
    prompts: float


@dataclass(frozen=True)
class Way:
    """A way to train.

    Args:
        sharded: by FSDP2; otherwise every GPU has the whole model.
        checkpointing: layers are recomputed in the backward pass.
        lora: adapters are trained.
    """

    sharded: bool
    checkpointing: bool
    lora: bool = False


def fullest(budget: int, prompt: int, completion: int, group: int, prompts: int, shared_prefix: bool = True) -> Load:
    """The largest micro-batch, where all prompts and completions have their greatest length.

    Args:
        budget: `tokens_per_microbatch`.
        prompt, completion: tokens of each.
        group: completions per prompt.
        prompts: prompts of a rollout in one process.
    """
    inputs = completion - 1  # nothing is predicted from the last token
    together = max(1, min(group, (budget - prompt) // max(inputs, 1))) if shared_prefix else 1  # of one prompt
    row = prompt + together * inputs
    keys = prompt + together * (prompt + inputs) if shared_prefix else row
    scores = together * inputs * (prompt + inputs) if shared_prefix else row * row
    rows = max(1.0, min(prompts * group / together, budget / row))
    return Load(rows * row, rows * keys, rows * scores, rows * together * completion, rows * prompt)


def activations(layers: Layers, load: Load, size: int, attention: int) -> float:
    """Bytes that one layer keeps for its backward pass.

    Args:
        size: bytes of a number in matrix products. attention: in attention.
    """
    norms = 4 * layers.width * FLOAT  # the inputs of both, as they are and normalised
    copies = 5 if size < FLOAT else 2  # of what goes into q, k, v, gate and up: autocast makes one for each
    products = (copies * layers.width + layers.heads + 4 * layers.inner) * size
    queries = 2 * layers.heads * attention  # and what attention gives
    return load.tokens * (norms + products + queries) + (2 * load.keys * layers.heads + load.scores) * attention


def copy(size: int) -> int:
    """Bytes of a weight's copy that autocast makes; none where products are in float32."""
    return size if size < FLOAT else 0


def logits(shape: Shape, load: Load, size: int) -> float:
    """Bytes around the output embedding: kept logits, the chunk in work, the weight's gradient and copy."""
    count = load.scored * shape.vocabulary
    kept = count * size if count * size <= KEPT_BYTES else min(count, CHUNK) * size
    wide = FLOAT if size == FLOAT else 2 * FLOAT + size  # of what is made of a logit in work
    return kept + min(count, CHUNK) * wide + shape.vocabulary * shape.text.width * (FLOAT + copy(size))


def training(
    shape: Shape, load: Load, way: Way, gpus: int, size: int, reference: bool = False, attention: int | None = None
) -> Terms:
    """Bytes on one GPU at the height of a training step.

    Args:
        size: bytes of a number in matrix products: 2 under bf16-mixed, 4 under 32-true.
        reference: a reference model is held too.
        attention: bytes of a number in attention, if not the same (a CPU's fused kernel runs in float32).
    """
    share = gpus if way.sharded else 1
    buckets = shape.trained * FLOAT if gpus > 1 and not way.sharded else 0  # of DDP
    pictures = Load(load.prompts * shape.patches, load.prompts * shape.patches, 0, 0, 0)
    stacks = [(shape.text, load), *([(shape.tower, pictures)] if shape.tower else [])]
    each = [activations(layers, held, size, attention or size) for layers, held in stacks]
    if way.checkpointing:
        kept = sum(layers.count * held.tokens * layers.width * FLOAT for layers, held in stacks)
        recomputed = max(each) + shape.largest * copy(size)
    else:
        kept = sum(layers.count * one for (layers, _), one in zip(stacks, each, strict=True))
        kept += (shape.parameters - shape.outside - shape.quantized) * copy(size)
        recomputed = 0
    inside = load.tokens * (4 * shape.text.inner * size + 2 * shape.text.width * FLOAT)  # gradients within a layer
    return {
        "weights": ((shape.parameters - shape.quantized) * FLOAT + shape.quantized * NF4) / share,
        "gradients": shape.trained * FLOAT / share + buckets,
        "AdamW": shape.trained * 2 * FLOAT / share,
        "reference": shape.parameters * FLOAT / share if reference and not way.lora else 0.0,
        "gathered": (2 * shape.outside + GATHERED_LAYERS * shape.largest) * FLOAT if way.sharded else 0.0,
        "activations": kept,
        "temporary": max(logits(shape, load, size), inside + recomputed),
    }


def decoding(shape: Shape, way: Way, sequences: int, length: int, size: int) -> float:
    """Bytes that the Hugging Face engine takes while it generates: keys and values, logits, gathered weights."""
    weights = shape.parameters * (FLOAT * way.sharded + copy(size))
    return weights + sequences * (length * key_bytes(shape, size) + 3 * shape.vocabulary * FLOAT)


def key_bytes(shape: Shape, size: int) -> int:
    """Bytes of a token's keys and values in a cache."""
    return 2 * shape.text.count * shape.text.keys * size
