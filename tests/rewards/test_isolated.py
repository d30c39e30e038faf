"""Rewards in worker processes: whatever one does hits the completion that it judges, and no other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Choice, FunctionReward, MathAnswer, Reward, as_rewards, shared_pool
from lit_rlvr.types import Completion, Pair, RewardResult, Sample
from lit_rlvr.workers.process import Isolation

SOURCE = """
import mmap, os, sys, time
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Reward

kept = []
ballast = mmap.mmap(-1, 1 << 30)  # takes address space alone

def judge(completion, sample):
    exec(completion.text)
    return "right" in completion.text

def judge_in_child(completion, sample):
    ours = os.getpid()
    exec(completion.text)
    return os.getpid() == ours

def process(completion, sample):
    return os.getpid()

def torch_is_there(completion, sample):
    return "torch" in sys.modules

class Times(Reward):
    def __init__(self, factor: float, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def __call__(self, completion, sample):
        return self.factor * len(completion.token_ids)
"""


@pytest.fixture(autouse=True)
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`isolated_task` in the current directory, and workers that know of it."""
    (tmp_path / "isolated_task.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("isolated_task", None)
    shared_pool().close()
    yield
    shared_pool().close()


def pairs(*texts: str) -> list[Pair]:
    return [(Completion(text, (1, 2), "stop"), Sample(f"row {i}", "?", "")) for i, text in enumerate(texts)]


def isolated(name: str = "judge", **limits: Any) -> Reward:
    generous = {"cpu_seconds": 60.0, "wall_seconds": 600.0}
    return FunctionReward(f"isolated_task.{name}", isolate=Isolation(**generous | limits))


def test_results_are_those_of_the_same_process() -> None:
    batch = pairs("'right'", "'wrong'", "1 / 0")
    plain, alone = FunctionReward("isolated_task.judge"), isolated()
    assert alone.score(batch) == plain.score(batch)
    assert alone.score(batch)[:2] == [RewardResult(1.0, True), RewardResult(0.0, False)]
    assert "isolated_task.py:10: ZeroDivisionError: division by zero" in alone.score(batch)[2].detail
    assert alone.score([]) == []


@pytest.mark.parametrize(
    ("does", "status", "detail"),
    [
        ("os._exit(0)", "error", "the worker died twice: exit code 0"),
        ("os.kill(os.getpid(), 11)", "error", "the worker died twice: exit code -11"),
        ("sys.exit(0)", "error", "isolated_task.py:10: SystemExit: 0"),
        ("raise KeyboardInterrupt", "error", "isolated_task.py:10: KeyboardInterrupt"),
        ("kept.append(bytearray(3000 << 20))", "timeout", "MemoryError: too much for the checker"),
        ("f = lambda f: f(f); f(f)", "error", "RecursionError"),
        ("return_value = open('no such file')", "error", "isolated_task.py:10: FileNotFoundError"),
    ],
)
def test_what_one_does_hits_its_completion_alone(does: str, status: str, detail: str) -> None:
    first, bad, last = isolated().score(pairs("'right'", does, "'right'"))
    assert first == last == RewardResult(1.0, True)
    assert (bad.value, bad.correct, bad.status) == (0.0, None, status) and detail in bad.detail


def test_one_that_hangs_is_stopped_by_its_limits() -> None:
    busy, right = isolated(cpu_seconds=0.3).score(pairs("while True: pass", "'right'"))
    assert (busy.status, busy.detail) == ("timeout", "out of CPU time") and right.correct
    (asleep,) = isolated(wall_seconds=0.3).score(pairs("time.sleep(999)"))
    assert (asleep.status, asleep.detail) == ("timeout", "out of wall-clock time")


def test_a_leak_is_the_fault_of_none() -> None:
    leak = "kept.append(bytearray(120 << 20)); 'right'"
    assert isolated(memory_mb=300).score(pairs(*[leak] * 5)) == [RewardResult(1.0, True)] * 5


def test_yaml_isolates_a_function_and_a_class_with_its_options() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=list[Reward | str])
    text = """[
        {class_path: FunctionReward, init_args: {path: isolated_task.judge, isolate: true}},
        {class_path: isolated_task.Times, init_args: {factor: 3, isolate: {cpu_seconds: 9}, weight: 0.5}}]"""
    judge, times = as_rewards(parser.instantiate_classes(parser.parse_args(["--rewards", text])).rewards)
    assert (judge.isolation, times.isolation) == (Isolation(), Isolation(cpu_seconds=9))
    assert (judge.name, times.weight) == ("judge", 0.5)
    assert times.score(pairs("")) == [RewardResult(6.0)]
    assert FunctionReward("isolated_task.judge").isolation is None


def test_what_cannot_be_sent_to_a_worker_is_refused_at_once() -> None:
    class Inner(Reward):
        def __call__(self, completion: Completion, sample: Sample) -> float:
            return 1.0

    with pytest.raises(UserError, match=r"test_isolated.*Inner cannot be sent to a worker process.*leave out isolate"):
        as_rewards([Inner(isolate=True)])
    sample = Sample("a", "?", "", row={"file": sys.stdout}, source="my.jsonl:3")
    with pytest.raises(UserError, match=r"my.jsonl:3: the row cannot be sent.*TypeError"):
        isolated().score([(Completion("", (1,), "stop"), sample)])


def test_a_module_that_ends_the_worker_is_named(tmp_path: Path) -> None:
    reward = as_rewards([isolated()])[0]
    (tmp_path / "isolated_task.py").write_text("import os\nos._exit(5)")
    with pytest.raises(UserError, match=r"could not load 'isolated_task.judge': exit code 5"):
        reward.score(pairs(""))


def test_rewards_with_a_way_of_their_own_refuse() -> None:
    for cls in (MathAnswer, Choice):
        with pytest.raises(UserError, match=rf"rewards.{cls.__name__}.isolate: leave it out"):
            cls(isolate=True)
    assert Choice(otherwise=isolated("process")).score(pairs(""))[0].value > 1
