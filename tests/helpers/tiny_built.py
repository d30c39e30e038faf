"""Runs as the command line builds them, without training."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.cli.lightning_cli import RLVRCLI
from lit_rlvr.run.run import Run


class Built(RLVRCLI):
    """`lit-rlvr fit` up to the moment it would train, without what it writes into the run folder."""

    def _open_run(self, config: Any, folder: Path) -> None:
        self._run, self._settings = Run.find(folder, None, False), config

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def every_fourth(cases: Iterable[Any]) -> list[Any]:
    """Parameters of a test, of which every fourth case is in `make test` and the others are slow."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if i % 4 == 0 else pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


def build_here(config: str | Path, model: Path, root: Path, **more: Any) -> Built:
    """A config with another model, on this machine.

    Args:
        root: the run folder. more: further options by their dotted names.
    """
    swapped = {
        "model.init_args.model": model,
        "rollout.engine": "hf",
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.logger": "false",
        "trainer.default_root_dir": root,
        **more,
    }
    options = [f"--{key}={value}" for key, value in swapped.items()]
    with ExitStack() as until_end:
        return Built(["fit", "--config", str(config), *options], until_end, dry=True)
