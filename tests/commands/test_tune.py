"""`lit-rlvr tune` by the command line: what it measures, what it chooses and why, and that a run takes its config."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import CLI

from lit_rlvr.commands.tune import mixed_share
from lit_rlvr.run.health.progress import NOISY, rollout_factor
from lit_rlvr.training import models

TUNE = ("tune", "--config", "tiny.yaml", "--minutes", 0.5)


def chosen(folder: Path, name: str = "tuned.yaml") -> tuple[dict[str, Any], str]:
    """The settings of a written config, and its comments."""
    text = (folder / name).read_text()
    return yaml.safe_load(text), "\n".join(line[2:] for line in text.splitlines() if line.startswith("# "))


def rows(folder: Path, answers: list[str], **columns: list[str]) -> tuple[Any, ...]:
    """Write rows to data.jsonl; return the options that train on them."""
    lines = [
        {"prompt": f"{k}?", "answer": answer} | {name: cells[k] for name, cells in columns.items()}
        for k, answer in enumerate(answers)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ("--data.init_args.train", "data.jsonl", "--data.init_args.prompts_per_rollout", 4)
    return ("--data", "PromptDataModule", *files)


def rewards(*names: str) -> tuple[str, str]:
    items = [
        {"class_path": "FunctionReward", "init_args": {"path": f"tiny_rewards.{n}", "truncated_is_wrong": False}}
        for n in names
    ]
    return "--rollout.rewards", json.dumps(items)


@pytest.mark.parametrize("values", [[0, 0, 0, 1, 1, 2], [1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5], [0.5, 0.5, 1, 0]])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_share_of_mixed_groups_is_that_of_all_draws(values: list[float], size: int) -> None:
    draws = list(combinations(values, size))
    assert mixed_share(values, size) == pytest.approx(sum(len({*draw}) > 1 for draw in draws) / len(draws))
    assert mixed_share(values[:1], size) == mixed_share([], size) == 0.0


def test_a_run_takes_the_config_that_it_writes(run_folder: Path, lit_rlvr: CLI) -> None:
    result = lit_rlvr(*TUNE, "--json", status=0)
    settings, reasons = chosen(run_folder)
    found = json.loads(result.out)
    assert (found["file"], found["sizes"].keys(), found["prompts"] >= 8) == ("tuned.yaml", {"4", "8", "16"}, True)
    assert settings["model"]["init_args"]["lr"] == "auto" and settings["rollout"]["group_size"] == 4
    assert f"group_size 4: {found['sizes']['4']:.0%} of the prompts give a signal" in reasons
    assert "warm_start" not in settings and ("data" in settings) == ("would be mostly noise" in reasons)
    prompts = settings.get("data", {"init_args": {"prompts_per_rollout": 4}})["init_args"]["prompts_per_rollout"]
    (run_folder / "tuned.yaml").write_text(yaml.safe_dump(settings))
    dry = lit_rlvr("fit", "--config", "tiny.yaml", "--config", "tuned.yaml", "--dry-run", "--json")
    assert dry.status == 0 and json.loads(dry.out)["sizes"]["sequences"] == 4 * prompts
    lit_rlvr(*TUNE, status=2, says="--out: tuned.yaml exists; choose another name")


def test_the_gradients_noise_chooses_the_prompts(run_folder: Path, lit_rlvr: CLI) -> None:
    """As many as the noise scale allows, of the 40 that there are."""
    given = (*rows(run_folder, ["7"] * 40), *rewards("first_token"))
    found = json.loads(lit_rlvr(*TUNE, "--minutes", 2, *given, "--json", status=0).out)
    settings, reasons = chosen(run_folder)
    assert found["prompts"] == 40 and found["noise_scale"] > NOISY * 4, "else the test is about nothing"
    chosen_prompts = settings["data"]["init_args"]["prompts_per_rollout"]
    assert chosen_prompts == 4 * rollout_factor(found["noise_scale"], 4, 40 / 4)
    assert f"The gradient's signal needs about {found['noise_scale']:.0f} prompts in a step." in reasons
    assert f"prompts_per_rollout {chosen_prompts}: the gradient of a step on 4 would be mostly noise." in reasons


def test_a_model_that_cannot_answer_gets_the_tokens_and_a_warm_start_that_it_needs(
    run_folder: Path, lit_rlvr: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured after the warm start, and the run takes that from the cache."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    data = rows(run_folder, ["seven"] * 8)
    limits = ("--rollout.sampling.max_tokens", 2, "--rollout.evaluation.sampling.max_tokens", 2)
    lit_rlvr(*TUNE, *data, *limits, "--rollout.rewards", "[tiny_rewards.whole_answer]", "--out", "t.yaml", status=0)
    settings, reasons = chosen(run_folder, "t.yaml")
    sampling = settings["rollout"]["evaluation"]["sampling"]
    assert settings["rollout"]["sampling"]["max_tokens"] == sampling["max_tokens"] >= 6
    assert "only 0% of the answers are right, so supervised steps on the column 'answer' come first" in reasons
    assert "not 2 as before" in reasons and "6: accuracy 0.0" not in reasons
    assert settings["warm_start"]["solution"] == "answer"
    fit = lit_rlvr("fit", "--config", "tiny.yaml", *data, "--config", "t.yaml", "--trainer.max_steps", 1)
    assert fit.status == 0 and "Warm start: at most" not in fit.err, fit.err
    assert lit_rlvr(*TUNE, *data, "--rollout.rewards", "[tiny_rewards.whole_answer]", "--out", "b.yaml").status == 0
    settings, _ = chosen(run_folder, "b.yaml")
    assert settings["warm_start"]["solution"] == "answer", "one token of max_tokens is a column like any other"
    assert lit_rlvr(*TUNE, *data, "--rollout.rewards", "[tiny_rewards.always_wrong]", "--out", "w.yaml").status == 0
    settings, reasons = chosen(run_folder, "w.yaml")
    assert "warm_start" not in settings and "A warm start needs a column of texts that are right" in reasons


def test_a_worked_column_is_preferred_if_it_is_learnt_better_however_long_it_is(
    run_folder: Path, lit_rlvr: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "lit_rlvr.run.warm_start.exact_match",
        lambda policy, pairs, *rest: 0.9 if "two and five are" in pairs[0][1].text else 0.2,
    )
    data = rows(run_folder, ["seven"] * 8, worked=["two and five are seven"] * 8)
    lit_rlvr(*TUNE, *data, "--rollout.rewards", "[tiny_rewards.ends_right]", "--out", "t.yaml", status=0)
    settings, reasons = chosen(run_folder, "t.yaml")
    assert settings["warm_start"]["solution"] == "worked"
    assert "the column 'worked' come first ('worked': 0.900 exact after 10 steps; 'answer': 0.200 exact" in reasons
    assert settings["rollout"]["sampling"]["max_tokens"] >= len("two and five are seven") + 1


def test_a_model_that_rambles_gets_room_to_end(run_folder: Path, lit_rlvr: CLI) -> None:
    """A right answer of few tokens does not lower it; the reasons say what was measured."""
    limits = ("--rollout.sampling.max_tokens", 2)
    assert lit_rlvr(*TUNE, *limits, "--minutes", 0.01, "--out", "r.yaml").status == 0
    settings, reasons = chosen(run_folder, "r.yaml")
    assert settings["rollout"]["sampling"]["max_tokens"] == 32
    assert "max_tokens 32, not 2 as before (2: accuracy " in reasons


def test_minutes_end_a_warm_start_too(
    run_folder: Path, lit_rlvr: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says before it starts what it will take, and afterwards what the minutes have cut."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    data = rows(run_folder, ["seven"] * 4 + ["eight"] * 4)
    result = lit_rlvr(*TUNE, *data, "--rollout.rewards", "[tiny_rewards.whole_answer]", "--minutes", 0.001, status=0)
    assert (
        "tune: about 0.0 minutes with loading, of which a warm start takes up to 0.0; a batch under way" in result.err
    )
    settings, reasons = chosen(run_folder)
    assert "The minutes ended these steps at 1, and what follows is measured after them" in reasons
    assert settings["warm_start"]["steps"] == 100, "a run makes all of them"


def test_a_warm_start_comes_first(
    run_folder: Path, lit_rlvr: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts without a signal are named: there are easier ones."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    warm = ("--warm_start.steps", 2, "--warm_start.checked", 4)
    assert lit_rlvr(*TUNE, *warm, "--rollout.rewards", "[tiny_rewards.always_wrong]", "--out", "f.yaml").status == 0
    settings, reasons = chosen(run_folder, "f.yaml")
    assert "warm_start" not in settings and "0% of the answers are right: give the warm start more steps" in reasons
    assert len(list((tmp_path / "cache" / "warm-start").glob("[!.]*"))) == 1
    few = rows(run_folder, ["no"] * 30 + ["yes"] * 10)
    assert lit_rlvr(*TUNE, *few, *rewards("even_if_yes"), "--out", "d.yaml").status == 0
    settings, reasons = chosen(run_folder, "d.yaml")
    assert "Take easier prompts; lit-rlvr filter keeps those" in reasons
    assert settings["rollout"]["group_size"] == 8, "more completions would add nothing"


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--minutes", 0), "tune.minutes: 0"),
        (("--out", "t.json"), "--out: t.json: give a file that ends in .yaml"),
        (("--out", "tiny.yaml"), "--out: tiny.yaml exists; choose another name"),
        (("--minute", 1), "did you mean"),
        (("--out", "/proc/no_such/t.yaml"), "cannot be written"),
    ],
)
def test_wrong_minutes_and_outputs_are_refused_before_weights_load(
    run_folder: Path, lit_rlvr: CLI, more: tuple[Any, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load_policy", lambda *_, **__: pytest.fail("loads weights"))
    result = lit_rlvr(*TUNE, *more)
    assert (result.status, said in result.err, len(result.err.splitlines())) == (2, True, 1), result.err
