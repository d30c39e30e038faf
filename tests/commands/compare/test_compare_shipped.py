"""Every shipped study: its cells build on a tiny model, and vary what the papers' tables vary."""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from plans import plan_without_trainer
from tiny_built import build_here, every_fourth

from lit_rlvr import advantages as adv
from lit_rlvr.advantages import Advantage
from lit_rlvr.commands.compare.command import check_cells
from lit_rlvr.commands.compare.study import Cell, Study, load_study
from lit_rlvr.configs import config_folder
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.rollout.preflight.sizes import check_settings

pytestmark = pytest.mark.filterwarnings("ignore:.*args parameter is intended to run from within Python.*")
FILES = sorted((config_folder() / "studies").glob("*.yaml"))
STUDIES = {path.stem: load_study(str(path)) for path in FILES}

grpo = adv.GRPOAdvantage()
ladder = [(0.1, 0.3), (0.1, 0.4), (0.2, 0.3), (0.2, 0.4)]
margin = {"delta_low": -0.2, "delta_high": 0.28, "base": "grpo"}
VARIED: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "agrae_control_1": {
        "grpo": ("GRPO", {"advantage": grpo}),
        "positive_dominant": ("GRPO", {"advantage": adv.PositiveDominant(base="grpo", beta=10)}),
        "negative_dominant": ("GRPO", {"advantage": adv.NegativeDominant(base="grpo", beta=10)}),
    },
    "agrae_control_2": {
        "grpo": ("GRPO", {"advantage": grpo}),
        "hard_focused": ("GRPO", {"advantage": adv.HardFocused(base="grpo", gamma=0.5)}),
        "easy_focused": ("GRPO", {"advantage": adv.EasyFocused(base="grpo", gamma=0.5)}),
    },
    "agrae_ablation": {
        "grpo": ("GRPO", {"advantage": grpo}),
        "sample_level": ("GRPO", {"advantage": adv.AGRAE(base="grpo", alpha=1.0, group_level=False)}),
        "group_level": ("GRPO", {"advantage": adv.AGRAE(base="grpo", alpha=1.0, sample_level=False)}),
        "full": ("GRPO", {"advantage": adv.AGRAE(base="grpo", alpha=1.0)}),
    },
    "agrae_main": {
        "grpo": ("GRPO", {"advantage": grpo}),
        "grpo_lead": ("GRPOLead", {}),
        "w_reinforce": ("GRPO", {"advantage": adv.ReinforceAdvantage()}),
        "grpo_agrae": ("GRPO", {"advantage": adv.AGRAE(base="grpo")}),
        "dapo": ("DAPO", {"advantage": grpo}),
        "dapo_agrae": ("DAPO", {"advantage": adv.AGRAE(base="grpo")}),
        "dr_grpo": ("DrGRPO", {"advantage": adv.DrGRPOAdvantage()}),
        "dr_grpo_agrae": ("DrGRPO", {"advantage": adv.AGRAE(base="dr_grpo")}),
    },
    "agrae_deepseek": {
        "grpo": ("GRPO", {"advantage": grpo}),
        "grpo_agrae": ("GRPO", {"advantage": adv.AGRAE(base="grpo")}),
        "dapo": ("DAPO", {"advantage": grpo}),
        "dapo_agrae": ("DAPO", {"advantage": adv.AGRAE(base="grpo")}),
        "dr_grpo": ("DrGRPO", {"advantage": adv.DrGRPOAdvantage()}),
        "dr_grpo_agrae": ("DrGRPO", {"advantage": adv.AGRAE(base="dr_grpo")}),
    },
    **{
        f"agrae_{images}": {
            "grpo": ("GRPO", {"advantage": grpo}),
            "grpo_agrae": ("GRPO", {"advantage": adv.AGRAE(base="grpo", alpha=0.5)}),
            "dapo": ("DAPO", {"advantage": grpo}),
            "dapo_agrae": ("DAPO", {"advantage": adv.AGRAE(base="grpo", alpha=0.5)}),
            "dr_grpo": ("DrGRPO", {"advantage": adv.DrGRPOAdvantage()}),
            "dr_grpo_agrae": ("DrGRPO", {"advantage": adv.AGRAE(base="dr_grpo", alpha=0.5)}),
        }
        for images in ("geo3k", "medical")
    },
    "agrae_controls": {
        "grpo": ("GRPO", {"advantage": grpo}),
        "positive_dominant": ("GRPO", {"advantage": adv.PositiveDominant(base="grpo", beta=10)}),
        "negative_dominant": ("GRPO", {"advantage": adv.NegativeDominant(base="grpo", beta=10)}),
        "group_level": ("GRPO", {"advantage": adv.AGRAE(base="grpo", sample_level=False)}),
        "easy_focused": ("GRPO", {"advantage": adv.EasyFocused(base="grpo", gamma=0.5)}),
        "hard_focused": ("GRPO", {"advantage": adv.HardFocused(base="grpo", gamma=0.5)}),
        "sample_level": ("GRPO", {"advantage": adv.AGRAE(base="grpo", group_level=False)}),
    },
    **{
        f"apmpo_{task}": {name.lower(): (name, {"kl.coef": 0.001}) for name in ("GRPO", "DAPO", "GMPO", "APMPO")}
        for task in ("main", "geo3k", "sql", "diversity")
    },
    **{
        f"aapo_further_{size}": {"aapo": ("AAPO", {"advantage": adv.AAPOAdvantage(**margin)})}
        for size in ("1.5b", "7b")
    },
    "apmpo_pmpo_fac": {
        "grpo": ("GRPO", {"clip_low": 0.2, "clip_high": 0.2}),
        "fac": ("APMPO", {"schedule.power": 1.0, "eps_min": 0.2, "eps_max": 0.4}),
        "pmpo": ("APMPO", {"schedule.power": None, "gamma": 0.8, "eps_min": 0.2, "eps_max": 0.2}),
        "apmpo": ("APMPO", {"schedule.power": None, "gamma": 0.8, "eps_min": 0.2, "eps_max": 0.4}),
    },
    "apmpo_variants": {
        "apmpo": ("APMPO", {"schedule.fss": "ratio", "schedule.power_schedule": "exp", "adaptive_lower": False}),
        "fss_inverse_std": ("APMPO", {"schedule.fss": "inverse_std"}),
        "fss_mean": ("APMPO", {"schedule.fss": "mean"}),
        "linear_p": ("APMPO", {"schedule.power_schedule": "linear"}),
        "adaptive_lower": ("APMPO", {"adaptive_lower": True}),
    },
    "apmpo_gamma": {
        f"gamma_{g}": ("APMPO", {"gamma": g, "eps_min": 0.2, "eps_max": 0.4}) for g in (0.2, 0.4, 0.6, 0.8, 1.0)
    },
    "apmpo_epsilon": {
        f"eps_{low}_{high}": ("APMPO", {"gamma": 0.8, "eps_min": low, "eps_max": high}) for low, high in ladder
    },
    **{
        f"aapo_main{size}": {name.lower(): (name, {}) for name in ("GRPO", "GPG", "AAPO")}
        for size in ("", "_1.5b", "_7b")
    },
    **{
        f"aapo_group_size{model}": {
            f"g{size}": (
                "AAPO",
                {"advantage": adv.AAPOAdvantage(**margin), "loss_options.aggregation": "group_token_mean"},
            )
            for size in (6, 2, 10)
        }
        for model in ("", "_7b")
    },
    **{
        f"aapo_ablation_{size}": {
            "aapo": ("AAPO", {"advantage": adv.AAPOAdvantage(**margin), "reference.update_every": None}),
            "no_clip": ("AAPO", {"advantage": adv.AAPOAdvantage(**margin, clip=False), "reference.update_every": None}),
            "reference_update": ("AAPO", {"advantage": adv.AAPOAdvantage(**margin), "reference.update_every": every}),
        }
        for size, every in (("1.5b", 20), ("7b", 100))
    },
    "smoke": {
        "grpo": ("GRPO", {"advantage": grpo}),
        "grpo_agrae": ("GRPO", {"advantage": adv.AGRAE()}),
        "dapo": ("DAPO", {"clip_high": 0.28}),
        "dr_grpo": ("DrGRPO", {"advantage": adv.DrGRPOAdvantage()}),
        "gmpo": ("GMPO", {"clip_high": 0.4}),
        "apmpo": ("APMPO", {"gamma": 0.8}),
        "aapo": ("AAPO", {"advantage": adv.AAPOAdvantage()}),
        "w_reinforce": ("GRPO", {"advantage": adv.ReinforceAdvantage(), "loss_options.aggregation": "token_mean"}),
    },
}
"""Study -> cell -> algorithm and attributes, from the papers' tables that its comments name."""

