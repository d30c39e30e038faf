"""The base class: coercion, failures, functions as rewards."""

import logging
import math
import os
import re
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Format, FunctionReward, Reward, as_rewards
from lit_rlvr.rewards.base import report_rewards_in_process
from lit_rlvr.rewards.combine import score_rollout, stop_on_failures
from lit_rlvr.types import Completion, Prompt, RewardResult, Sample
from lit_rlvr.workers import pool as waiting

PAIR = (Completion("hello", (1, 2), "stop"), Sample("a", "?", "hello"))


class Returns(Reward):
    def __init__(self, value: Any = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = value

    def __call__(self, completion: Completion, sample: Sample) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


class Listed(Returns):
    def __call__(self, completion: Completion, sample: Sample) -> Any:
        return self.value[int(completion.text)]


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True)])
def test_true_and_false_say_whether_it_is_correct(value: Any) -> None:
    assert Returns(value).score([PAIR]) == [RewardResult(1.0, True)]
    assert Returns(value ^ value).score([PAIR]) == [RewardResult(0.0, False)]


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1.0), torch.tensor(1.0)])
def test_numbers_become_results(value: object) -> None:
    assert Returns(value).score([PAIR, PAIR]) == [RewardResult(1.0, None, "ok", "")] * 2


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (ZeroDivisionError("oops"), "ZeroDivisionError: oops"),
        (math.nan, "ValueError: the reward is not finite: nan"),
        (RewardResult(math.inf), "ValueError: the reward is not finite: inf"),
        ("1.0", "TypeError: a reward must return a number, a bool, a RewardResult or None, got str"),
        ([1.0], "TypeError: a reward must return a number, a bool, a RewardResult or None, got list"),
        (RewardResult("1.0"), "TypeError: a reward must return a number, a bool, a RewardResult or None, got str"),
        (torch.tensor(math.nan), "ValueError: the reward is not finite: nan"),
        (1e39, "ValueError: the reward 1e+39 is not between -1e+15 and 1e+15"),
        (1j, "TypeError: a reward must return a number, a bool, a RewardResult or None, got complex"),
        (np.complex64(1), "TypeError: a reward must return a number, a bool, a RewardResult or None, got complex64"),
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit"),
    ],
)
def test_failures_are_errors_of_that_completion(value: object, detail: str) -> None:
    (result,) = Returns(value).score([PAIR])
    assert result == RewardResult(0.0, None, "error", result.detail)
    code, raises = Returns.__call__.__code__, isinstance(value, BaseException)
    line = code.co_firstlineno + (2 if raises else 0)
    assert result.detail == f"{os.path.relpath(__file__)}:{line}: {detail}"


@pytest.mark.parametrize("value", [True, 1, 1.0, np.bool_(True), np.int64(1), torch.tensor(True), torch.tensor(1.0)])
def test_correct_is_a_truth_value(value: Any) -> None:
    assert RewardResult(0.5, value).correct is True
    assert RewardResult(0.5, value != value).correct is False


@pytest.mark.parametrize("value", [0.5, 2, math.nan, "yes", [1], np.array([1, 0]), torch.tensor([1.0, 0.0]), Returns()])
def test_correct_that_is_no_truth_value_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    class Halves(Returns):
        def __call__(self, completion: Completion, sample: Sample) -> Any:
            return RewardResult(0.5, value)

    (result,) = Halves(name="halves").score([PAIR])
    assert result.status == "error" and "RewardResult.correct must be True, False or None, got " in result.detail
    with pytest.raises(
        UserError, match=r"^reward 'halves' failed on 1 of 1 .*test_base.py:\d+: ValueError: RewardResult.corr"
    ):
        _stop_on_failures(Halves(name="halves"), tmp_path)


def _stop_on_failures(reward: Reward, folder: Path) -> None:
    completions = [[PAIR[0]]]
    scores = score_rollout([reward], completions, [PAIR[1]])
    stop_on_failures([Prompt(PAIR[1], [1])], completions, scores, 0.05, folder, together=True)


def test_checks_that_hit_their_limits_end_the_run(tmp_path: Path) -> None:
    stopped = RewardResult(0.0, None, "timeout", "out of CPU time")
    with pytest.raises(UserError, match=r"^reward 'returns' failed on 1 of 1 .*: out of CPU time; raise the limits"):
        _stop_on_failures(Returns(stopped), tmp_path)
    late = RewardResult(0.0, False, "timeout", "out of CPU time")  # as MathAnswer says it
    completions = [[Completion(text, (1,), "stop") for text in "0123"]]
    for results, ends in (((late, late, True, True), False), ((late, late, late, True), True)):
        scores = score_rollout([Listed(results, name="returns")], completions, [PAIR[1]])
        for limit, together in ((0.05, True), (0.75, True), (0.05, False)):
            with (
                pytest.raises(UserError, match=r"reward 'returns' failed on 3 of 4 .*above a half; first")
                if (ends and together and limit < 0.5)
                else nullcontext()
            ):
                stop_on_failures([Prompt(PAIR[1], [1])], completions, scores, limit, tmp_path, together)


