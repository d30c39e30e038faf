"""Whole iterations on a made-up device: no tensor is on the wrong one, and no micro-batch waits for it.

torch cannot forget a device, so these tests run in a process of their own (test_made_up_device.py).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_device import EVENTS, NAME, Event, OnDevice, register, trainer_options
from tiny_fit import Gradients, Recorder, Recording, fit
from tiny_vlms import KINDS
from torch import Tensor

from lit_rlvr.algorithms import AAPO, GRPO
from lit_rlvr.datamodules import LesionCount, PromptDataModule
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.turns import OnGroupDone, Turns
from lit_rlvr.options import Lora
from lit_rlvr.policy import attention, verify, vision_attention
from lit_rlvr.policy.logprobs import PolicyOutput
from lit_rlvr.policy.precision import is_half
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.step.microbatches import StepLimits
from lit_rlvr.training.step.plan import StepPlan
from lit_rlvr.training.step.prepared import PreparedRollout
from lit_rlvr.training.step.updater import Updater
from lit_rlvr.types import Completion, Prompt

register()


class WatchedUpdater(Updater):
    """Keeps what happens on the device in each micro-batch and in the rest of each optimizer step."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)
        self.microbatches: list[list[Event]] = []
        self.rests: list[list[Event]] = []
        self.starts: list[int] = []
        self.start = 0

    @property
    def limits(self) -> StepLimits:
        self.start = len(EVENTS)  # of the step
        return super().limits

    def begin_step(self, plan: StepPlan) -> None:
        self.starts = []
        super().begin_step(plan)

    def forward(self, plan: StepPlan, k: int) -> PolicyOutput:
        self.starts.append(len(EVENTS))
        return super().forward(plan, k)

    def reduce_and_clip(self) -> Tensor:
        self.starts.append(len(EVENTS))
        self.microbatches += [EVENTS[start:end] for start, end in pairwise(self.starts)]
        return super().reduce_and_clip()

    def end_step(self, prepared: PreparedRollout) -> None:
        super().end_step(prepared)
        self.rests.append(EVENTS[self.start : self.starts[0]] + EVENTS[self.starts[-1] :])


class Watched(Recording):
    """Trains with a `WatchedUpdater`."""

    saved: Path | None = None  # a checkpoint of the end of training

    def on_train_start(self) -> None:
        RLVRModule.on_train_start(self)
        self.updater = WatchedUpdater(**vars(self.updater))

    @property
    def microbatches(self) -> list[list[Event]]:
        return self.updater.microbatches

    @property
    def rests(self) -> list[list[Event]]:
        return self.updater.rests

    def on_train_end(self) -> None:
        if self.saved is not None:
            self.trainer.save_checkpoint(self.saved)


class WatchedGRPO(Watched, GRPO):
    pass


class WatchedAAPO(Watched, AAPO):
    pass


class Replaying(HFEngine):
    """Samples, and returns given completions of the same prompts: rounding to 16 bits changes a few that it samples."""

    def __init__(self, prompts: Sequence[Prompt], completions: Sequence[list[Completion]]) -> None:
        super().__init__()
        self.given = {prompt.sample.id: group for prompt, group in zip(prompts, completions, strict=True)}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        sampled = super().generate(prompts, sampling, seeds, None, turns)
        groups = [self.given[prompt.sample.id] for prompt in prompts]
        return sampled if len(seeds[0]) != len(groups[0]) else groups  # a probe has groups of another size


FEW_TOKENS = {"tokens_per_microbatch": 50}


def train(folder: Path, root: Path, data: Callable[[], PromptDataModule] | None = None, **more: Any) -> Any:
    """An iteration, and what was recorded of it."""
    torch.manual_seed(0)  # LoRA's first weights
    usual = {
        "algorithm": WatchedGRPO, "prompts_per_rollout": 4, "group_size": 3,
        "compute": FEW_TOKENS, "lr": 1e-3, "updates_per_rollout": 2,
        "validate_every_rollouts": 1, "sampling": Sampling(max_tokens=4), "data": None if data is None else data(),
    }  # fmt: skip
    return fit(folder, root, **usual | more)


def counted(found: Sequence[Event], wait: bool) -> Counter[str]:
    """Return how often each place waits for the device, or how often it copies to the device without waiting."""
    if wait:
        return Counter(f"{event.where}: {event.operator}" for event in found if event.waits)
    return Counter(event.where for event in found if not event.waits)


def distance(found: Gradients, wanted: Gradients) -> float:
    """The norm of the difference, as a share of the norm of what is wanted."""
    ours, theirs = (torch.cat([x.detach().flatten().cpu() for x in part.values()]) for part in (found, wanted))
    return float((ours - theirs).norm() / theirs.norm())


def change(module: Any, recorder: Recorder) -> Gradients:
    """Return how far training has moved each weight."""
    last = dict(module.policy.model.named_parameters())  # on the CPU: Lightning moves them when training is over
    return {name: last[name].detach() - first.cpu() for name, first in recorder.weights[0].items()}


