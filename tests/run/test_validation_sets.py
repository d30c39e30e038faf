"""Several validation sets in one run, and the checkpoint that is best on one of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import CLI, fit, metrics, questions, tiny_config, to

from lit_rlvr.common.run_files import list_checkpoints
from lit_rlvr.distributed.checkpoints import checkpoint_step

OTHER = {
    "class_path": "Arithmetic",
    "init_args": {"name": "larger", "low": 7, "high": 10, "held_out": 7, "evaluation": {"prompts_per_batch": 4}},
}


def with_others(folder: Path, model: Path, *others: Any) -> None:
    config = tiny_config(model)
    config["data"]["init_args"]["evaluation"]["also_validate"] = list(others)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


def test_each_has_its_metrics(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    with_others(run_folder, tiny_model_folder, OTHER)
    samples = ("--rollout.evaluation.samples", "2", "--rollout.evaluation.sampling.temperature", "1")
    fit(lit_rlvr, *samples, *to("run"))
    rows = [row for row in metrics(run_folder / "run") if row["val/accuracy"]]
    assert len(rows) == 3  # before, after 3 and 6 steps
    for row in rows:
        mean = (float(row["val/larger/accuracy"]) + float(row["val/arithmetic/accuracy"])) / 2
        assert abs(float(row["val/accuracy"]) - mean) < 1e-6
    lines = questions(run_folder / "run")
    assert [(line["step"], line["set"]) for line in lines] == [
        (step, name) for step in (0, 3, 6) for name in ("arithmetic", "larger")
    ]
    accuracies = {int(row["step"]): row for row in rows}
    for line in lines:
        right, counted = (sum(column) for column in zip(*line["questions"].values(), strict=True))
        assert counted == 2 * len(line["questions"]) > 2
        assert abs(right / counted - float(accuracies[line["step"]][f"val/{line['set']}/accuracy"])) < 1e-6
        solved = sum(right > 0 for right, _ in line["questions"].values()) / len(line["questions"])
        assert abs(solved - float(accuracies[line["step"]][f"val/{line['set']}/pass@2"])) < 1e-6, "of 2 samples"


@pytest.mark.slow
def test_each_has_its_number_of_samples_and_greedy_answers(
    run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path
) -> None:
    with_others(run_folder, tiny_model_folder, OTHER)
    samples = ("--rollout.evaluation.samples", "{larger: 4}", "--rollout.evaluation.sampling.temperature", "1")
    fit(lit_rlvr, *samples, "--rollout.evaluation.greedy", "true", *to("run"))
    first = metrics(run_folder / "run")[0]
    refused = fit(
        lit_rlvr, *samples, "--rollout.evaluation.greedy", "true", "--checkpoint.best", "-", *to("best"), status=2
    )
    known = refused.err.partition("; there are ")[2].strip().split(", ")
    chosen = sorted(name for name in first if name.startswith("val/") and not name.endswith(("/fall_z", "/fall_error")))
    assert known == chosen and not (run_folder / "best").exists()
    assert "val/larger/pass@4" in first and "val/arithmetic/pass@1" not in first
    fit(lit_rlvr, *to("greedy"))  # alone, by the temperature of tiny.yaml
    alone = metrics(run_folder / "greedy")[0]
    for name in ("larger", "arithmetic"):
        assert first[f"val/{name}/greedy"] == alone[f"val/{name}/accuracy"]
    assert first["val/larger/accuracy"] != first["val/larger/greedy"]
    fit(
        lit_rlvr,
        "--rollout.evaluation.samples",
        "{large: 4}",
        *samples[2:],
        *to("other"),
        status=2,
        says="evaluation.samples: there is no validation set 'large'; the sets are arithmetic, larger",
    )


def test_a_test_set_is_measured_by_a_command(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    config = tiny_config(tiny_model_folder)
    config["data"] = {"class_path": "MultiStepArithmetic", "init_args": {"problems": 8, "held_out": 8, "tested": 12}}
    (run_folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = lit_rlvr("test", "--config", "tiny.yaml", status=0)
    assert "test/multi_step_arithmetic/accuracy" in done.out and "val/" not in done.out
    lit_rlvr(
        "test",
        "--config",
        "tiny.yaml",
        "--data.init_args.tested",
        0,
        status=2,
        says="multi_step_arithmetic has no test set",
    )


@pytest.mark.slow
def test_the_best_checkpoint_stays(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    with_others(run_folder, tiny_model_folder, OTHER)
    samples = ("--rollout.evaluation.samples", "2", "--rollout.evaluation.sampling.temperature", "1")
    best = ("--checkpoint.best", "val/larger/pass@2", "--rollout.validate_every_rollouts", "1")
    fit(lit_rlvr, *samples, *best, *to("run"))
    values = {
        int(row["step"]): float(row["val/larger/pass@2"]) for row in metrics(run_folder / "run") if row["val/accuracy"]
    }
    values.pop(0)
    found = checkpoint_step(run_folder / "run/checkpoints/best.ckpt")
    assert values[found] == max(values.values()) and found == min(s for s, v in values.items() if v == values[found])
    assert [checkpoint_step(path) for path in list_checkpoints(run_folder / "run")] == [6]
    assert lit_rlvr("export", run_folder / "run/checkpoints/best.ckpt", "--to", (run_folder / "exported")).status == 0


def test_two_sets_of_one_name_are_refused(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    with_others(run_folder, tiny_model_folder, {"class_path": "Arithmetic"})
    assert "two validation sets are called arithmetic" in fit(lit_rlvr, *to("run"), status=2).err