GPUS = {"agrae": 8, "apmpo": 4, "aapo_further_1.5b": 2, "aapo_further_7b": 8,
        "aapo_ablation_1.5b": 2, "aapo_ablation_7b": 8, "aapo_main_1.5b": 2, "aapo_main_7b": 8,
        "aapo_group_size_7b": 8, "aapo_group": 2, "aapo_main": 4, "smoke": 1}  # fmt: skip
ENDS = {"agrae_geo3k": ("steps", 20 * 4 * 2), "agrae_medical": ("steps", 10 * 18),
        "agrae": ("steps", 20 * 7 * 4), "apmpo": ("steps", 400 * 2), "aapo_ablation_1.5b": ("steps", 100),
        "aapo_further_1.5b": ("steps", 100), "aapo_further_7b": ("steps", 8523 // 32),
        "aapo_ablation_7b": ("steps", 8523 // 32), "aapo_main_1.5b": ("steps", 100),
        "aapo_group_size_7b": ("steps", 8523 // 32), "aapo_group": ("steps", 100),
        "aapo_main_7b": ("steps", 8523 // 32), "aapo_main": ("steps", 8523 // 8)}  # fmt: skip


def different_cells() -> Iterator[tuple[str, Cell]]:
    """A cell of each algorithm with its options that no study before has; of one seed."""
    seen = set()
    for name, study in STUDIES.items():
        for cell in study.cells:
            if cell.seed == 0 and (cell.task == study.tasks[0] or cell.name == study.baseline):
                algorithm = str(VARIED[name][cell.name])
                if algorithm not in seen:
                    yield name, cell
                seen.add(algorithm)


def of(table: dict[str, Any], study: str) -> Any:
    return next(value for prefix, value in table.items() if study.startswith(prefix))


DECIDING = {
    "aapo_further_1.5b",
    "aapo_main_1.5b",
    "agrae_ablation",
    "agrae_controls",
    "agrae_geo3k",
    "apmpo_diversity",
    "apmpo_sql",
}
"""Studies that decide claims, which three seeds cannot."""


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_varies_what_its_paper_varies(name: str) -> None:
    study: Study = STUDIES[name]
    assert (study.name, study.seeds, study.metric) == (name, list(range(10 if name in DECIDING else 3)), "val/accuracy")
    assert {cell.name for cell in study.cells} == VARIED[name].keys()
    if name != "smoke":
        assert study.budget == of(ENDS, name)
        text = (config_folder() / f"studies/{name}.yaml").read_text()
        for cell in study.cells:
            size = re.search(r"\d(\.\d)?b", cell.task + name)
            assert size is None or size[0] in cell.config["model"]["init_args"]["model"].lower()
        assert re.search(r"^# (.*\n# )?.*\b[Tt]ables? \d|^# .*\(table \d", text, re.M), "says which table it is"


def test_checking_a_study_leaves_its_configs_as_they_are() -> None:
    """They are compared with those of earlier runs; parsing puts objects in the place of rewards."""
    study = load_study("studies/smoke")
    study = replace(study, cells=study.cells[:2])
    before = deepcopy([cell.config for cell in study.cells])
    check_cells(study)
    assert [cell.config for cell in study.cells] == before


@pytest.mark.first_case_fast
@pytest.mark.parametrize(("study", "cell"), every_fourth(different_cells()), ids=str)
def test_every_cell_builds(study: str, cell: Cell, tmp_path: Path, tiny_model_folder: Path, environment: None) -> None:
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump(cell.config))
    more = {"warm_start.steps": 0} if study == "smoke" else {}
    cli = build_here(path, tiny_model_folder, tmp_path / "run", **more)
    module, trainer = cli.model, cli.trainer
    rollout = next(c for c in trainer.callbacks if isinstance(c, RolloutCallback))
    algorithm, attributes = VARIED[study][cell.name]
    assert type(module).__name__ == algorithm
    assert {name: attrgetter(name)(module) for name in attributes} == attributes
    assert isinstance(module.advantage, Advantage)
    prompts = cli.datamodule.prompts_per_rollout
    check_settings(rollout, module, plan_without_trainer(rollout, module, prompts, of(GPUS, study)))
    if study == "smoke":
        assert module.updates_per_rollout >= 2
    else:
        assert trainer.max_steps == STUDIES[study].budget[1]
    if study == "agrae_ablation":  # its suites have pass@256; fig. 10 wants each epoch
        assert rollout.evaluation.greedy and rollout.validate_every_rollouts is None
    elif study.startswith("agrae") and "vl" not in cell.task:
        assert rollout.evaluation.samples == 256 and rollout.validate_every_rollouts == 140