LAID_OUT = {"policy/layout.py build_rows": 3}
PADDED = LAID_OUT | {"policy/attention.py to": 5}
SPANS = LAID_OUT | {"policy/spans.py to": 4}
BY_LENGTH = {"policy/vision_attention.py _by_length": 4}
RENEWED: dict[str, Any] = {"algorithm": WatchedAAPO, "kl": {"reference_update_every": 1}, "updates_per_rollout": 1}
TO_16_BITS: dict[str, Any] = {
    "precision": "bf16-mixed",
    "lr": 1e-5,
}  # so small that rounding hardly moves the second update

# transformers looks at a mask of padding, whether it hides anything, and counts the placeholders of images
LOOKS = {"policy/policy.py _hidden: aten._local_scalar_dense.default": 1}
# without a kernel for pieces of any length, which takes 16 bits, each of two layers reads their lengths
READS_LENGTHS = {"policy/vision_attention.py vision_attention: aten._to_copy.default": 2}
# Qwen3-VL adds features to two layers at the positions of a mask, which transformers counts each time
ADDS_FEATURES = {
    "policy/policy.py _hidden: aten.index.Tensor": 2,
    "policy/policy.py _hidden: aten.index_put_.default": 2,
    "training/module.py backward_on_rank: aten.index.Tensor": 2,
    "training/module.py backward_on_rank: aten.index_put.default": 4,
}
# whether loss and gradient are finite, the sums for the metrics, and the gradient's norm
REST = {
    "training/step/failures.py _is_finite: aten._local_scalar_dense.default": 2,
    "training/metrics.py step_metrics: aten._to_copy.default": 1,
    "training/noise_scale.py end: aten._to_copy.default": 1,
    "training/step/updater.py measure: aten._local_scalar_dense.default": 1,
}

COOL = Sampling(temperature=0.7, top_p=1.0, max_tokens=4)


def pictures(sizes: int) -> dict[str, int]:
    """Return the copies for images; the vision tower derives `sizes` tensors from how large they are."""
    return {
        "policy/families/qwen_vl.py model_inputs": 1,
        "policy/families/qwen_vl.py _derive_sizes": sizes,
        "policy/logprobs.py _banned": 3,  # placeholders are never sampled
    }


def slow(name: str, copies: dict[str, int], waits: dict[str, int], **options: Any) -> Any:
    return pytest.param(copies, waits, options, id=name, marks=pytest.mark.slow)


CASES = [
    pytest.param(PADDED, {}, {}, id="padded"),
    pytest.param(SPANS, {}, TO_16_BITS, id="spans"),
    slow("AAPO", PADDED, {}, **RENEWED),
    slow("KL and entropy", PADDED, {}, kl={"coef": 0.1}, loss={"entropy_coef": 0.1}, sampling=COOL),
    slow("LoRA", PADDED, {}, lora=Lora(rank=2)),
    slow("LoRA, spans", SPANS, {}, lora=Lora(rank=2), **TO_16_BITS),
    slow("checkpointing", PADDED, {}, compute=FEW_TOKENS | {"gradient_checkpointing": True}),
    slow(
        "single rows",
        LAID_OUT | {"policy/layout.py build_rows": 4},
        LOOKS,
        compute=FEW_TOKENS | {"shared_prefix": False},
    ),
    slow("Qwen2-VL", SPANS | pictures(2), LOOKS, vlm="qwen2-vl", **TO_16_BITS),
    slow("Qwen2.5-VL", SPANS | pictures(4), LOOKS, vlm="qwen2.5-vl", **TO_16_BITS),
    slow("Qwen2.5-VL, padded", PADDED | pictures(4) | BY_LENGTH, LOOKS | READS_LENGTHS, vlm="qwen2.5-vl"),
    slow("Qwen3-VL", SPANS | pictures(4), LOOKS | ADDS_FEATURES, vlm="qwen3-vl", **TO_16_BITS),
    slow("GLM-4.1V", SPANS | pictures(3), LOOKS, vlm="glm-4.1v", **TO_16_BITS),
]


