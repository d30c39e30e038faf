"""The table of advice: what a run is told to do, and that it is never what has been tried."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from tiny_runs import CLI, FIT

from lit_rlvr.run.advice import ADVICE, LARGER, TRIED, Advice, RunHistory, describe_earlier
from lit_rlvr.run.folder import CONFIG_HEADER
from lit_rlvr.run.health.findings import at_validation
from lit_rlvr.run.health.progress import best_validation, progress
from lit_rlvr.run.outputs import draw_noise

SETTINGS = {
    "model": {"class_path": "GRPO", "init_args": {"model": "smollm2", "lr": 1e-6, "loss": {"entropy_coef": 0.0}}},
    "data": {"class_path": "PromptDataModule", "init_args": {"train": "a.jsonl", "columns": {"answer": "said"}}},
    "warm_start": {"steps": 0, "solution": "solution"},
    "checkpoint": {"best": None},
}


def history(*tried: str) -> RunHistory:
    return RunHistory(own=frozenset(tried))


def rows_before(row: Advice) -> list[Advice]:
    same = [other for other in ADVICE if (other.state, other.case) == (row.state, row.case)]
    return same[: same.index(row)]


@pytest.mark.parametrize("row", ADVICE, ids=lambda row: f"{row.state}, {row.case}: {row.sentence[:30]}")
def test_a_row_is_the_advice_once_those_before_it_have_been_tried(row: Advice) -> None:
    before = [other.tried for other in rows_before(row)]
    assert "" not in before, "what comes after a row that always helps is never said"
    numbers = {"visible": 0.1, "size": 8, "needed": 120, "prompts": 64}
    numbers |= {name: number for name, (_, number) in LARGER.items()}
    said = history(*before).advise(row.state, row.case, **numbers)
    assert said == f"{row.sentence.format(**numbers)}: `{row.command.format(**numbers)}`"
    assert not row.tried or row.tried in TRIED
    if row.tried:
        assert row.command not in history(*before, row.tried).advise(row.state, row.case, **numbers)


def test_where_everything_has_been_tried_it_says_so_and_why() -> None:
    said = history(*TRIED).advise("Nothing is learnt so far")
    assert said == (
        "nothing more is known to help: `lit-rlvr tune`, a warm start, worked answers, lr: auto have been tried, so "
        "the model cannot do these prompts yet, or the reward does not see right answers; easier prompts first, or a "
        "larger model"
    )
    assert {*TRIED} == {row.tried for row in ADVICE} - {""}


def changed(**changes: object) -> str:
    """The config.yaml of a run, with `group__option` changed."""
    settings = json.loads(json.dumps(SETTINGS))
    for path, value in changes.items():
        *groups, option = path.split("__")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
        place[option] = value
    return CONFIG_HEADER + yaml.safe_dump(settings)


def test_more_is_more_than_the_run_has() -> None:
    sizes = {
        "rollout__sampling__max_tokens": 1024,
        "trainer__max_steps": 500,
        "data__init_args__prompts_per_rollout": 64,
    }
    found = RunHistory.of_config(changed(**sizes))
    assert "--rollout.sampling.max_tokens 2048`" in found.advise("Completions are cut off")
    tried = replace(found, own=frozenset({"model.init_args.lr: auto"}))
    longer = tried.advise("No better than at the start", visible=0.1)
    assert "--trainer.max_steps 1000 --data.init_args.prompts_per_rollout 128`" in longer
    endless = replace(RunHistory.of_config(changed(trainer__max_steps=-1)), own=tried.own)
    assert "--trainer.max_steps 100 " in endless.advise("No better than at the start", visible=0.1)


@pytest.mark.parametrize(("rewards", "named"), [
    ([{"class_path": "lit_rlvr.MathAnswer", "init_args": {"weight": 1.0}}], "MathAnswer"),
    ([{"class_path": "my_parts.Vowels"}, {"class_path": "lit_rlvr.Format"}], "my_parts.Vowels"),
    ([{"class_path": "lit_rlvr.rewards.FunctionReward", "init_args": {"path": "sums.score"}}], "sums.score"),
    (None, "my_task.score"),
])  # fmt: skip
def test_a_command_names_the_reward_of_the_run(rewards: list[Any] | None, named: str) -> None:
    found = RunHistory.of_config(changed(rollout__rewards=rewards))
    said = found.advise("Most prompts give no signal", "every completion has one reward")
    assert f"`lit-rlvr check {named} --text" in said


@pytest.mark.parametrize(("changes", "tried"), [
    ({}, set()),
    ({"model__init_args__lr": "auto"}, {"model.init_args.lr: auto"}),
    ({"warm_start__steps": 9, "warm_start__solution": "said"}, {"warm_start.steps"}),
    ({"warm_start__steps": 9, "warm_start__solution": "worked"}, {"warm_start.steps", "warm_start.solution"}),
    ({"warm_start__steps": 9, "warm_start__solution": ["said", "worked"]}, {"warm_start.steps", "warm_start.solution"}),
    ({"checkpoint__best": "val/accuracy"}, {"checkpoint.best"}),
    ({"model__init_args__loss__entropy_coef": 0.01}, {"model.init_args.loss.entropy_coef"}),
    ({"model__init_args__importance__correction": "token_truncate"},
     {"model.init_args.importance.correction: token_truncate"}),
    ({"trainer__precision": "32-true"}, {"trainer.precision: 32-true"}),
])  # fmt: skip
def test_a_config_shows_what_its_run_has_tried(changes: dict[str, object], tried: set[str]) -> None:
    found = RunHistory.of_config(changed(**changes))
    assert (found.own, found.earlier) == (tried, set())
    assert found.has_bare_start == (tried == {"warm_start.steps"})


def earlier_run(folder: Path, learnt: str, **changes: object) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(changed(**changes))
    (folder / "summary.json").write_text(json.dumps({"learnt": learnt}))


def test_what_came_before_is_in_the_config(tmp_path: Path) -> None:
    """Configs of `tune`, and runs of the same task next to the new one that ended without success."""
    settings, failed = changed(), "Nothing is learnt so far: ... What helps: ..."
    assert describe_earlier(tmp_path / "new", settings) == ""
    assert describe_earlier(tmp_path / "new", settings, ["# my own\na: 1\n"]) == ""
    tuned = describe_earlier(tmp_path / "new", settings, ["# Written by lit-rlvr tune; put it after\na: 1\n"])
    assert tuned == "# Tried before: `lit-rlvr tune`\n"
    earlier_run(tmp_path / "success", "Right answers are learnt: ...", model__init_args__lr="auto")
    earlier_run(tmp_path / "other", failed, data__init_args__train="b.jsonl", model__init_args__lr="auto")
    assert describe_earlier(tmp_path / "new", settings) == ""
    earlier_run(tmp_path / "new", failed, model__init_args__lr="auto", warm_start__steps=5)
    line = describe_earlier(tmp_path / "new", settings)
    assert line == "# Tried before: a warm start, worked answers, lr: auto\n"
    found = RunHistory.of_config(CONFIG_HEADER + line + settings)
    assert found.earlier == {"warm_start.steps", "warm_start.solution", "model.init_args.lr: auto"}
    assert found.advise("Nothing is learnt so far").startswith("measure what this model needs")


def test_a_run_that_was_tuned_is_not_told_to_tune(run_folder: Path, lit_rlvr: CLI) -> None:
    """Neither after it was resumed, nor by the config of its folder."""
    (run_folder / "tuned.yaml").write_text("# Written by lit-rlvr tune; put it after\nrollout: {group_size: 4}\n")
    lit_rlvr(*FIT, "--config", "tuned.yaml", "--trainer.max_steps", 2, status=0)
    lit_rlvr(*FIT, "--ckpt_path", "last", "--trainer.max_steps", 3, status=0)
    lines = (run_folder / "run/config.yaml").read_text().splitlines()
    assert lines[:2] == [CONFIG_HEADER.strip(), "# Tried before: `lit-rlvr tune`"]
    assert RunHistory.of_folder(run_folder / "run").earlier == {"tune"}
    assert RunHistory.of_folder(run_folder / "none") == RunHistory()


def validated(accuracy: float, step: int = 0, **more: float) -> dict[int, dict[str, float]]:
    row = {"val/accuracy": accuracy, "val/a/accuracy": accuracy, "val/a/accuracy_error": 0.03, "val/a/guess": 0.22}
    return {step: row | {f"val/a/{name}": value for name, value in more.items()}}


def test_a_warm_start_on_bare_answers_that_ends_at_a_guess_is_told_to_show_the_work() -> None:
    bare = RunHistory(own=frozenset({"warm_start.steps"}), has_bare_start=True)
    (found,) = at_validation(validated(0.18), bare)
    assert str(found) == (
        "The answers alone teach only the form: 0.18 right after the warm start, a guess has 0.22. What helps: give "
        "worked answers in a column: `lit-rlvr fit --config my.yaml --warm_start.steps 100 --warm_start.solution "
        "worked` (docs/it_does_not_learn.md)."
    )
    assert [finding.title for finding in at_validation(validated(0.27), bare)] == [found.title]
    assert not [*at_validation(validated(0.29), bare)], "better than a guess by more than two standard errors"
    assert not [*at_validation(validated(0.18))], "no warm start has run"


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ({"same_answer": 0.8, "reward": 0.6, "same_answer_reward": 0.55}, "pay right answers only"),
        ({"same_answer": 0.8, "reward": 0.4, "same_answer_reward": 0.22}, "measure what this model needs"),
        ({"same_answer": 0.8}, "measure what this model needs"),
    ],
)
def test_a_policy_that_gives_one_answer_is_named_with_what_it_earns(more: dict[str, float], remedy: str) -> None:
    (found,) = at_validation(validated(0.22, 5, **more))
    assert found.title == "One answer for all questions" and found.remedy.startswith(remedy)
    assert "80% of the answers in validation (a) are the same, of the references 22%" in found.evidence
    earned = f"; it earns {more['same_answer_reward']:.2f}, all answers {more['reward']:.2f}" if len(more) > 1 else ""
    assert found.evidence.endswith(f"22%{earned}")


def test_answers_that_differ_as_the_references_do_are_no_single_one() -> None:
    assert not [*at_validation(validated(0.22, 5, same_answer=0.5))]
    assert not [*at_validation(validated(0.8, 5, same_answer=0.95, guess=0.8))], "the references are mostly the same"


def test_the_best_validation_is_named_if_the_last_is_worse_by_more_than_noise() -> None:
    rows = validated(0.75, 10) | validated(0.6, 20)
    assert best_validation(rows) == (10, 0.75) and best_validation(validated(0.75, 10) | validated(0.7, 20)) is None
    paired = validated(0.75, 10) | validated(0.7, 20, fall_error=0.02)
    assert best_validation(paired) == (10, 0.75), "by question the difference is more certain"
    (found,) = at_validation(rows)
    assert found.evidence == "0.750 at step 10, 0.600 at step 20" and "--checkpoint.best val/accuracy" in found.remedy
    (kept,) = at_validation(rows, history("checkpoint.best"))
    assert "lit-rlvr export runs/my_run/checkpoints/best.ckpt" in kept.remedy


def test_the_plot_has_the_noise_of_validations_and_the_constant_guess() -> None:
    axis = Figure().subplots()
    draw_noise(axis, validated(0.5) | validated(0.6, 8))
    (line,), (band,) = axis.lines, axis.collections
    assert line.get_label() == "a constant guess" and set(line.get_ydata()) == {0.22}
    corners = {tuple(map(float, corner)) for corner in band.get_paths()[0].vertices.round(6)}
    assert {(0.0, 0.44), (0.0, 0.56), (8.0, 0.54), (8.0, 0.66)} <= corners


def test_the_gain_of_the_warm_start_stands_apart() -> None:
    first, last = validated(0.45), validated(0.75, 8)
    first[0]["val/accuracy_before_warm_start"] = 0.02
    last[8] |= {"rollout/accuracy": 0.5, "rollout/truncated": 0.1}
    found = progress(first | last)
    assert found is not None and found.title == "Right answers are learnt"
    assert "validation 0.020 -> (warm start) 0.450 -> 0.750 (+-0.060; always the most" in found.evidence
