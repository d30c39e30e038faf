"""Engines that crash are restarted with the same weights for the same batch, and the run is as without a crash."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_prompt, start_engine
from tiny_engines import Copying, Crashing
from tiny_fit import Recorder, fit
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler
from transformers import LlamaConfig

from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.synced import SyncedEngine
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion

STEP = ["sync", "6"]  # six prompts; the first step's sync is probed with three


def assert_same_training(seen: Recorder, wanted: Recorder) -> None:
    for ours, theirs in zip(seen.rollouts, wanted.rollouts, strict=True):
        assert torch.equal(ours.token_ids, theirs.token_ids) and torch.equal(ours.rewards, theirs.rewards)
    for mine, other in zip(seen.weights, wanted.weights, strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.fixture(scope="module")
def whole(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    return fit(tiny_model_folder, tmp_path_factory.mktemp("whole"), steps=3, engine=Copying())[1]


AGAIN = ["close", "start", "sync", "3"]  # with the probe
CASES = {
    "before any group": (Crashing(calls=[3]), ["sync", "6", *AGAIN, "6"]),
    "after two groups": (Crashing(calls=[3], groups=2), ["sync", "6", *AGAIN, "6"]),
    "twice": (Crashing(calls=[3, 5], groups=1), ["sync", "6", *AGAIN, "6", *AGAIN, "6"]),
    "in the probe": (Crashing(calls=[3, 4]), ["sync", "6", *AGAIN, *AGAIN, "6"]),
    "on new weights": (Crashing("sync", calls=[2]), ["sync", *AGAIN, "6"]),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", CASES)
def test_a_crash_changes_nothing(tiny_model_folder: Path, tmp_path: Path, whole: Recorder, case: str) -> None:
    """The crash is in the second of three iterations."""
    engine, second = CASES[case]
    _, seen = fit(tiny_model_folder, tmp_path, steps=3, engine=engine)
    assert engine.log == ["start", "sync", "3", "6", *second, *STEP, "close"]
    assert_same_training(seen, whole)


def test_an_engine_that_neither_closes_nor_starts_at_once(
    tiny_model_folder: Path, tmp_path: Path, whole: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(Crashing):
        def start(self, context: EngineContext) -> None:
            super().start(context)
            if self.log.count("start") == 2:
                raise OSError("no such device")

        def close(self) -> None:
            super().close()
            if self.log.count("close") == 1:
                raise RuntimeError("it does not answer")

    engine = Stubborn(calls=[3])
    _, seen = fit(tiny_model_folder, tmp_path, steps=3, engine=engine)
    assert engine.log[6:12] == ["close", "start", "close", "start", "sync", "3"]
    assert_same_training(seen, whole)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("engine")]
    assert [line.partition(":")[0] for line in said] == [
        "engine stubborn crashed",
        "engine stubborn could not be closed",
        "engine stubborn crashed",
    ]
    assert "CUDA error: an illegal memory access; restart 1 of 3" in said[0] and "restart 2 of 3" in said[2]


def test_after_too_many_crashes_in_a_row_the_run_ends(tiny_model_folder: Path, tmp_path: Path) -> None:
    engine = Crashing(calls=range(3, 99))
    with pytest.raises(
        UserError, match=r"illegal memory access; after 3 restart\(s\) in a row .*; resume with ckpt_path"
    ):
        fit(tiny_model_folder, tmp_path, steps=3, engine=engine)
    assert engine.log.count("start") == 1 + 3


@pytest.mark.parametrize("method", ["generate", "sync"])
def test_the_same_crash_twice_before_any_completion_ends_the_run(
    tiny_model_folder: Path, tmp_path: Path, method: str
) -> None:
    engine = Crashing(method, calls=range(1, 99))
    with pytest.raises(UserError, match=r"crashed: RuntimeError: .*; it crashed alike before, .*rollout.engine: hf"):
        fit(tiny_model_folder, tmp_path, engine=engine)
    assert engine.log.count("start") == 2 and engine.log.count("close") == 2


def test_what_a_library_raises_at_the_start_names_the_model(tiny_model_folder: Path) -> None:
    """As vLLM does by pydantic; the class of an engine of the user's would be named by its line instead."""
    policy: Any = load_policy(str(tiny_model_folder))
    policy.model._supports_default_dynamic_cache = partial(LlamaConfig, num_attention_heads="four")
    with pytest.raises(UserError, match=rf"engine hf cannot start with {tiny_model_folder}: \w+: .*expected int"):
        start_engine(SyncedEngine(HFEngine()), policy, tiny_model_folder)


def test_a_process_without_a_prompt_of_the_batch_restarts(tiny_model_folder: Path) -> None:
    """A rank may have no prompts in the last validation batch: its restarted engine is probed with the next prompts."""
    policy = load_policy(str(tiny_model_folder))
    inner = Crashing("sync", calls=[1])
    engine = SyncedEngine(inner, max_restarts=1)
    start_engine(engine, policy, tiny_model_folder)
    engine.sync_weights(policy, "new")
    assert engine.generate([], Sampling(), []) == []
    assert inner.log == ["start", "sync", "close", "start", "sync", "0"]
    engine.generate([make_prompt([5, 6])], Sampling(max_tokens=2), [[1]])
    assert inner.log[6:] == ["1", "1"]


def test_stale_weights_after_a_restart_are_noticed(tiny_model_folder: Path, tmp_path: Path) -> None:
    class Forgetful(Crashing):
        def sync(self, policy: Policy) -> None:
            self.log.append("sync")
            if self.log.count("start") < 2:
                super().sync(policy)

    with pytest.raises(UserError, match="stale or wrong weights"):
        fit(tiny_model_folder, tmp_path, steps=3, engine=Forgetful(calls=[3]))


def test_a_crash_during_training(tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The older weights are gone, so a restarted engine generates the batch with the current ones."""
    engine = Crashing(calls=[4, 5])  # after the probe and two rollouts: during training, and when it is probed again
    _, seen = fit(tiny_model_folder, tmp_path, steps=3, engine=engine, staleness=1)
    assert len(seen.rollouts) == 3 and engine.log.count("start") == 3
    assert "restart 2 of 3" in caplog.text
    stale, fresh = (seen.metrics[k]["train/engine_difference"] for k in (1, 2))
    assert fresh < 1e-5 < stale


def test_a_restart_keeps_no_memory_of_the_crash(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Otherwise there would be no room to start another engine."""
    import gc
    import weakref

    held: list[weakref.ref[Tensor]] = []

    class Hoarding(Crashing):
        def generate(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            cache = torch.zeros(1000)
            if len(self.log) == 5:
                held.append(weakref.ref(cache))
            return super().generate(*args, **kwargs)  # type: ignore[arg-type]

        def start(self, context: EngineContext) -> None:
            assert all(ref() is None for ref in held)
            super().start(context)

    gc.disable()
    try:
        fit(tiny_model_folder, tmp_path, steps=2, engine=Hoarding(calls=[3]))
    finally:
        gc.enable()
    assert held


def test_a_compiler_that_fails_again_ends_the_run_with_its_reason(tiny_model_folder: Path, tmp_path: Path) -> None:
    class WithoutCompiler(Crashing):
        def generate(self, *arguments: Any, **options: Any) -> list[list[Completion]]:
            self.log.append("generate")
            raise BackendCompilerFailed("inductor", InvalidCxxCompiler(), None)

    engine = WithoutCompiler()
    with pytest.raises(UserError, match=r"raised: InvalidCxxCompiler: No working C\+\+ compiler found.*crashed alike"):
        fit(tiny_model_folder, tmp_path, engine=engine)
    assert engine.log.count("generate") == 2
