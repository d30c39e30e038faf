"""Groups of options, of which a config or a command line sets some fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.cli.error_lines import refuse_nulls
from lit_rlvr.cli.lightning_cli import OPTION_GROUPS, ConfigCheck
from lit_rlvr.configs import find_configs
from lit_rlvr.errors import UserError
from lit_rlvr.options import KL, Importance, Loss


@pytest.fixture(scope="module")
def check() -> ConfigCheck:
    return ConfigCheck()


def parsed(check: ConfigCheck, folder: Path, configs: list[str], *options: str) -> tuple[Loss, KL, Importance]:
    """Return the groups that a command line with these configs of a model gives it."""
    arguments = ["--data", "Arithmetic"]
    for i, text in enumerate(configs):
        (folder / f"{i}.yaml").write_text(f"model: {text}\n")
        arguments += ["--config", str(folder / f"{i}.yaml")]
    init: Any = check.parser.parse_line(["fit", *find_configs([*arguments, *options])]).fit.model.init_args
    return Loss(**vars(init.loss)), KL(**vars(init.kl)), Importance(**vars(init.importance))


DAPO = "{class_path: DAPO, init_args: {loss: {entropy_coef: 0.1}}}"
APMPO = "{class_path: APMPO, init_args: {kl: {estimator: k2}}}"


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("configs", "options", "loss", "kl"),
    [
        ([DAPO], [], Loss("token_mean", entropy_coef=0.1), KL()),
        (
            [DAPO, "{init_args: {loss: {count_empty_rows: false}}}"], [],
            Loss("token_mean", count_empty_rows=False, entropy_coef=0.1), KL(),
        ),
        ([DAPO], ["--model.init_args.kl.coef", "0.01"], Loss("token_mean", entropy_coef=0.1), KL(0.01)),
        ([APMPO], ["--model.kl.bias_correction", "true"], Loss(), KL(0.001, "k2", bias_correction=True)),
        ([DAPO], ["--model", "GRPO"], Loss(entropy_coef=0.1), KL()),
        ([DAPO.replace("DAPO", "GRPO")], ["--model", "DAPO"], Loss("token_mean", entropy_coef=0.1), KL()),
        ([DAPO], ["--model", "GSPO"], Loss(entropy_coef=0.1), KL()),
        ([APMPO], ["--model", "DAPO"], Loss("token_mean"), KL(estimator="k2")),
        ([DAPO], ["--model", "APMPO", "--model.kl.estimator", "k1"], Loss(entropy_coef=0.1), KL(0.001, "k1")),
    ],
)  # fmt: skip
def test_a_class_s_own_default_survives_a_group_given_in_part(
    check: ConfigCheck, tmp_path: Path, configs: list[str], options: list[str], loss: Loss, kl: KL
) -> None:
    assert parsed(check, tmp_path, configs, *options) == (loss, kl, Importance())


def test_null_is_no_group(check: ConfigCheck) -> None:
    config = {"data": {"class_path": "Arithmetic"}, "model": {"class_path": "GRPO", "init_args": {"kl": None}}}
    with pytest.raises(UserError, match=r"^model\.init_args\.kl: null is not allowed; leave it out for its default$"):
        refuse_nulls(check.parser.parse_object({"subcommand": "fit", "fit": config}).fit, OPTION_GROUPS)
    with pytest.raises(UserError, match=r"^trainer: None is not a group of options; give them by their names$"):
        check.check({"data": {"class_path": "Arithmetic"}, "model": {"class_path": "GRPO"}, "trainer": None})
