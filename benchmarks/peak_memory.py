"""The peak memory of an optimizer step at the real shapes, next to what `lit-rlvr plan` says; needs no GPU or weights.

The step is the product's: its policy, micro-batches, shared prompts, logits in chunks, checkpointing, FSDP2, gradient
clipping and AdamW, under bf16-mixed. Its tensors are torch's fake ones, which have a shape and a type but no memory;
torch's MemTracker adds up what they would take on a GPU. The step is a later one: AdamW's moments exist, and so do the
gradients of earlier micro-batches. Sizes are those of the recipes, with all prompts and completions at their maximum.

What kernels allocate inside (flash attention's and cuBLAS's workspaces), fragmentation, the CUDA context, NCCL's
buffers and copies that overlap the computation are not tensors, so they are not counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import passive  # noqa: F401
import torch
import torch.distributed as dist
from common import make_parser, print_result, print_table, say
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from training import make_rollout, with_image

from lit_rlvr.distributed.collectives import average_gradients, world_size
from lit_rlvr.distributed.sharding import shard
from lit_rlvr.engines.process_group import VLLMProcessGroup
from lit_rlvr.options import Lora, Optim
from lit_rlvr.policy import attention
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import outline
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import training_autocast
from lit_rlvr.policy.speed import enable_checkpointing
from lit_rlvr.sizing.memory import Microbatch, Strategy, Terms, largest_microbatch, shape_of, training_memory
from lit_rlvr.sizing.published import PUBLISHED
from lit_rlvr.training.optimizer import build_optimizer
from lit_rlvr.training.step.microbatches import cut_rows
from lit_rlvr.types import Rollout

GIB = 2**30
KINDS = ("weights", "gradients", "AdamW", "kept", "temporary")
CPU, DTYPE = torch.device("cpu"), torch.bfloat16


@dataclass(frozen=True)
class Lengths:
    """The sizes of a step.

    Args:
        prompt, completion: tokens of each.
        group: completions per prompt.
        budget: `tokens_per_microbatch`.
        features: the prompt's tokens that stand for an image; a square number.
    """

    prompt: int
    completion: int
    group: int
    budget: int = 16384
    features: int = 0


MATH, MATH_7B, GEOMETRY = Lengths(1024, 1024, 8), Lengths(1024, 2048, 8), Lengths(2048, 2048, 5, features=1296)
CASES = [
    (model, lengths, Strategy(sharded, checkpointing, lora), gpus)
    for model, lengths in (
        ("Qwen/Qwen2.5-Math-1.5B-Instruct", MATH),
        ("Qwen/Qwen2.5-VL-3B-Instruct", GEOMETRY),
        ("Qwen/Qwen2.5-Math-7B", MATH_7B),
    )
    for sharded, gpus, lora in ((False, 1, False), (False, 8, False), (True, 8, False), (False, 1, True))
    for checkpointing in (False, True)
]
"""The recipes' models and sizes: APMPO's and A-GRAE's on MATH, both papers' on Geometry3K."""


class Tracker(MemTracker):
    """MemTracker without the peaks of single modules, which take most of its time, and with frozen weights."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        modules, self.memory_tracking = self.memory_tracking, {}
        super()._update_peak_stats(peak_state)
        self.memory_tracking = modules

    def _track_module_params_and_buffers(self, module: Any, install_grad_hooks: bool = True) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    def bytes(self, when: str = "current") -> dict[str, int]:
        """Return the bytes of each kind of tensor, now or at the peak."""
        return {getattr(kind, "value", kind): size for kind, size in self.get_tracker_snapshot(when)[CPU].items()}


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let fake tensors take the code paths of a GPU. They say that they are on a CPU, because a torch without CUDA has
    no backward pass for others."""
    with patch.object(FakeTensor, "is_cuda", True, create=True), patch.object(attention, "_WASTED", 0.0):
        yield


@contextmanager
def processes(count: int) -> Iterator[None]:
    """Pretend that this is the first of `count` processes. What they send each other goes nowhere. A default process
    group that exists already is kept."""
    world = VLLMProcessGroup(first=1 << 25)
    try:
        with world.inside():
            dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
            yield
    finally:
        with world.ending():
            pass


def fake_policy(config: Any, strategy: Strategy, mode: FakeTensorMode) -> Policy:
    """Build a policy without weights, sharded over the processes if the strategy shards."""
    model = outline(config, torch.float32)
    if strategy.lora:
        add_adapters(model, Lora(), DTYPE)
        if config.dtype == DTYPE and not strategy.sharded:  # as `round_frozen` would for weights of that type
            for parameter in model.parameters():
                parameter.data = parameter.data if parameter.requires_grad else parameter.data.to(DTYPE)
    with mode:
        model.to_empty(device=CPU).tie_weights()
    if strategy.checkpointing:
        enable_checkpointing(model)
    policy = Policy(model.eval(), (0,))
    if strategy.sharded:
        mesh = init_device_mesh(CPU.type, (world_size(),))
        with mode:
            shard(policy, mesh, ["plain_logits"], DTYPE)
    return policy


def longest_rollout(config: Any, lengths: Lengths) -> Rollout:
    """Build a group whose prompt and completions are as long as allowed."""
    image = lengths.features + 2 * bool(lengths.features)
    rollout = make_rollout(1, lengths.group, lengths.prompt - image, lengths.completion, 1000)
    return with_image(rollout, config, lengths.features) if image else rollout


def measured(config: Any, lengths: Lengths, strategy: Strategy, gpus: int) -> tuple[Terms, int]:
    """Return the bytes on one GPU at the peak of a step by kind, and the completions in its micro-batch.

    `kept` is what the forward pass leaves for the backward pass, gathered weights included; `temporary` is the rest.
    """
    with ExitStack() as stack:
        if gpus > 1 or strategy.sharded:
            stack.enter_context(processes(gpus))
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        policy, rollout = fake_policy(config, strategy, mode), longest_rollout(config, lengths)
        rollout = replace(rollout, sampling=rollout.sampling.with_banned(policy.placeholder_ids))
        rows = max(cut_rows(rollout, list(range(lengths.group)), lengths.budget, True), key=len)
        trained = [p for p in policy.parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, 1e-6, Optim())
        with mode:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        tracker = Tracker()
        tracker.track_external(policy, optimizer)
        with tracker, as_on_a_gpu(), training_autocast(CPU, DTYPE):
            before = tracker.bytes()
            logp, _ = policy.logprobs(rollout, rows, entropy=True)
            forward = tracker.bytes()["Total"]
            logp.sum().backward()
            if gpus > 1 and not strategy.sharded:
                average_gradients(trained)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            with mode:
                optimizer.step()
        peak = tracker.bytes("peak")["Total"]
    state = (before["Parameter"] + before["Buffer"], before["Gradient"], before["Optstate"])
    return dict(zip(KINDS, (*state, forward - before["Total"], peak - forward), strict=True)), len(rows)


def planned(config: Any, lengths: Lengths, strategy: Strategy, gpus: int, rows: int) -> Terms:
    """Return what the formula says of the same step, with its terms grouped as those of `measured`.

    Args:
        rows: completions in the micro-batch.
    """
    load: Microbatch = largest_microbatch(
        lengths.prompt + rows * (lengths.completion - 1), lengths.prompt, lengths.completion, lengths.group, 1
    )
    shape = shape_of(config, lora=Lora() if strategy.lora else None)
    terms = training_memory(shape, load, strategy, gpus, DTYPE.itemsize)
    return {name: terms[name] for name in KINDS if name in terms} | {
        "kept": terms["gathered"] + terms["activations"],
        "temporary": terms["temporary"],
    }


def name_of(strategy: Strategy, gpus: int) -> str:
    kind = f"FSDP2 on {gpus}" if strategy.sharded else f"DDP on {gpus}" if gpus > 1 else "alone"
    return kind + ", LoRA" * strategy.lora + ", checkpointing" * strategy.checkpointing


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=[""], help="parts of the names of the models to measure")
    parser.add_argument("--strategies", nargs="+", default=[""], help="parts of the names of the strategies")
    return parser.parse_args()


def main() -> None:
    options, rows = parse(), []
    for model, lengths, strategy, gpus in CASES:
        name, short = name_of(strategy, gpus), model.rpartition("/")[2]
        if not any(part in short for part in options.models) or not any(part in name for part in options.strategies):
            continue
        began, config = time.perf_counter(), PUBLISHED[model]
        found, count = measured(config, lengths, strategy, gpus)
        formula = planned(config, lengths, strategy, gpus, count)
        peak, needs = sum(found.values()) / GIB, sum(formula.values()) / GIB
        kinds = [f"{found[kind] / GIB:.1f} / {formula[kind] / GIB:.1f}" for kind in found]
        tokens = lengths.prompt + count * (lengths.completion - 1)
        rows.append((short, name, tokens, *kinds, f"{peak:.1f} / {needs:.1f}", f"{needs / peak:.2f}"))
        say(f"{short} {name}: {peak:.1f} GiB, plan {needs:.1f} ({time.perf_counter() - began:.0f} s)")
        gc.collect()  # of cycles that hold fake tensors
    print_table(("GiB: step / plan", "strategy", "tokens", *KINDS, "peak", "plan / step"), rows)
    print_result(rows=rows)


if __name__ == "__main__":
    main()