def test_none_is_no_judgement(tmp_path: Path) -> None:
    assert Returns(None).score([PAIR]) == [RewardResult(0.0, None, "unjudged")]
    _stop_on_failures(Returns(None), tmp_path)  # the run counts such rollouts


@pytest.mark.parametrize(
    ("value", "cut"),
    [
        (True, RewardResult(0.0, False, "ok", "cut off")),
        (0.5, RewardResult(0.0, None, "ok", "cut off")),
        (-1.0, RewardResult(-1.0, None, "ok", "cut off")),
        (RewardResult(1.0, True, "ok", "42"), RewardResult(0.0, False, "ok", "cut off")),
        (RewardResult(-1.0, False, "parse_fail"), RewardResult(-1.0, False, "ok", "cut off")),
        (None, RewardResult(0.0, None, "unjudged")),
    ],
)
def test_an_answer_that_does_not_end_earns_nothing_unless_told_otherwise(value: Any, cut: RewardResult) -> None:
    whole, truncated = PAIR, (replace(PAIR[0], finish_reason="length"), PAIR[1])
    assert Returns(value).score([truncated, whole]) == [cut, *Returns(value).score([whole])]
    assert Returns(value, truncated_is_wrong=False).score([truncated]) == Returns(value).score([whole])
    assert Returns(value)._judge(*truncated, MemoryError) == cut  # in a worker process


@pytest.mark.parametrize("error", [UserError("no column"), KeyboardInterrupt("no column")])
def test_a_user_error_and_an_interrupt_end_the_run(error: BaseException) -> None:
    with pytest.raises(type(error), match="no column"):
        Returns(error).score([PAIR])


def test_rewards_that_do_not_go_together_are_refused() -> None:
    for together, message in (
        ([], "rollout.rewards is empty"),
        ([Returns(), Returns()], "two rewards are named returns"),
        ([Returns(name="a", correct_from=True), Returns(name="b", correct_from=True)], "is set on a, b; mark only one"),
    ):
        with pytest.raises(UserError, match=message):
            as_rewards(together)


def test_the_users_rewards_that_run_in_this_process_are_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "lit_rlvr")
    report_rewards_in_process([Format(boxed=True), FunctionReward("tiny_rewards.rare", isolate=True)])
    assert caplog.messages == []
    report_rewards_in_process([Returns(), FunctionReward("tiny_rewards.first_token")])
    assert caplog.messages[0].startswith(f"{__name__}.Returns, tiny_rewards.first_token: runs in this process")


class Stuck(Reward):
    """Judges only when it has been said that it takes its time."""

    def __init__(self, said: threading.Event) -> None:
        super().__init__()
        self.said = said

    def __call__(self, completion: Completion, sample: Sample) -> float:
        assert self.said.wait(60)
        return 1.0


def test_a_reward_that_hangs_is_said_while_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SLOW_REWARD_SECONDS", 0.05)
    said, lines = threading.Event(), []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if len(lines) == 3:
                said.set()

    log, handler = logging.getLogger("lit_rlvr"), Handler()
    log.addHandler(handler)
    try:
        assert Stuck(said).score([PAIR]) == [RewardResult(1.0)]
    finally:
        log.removeHandler(handler)
    assert re.fullmatch(rf"waiting for {__name__}.Stuck, 0\.\d+ s: 0 of 1 judged, now row a", lines[0])


def test_a_slow_start_of_workers_does_not_look_like_a_hang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "SLOW_REWARD_SECONDS", 0.05)
    with waiting.Waiting("mine", ["a", "b"]) as slow:
        while len(caplog.messages) < 1:
            time.sleep(0.01)
        with slow.judging(0):
            while len(caplog.messages) < 3:
                time.sleep(0.01)
    assert re.fullmatch(
        r"waiting for mine, .* s: 0 of 2 judged; worker processes are still starting", caplog.messages[0]
    )
    assert re.fullmatch(r"waiting for mine, .* s: 0 of 2 judged, now row a", caplog.messages[2])


def test_a_plain_function_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def length(completion, sample):\n    return len(completion.token_ids)\n\nnumber = 3\n"
    (tmp_path / "my_reward_file.py").write_text(source)
    (tmp_path / "my_broken_file.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    reward = FunctionReward("my_reward_file.length", weight=2.0)
    assert (reward.name, reward.weight) == ("length", 2.0)
    assert reward.score([PAIR]) == [RewardResult(2.0)]
    assert FunctionReward("my_reward_file.length", name="tokens").name == "tokens"
    for path, message in {
        "my_reward_file.nothing": "nothing",
        "my_reward_file.number": "not callable",
        "my_missing_file.f": "cannot be imported: .*'my_missing_file'",
        "my_broken_file.f": "cannot be imported: .*my_broken_file.py:1: .*no_such_dependency",
        "length": "module.function",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            FunctionReward(path)
        assert "\n" not in str(caught.value)