@pytest.mark.parametrize(("copies", "waits", "options"), CASES)
def test_an_iteration_is_that_of_the_cpu(
    copies: dict[str, int],
    waits: dict[str, int],
    options: dict[str, Any],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gradients, weights and completions are those of the CPU up to rounding; `waits` are all that a micro-batch waits
    for."""
    options, folder = dict(options), tiny_model_folder
    if vlm := options.pop("vlm", None):
        folder, options["updates_per_rollout"] = KINDS[vlm](tmp_path / vlm), 1
        options["data"] = lambda: LesionCount(pictures=8, held_out=0, prompts_per_rollout=2)
    precision = options.pop("precision", "32-true")
    half = precision == "bf16-mixed"
    validated = {"limit_val_batches": int(not half)}
    here = validated | {"precision": precision}
    wanted_module, wanted = train(folder, tmp_path / "cpu", trainer_options=here, **options)

    for part in (attention, verify, vision_attention):
        monkeypatch.setattr(part, "available", lambda device, dtype: is_half(dtype))  # as on a GPU
    engine = Replaying(wanted.rollouts[0].prompts, wanted.rollouts[0].completions) if half else None
    there = validated | trainer_options(precision)
    module, found = train(folder, tmp_path / NAME, trainer_options=there, engine=engine, **options)

    assert all(type(weight) is OnDevice for weight in found.weights[0].values())
    if (reference := module.reference.policy) is not None:
        assert all(type(weight) is OnDevice for weight in reference.parameters())
    assert len(module.microbatches) > len(module.rests) > 0
    for part in module.microbatches:
        copied = counted(part, False)
        assert copied == copies
        assert counted(part, True) == waits
    for part in module.rests:
        assert counted(part, True) == REST

    assert torch.equal(found.rollouts[0].token_ids, wanted.rollouts[0].token_ids)
    if not half:
        assert module.validation.results == wanted_module.validation.results
    apart = [distance(*pair) for pair in zip(found.gradients, wanted.gradients, strict=True)]
    assert apart[0] < (0.05 if half else 1e-5)
    # AdamW gives a gradient of nothing but rounding as large a step as any other.
    assert max(apart) < (0.05 if half else 1e-3)
    assert distance(change(module, found), change(wanted_module, wanted)) < (0.3 if half else 1e-2)


@pytest.mark.slow
def test_a_run_on_the_device_resumes_exactly(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AAPO's checkpoint holds the weights of a renewed reference too."""

    def run(name: str, steps: int, checkpoint: Path | None = None) -> Any:
        monkeypatch.setattr(WatchedAAPO, "saved", tmp_path / name)
        train(
            tiny_model_folder,
            tmp_path / "run",
            steps=steps,
            checkpoint=checkpoint,
            trainer_options=trainer_options(),
            **RENEWED,
        )
        return torch.load(tmp_path / name, weights_only=False)

    run("first.ckpt", 1)
    resumed, whole = run("resumed.ckpt", 2, tmp_path / "first.ckpt"), run("whole.ckpt", 2)
    assert resumed["rlvr"]["reference"]["weights"]
    for part in ("state_dict", "optimizer_states", "rlvr"):
        torch.testing.assert_close(_flat(resumed[part]), _flat(whole[part]), rtol=0, atol=0)


def _flat(state: Any) -> list[Any]:
    return [x for x in torch.utils._pytree.tree_leaves(state) if isinstance(x, Tensor | float | int)]


REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda there, here: there + here,
    "product": lambda there, here: there @ here.t(),
    "indices": lambda there, here: there.index_select(0, torch.tensor([0])),
    "joined": lambda there, here: torch.cat([there, here]),
    "in place": lambda there, here: here.add_(there),
    "values": lambda there, here: there.index_put_((torch.tensor([0]).to(NAME),), here[:1]),
}
TAKEN: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[tuple[str, bool]]]] = {
    "number": (lambda there, here: there * here.sum(), []),
    "number in where": (lambda there, here: torch.where(there > 0, there, torch.tensor(0.0)), []),
    "fill by a mask": (lambda there, here: there.clone().__setitem__(there > 0, 1.0), []),
    "pinned": (lambda there, here: here.pin_memory().to(NAME, non_blocking=True), [("to", False)]),
    "not pinned": (lambda there, here: here.to(NAME, non_blocking=True), [("to", True)]),
    "pinned, blocking": (lambda there, here: here.pin_memory().to(NAME), [("to", True)]),
    "made of numbers": (lambda there, here: torch.tensor([1.0], device=NAME), [("to", True)]),
    "CPU indices": (lambda there, here: there[torch.tensor([0])], [("to", True)]),
    "list": (lambda there, here: there[[0]], [("to", True)]),
    "item": (lambda there, here: there.sum().item(), [("wait", True)]),
    "if": (lambda there, here: bool((there > 0).any()), [("wait", True)]),
    "nonzero": (lambda there, here: there.nonzero(), [("wait", True)]),
    "mask": (lambda there, here: there[there > 0], [("wait", True)]),
    "equal": (lambda there, here: torch.equal(there, there), [("wait", True)]),
    "cpu": (lambda there, here: there.cpu(), [("from", True)]),
    "tolist": (lambda there, here: there.tolist(), [("from", True)]),
    "copy": (lambda there, here: here.clone().copy_(there), [("from", True)]),
}


def test_the_device_refuses_and_counts_as_cuda_does() -> None:
    here = torch.randn(2, 3)
    there = here.to(NAME)
    for name, operate in REFUSED.items():
        with pytest.raises(RuntimeError, match="on the same device"):
            print(name, operate(there, here.clone()))
    for name, (operate, wanted) in TAKEN.items():
        start = len(EVENTS)
        operate(there, here)
        assert [(event.kind, event.waits) for event in EVENTS[start:]] == wanted, name
    torch.testing.assert_close((there.t() @ there).cpu(), here.t() @ here)
