"""The accuracy of `lit-rlvr plan`: compares the memory of real training steps with the formula.

Each row is a fresh run on a CPU: GRPO loads a model and takes two optimizer steps on a made-up rollout, in one process
or in two (DDP, FSDP2 over gloo), with and without gradient checkpointing and LoRA. Measured is the peak of resident
memory of the first process above that of the same run with tiny-llama, a third of a million weights: what is left is
the model's, not Python's or the threads'. The table also has the formula's difference.

`--vocabulary TOKENS` measures instead what a teacher adds: the output layers of student and teacher at Qwen2.5-0.5B's
sizes (V = 151,936, H = 896), forward and backward in fp32: with the sampled divergence, with those over the vocabulary,
and with one on whole logits. Measured is the peak above weights and hidden states, and the time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import passive  # noqa: F401
from common import PRECISIONS, make_parser, peak_memory_mb, print_result, print_table, run_isolated, say
from training import SMALL, build_policy, make_rollout, train

from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.options import Lora
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.policy.tiny import CHAT_TEMPLATE, LLM_SPECIALS, byte_tokenizer
from lit_rlvr.sizing.memory import Strategy, largest_microbatch, shape_of, training_memory

MIB = 2**20
SIZES = {"group_size": 8, "prompt_tokens": 128, "completion_tokens": 64}
BUDGET = 4096
STRATEGIES = {
    "one process": (1, Strategy(False, False)),
    "one process, checkpointing": (1, Strategy(False, True)),
    "one process, LoRA": (1, Strategy(False, False, lora=True)),
    "DDP": (2, Strategy(False, False)),
    "FSDP2": (2, Strategy(True, False)),
    "FSDP2, checkpointing": (2, Strategy(True, True)),
    "FSDP2, LoRA": (2, Strategy(True, False, lora=True)),
}
"""Name -> number of processes, and what the formula knows."""
VOCABULARY, HIDDEN = 151_936, 896
DIVERGENCES: dict[str, tuple[float | None, int | None]] = {
    "none": (None, None),
    "sampled": (None, None),
    "beta 0": (0.0, None),
    "beta 0.5": (0.5, None),
    "beta 1": (1.0, None),
    "beta 1, top_k 100": (1.0, 100),
    "whole logits, beta 0.5": (0.5, None),
}
"""Name -> beta and top_k."""
IN_BF16 = ("one process", "one process, checkpointing")


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["30M", "smollm2"], help="30M (a random Llama), or as in a config"
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        default=list(STRATEGIES),
        metavar="NAME",
        help=f"{'; '.join(STRATEGIES)}; bf16 is measured in one process only",
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--groups", type=int, default=4, help="prompts of a step")
    parser.add_argument("--vocabulary", type=int, nargs="+", metavar="TOKENS", help="measure divergences instead")
    return parser.parse_args()


def predicted(folder: str, groups: int, precision: str, processes: int, strategy: Strategy) -> float:
    """Return the MiB that the formula predicts."""
    from transformers import AutoConfig

    shape = shape_of(AutoConfig.from_pretrained(folder), lora=Lora() if strategy.lora else None)
    lengths = (SIZES["prompt_tokens"], SIZES["completion_tokens"])
    load = largest_microbatch(BUDGET, *lengths, SIZES["group_size"], groups)
    size = 4 if precision == "fp32" else 2
    return sum(training_memory(shape, load, strategy, processes, size, attention=4).values()) / MIB


def main() -> None:
    options, rows = parse(), []
    if options.vocabulary:
        for tokens, name in product(options.vocabulary, DIVERGENCES):
            found = run_isolated("memory.py", divergence=name, tokens=tokens)
            rows.append((tokens, name, found["mib"], found["seconds"]))
            say(f"{tokens} tokens, {name}: {found['mib']:.0f} MiB, {found['seconds']:.1f} s")
        print_table(("tokens", "divergence", "MiB", "seconds"), rows)
        print_result(vocabulary=VOCABULARY, hidden=HIDDEN, rows=rows)
        return
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "30M"
        build_small(small)
        tiny = resolve_model("tiny-llama")
        folders = {name: str(small) if name == "30M" else resolve_model(name) for name in options.models}
        for model, precision, name in product(options.models, options.precisions, options.strategies):
            if precision == "bf16" and name not in IN_BF16:
                continue
            processes, strategy = STRATEGIES[name]
            asked = {"groups": options.groups, "precision": precision, "processes": processes}
            measured, base = (
                run_isolated("memory.py", folder=f, **asked, **vars(strategy))["mib"] for f in (folders[model], tiny)
            )
            measured -= base
            formula, small_formula = (predicted(f, strategy=strategy, **asked) for f in (folders[model], tiny))
            formula -= small_formula
            rows.append((model, precision, name, measured, formula, formula / measured))
            say(f"{model} {precision} {name}: {measured:.0f} MiB, formula {formula:.0f}")
    print_table(("model", "precision", "strategy", "measured MiB", "formula MiB", "formula / measured"), rows)
    print_result(sizes=SIZES | {"groups": options.groups}, tokens_per_microbatch=BUDGET, rows=rows)


def build_small(folder: Path) -> None:
    """Build the random Llama as a model folder."""
    model: Any = build_policy(SMALL).model
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    byte_tokenizer(LLM_SPECIALS, CHAT_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)


def measure_divergence(name: str, tokens: int) -> None:
    """Print the memory and the time of one pass through the output layers."""
    import torch

    from lit_rlvr.objectives import vocabulary_divergence
    from lit_rlvr.policy.architecture import LogitTransform
    from lit_rlvr.policy.logprobs import TeacherHead, score_tokens
    from lit_rlvr.sampling import Sampling

    torch.manual_seed(0)
    (hidden, weight), (other, head) = (
        (torch.randn(tokens, HIDDEN), torch.randn(VOCABULARY, HIDDEN).mul_(0.1)) for _ in range(2)
    )
    hidden.requires_grad_(), weight.requires_grad_()
    target = torch.randint(VOCABULARY, (tokens,))
    before, began = peak_memory_mb(), time.perf_counter()
    if name == "whole logits, beta 0.5":
        theirs = other @ head.T
        vocabulary_divergence(hidden @ weight.T, theirs, 0.5).sum().backward()
    elif name == "sampled":
        with torch.no_grad():
            given = [score_tokens(h, w, None, target, Sampling()).logp for h, w in ((other, head), (hidden, weight))]
        logp = score_tokens(hidden, weight, None, target, Sampling(), True).logp
        ((given[1] - given[0]) * logp).sum().backward()
    else:
        beta, top_k = DIVERGENCES[name]
        teacher = None if beta is None else TeacherHead(other, head, None, LogitTransform(), beta, top_k)
        found = score_tokens(hidden, weight, None, target, Sampling(), True, teacher=teacher)
        (found.logp if found.divergence is None else found.logp + found.divergence).sum().backward()
    print(json.dumps({"mib": peak_memory_mb() - before, "seconds": time.perf_counter() - began}))


def measure(asked: dict[str, Any]) -> None:
    """Measure one run; its first process prints its memory."""
    from transformers import AutoConfig

    rollout = make_rollout(asked["groups"], **SIZES, vocabulary=AutoConfig.from_pretrained(asked["folder"]).vocab_size)
    processes = asked["processes"]
    trainer: dict[str, Any] = {"devices": processes, "use_distributed_sampler": False}
    if processes > 1:
        trainer["strategy"] = FSDP2() if asked["sharded"] else "ddp"
    lora = Lora() if asked["lora"] else None
    train(
        None,
        [rollout] * 2,
        asked["precision"],
        trainer_options=trainer,
        model=asked["folder"],
        compute={"gradient_checkpointing": asked["checkpointing"], "tokens_per_microbatch": BUDGET},
        lora=lora,
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(json.dumps({"mib": peak_memory_mb()}))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        asked = json.loads(sys.argv[1])
        measure_divergence(asked["divergence"], asked["tokens"]) if "divergence" in asked else measure(asked)
    else:
        main()
