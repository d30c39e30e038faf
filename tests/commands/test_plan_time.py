"""`lit-rlvr plan --time`: the arithmetic by hand, and a real measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlvr.commands.plan.timing import estimate, print_estimate

CLI = Callable[..., Any]
SIZES = {"iterations": 900, "sequences": 64, "validations": 4, "validation_completions": 320}
SUMMARY = {"iterations": 7, "seconds_per_step": {"sync": 1.0, "generate": 4.0, "score": 0.0, "train": 3.0, "step": 8.0}}


def test_hours_are_hand_computed_values(capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(SIZES, SUMMARY)
    assert found["training_hours"] == pytest.approx(2.0)  # 900 x 8 s
    assert found["validation_hours"] == pytest.approx(4 * 320 * 4 / 64 / 3600)  # 80 s
    assert found["hours"] == pytest.approx(2 + 80 / 3600)
    assert found["parts"] == {"sync": 1.0, "generate": 4.0, "score": 0.0, "train": 3.0}
    print_estimate(found)
    said = capsys.readouterr().out
    assert "7 iterations measured: 8.00 s each" in said and "900 iterations: 2.02 hours" in said


def test_a_run_without_an_end_has_no_length(capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(SIZES | {"iterations": None}, SUMMARY)
    assert found["hours"] is None and found["seconds_per_iteration"] == 8.0
    print_estimate(found)
    assert "no limit" in capsys.readouterr().out


def test_the_plan_for_other_gpus_is_another_question(run_folder: Path, lit_rlvr: CLI) -> None:
    done = lit_rlvr("plan", "--config", "tiny.yaml", "--time", "--gpus=8x80GB")
    assert done.status == 2 and "leave out --gpus, or leave out --time" in done.err


def test_a_measurement_goes_to_no_tracker(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def fit(config: Sequence[str], *more: str) -> dict[str, Any]:
        asked.append((*config, *more))
        return {"sizes": SIZES, **SUMMARY}

    monkeypatch.setattr("lit_rlvr.commands.plan.timing._fit", fit)
    config = yaml.safe_load((run_folder / "tiny.yaml").read_text()) | {"trackers": ["tensorboard"]}
    (run_folder / "tracked.yaml").write_text(yaml.safe_dump(config))
    done = lit_rlvr("plan", "--config", "tracked.yaml", "--time", "--trackers", "[wandb]", "--trainer.logger", "true")
    assert done.status == 0 and len(asked) == 2, done.err
    with pytest.raises(SystemExit, match="0"):
        lit_rlvr("fit", *asked[1], "--print_config")
    measured = yaml.safe_load(capsys.readouterr().out)
    assert measured["trackers"] is None and measured["trainer"]["logger"] is False


@pytest.mark.slow
def test_a_config_is_measured(run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "helpers"), prepend=":")
    before = sorted(run_folder.iterdir())
    done = lit_rlvr("plan", "--config", "tiny.yaml", "--time", "--json", "--trainer.max_steps", 3)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["measured_iterations"] == found["iterations"] == 3
    assert 0 < found["training_hours"] == pytest.approx(3 * found["seconds_per_iteration"] / 3600)
    assert sorted(run_folder.iterdir()) == before
    wrong = lit_rlvr("plan", "--config", "tiny.yaml", "--time", "--rollout.group_size", 0)
    assert wrong.status == 2 and "rollout.group_size: 0 is not positive" in wrong.err and wrong.err.count("error") == 1
