"""The time of a run on GPUs of a named kind: the arithmetic by hand, the command, and the table of the claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.commands.plan.gpus import DATA_SHEETS, GIB, GPUs
from lit_rlvr.commands.plan.hours import Duration, duration
from lit_rlvr.commands.plan.memory import Lengths, Shape, Strategy
from lit_rlvr.commands.plan.strategies import JobSizes, Plan
from lit_rlvr.policy.families.base import Layers

CLI = Callable[..., Any]
ROOT = Path(__file__).parents[2]
H100 = GPUs.parse("8xH100")
SHAPE = Shape(10**9, 10**9, 10**7, 10**8, Layers(10, 1000, 3000, 1000, 100), None, 0, 1000)
TRAINED, EVALUATED = Lengths(500, 1000), Lengths(600, 3000)
JOB = JobSizes(SHAPE, SHAPE, 4096, 250, TRAINED, EVALUATED, group=10, prompts=80, iterations=90, forwards=1)
PLAN = Plan(Strategy(False, True), H100, 4096, {"vLLM": 40.0 * GIB}, sequences=50)


def found(job: JobSizes = JOB, plan: Plan = PLAN, gpus: GPUs = H100) -> Duration:
    time = duration(job, plan, gpus)
    assert time is not None
    return time


def test_an_iteration_has_hand_computed_seconds() -> None:
    """Each of 8 GPUs has 10 prompts of 250 tokens and 100 completions of 500, 50 at once: 50,000 tokens in 1,000 steps.

    A step reads 2e9 bytes of weights, and each token the 4,000 bytes of 500 others; a forward pass of one is 2e9
    operations, and 2e7 of attention. In a second an H100 reads 0.7 x 3.35e12 bytes and computes 0.5 x 989e12
    operations, or 0.4 x 989e12 in training.
    """
    read, forward, train = 0.7 * 3.35e12, 0.5 * 989e12, 0.4 * 989e12
    generate = 1000 * 0.003 + (1000 * 2e9 + 50_000 * 4000 * 500) / read + 52_500 * 2e9 / forward
    assert generate == pytest.approx(4.108, abs=1e-3)
    passed = 52_500 * 2.02e9
    assert found().generate == pytest.approx(generate)
    assert found().train == pytest.approx(4 * passed / train + passed / forward)
    assert found().hours == pytest.approx(90 * (found().generate + found().train) / 3600)
    many = (1000 * 600 / 1024 * (0.003 + 2e9 / read) + 600_000 * 4000 * 550 / read + 850_000 * 2e9 / forward) / 3600
    assert found().completion_hours == pytest.approx(many), "1,024 at once, the most of an engine"


def test_what_changes_the_time_of_an_iteration() -> None:
    base = found()
    assert found(replace(JOB, models=2)).generate == pytest.approx(2 * base.generate)
    assert found(replace(JOB, forwards=0)).train < base.train < found(replace(JOB, forwards=2)).train
    plain = replace(PLAN, strategy=Strategy(False, False))
    without = replace(JOB, forwards=0)
    assert found(without, plain).train == pytest.approx(3 / 4 * found(without).train)
    long = found(replace(JOB, completion=Lengths(500, 3000)))
    assert long.generate - base.generate == pytest.approx(2000 * (0.003 + 2e9 / (0.7 * 3.35e12))), (
        "waits for the longest"
    )
    assert found(replace(JOB, shared_prefix=False)).train > base.train
    evaluated = found(replace(JOB, evaluated=Lengths(1200, 3000)))
    assert evaluated.completion_hours > base.completion_hours and evaluated.seconds == base.seconds
    a100 = found(gpus=GPUs.parse("8xA100"))
    assert a100.train / base.train == pytest.approx(989 / 312) and a100.generate > base.generate


def test_no_time_without_a_data_sheet_or_without_vllm_there() -> None:
    assert duration(JOB, PLAN, GPUs.parse("8x80GB")) is None
    assert duration(JOB, replace(PLAN, sequences=None), H100) is None
    assert duration(JOB, replace(PLAN, strategy=Strategy(True, True, offload=True)), H100) is None
    endless = found(replace(JOB, iterations=None))
    assert endless.hours is None and endless.as_data()["gpu_hours"] is None
    assert "the number of iterations is not known: give trainer.max_steps" in endless.text(JOB, H100)


def test_named_gpus_have_the_memory_of_their_kind() -> None:
    assert GPUs.parse("4xA100-40") == GPUs(4, 40, "A100-40") and GPUs.parse("8xH200").gib == 141
    assert GPUs(8, 80, "H100") == H100 and DATA_SHEETS["H100"].bandwidth == 3.35


def test_the_command_prints_hours(run_folder: Path, lit_rlvr: CLI) -> None:
    arguments = ("plan", "--config", "tiny.yaml", "--rollout.engine", "vllm", "--trainer.max_steps", 6)
    done = lit_rlvr(*arguments, "--gpus", "2xH100", "--json")
    assert done.status == 0, done.err
    time = json.loads(done.out)["time"]
    assert time["iterations"] == 6 and 0 < time["hours"] == pytest.approx(6 * time["seconds_per_iteration"] / 3600)
    assert time["gpu_hours"] == pytest.approx(2 * time["hours"])
    assert json.loads(lit_rlvr(*arguments, "--gpus", "2x80GB", "--json").out)["time"] is None
    arguments = (
        *arguments,
        "--rollout.evaluation.sampling.max_tokens",
        20,
        "--data.init_args.reading.max_prompt_tokens",
        30,
    )
    longer = json.loads(lit_rlvr(*arguments, "--gpus", "2xH100", "--json").out)["time"]
    assert longer["gpu_hours_per_1000_completions"] > 2 * time["gpu_hours_per_1000_completions"], "20 tokens, not 8"
    said = " ".join(lit_rlvr(*arguments, "--gpus", "2xH100").out.split())
    assert (
        "all prompts have the 30 tokens that data.init_args.reading.max_prompt_tokens allows, completions 8 tokens"
        in said
    )
    assert "20 in validation and evaluation" in said and "Each GPU generates 8 completions of a rollout" in said
    said = " ".join(lit_rlvr(*arguments, "--gpus", "2xH100", "--lengths", "6").out.split())
    assert "completions 6 tokens in training and 6 in validation and evaluation" in said
    assert "never compared with a GPU" in said and "s an iteration on 2 x H100 (generate " in said
    wrong = lit_rlvr(*arguments, "--gpus", "2xV100")
    assert wrong.status == 2 and "known are A100-40, A100, A800, H100, H200" in wrong.err


@pytest.mark.slow
def test_the_table_of_claims_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/scripts")
    from gpu_hours import table

    assert table() in (ROOT / "docs/studies.md").read_text(), "run: python docs/scripts/gpu_hours.py"
