"""Settings: flat names, what differs, what is shared."""

from made_runs import config

from lit_rlvr.commands.report.runs import MISSING, differences, flatten


def test_classes_and_lists_become_flat_names() -> None:
    assert dict(flatten(config(seed=3, betas=[0.9, 0.99]))) == {
        "seed_everything": "3", "trainer.max_steps": "4", "trainer.precision": "32-true",
        "trainer.default_root_dir": "run", "trainer.logger": "null", "model": "GRPO", "model.model": "tiny",
        "model.lr": "0.001", "model.betas": "[0.9, 0.99]", "data": "Arithmetic", "data.prompts_per_rollout": "2",
        "rollout.group_size": "2", "rollout.rewards[0]": "MathAnswer", "rollout.rewards[0].weight": "1.0",
    }  # fmt: skip


def test_differences_come_with_shared_options_first() -> None:
    grpo = dict(flatten(config(dual_clip=3.0)))
    dapo = dict(flatten(config(algorithm="DAPO", lr=0.1)))
    assert differences([grpo, dapo]) == [
        ("model", ["GRPO", "DAPO"]),
        ("model.lr", ["0.001", "0.1"]),
        ("model.dual_clip", ["3.0", MISSING]),
    ]
