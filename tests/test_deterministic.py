"""No result depends on which of several threads comes first, also on a busy machine."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_rollout, random_ids, threads, tiny_llama
from tiny_runs import CONSOLE_SCRIPT, child_environment, summary
from tiny_vlms import mixed_prompts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlvr.policy.families.smolvlm import SPECIALS
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.types import Rollout

AT_ONCE = 2


def wide_rollout(prompts: int = 3, group: int = 16, length: int = 60, lowest: int = 0) -> Rollout:
    """So many tokens that operations on them are shared out among threads, in the midst of a group."""
    return make_rollout(
        [random_ids(12, p) for p in range(prompts)],
        [
            [[max(token, lowest) for token in random_ids(length, 1 + 100 * p + g)] for g in range(group)]
            for p in range(prompts)
        ],
    )


def gradients(policy: Policy, rollout: Rollout) -> list[Tensor]:
    policy.zero_grad()
    logp, entropy = policy.logprobs(rollout, list(range(len(rollout.token_ids))), entropy=True, entropy_gradient=True)
    assert entropy is not None
    (logp.square() + entropy)[rollout.mask].sum().backward()
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_gradients_are_equal_every_time(shared: bool) -> None:
    policy, rollout = Policy(tiny_llama(), (2,), shared), wide_rollout()
    with threads(2):
        first = gradients(policy, rollout)
        for _ in range(10):
            assert all(torch.equal(a, b) for a, b in zip(gradients(policy, rollout), first, strict=True))


class Collisions(TorchDispatchMode):
    """Names the operations in which several threads add floats to one place, in the order in which they come by.

    `index_add` and `embedding_dense_backward` are not among them: there each place belongs to one thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.seen.add(name)
        if name.strip("_") in ("index_put", "index_put_impl") and len(args) > 3 and args[3]:
            known = [index for index in args[1] if index is not None and index.dtype != torch.bool]
            places = torch.stack(torch.broadcast_tensors(*known)).flatten(1) if known else None
            if places is not None and places.unique(dim=1).shape[1] < places.shape[1]:
                self.found.append(name)
        elif name.strip("_") in ("scatter_add", "scatter_reduce", "put") and args[0].is_floating_point():
            index = args[2]
            if any(len(row.unique()) < len(row) for row in index.movedim(args[1], -1).flatten(0, -2)):
                self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_no_operation_adds_by_several_threads(shared: bool) -> None:
    assert_without_collisions(Policy(tiny_llama(), (2,), shared), wide_rollout(2, 3, 5))


@pytest.mark.slow
@pytest.mark.parametrize("any_vlm_folder", ["qwen2.5-vl", "smolvlm2", "gemma4"], indirect=True)
def test_no_operation_on_images_adds_by_several_threads(any_vlm_folder: Path) -> None:
    prompts = mixed_prompts(any_vlm_folder)
    rollout = wide_rollout(len(prompts), 3, 5, lowest=len(SPECIALS))  # engines sample no placeholder of an image
    assert_without_collisions(load_policy(str(any_vlm_folder)), replace(rollout, prompts=prompts))


def assert_without_collisions(policy: Policy, rollout: Rollout) -> None:
    with Collisions() as mode:
        gradients(policy, rollout)
    assert not mode.found
    assert {"index_select", "index_add"} <= {name.strip("_") for name in mode.seen}, "the mode sees the backward pass"


@pytest.mark.exhaustive
def test_runs_on_a_busy_machine_end_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at once with two threads each, more than there are cores; a single thread could not differ."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    arguments = ["fit", "--config", "smoke/resume", "--trainer.max_steps", "6", "--trainer.limit_val_batches", "0"]
    environment = child_environment() | {"OMP_NUM_THREADS": "2"}
    runs = [
        subprocess.Popen(
            [CONSOLE_SCRIPT, *arguments, "--trainer.default_root_dir", str(tmp_path / str(k))],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(AT_ONCE)
    ]
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * AT_ONCE, said
    assert len({summary(tmp_path / str(k))["weights_sha256"] for k in range(AT_ONCE)}) == 1
