"""Scoring during generation gives what scoring afterwards gives."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from tiny_rewards import first_token

from lit_rlvr.rewards import MathAnswer, Reward, shared_pool
from lit_rlvr.rewards.background import BackgroundScoring
from lit_rlvr.rewards.base import unlogged
from lit_rlvr.rewards.combine import logged_metrics, score_rollout
from lit_rlvr.types import Completion, Pair, RewardResult, Sample

GROUPS = [[Completion(f"\\boxed{{{n}}}", (n,), "stop") for n in group] for group in ([1, 2], [3, 3], [4, 6])]
SAMPLES = [Sample("a", "?", "1"), Sample("b", "?", "3"), Sample("c", "?", "5")]


class Held(Reward):
    """Notes which thread judges what, and goes on when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.begun, self.let_go = threading.Event(), threading.Event()

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        return first_token(completion, sample)

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        self.batches.append(len(pairs))
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.let_go.wait(60)
        return super().score(pairs)


class Counting(Held):
    """Logs the length of each batch."""

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        results = super().score(pairs)
        self.metrics.setdefault("size", []).append(float(len(pairs)))
        self.metrics |= {"last": [float(len(pairs))]}
        return results


def test_a_validation_does_not_take_what_training_logs_meanwhile() -> None:
    """Groups of training are judged during a validation if the engine is a server."""
    logs = Counting()
    with BackgroundScoring([logs]) as training:
        training.add(0, GROUPS[0][:1], SAMPLES[0])
        assert logs.begun.wait(60)
        with unlogged():
            with BackgroundScoring([logs]) as validation:
                validation.add(1, GROUPS[1], SAMPLES[1])
                logs.let_go.set()
                validation.scores([1], 2)
            training.result(0)
            logs.score([(GROUPS[0][0], SAMPLES[0])] * 3)
    assert logged_metrics([logs]) == {"reward/size": 1.0, "reward/last": 1.0}


@pytest.mark.slow
def test_the_scores_are_those_of_the_whole_in_any_order_of_arrival() -> None:
    held = Held()
    held.let_go.set()
    rewards = [MathAnswer(), held]
    wanted = score_rollout(rewards, GROUPS, SAMPLES)
    with BackgroundScoring(rewards) as scoring:
        for number in (2, 0, 1, 0):  # a group that is added twice is scored once
            scoring.add(number, GROUPS[number], SAMPLES[number])
        found = scoring.scores(range(3), 2)
    assert found.rewards.tolist() == wanted.rewards.tolist() and found.correct.tolist() == wanted.correct.tolist()
    assert found.statuses == wanted.statuses and found.details == wanted.details
    assert found.correct.tolist() == [[1, 0], [1, 1], [0, 0]], "as MathAnswer, the first that judges, says"


def test_it_runs_meanwhile_and_takes_what_waits_as_one_batch() -> None:
    held = Held()
    with BackgroundScoring([held]) as scoring:
        scoring.add(0, GROUPS[0], SAMPLES[0])
        assert held.begun.wait(60)
        scoring.add(1, GROUPS[1], SAMPLES[1])  # does not wait
        scoring.add(2, GROUPS[2], SAMPLES[2])
        held.let_go.set()
        scoring.scores(range(3), 2)
    assert held.batches == [2, 4]
    assert threading.main_thread().name not in held.threads


def test_all_rollouts_have_the_same_workers() -> None:
    found = []
    for _ in range(2):
        with BackgroundScoring([MathAnswer()]) as scoring:
            scoring.add(0, GROUPS[0], SAMPLES[0])
            scoring.scores([0], 2)
        found.append([worker.process.pid for worker in shared_pool()._live])
    assert found[0] == found[1] and all(worker.alive for worker in shared_pool()._live)


def test_an_engine_that_fails_drops_what_waits() -> None:
    held = Held()
    with pytest.raises(RuntimeError, match="engine"), BackgroundScoring([held]) as scoring:
        for number in range(3):
            scoring.add(number, GROUPS[number], SAMPLES[number])
            assert held.begun.wait(60)
        raise RuntimeError("engine")
    held.let_go.set()
    scoring.thread.join(60)
    assert held.batches == [2]


@pytest.mark.slow
def test_a_reward_that_hangs_does_not_keep_an_interrupted_run_from_ending() -> None:
    source = """if True:
        import sys, threading
        from lit_rlvr.rewards import Reward
        from lit_rlvr.rewards.background import BackgroundScoring
        from lit_rlvr.types import Completion, Sample

        begun = threading.Event()

        class Hangs(Reward):
            def __call__(self, completion, sample):
                begun.set()
                threading.Event().wait()

        with BackgroundScoring([Hangs()]) as scoring:
            scoring.add(0, [Completion("", (1,), "stop")], Sample("a", "?", ""))
            begun.wait()
            raise KeyboardInterrupt
    """
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert done.stderr.strip().endswith("KeyboardInterrupt")
