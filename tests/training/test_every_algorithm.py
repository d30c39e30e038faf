"""Every algorithm in a real run with a tiny model: the whole loop, and the metrics it logs."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_config, write_config

from lit_rlvr.cli.main import run

RUNS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "GRPO with A-GRAE": (
        "GRPO",
        {"advantage": {"class_path": "AGRAE", "init_args": {"omega_scope": "ema"}}, "loss": {"entropy_coef": 0.01}},
        {"omega", "clip_low", "clip_high"},
    ),
    "DAPO": ("DAPO", {"dynamic_sampling": False}, {"clip_low", "clip_high"}),
    "DrGRPO": ("DrGRPO", {"dual_clip": 3.0, "updates_per_rollout": 2}, {"clip_low"}),
    "GPG": ("GPG", {}, set()),
    "GMPO": ("GMPO", {"updates_per_rollout": 2}, {"clip_low"}),
    "APMPO": ("APMPO", {"updates_per_rollout": 2}, {"p", "fss", "eps_ada", "kl"}),
    "APMPO per group": (
        "APMPO",
        {"schedule": {"statistics": "group"}, "epochs_per_rollout": 2},
        {"p", "fss", "eps_ada", "kl"},
    ),
    "AAPO": ("AAPO", {}, {"margin", "zero_advantage_base"}),
    "Reinforce": ("Reinforce", {}, set()),
    "GRPOLead": ("GRPOLead", {}, {"clip_low"}),
    "GSPO": ("GSPO", {"updates_per_rollout": 2}, {"clip_high"}),
    "CISPO": ("CISPO", {"updates_per_rollout": 2}, {"clip_high"}),
}
ALWAYS = {
    "loss",
    "advantage",
    "zero_advantage",
    "advantage_positive_mass",
    "advantage_negative_mass",
    "entropy",
    "grad_norm",
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("name", RUNS)
def test_an_algorithm_trains_and_logs_what_its_paper_plots(
    name: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, options, logged = RUNS[name]
    config = tiny_config(tiny_model_folder)
    config["model"]["class_path"] = cls
    config["model"]["init_args"] |= options
    config["trainer"] |= {"max_steps": 4, "limit_val_batches": 0}
    monkeypatch.chdir(tmp_path)
    assert run(["fit", "--config", str(write_config(tmp_path / "config.yaml", config))]) == 0
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {f"train/{metric}" for metric in ALWAYS | logged}
    trained = [row for row in rows if row.get("train/loss")]
    assert trained
    for row in trained:
        assert wanted <= set(row)
        assert all(math.isfinite(float(row[metric])) for metric in wanted)
    assert any(float(row["train/grad_norm"]) > 0 for row in trained)
