"""Runs with a judge: they learn what it pays, log how it agrees with a rule, and end with what they have saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stub_judge import StubJudge, answer_in
from tiny_rewards import judged_as_is
from tiny_runs import CLI, fit, metrics, summary, to, write_config

from lit_rlvr.configs import config_folder, load_config

SHORT = ("--trainer.limit_val_batches", 0, "--trainer.num_sanity_val_steps", 0)


def capitals(text: str, fields: dict[str, list[Any]]) -> Any:
    """Pays answers that begin with an ASCII character, but not in full where that is a digit."""
    first = answer_in(text)[:1]
    return {"score_1": int(first.isascii()), "score_2": int(first.isdigit())}


def judged_by(stub: StubJudge, **options: Any) -> tuple[str, str]:
    init_args = {
        "server": stub.server(max_retries=0, **options),
        "rubric": {"is plain": 2, "is a number": -1},
        "truncated_is_wrong": False,
    }
    judge = {"class_path": "RubricJudge", "init_args": init_args}
    return "--rollout.rewards", json.dumps([judge, judged_as_is("first_token")])


@pytest.mark.slow
def test_a_judge_that_ends_ends_the_run_with_what_it_has_saved(run_folder: Path, lit_rlvr: CLI) -> None:
    steps = (*SHORT, "--trainer.max_steps", 4)
    with StubJudge(capitals) as stub:
        fit(lit_rlvr, *steps, *judged_by(stub), *to("whole"))
        limited = fit(lit_rlvr, *steps, *judged_by(stub, max_calls=40), status=2).err.splitlines()[-1]
        assert "error: rollout.rewards: judge.server.max_calls: the budget is used up (40 of 40); raise it" in limited
        before = stub.calls
        fit(lit_rlvr, *steps, *judged_by(stub, max_calls=400), "--ckpt_path", "last")
        assert stub.calls - before < 40, "answers are kept"
        stub.faults = [None, *[500] * 99]
        dead = fit(lit_rlvr, *steps, *judged_by(stub), *to("dead"), status=2).err.splitlines()[-1]
    assert "reward 'rubric_judge' failed on" in dead and "InternalServerError: Error code: 500" in dead
    gone = fit(lit_rlvr, *steps, *judged_by(stub), *to("gone"), status=2).err.splitlines()[-1]
    assert (
        [text for text in ("error: judge 'stub' at http", "ConnectError") if text not in gone],
        not (run_folder / "gone").exists(),
    ) == ([], True)
    whole, resumed = (summary(run_folder / name) for name in ("whole", "run"))
    assert resumed["weights_sha256"] == whole["weights_sha256"] and resumed["resumed_from_step"] > 0


@pytest.mark.slow
def test_the_recipe_learns_its_rubric(run_folder: Path, tiny_model_folder: Path, lit_rlvr: CLI) -> None:
    """From 0.3 to 1 of what its rubric pays, as the stub judges it."""
    config = load_config(config_folder() / "smoke/judge.yaml")
    judge = config["rollout"]["rewards"][1]["init_args"]
    with StubJudge(capitals) as stub:
        judge |= {"server": {**judge["server"], "base_url": stub.url}, "truncated_is_wrong": False}
        write_config(run_folder / "tiny.yaml", config)
        steps = ("--trainer.max_steps", 30, "--model.init_args.lr", 0.003, "--rollout.group_size", 8)
        fit(lit_rlvr, *SHORT, *steps, *to("run"), "--model.init_args.model", tiny_model_folder)
    rows = [float(row["reward/rubric_judge"]) for row in metrics(run_folder / "run")]
    assert sum(rows[-5:]) > sum(rows[:5]) + 1, rows
    shown = lit_rlvr("explain", "run").out
    assert "Scores by criterion" in shown and "The answer gives one number" in " ".join(shown.split())
    assert "The answer repeats the question" in (run_folder / "run/explain.html").read_text()
