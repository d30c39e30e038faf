"""Cut-off completions and prompts without a signal: in the step's line and as warnings."""

import json
import math
import re
from pathlib import Path

import pytest
from tiny_fit import fit as fit_in_process
from tiny_rewards import judged_as_is
from tiny_runs import CLI, FIT, completions, metrics

from lit_rlvr.run.monitor import LostWork


def said(shares: list[float], name: str) -> list[list[str]]:
    """The warnings in iterations with these shares of one kind."""
    lost = LostWork()
    return [lost.look({name: share}) for share in shares]


def test_the_share_without_a_signal_is_that_of_groups_with_one_reward(tiny_model_folder: Path, tmp_path: Path) -> None:
    _, seen = fit_in_process(tiny_model_folder, tmp_path, steps=3)
    shares = [sum(len(set(group)) == 1 for group in rollout.rewards.tolist()) / 6 for rollout in seen.rollouts]
    assert [logged["train/no_signal"] for logged in seen.metrics] == pytest.approx(shares)
    assert 0 < max(shares) < 1


def test_checks_that_limits_stop_are_reported_once() -> None:
    lines = said([0.008, 0.008, 0.016, 0.04, 0.04, 0.04, 0.04], "reward/status/timeout")
    assert [k for k, line in enumerate(lines) if line] == [2] and "stopped the checks of 1.1% of the" in lines[2][0]


def test_a_correction_that_drops_nearly_everything_is_reported_once() -> None:
    shares = [0.95, math.nan, 0.5, 0.5, 0.5, 0.9, 0.99, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert [k for k, line in enumerate(said(shares, "train/importance_dropped")) if line] == [0]
    assert said([0.5, 0.9, 1.0, 1.0, 1.0], "train/importance_dropped")[4][0].startswith(
        "the importance correction dropped 98% of the tokens, so hardly anything is trained; widen "
    )


def test_few_effective_samples_are_reported_at_most_every_tenth_iteration() -> None:
    lost = LostWork()
    sizes = [0.31, math.nan, *[0.123] * 13, 0.9, *[0.2] * 12]
    lines = [lost.look({"train/staleness/ess": size, "train/staleness/max": 4.0}) for size in sizes]
    assert [k for k, line in enumerate(lines) if line] == [2, 12, 22]
    assert lines[2] == [
        "the importance correction leaves an effective sample of 12% of the tokens, which are up to 4 iterations old; "
        "lower rollout.staleness or model.lr, or weigh each token by itself (model.importance.correction: "
        "token_truncate)"
    ]


def test_each_step_prints_a_line_and_one_warning(run_folder: Path, lit_rlvr: CLI) -> None:
    """Validation completions are cut off at training's length if only that is given."""
    options = ("--rollout.sampling.max_tokens", 2, "--rollout.evaluation.sampling.max_tokens", "null")
    result = lit_rlvr(
        *FIT, *options, "--rollout.rewards", json.dumps([judged_as_is("dead")]), "--trainer.max_steps", 4, status=0
    )
    cut = [row["finish_reason"] == "length" for row in completions(run_folder / "run")]
    first = metrics(run_folder / "run")[1]
    assert any(cut) and float(first["rollout/truncated"]) > 0.5
    share = f"{float(first['rollout/truncated']):.0%}"
    assert f"step 1/4  reward 1.000  accuracy 1.000  truncated {share}  no signal 100%  " in result.err
    assert "first rollout: 0 of 4 prompts give a signal with 4 completions each, accuracy 1.000; the run" in result.err
    assert "step 1: Completions are cut off: share cut off: " in result.err
    assert "step 1: Most prompts give no signal: 100% of the prompts had the same reward for all of" in result.err
    assert "; every completion had the reward 1. What helps: if some deserve another reward, mend it" in result.err
    assert (
        len(re.findall("Completions are cut off: ", result.err)) == len(re.findall("give no signal: ", result.err)) == 1
    )
    lengths = [
        float(row["val/arithmetic/length"]) for row in metrics(run_folder / "run") if row["val/arithmetic/length"]
    ]
    assert lengths and max(lengths) <= 2


@pytest.mark.slow
def test_the_first_rollout_is_described_once_and_not_after_a_resume(run_folder: Path, lit_rlvr: CLI) -> None:
    start = lit_rlvr(*FIT, "--trainer.max_steps", 2)
    assert start.err.count("first rollout: ") == 1 and re.search(r"the run takes about \d+ s", start.err), start.err
    more = lit_rlvr(*FIT, "--ckpt_path", "last", "--trainer.max_steps", 3)
    assert more.status == 0 and "first rollout: " not in more.err
    endless = lit_rlvr(
        *FIT, "--trainer.max_steps", -1, "--trainer.max_time", "00:00:00:01", "--trainer.default_root_dir", "endless"
    )
    (line,) = [line for line in endless.err.splitlines() if "first rollout: " in line]
    assert "the run takes" not in line
