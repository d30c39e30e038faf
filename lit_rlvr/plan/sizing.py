"""The sizing table of the documentation.

`python -m lit_rlvr.plan.sizing > docs/sizing.md`
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2Config

from lit_rlvr.lora import Lora
from lit_rlvr.plan.shape import shape_of
from lit_rlvr.plan.ways import FREE, GIB, GPUs, Job

LARGE: dict[str, Any] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "vocab_size": 152064}
CONFIGS: dict[str, Any] = {
    "Qwen2.5-1.5B": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "Qwen2.5-VL-3B": Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
        tie_word_embeddings=True,
    ),
    "Qwen2.5-7B": Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        **LARGE,
    ),
    "Qwen2.5-32B": Qwen2Config(
        hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8,
        **LARGE,
    ),
}  # fmt: skip
"""Models by their published configs."""

PROMPT, COMPLETION, BUDGET, GROUP, PROMPTS = 1024, 3072, 16384, 8, 128
MACHINES = ("1x80GB", "2x80GB", "4x80GB", "8x80GB", "16x80GB", "32x80GB")

TEXT = """\
# How many GPUs

Made by `python -m lit_rlvr.plan.sizing > docs/sizing.md`; a test compares the two. For a config of your own:
`lit-rlvr plan --config ... --gpus 8x80GB`, which loads no weights.

Prompts of up to {prompt} and completions of up to {completion} tokens, micro-batches of {budget} tokens, G = {group},
{prompts} prompts a step, bf16-mixed, AdamW, no KL term, vision tower trained. Numbers are GiB on each GPU; {free} of it
are left free for its context, communication and fragments. They come from a formula (`lit_rlvr/plan/memory.py`) that
counts the tensors a step holds; how far it is from measured runs on a CPU stands in `benchmarks/README.md`
(`memory.py`). Nothing here was measured on a GPU.

## What training takes, the engine being elsewhere

Bold = it fits.

{needs}

## What to take

vLLM on the same GPUs (`VLLMEngine`, which takes 40 % of each, or as much as it needs to start, and sleeps during
training):

{beside}

vLLM on other machines (`VLLMServerEngine`):

{elsewhere}
"""


@cache
def job(model: str, share: float = 0.4) -> Job:
    """Training as in the papers' recipes, under bf16-mixed."""
    if share != 0.4:
        return replace(job(model), share=share)
    whole, adapted = shape_of(CONFIGS[model]), shape_of(CONFIGS[model], lora=Lora())
    return Job(whole, adapted, BUDGET, PROMPT, COMPLETION, GROUP, PROMPTS)


def needs() -> str:
    """Model and way down, machines across: GiB on each GPU, in bold where it fits."""
    lines = [f"| model | way | {' | '.join(MACHINES)} |", "|---|---|" + "---|" * len(MACHINES)]
    for model in CONFIGS:
        asked = job(model, share=0.0)
        found: dict[str, dict[str, str]] = {}
        for machine in MACHINES:
            for plan in asked.plans(GPUs.parse(machine)):
                amount = f"{plan.needs / GIB:.0f}"
                row = found.setdefault(plan.name.replace("alone", "DDP"), {})
                row[machine] = f"**{amount}**" if plan.fits else amount
        for way, row in found.items():
            lines.append(f"| {model} | {way} | {' | '.join(row.get(machine, '') for machine in MACHINES)} |")
    return "\n".join(lines)


def proposals(share: float) -> str:
    """Model down, machines across: what `lit-rlvr plan` proposes.

    Args:
        share: of each GPU's memory for vLLM.
    """
    lines = [f"| model | {' | '.join(MACHINES)} |", "|---|" + "---|" * len(MACHINES)]
    for model in CONFIGS:
        asked = job(model, share=share)
        cells = []
        for machine in MACHINES:
            found = asked.proposal(GPUs.parse(machine))
            budget = f", micro-batches of {found.budget}" if found and found.budget != BUDGET else ""
            cells.append(f"{found.name}{budget}: {found.needs / GIB:.0f}" if found else "nothing fits")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sizing() -> str:
    """The whole page."""
    return TEXT.format(
        needs=needs(), beside=proposals(0.4), elsewhere=proposals(0.0), free=f"{FREE:.0%}", prompt=PROMPT,
        completion=COMPLETION, budget=BUDGET, group=GROUP, prompts=PROMPTS,
    )  # fmt: skip


if __name__ == "__main__":
    print(sizing(), end="")
