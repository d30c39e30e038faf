"""`fit --dry-run` says what the run would be, loads no weights, writes nothing, and fails like `fit`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI

DRY = ("fit", "--config", "tiny.yaml", "--dry-run")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run loads no weights")

    for module in ("lit_rlvr.training.models", "lit_rlvr.run.warm_start"):
        monkeypatch.setattr(f"{module}.load_policy", fail)


@pytest.fixture(autouse=True)
def nothing_written(run_folder: Path) -> Iterator[None]:
    """The current folder is as before."""
    before = contents(run_folder)
    yield
    assert contents(run_folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} | {
        str(path): b"" for path in folder.rglob("*") if path.is_dir()
    }


def test_it_says_what_the_run_would_be(lit_rlvr: CLI) -> None:
    done = lit_rlvr(*DRY, status=0)
    for line in (
        "algorithm: GRPO", "advantage: grpo", "engine: hf", "devices: 1 x cpu", "precision: 32-true",
        "run folder: run", "rewards: 1 x first_token", "sequences per rollout: 16",
        "steps: 6 optimizer steps, 6 iterations, 1.5 passes over the training prompts",
        "data: arithmetic train: 16 prompts of ", "validation: arithmetic validation: 20 prompts of ",
    ):  # fmt: skip
        assert f"{line}" in done.out, line
    assert [text for text in ("<|im_start|>user\nWhat is ", "memory: ", "parameters") if text not in done.out] == []
    assert "at most 4096 tokens at once; engine hf" in done.err and not any(
        word in done.err for word in ("error", "model.lr")
    )


def test_a_micro_batch_has_a_whole_row_however_small_its_budget(lit_rlvr: CLI) -> None:
    done = lit_rlvr(*DRY, "--model.init_args.compute.tokens_per_microbatch", 8, "--json")
    prompts = int(json.loads(done.out)["run"]["data"].split(" prompts of ")[1].split(" to ")[1].split(" tokens")[0])
    said = f"at most {prompts + 8} tokens at once (the longest prompt with its completion alone, so more than "
    assert f"{said}model.compute.tokens_per_microbatch=8); engine hf" in done.err, done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "iterations", "said"),
    [
        (["--trainer.max_epochs", 2, "--model.init_args.updates_per_rollout", 2], 8, "16 optimizer steps, 8 it"),
        (["--budget.samples", 40], 3, "3 optimizer steps, 3 iterations"),
        (["--budget.samples", 40, "--model", "AAPO"], 2, "2 optimizer steps, 2 iterations"),
        (["--budget.samples", 400, "--trainer.max_epochs", 1], 4, "4 optimizer steps, 4 iterations"),
        (["--budget.tokens", 9000], None, "until 9000 tokens are generated"),
        (["--budget.tokens", 9000, "--trainer.max_epochs", 1], 4, "until 9000 tokens are generated, at most 4 "),
        ([], None, "no limit"),
    ],
)
def test_the_first_limit_ends_the_run(lit_rlvr: CLI, options: list[str], iterations: int | None, said: str) -> None:
    """An epoch has four iterations of 16 completions."""
    found = json.loads(lit_rlvr(*DRY, "--json", "--trainer.max_steps", -1, *options).out)
    assert found["run"]["steps"].startswith(said) and found["sizes"]["iterations"] == iterations


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([100], "100, but the run has 6 optimizer steps: the learning rate reaches 0.05 of model.lr=0.001 at most"),
        ([6], "reaches 0.833 of"),
        ([5], None),
        ([9, "--trainer.max_steps", -1, "--budget.samples", 40], "9, but the run has 3 optimizer steps"),
        ([9, "--trainer.max_steps", -1, "--trainer.max_epochs", 2], "but the run has 8 optimizer steps"),
        ([9, "--trainer.max_steps", -1, "--budget.tokens", 40], None),
    ],
)
def test_a_warmup_that_outlasts_the_run_is_said(lit_rlvr: CLI, options: list[Any], said: str | None) -> None:
    done = lit_rlvr(*DRY, "--model.init_args.optim.warmup_steps", *options)
    assert (done.status, "warmup_steps" in done.err, (said or "") in done.err) == (0, said is not None, True)


def test_a_learning_rate_that_destroys_the_policy_is_said(lit_rlvr: CLI) -> None:
    said = "model.lr: 10: AdamW moves each weight by about this much in a step, and weights are about 0.02; take 1e-7"
    assert said in lit_rlvr(*DRY, "--model.init_args.lr", 10).err
    assert "model.lr" not in lit_rlvr(*DRY, "--model.init_args.lr", 10, "--model.init_args.optim.optimizer", "SGD").err


def test_an_unknown_tracker_is_refused_as_in_a_run(lit_rlvr: CLI) -> None:
    lit_rlvr(*DRY, "--trackers", "[no_such]", status=2, says="trackers: 'no_such' is not known; use wandb,")


def test_its_json_holds_the_same(lit_rlvr: CLI) -> None:
    found = json.loads(lit_rlvr(*DRY, "--json", "--warm_start.steps", 10, "--warm_start.checked", 4).out)
    assert (found["run"]["warm start"], len(found["prompts"]["prompts"])) == ("at most 10 supervised steps", 2)
    memory = found["memory"]
    assert memory["fits"] and memory["parameters"] == memory["trained"] > 50_000
    assert 0 < memory["needs"] <= sum(memory["terms"].values()) < memory["of"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rollout.group_size", "1"], "rollout.group_size: 1 is too small"),
        (["--rollout.rewards", "[no_such.reward]"], "no_such"),
        (["--model", "GRPPO"], "GRPPO"),
        (["--data.init_args.prompts_per_rollout", "32"], "prompts_per_rollout"),
    ],
)
def test_it_fails_with_the_line_of_fit(lit_rlvr: CLI, tmp_path: Path, options: list[str], said: str) -> None:
    dry = lit_rlvr(*DRY, *options)
    assert said in dry.refusal
    elsewhere = tmp_path.with_name(tmp_path.name + "-fit")
    assert lit_rlvr(*DRY[:3], *options, "--trainer.default_root_dir", elsewhere).refusal == dry.refusal


def test_a_folder_that_holds_a_run_is_refused(lit_rlvr: CLI, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("runs")
    (root / "summary.json").write_text('{"weights_sha256": null}')
    assert "already holds a run (summary.json)" in lit_rlvr(*DRY, "--trainer.default_root_dir", root).refusal
    assert lit_rlvr(*DRY, "--trainer.default_root_dir", root, "--overwrite", "true").status == 0
    assert os.listdir(root) == ["summary.json"]
