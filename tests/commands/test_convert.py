"""`lit-rlvr convert` moves former options and leaves everything else as it is."""

from pathlib import Path

import pytest

from lit_rlvr.commands.convert import convert_file, moved_key, run
from lit_rlvr.errors import MOVED, UserError

BEFORE = """\
# a run
model:
  class_path: GRPO
  init_args:
    lr: 1.0e-6  # not stated
    weight_decay: 0.0  # the code's
    max_grad_norm: 1.0  # another comment
    kl_coef: 0.1  # eq. 4
    kl_estimator: k2
    # about the optimizer
    optimizer:
      class_path: torch.optim.SGD
      init_args: {momentum: 0.9}  # x
trainer: {max_steps: 1}
cells:
  one: {model: {init_args: {lr: 4.0e-4, kl_coef: 1, updates_per_rollout: 1, kl_in_reward: true}}}
overrides: {model.init_args.weight_decay: 1}
"""

AFTER = """\
# a run
model:
  class_path: GRPO
  init_args:
    lr: 1.0e-6  # not stated
    optim:
      weight_decay: 0.0  # the code's
      max_grad_norm: 1.0  # another comment
      optimizer:
        class_path: torch.optim.SGD
        init_args: {momentum: 0.9}  # x
    kl: {coef: 0.1, estimator: k2}  # eq. 4
    # about the optimizer
trainer: {max_steps: 1}
cells:
  one: {model: {init_args: {lr: 4.0e-4, kl: {coef: 1, in_reward: true}, updates_per_rollout: 1}}}
overrides: {model.init_args.optim.weight_decay: 1}
"""


def test_a_yaml_file_keeps_its_comments_and_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BEFORE)
    run("convert", [str(path)])
    assert path.read_text() == AFTER
    assert f"{path}: model.init_args.kl_coef -> model.init_args.kl.coef\n" in capsys.readouterr().out
    assert convert_file(path) == {} and path.read_text() == AFTER


def test_options_in_a_script_and_in_markdown(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text(
        "`lit-rlvr fit --model.init_args.kl_coef 0.1 --model.kl_coef=1 --rollout.kl_coef 1 "
        "--rollout.eval_sampling.top_p 1`\n```yaml\n"
        "model: {init_args: {kl_coef: 1}}\n```\n"
    )
    convert_file(path)
    assert path.read_text() == (
        "`lit-rlvr fit --model.init_args.kl.coef 0.1 --model.kl.coef=1 --rollout.kl_coef 1 "
        "--rollout.evaluation.sampling.top_p 1`\n```yaml\n"
        "model: {init_args: {kl: {coef: 1}}}\n```\n"
    )


def test_an_option_moves_to_another_section(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "trainer:\n  val_check_interval: 5  # often\ncells:\n"
        "  one: {trainer: {val_check_interval: 1}, rollout: {a: 3}}\n  r1.5: {trainer: {val_check_interval: 2}}\n"
    )
    convert_file(path)
    assert path.read_text() == (
        "cells:\n  one: {rollout: {a: 3, validate_every_rollouts: 1}}\n"
        "  r1.5: {rollout: {validate_every_rollouts: 2}}\nrollout: {validate_every_rollouts: 5}  # often\n"
    )


def test_an_option_without_a_successor_is_removed_if_it_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "trainer:\n  check_val_every_n_epoch: null\n  max_steps: 4\n"
        "cells:\n  one: {trainer: {check_val_every_n_epoch: null}, seed: 1}\n"
        "  none: {trainer: {check_val_every_n_epoch: 1}}\n"
        "  two: {trainer: {check_val_every_n_epoch: 2}}\n"
    )
    convert_file(path)
    assert path.read_text() == (
        "trainer:\n  max_steps: 4\ncells:\n  one: {seed: 1}\n  none: {}\n"
        "  two: {trainer: {check_val_every_n_epoch: 2}}\n"
    )


def test_a_file_with_both_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {init_args: {kl: {coef: 1}, kl_coef: 2}}\n")
    with pytest.raises(UserError, match=r"run.yaml: has both model.init_args.kl_coef and model.init_args.kl.coef"):
        convert_file(path)
    path.write_text("model: [\n")
    with pytest.raises(UserError, match=r"run.yaml: not valid YAML"):
        convert_file(path)


def test_every_option_has_one_name() -> None:
    for old, new in MOVED.items():
        assert moved_key(old) == new and moved_key(new) is None
